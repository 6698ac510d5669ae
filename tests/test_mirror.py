"""A directory that has all that lockfiles need: made, broken off, checked, pruned, lied by."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from click.testing import CliRunner

from factories import index_page, tiny_llama
from fault_server import fault_server
from http_server import Site, serve
from signed_repository import Repository, alias, page
from test_full_disk import enlarge, mounted
from weightpkg import files
from weightpkg.cli import cli
from weightpkg.errors import (
    DocumentError,
    FetchError,
    IncompleteError,
    IntegrityError,
    StoreError,
    WeightpkgError,
)
from weightpkg.locking import select, this_platform
from weightpkg.mirror.directory import Mirror, verify
from weightpkg.package import HttpsSource
from weightpkg.progress import Silence
from weightpkg.project import Indexes, Project, known_facts, load_lockfile, lock
from weightpkg.replacement import Replacement
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings
from weightpkg.store import MANIFEST, Store
from weightpkg.syncing import plan_sync, prepare, sync

if TYPE_CHECKING:
    from click.testing import Result

    from weightpkg.store import Installed


def weightpkg(*words: str | Path) -> Result:
    """Run a command in this process; it must succeed."""
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*words: str | Path) -> WeightpkgError:
    """Run a command that must fail with one of our errors."""
    error = CliRunner().invoke(cli, [str(word) for word in words]).exception
    assert isinstance(error, WeightpkgError), error
    return error


def made(project: Project, directory: Path, *more: str) -> Mirror:
    weightpkg("mirror", "create", directory, "--lock", project.lockfile_path, *more)
    return Mirror(directory)


def blob_of(mirror: Mirror) -> Path:
    [path] = [p for p in mirror.directory.glob("blobs/sha256/*/*") if p.suffix != ".chunks"]
    return path


def change(path: Path, edit: Callable[[bytes], bytes]) -> None:
    """Change a file's bytes under a new inode, so that no link of it changes, too."""
    content = edit(path.read_bytes())
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def installed_in(home: Path, project: Project, **environ: str) -> list[Installed]:
    """Sync a project, frozen, into a store of its own."""
    settings = Settings.from_environment(
        {
            "WEIGHTPKG_HOME": str(home),
            "WEIGHTPKG_INDEX": os.environ["WEIGHTPKG_INDEX"],
            "WEIGHTPKG_NO_ADOPT": "1",
            "HOME": str(home),
            **environ,
        }
    )
    lockfile = prepare(project, settings, Silence(), frozen=True)
    chosen = select(lockfile, this_platform(), [None])
    indexes = Indexes(project.root, project.manifest, settings)
    steps = plan_sync(chosen.values(), indexes, settings.store())
    return sync(steps, settings, Silence())


def lock_tree(project: Project, settings: Settings) -> None:
    """Have the tree of the conversion in the lockfile."""
    installed_in(settings.home, project)
    lockfile = load_lockfile(project.lockfile_path, print)
    project.write_lockfile(known_facts(lockfile, settings.store()))
    assert b"tree = " in project.lockfile_path.read_bytes()


def lose_sources(settings: Settings) -> None:
    for path in settings.index_dir.glob("*.gguf"):
        path.unlink()


def test_a_mirror_of_a_lockfile_is_complete(locked: Project, tmp_path: Path) -> None:
    mirror = made(locked, tmp_path / "mirror")
    assert verify(mirror, Silence()) == []
    [need] = mirror.contents().needs
    assert need.name == "weights.lock"
    [package] = need.packages
    assert package.tree is not None
    assert package.pages == ("index/default/models/tiny.toml",)
    names = {path.split("/")[0] for path in mirror.contents().files}
    assert names == {"blobs", "index", "models", "locks"}
    written = (mirror.directory / "mirror.toml").stat().st_mtime_ns
    made(locked, mirror.directory)
    assert (mirror.directory / "mirror.toml").stat().st_mtime_ns == written


def test_what_a_store_has_is_not_there_twice(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    installed_in(settings.home, locked)
    mirror = made(locked, tmp_path / "mirror")
    [record] = settings.store().installed()
    one = settings.store().blob_path(record.files[0].sha256).stat()
    other = blob_of(mirror).stat()
    assert one.st_ino == other.st_ino or one.st_dev != other.st_dev or os.uname().sysname != "Linux"
    data = next((mirror.directory / "models").glob("*/model.onnx.data"))
    assert data.stat().st_nlink == 1, "onnx refuses external data with a second name"
    assert (settings.home / "models").is_dir()


def test_what_no_store_has_is_fetched_into_the_mirror_only(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    made(locked, tmp_path / "mirror")
    assert not (settings.home / "blobs").exists() or not list(settings.home.glob("blobs/*/*/*"))


def test_names_and_several_lockfiles_add_up(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    weightpkg("mirror", "create", mirror.directory, "tiny-q8")
    assert [need.name for need in mirror.contents().needs] == ["weights.lock", "tiny-q8==1.0"]
    assert verify(mirror, Silence()) == []
    weightpkg("mirror", "prune", mirror.directory, "--drop", "weights.lock")
    assert [need.name for need in mirror.contents().needs] == ["tiny-q8==1.0"]
    assert verify(mirror, Silence()) == []
    blob_of(mirror)  # one is left
    assert not (mirror.directory / "locks").exists()
    error = refused("mirror", "prune", mirror.directory, "--drop", "nobody")
    assert "`tiny-q8==1.0`" in (error.hint or "")
    assert settings.index_dir.is_dir()


def test_converted_models_can_be_left_out(locked: Project, tmp_path: Path) -> None:
    mirror = made(locked, tmp_path / "mirror", "--no-models")
    assert not (mirror.directory / "models").exists()
    assert verify(mirror, Silence()) == []


def test_a_dry_run_touches_nothing(locked: Project, settings: Settings, tmp_path: Path) -> None:
    directory = tmp_path / "mirror"
    words = ("mirror", "create", directory, "--lock", locked.lockfile_path, "--dry-run", "--json")
    result = CliRunner().invoke(cli, [str(word) for word in words])
    rows = json.loads(result.stdout)
    assert [row["action"] for row in rows] == ["fetch", "convert"]
    assert not directory.exists()
    assert not settings.home.exists() or not list(settings.home.glob("blobs/*/*/*"))


def test_license_texts_and_aliases_come_along(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    index = settings.index_dir
    (index / "aliases").mkdir()
    (index / "aliases" / "small.toml").write_text('schema = 1\nmodel = "tiny"\n')
    (index / "aliases" / "lost.toml").write_text('schema = 1\nmodel = "nowhere"\n')
    (index / "licenses").mkdir()
    (index / "licenses" / "MIT.txt").write_text("Permission is hereby granted\n")
    mirror = made(locked, tmp_path / "mirror")
    [need] = mirror.contents().needs
    assert sorted(need.packages[0].pages) == [
        "index/default/aliases/small.toml",
        "index/default/licenses/MIT.txt",
        "index/default/models/tiny.toml",
    ]


def test_what_cannot_be_had_is_listed_and_is_an_error(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    weightpkg("mirror", "create", tmp_path / "mirror", "tiny-q8")
    (settings.index_dir / "tiny-q4.gguf").unlink()
    error = refused("mirror", "create", tmp_path / "mirror", "--lock", locked.lockfile_path)
    assert isinstance(error, IncompleteError)
    assert error.exit_code != 0
    assert "tiny-q4.gguf" in error.gaps[0]
    mirror = Mirror(tmp_path / "mirror")
    assert [need.name for need in mirror.contents().needs] == ["tiny-q8==1.0"]
    assert verify(mirror, Silence()) == []


DAMAGE: dict[str, tuple[Callable[[Mirror], None], str]] = {
    "a swapped blob": (lambda m: change(blob_of(m), flipped), "corrupt"),
    "a truncated blob": (lambda m: change(blob_of(m), lambda c: c[:-1]), "truncated"),
    "a longer blob": (lambda m: change(blob_of(m), lambda c: c + b"!"), "corrupt"),
    "an empty blob": (lambda m: change(blob_of(m), lambda _: b""), "truncated"),
    "a blob that is gone": (lambda m: blob_of(m).unlink(), "missing"),
    "a blob that is a link": (lambda m: _link(blob_of(m)), "unexpected"),
    "a page": (
        lambda m: change(m.directory / "index/default/models/tiny.toml", flipped),
        "corrupt",
    ),
    "a list of chunks": (lambda m: change(_chunks(m), flipped), "corrupt"),
    "a model's weights": (lambda m: change(_in_model(m, "model.onnx.data"), flipped), "corrupt"),
    "a model's manifest": (lambda m: change(_in_model(m, MANIFEST), flipped), "corrupt"),
    "a model's file that is gone": (lambda m: _in_model(m, "tokenizer.json").unlink(), "missing"),
    "a lockfile": (lambda m: change(next((m.directory / "locks").iterdir()), flipped), "corrupt"),
}


def _link(path: Path) -> None:
    moved = path.with_name("moved")
    path.rename(moved)
    path.symlink_to(moved)


def _chunks(mirror: Mirror) -> Path:
    return next(mirror.directory.glob("blobs/sha256/*/*.chunks"))


def _in_model(mirror: Mirror, name: str) -> Path:
    return next(mirror.directory.glob(f"models/*/{name}"))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_made_good(locked: Project, tmp_path: Path, name: str) -> None:
    mirror = made(locked, tmp_path / "mirror")
    damage, kind = DAMAGE[name]
    damage(mirror)
    problems = verify(mirror, Silence())
    assert any(problem.startswith(f"{kind}: ") for problem in problems), problems
    result = CliRunner().invoke(cli, ["mirror", "verify", str(mirror.directory)])
    assert result.exit_code == 1
    made(locked, mirror.directory)
    left = verify(Mirror(mirror.directory), Silence())
    assert left in ([], [p for p in left if "moved" in p])


@pytest.mark.parametrize("edit", [flipped, lambda c: c[:-1], lambda _: b"", lambda c: c + b"\n"])
def test_a_damaged_list_is_refused(
    locked: Project, tmp_path: Path, edit: Callable[[bytes], bytes]
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    change(mirror.directory / "mirror.toml", edit)
    with pytest.raises(DocumentError):
        verify(mirror, Silence())


def test_what_nobody_put_there_is_named_and_pruned(locked: Project, tmp_path: Path) -> None:
    mirror = made(locked, tmp_path / "mirror")
    stray = mirror.directory / "blobs" / "sha256" / "00" / "stray"
    stray.parent.mkdir()
    stray.write_text("x")
    assert verify(mirror, Silence()) == ["unexpected: `blobs/sha256/00/stray`"]
    weightpkg("mirror", "prune", mirror.directory, "--dry-run")
    assert stray.exists()
    weightpkg("mirror", "prune", mirror.directory)
    assert not stray.parent.exists()
    assert verify(mirror, Silence()) == []


def test_a_store_does_not_become_a_mirror(locked: Project, settings: Settings) -> None:
    error = refused("mirror", "create", settings.home, "--lock", locked.lockfile_path)
    assert isinstance(error, StoreError)
    assert not (settings.home / "mirror.toml").exists()


def test_what_others_may_write_is_named(locked: Project, tmp_path: Path) -> None:
    mirror = made(locked, tmp_path / "mirror")
    blob_of(mirror).chmod(0o664)
    [problem] = verify(mirror, Silence())
    assert problem.startswith("mode: ")


def test_a_second_run_hashes_nothing(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = made(locked, tmp_path / "mirror")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("hashed")

    monkeypatch.setattr("weightpkg.mirror.directory.sound_chunks", fail)
    monkeypatch.setattr("weightpkg.mirror.directory.check_files", fail)
    made(locked, mirror.directory)
    change(blob_of(mirror), bytes)  # the same bytes, but somebody touched them
    with pytest.raises(AssertionError, match="hashed"):
        weightpkg_raises("mirror", "create", mirror.directory, "--lock", locked.lockfile_path)


def weightpkg_raises(*words: str | Path) -> None:
    CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)


def test_a_release_that_became_other_bytes_is_a_gap(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    change(settings.index_dir / "tiny-q4.gguf", flipped)
    error = refused("mirror", "create", tmp_path / "mirror", "--lock", locked.lockfile_path)
    assert isinstance(error, IncompleteError)
    assert not (tmp_path / "mirror" / "mirror.toml").exists()


# --- ends at any point, others at the same time, disks


def _process(*words: str | Path) -> subprocess.Popen[bytes]:
    line = [sys.executable, "-m", "weightpkg", "-q", *map(str, words)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_at_once_make_one_mirror(locked: Project, tmp_path: Path) -> None:
    words = ("mirror", "create", tmp_path / "mirror", "--lock", locked.lockfile_path)
    processes = [_process(*words), _process(*words)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []


@pytest.mark.parametrize("after_s", [0.3, 0.6, 0.9, 1.2])
def test_a_killed_run_is_gone_on_with(locked: Project, tmp_path: Path, after_s: float) -> None:
    words = ("mirror", "create", tmp_path / "mirror", "--lock", locked.lockfile_path)
    process = _process(*words)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    weightpkg(*words)
    mirror = Mirror(tmp_path / "mirror")
    assert verify(mirror, Silence()) == []


@pytest.mark.parametrize("moment", range(0, 60, 6))
def test_an_end_at_any_rename_leaves_a_mirror_that_says_no_more_than_it_has(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    directory, count = tmp_path / "mirror", 0
    weightpkg("mirror", "create", directory, "tiny-q8")
    rename = files.disk.rename

    class Ended(BaseException):
        pass

    def breaking(path: Path, new: Path) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise Ended
        rename(path, new)

    monkeypatch.setattr(files.disk, "rename", breaking)
    with suppress(Ended):
        weightpkg_raises("mirror", "create", directory, "--lock", locked.lockfile_path)
    monkeypatch.setattr(files.disk, "rename", rename)
    problems = verify(Mirror(directory), Silence())
    assert all(problem.startswith("unexpected: ") for problem in problems), problems
    made(locked, directory)
    assert verify(Mirror(directory), Silence()) == []


def test_a_full_disk_is_one_clean_error_and_gone_on_from(locked: Project, tmp_path: Path) -> None:
    directory = tmp_path / "mirror"
    with mounted(directory, "size=256k"):
        error = refused("mirror", "create", directory, "--lock", locked.lockfile_path)
        assert isinstance(error, StoreError | IncompleteError)
        assert not (directory / "mirror.toml").exists()
        enlarge(directory)
        mirror = made(locked, directory)
        assert verify(mirror, Silence()) == []


# --- in place of canonical sources


def served(mirror: Mirror, site: Site, prefix: str = "") -> str:
    """Serve a mirror; return its URL."""
    for path in mirror.directory.rglob("*"):
        if path.is_file() and ".weightpkg" not in path.parts:
            name = path.relative_to(mirror.directory).as_posix()
            site.files[f"{prefix}/{name}"] = path.read_bytes()
    return f"{site.url}{prefix}"


def test_five_sources_and_one_lockfile_give_the_same_tree(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    lock_tree(locked, settings)
    written = locked.lockfile_path.read_bytes()
    mirror = made(locked, tmp_path / "mirror")
    bundle = tmp_path / "site.wpk"
    weightpkg("bundle", "create", locked.lockfile_path, "-o", bundle)
    weightpkg("bundle", "import", bundle, "--into", tmp_path / "unpacked")
    trees = {"the index": _tree(installed_in(tmp_path / "a", locked))}
    lose_sources(settings)
    only = {"WEIGHTPKG_MIRROR_ONLY": "1"}
    with serve() as site:
        url = served(mirror, site)
        found = {
            "a directory": {"WEIGHTPKG_MIRROR": str(mirror.directory), **only},
            "a web server": {"WEIGHTPKG_MIRROR": url, **only},
            "a bundle": {"WEIGHTPKG_MIRROR": str(tmp_path / "unpacked"), **only},
        }
        for i, (name, environ) in enumerate(found.items()):
            trees[name] = _tree(installed_in(tmp_path / f"s{i}", locked, **environ))
    home = tmp_path / "configured"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[source-replacement]\nurl = "{mirror.directory}"\nonly = true\n'
    )
    trees["a configuration"] = _tree(installed_in(home, locked))
    assert len(trees) == 5
    assert len(set(trees.values())) == 1, trees
    assert locked.lockfile_path.read_bytes() == written


def _tree(records: Sequence[Installed]) -> str:
    [record] = records
    return str(record.tree)


def test_a_converted_model_is_taken_and_not_made_again(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_tree(locked, settings)
    mirror = made(locked, tmp_path / "mirror")

    def fail(*_: object) -> None:
        raise AssertionError("converted")

    monkeypatch.setattr("weightpkg.install.convert_blobs", fail)
    with serve() as site:
        [record] = installed_in(tmp_path / "home", locked, WEIGHTPKG_MIRROR=served(mirror, site))
    assert record.tree is not None
    with pytest.raises(AssertionError, match="converted"):
        installed_in(tmp_path / "other", locked)


def test_another_model_under_the_key_is_not_taken(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    lock_tree(locked, settings)
    mirror = made(locked, tmp_path / "mirror")
    with serve() as site:
        for name in (MANIFEST, "model.onnx.data", "model.onnx", "tokenizer.json"):
            url = served(mirror, site)
            [path] = [path for path in site.files if path.endswith(f"/{name}")]
            site.files[path] = flipped(site.files[path])
            [record] = installed_in(tmp_path / name, locked, WEIGHTPKG_MIRROR=url)
            assert record.tree is not None  # it was converted here
    home = Store(tmp_path / MANIFEST)
    assert home.model(record.conversion or "") is not None


def test_an_only_mirror_is_never_gone_around(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    blob_of(mirror).unlink()
    where = {"WEIGHTPKG_MIRROR": str(mirror.directory)}
    with pytest.raises(FetchError):
        installed_in(tmp_path / "a", locked, **where, WEIGHTPKG_MIRROR_ONLY="1")
    [record] = installed_in(tmp_path / "b", locked, **where)
    assert record.tree is not None
    assert settings.index_dir.is_dir()


def test_swapped_blobs_of_a_mirror_are_not_taken(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    with serve() as site:
        url = served(mirror, site)
        [path] = [path for path in site.files if path.startswith("/blobs") and "." not in path]
        site.files[path] = flipped(site.files[path])
        [record] = installed_in(tmp_path / "a", locked, WEIGHTPKG_MIRROR=url)
        found = Store(tmp_path / "a").blob_path(record.files[0].sha256).read_bytes()
        assert hashlib.sha256(found).hexdigest() == record.files[0].sha256.hex
        lose_sources(settings)
        with pytest.raises(IntegrityError):
            installed_in(tmp_path / "b", locked, WEIGHTPKG_MIRROR=url)
        assert not Store(tmp_path / "b").installed()


MIRROR_FAULTS = [
    "truncated", "reset", "stall", "endless", "range-wrong-start", "range-wrong-total",
    "range-ignored-and-truncated", "corrupt-byte", "other-file", "shorter-file", "longer-file",
    "differs-each-time", "gzip", "login-page", "404", "503-always", "redirect-loop", "drip-body",
]  # fmt: skip


def test_mirrors_that_do_badly_are_gone_around(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faults that a server can have, as the mirror: the canonical source has the file then."""
    content = (settings.index_dir / "tiny-q4.gguf").read_bytes()
    monkeypatch.setattr(
        "weightpkg.settings.Settings.replacements", lambda _: (Faulty("http://mirror"),)
    )
    with fault_server(content, drip_s=0.05) as server:
        for name in MIRROR_FAULTS:
            Faulty.url = server.url(name)
            hasty = {"PIP_TIMEOUT": "1", "PIP_RETRIES": "0"}
            [record] = installed_in(tmp_path / name, locked, **hasty)
            assert record.tree is not None, name


class Faulty(Replacement):
    """A mirror whose blob is what a fault server has."""

    url = ""

    def blob(self, digest: object) -> tuple[HttpsSource]:
        assert digest
        return (HttpsSource(Faulty.url),)


def test_a_mirror_that_does_not_answer_is_asked_last_from_then_on(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    path = tiny_llama(settings.index_dir / "other-q4.gguf", weights="Q8_0", seed=3)
    page = index_page("other", {"q4": [path]})
    (settings.index_dir / "models" / "other.toml").write_text(page)
    locked.manifest_path.write_text('[models]\nchat = "tiny"\nmore = "other"\n')
    project = Project(locked.manifest_path)
    project.write_lockfile(lock(project, settings, print).lockfile)
    records = installed_in(tmp_path / "a", project, WEIGHTPKG_MIRROR="http://127.0.0.1:9/nothing")
    assert len(records) == 2


def test_a_mirror_can_be_read_only(locked: Project, settings: Settings, tmp_path: Path) -> None:
    lock_tree(locked, settings)
    mirror = made(locked, tmp_path / "mirror")
    shutil.rmtree(mirror.directory / ".weightpkg")
    for path in [mirror.directory, *mirror.directory.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    lose_sources(settings)
    try:
        [record] = installed_in(
            tmp_path / "a",
            locked,
            WEIGHTPKG_MIRROR=str(mirror.directory),
            WEIGHTPKG_MIRROR_ONLY="1",
        )
        assert record.tree is not None
        assert verify(Mirror(mirror.directory), Silence()) == []
    finally:
        for path in [mirror.directory, *mirror.directory.rglob("*")]:
            path.chmod(0o755)


def test_the_index_of_a_mirror_stands_in(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    lose_sources(settings)
    shutil.rmtree(settings.index_dir)
    monkeypatch.delenv("WEIGHTPKG_INDEX")
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "site"))
    weightpkg("install", "tiny", "--mirror", mirror.directory, "--mirror-only")
    assert [record.full_name for record in Store(tmp_path / "site").installed()] == ["tiny-q4"]


@pytest.fixture
def acme(locked: Project, settings: Settings, tmp_path: Path) -> Repository:
    """As `signed_for`."""
    return signed_for(locked, settings, tmp_path)


def signed_for(locked: Project, settings: Settings, tmp_path: Path) -> Repository:
    """A signed index `acme` in the configuration, whose `tiny` a project has locked."""
    path = settings.index_dir / "tiny-q4.gguf"
    text = page("tiny", content=path.read_bytes())
    text = re.sub("https://models.example/tiny-q.", f"file://{path.parent}/tiny-q4", text)
    pages = {"models/tiny.toml": text, "licenses/LicenseRef-tests.txt": "be good"}
    pages["models/other.toml"] = text.replace('"tiny"', '"other"')
    pages["aliases/little.toml"] = alias("tiny")
    repository = Repository.make(tmp_path / "acme", pages, now=datetime.now(UTC))
    settings.home.mkdir(exist_ok=True)
    (settings.home / "config.toml").write_text(configuration(repository, repository.directory))
    locked.manifest_path.write_text('[models]\nchat = "acme/tiny"\n')
    (locked.root / "weights.lock").unlink()
    project = Project(locked.manifest_path)
    project.write_lockfile(lock(project, settings, print).lockfile)
    return repository


def configuration(repository: Repository, url: object) -> str:
    return f'[indexes.acme]\nurl = "{url}"\nroot-sha256 = "{repository.root_sha256}"\n'


def test_a_signed_index_is_mirrored_whole(
    locked: Project, acme: Repository, settings: Settings, tmp_path: Path
) -> None:
    for _ in range(3):
        acme.rotate_root()
    acme.publish("timestamp")
    mirror = made(locked, tmp_path / "mirror")
    assert verify(mirror, Silence()) == []
    names = {path.removeprefix("index/acme/") for path in mirror.contents().files}
    roots = {f"metadata/{n}.root.json" for n in range(1, 5)}
    assert roots | {"metadata/timestamp.json"} <= names
    assert any(name.endswith("LicenseRef-tests.txt") for name in names)
    lose_sources(settings)
    shutil.rmtree(acme.directory)
    home = tmp_path / "home"
    home.mkdir()
    # one who trusts the first root, and knows nothing since
    repository = SimpleNamespace(root_sha256=mirror_root(mirror))
    (home / "config.toml").write_text(
        configuration(cast("Repository", repository), "https://models.example/index")
    )
    where = {"WEIGHTPKG_MIRROR": str(mirror.directory), "WEIGHTPKG_MIRROR_ONLY": "1"}
    [record] = installed_in(home, Project(locked.manifest_path), **where)
    assert record.tree is not None
    there = Settings.from_environment({"WEIGHTPKG_HOME": str(home), **where})
    index = there.namespaces()[NormalizedName("acme")]
    assert index.model(NormalizedName("tiny")).name == "tiny"
    change(next(mirror.directory.glob("index/acme/targets/models/*.toml")), flipped)
    shutil.rmtree(home / "indexes")
    with pytest.raises(WeightpkgError):
        there.namespaces()[NormalizedName("acme")].model(NormalizedName("tiny"))


def mirror_root(mirror: Mirror) -> str:
    content = (mirror.directory / "index" / "acme" / "metadata" / "1.root.json").read_bytes()
    return hashlib.sha256(content).hexdigest()


def test_a_signed_index_that_moves_on_is_mirrored_as_one_whole(
    locked: Project, acme: Repository, settings: Settings, tmp_path: Path
) -> None:
    mirror = made(locked, tmp_path / "mirror")
    before = set(mirror.contents().files)
    path = settings.index_dir / "tiny-q4.gguf"
    text = page("tiny", summary="Another summary", content=path.read_bytes())
    acme.publish(acme.add("models/tiny.toml", text))
    weightpkg("mirror", "create", mirror.directory, "acme/other-q4")
    after = set(mirror.contents().files)
    gone = sorted(path.rpartition("/")[2] for path in before - after)
    assert any(name.endswith(".tiny.toml") for name in gone)
    assert any(name.endswith(".snapshot.json") for name in gone)
    weightpkg("mirror", "prune", mirror.directory)
    assert verify(mirror, Silence()) == []
    where = {"WEIGHTPKG_MIRROR": str(mirror.directory), "WEIGHTPKG_MIRROR_ONLY": "1"}
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(configuration(acme, "https://models.example/index"))
    there = Settings.from_environment({"WEIGHTPKG_HOME": str(home), **where})
    index = there.namespaces()[NormalizedName("acme")]
    assert index.model(NormalizedName("tiny")).summary == "Another summary"
    assert index.model(NormalizedName("other")).name == "other"


@pytest.mark.parametrize(
    "text",
    [
        "ftp://a/b",
        "https://user:secret@a/b",
        "https://a/b?x=1",
        "https://a/b#c",
        "http:///x",
        "s3://a",
    ],
)
def test_what_is_no_mirror_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a directory nor"):
        Replacement(text)


def test_a_mistake_in_the_configuration_is_named(locked: Project, settings: Settings) -> None:
    settings.home.mkdir(exist_ok=True)
    for text, part in (
        ('[source-replacement]\nurls = "x"\n', "url"),
        ('[source-replacement]\nurl = "ftp://x"\n', "neither"),
        ('[source-replacement]\nurl = "/x"\nonly = 1\n', "true or false"),
    ):
        (settings.home / "config.toml").write_text(text)
        error = refused("sync")
        assert isinstance(error, DocumentError)
        assert part in error.message
    assert locked.lockfile_path.exists()
