"""What a lockfile gives in an empty store, in a damaged one, and to a Python program."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from factories import index_page, tiny_llama
from http_server import Site, serve
from weightpkg import api
from weightpkg.errors import (
    FetchError,
    IntegrityError,
    NotInstalledError,
    ProjectError,
    WeightpkgError,
)
from weightpkg.locking import select, this_platform
from weightpkg.progress import Silence
from weightpkg.project import Indexes, Project, known_facts, lock
from weightpkg.settings import Settings
from weightpkg.store import Store
from weightpkg.syncing import plan_sync, prepare, sync
from weightpkg.verify import verify


@pytest.fixture
def project(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that has `tiny` locked in the role `chat`, in the current directory."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    project.write_lockfile(lock(project, settings, print).lockfile)
    return project


def synced(project: Project, settings: Settings) -> dict[str, str]:
    """Sync without changing the project; return the tree of each role."""
    lockfile = prepare(project, settings, Silence(), frozen=True)
    chosen = select(lockfile, this_platform(), [None])
    indexes = Indexes(project.root, project.manifest, settings)
    steps = plan_sync(chosen.values(), indexes, settings.store())
    done = sync(steps, settings, Silence())
    project.write_lockfile(known_facts(lockfile, settings.store()))
    return {role: str(record.tree) for role, record in zip(chosen, done, strict=True)}


def served(tmp_path: Path, name: str, site: Site) -> Settings:
    """A store of its own, and an index whose files are on a server."""
    index = tmp_path / name / "index"
    (index / "models").mkdir(parents=True)
    path = tiny_llama(index / "tiny-q4.gguf", weights="Q4_1")
    site.files[f"/{name}/tiny-q4.gguf"] = path.read_bytes()
    page = index_page("tiny", {"q4": [path]})
    url = f"{site.url}/{name}/tiny-q4.gguf"
    (index / "models" / "tiny.toml").write_text(page.replace("file:tiny-q4.gguf", url))
    path.unlink()
    home = tmp_path / name / "store"
    return Settings.from_environment(
        {
            "WEIGHTPKG_HOME": str(home),
            "WEIGHTPKG_INDEX": str(index),
            "WEIGHTPKG_NO_ADOPT": "1",
            "HOME": str(tmp_path),
        }
    )


def test_two_stores_get_the_same_trees_from_two_sources(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    with serve() as near, serve() as far:
        one, other = served(tmp_path, "one", near), served(tmp_path, "other", far)
        project.write_lockfile(lock(project, one, print).lockfile)
        first = synced(project, one)
        written = project.lockfile_path.read_bytes()
        near.files.clear()  # what the lockfile remembers is gone; the other index knows better
        assert synced(project, other) == first
        assert far.paths() == ["/other/tiny-q4.gguf"]
    assert project.lockfile_path.read_bytes() == written
    assert b"tree = " in written
    assert b"blake3 = " in written


def test_the_lockfile_s_own_sources_do_when_the_index_has_forgotten(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    with serve() as site:
        settings = served(tmp_path, "one", site)
        project.write_lockfile(lock(project, settings, print).lockfile)
        (settings.index_dir / "models" / "tiny.toml").unlink()
        assert synced(project, settings).keys() == {"chat"}
        shutil.rmtree(settings.home)
        site.files.clear()
        with pytest.raises(FetchError, match="404"):
            synced(project, settings)


def test_other_bytes_of_a_source_are_refused(tmp_path: Path) -> None:
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    with serve() as site:
        settings = served(tmp_path, "one", site)
        project.write_lockfile(lock(project, settings, print).lockfile)
        content = site.files["/one/tiny-q4.gguf"]
        site.files["/one/tiny-q4.gguf"] = content[:-1] + b"!"
        with pytest.raises(IntegrityError):
            synced(project, settings)
    assert settings.store().installed() == []


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)


def _blob(store: Store) -> Path:
    return next(p for p in (store.root / "blobs").rglob("*") if p.is_file() and not p.suffix)


def _weights(store: Store) -> Path:
    return next((store.root / "models").rglob("model.onnx.data"))


DAMAGES: dict[str, Callable[[Store], object]] = {
    "a bit of a blob": lambda store: damage(_blob(store)),
    "a blob": lambda store: _blob(store).unlink(),
    "a bit of a model": lambda store: damage(_weights(store)),
    "a file of a model": lambda store: _weights(store).unlink(),
    "a model": lambda store: shutil.rmtree(_weights(store).parent),
    "a stranger in a model": lambda store: (_weights(store).parent / "x").write_text("x"),
    "its record": lambda store: shutil.rmtree(store.root / "installed"),
    "its seal": lambda store: next((store.root / "sealed").iterdir()).write_text("x"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_store_is_repaired(name: str, project: Project, settings: Settings) -> None:
    first = synced(project, settings)
    DAMAGES[name](settings.store())
    assert synced(project, settings) == first
    assert verify(settings.store(), Silence()) == []


@pytest.mark.parametrize("name", ["a bit of a blob", "a bit of a model"])
def test_what_cannot_be_repaired_is_refused(
    name: str, project: Project, settings: Settings
) -> None:
    synced(project, settings)
    for path in settings.index_dir.glob("*.gguf"):
        path.unlink()
    DAMAGES["a bit of a blob"](settings.store())
    DAMAGES["a bit of a model"](settings.store())
    with pytest.raises(IntegrityError, match="cannot be repaired"):
        synced(project, settings)


def test_a_tree_that_is_not_the_locked_one_is_refused(project: Project, settings: Settings) -> None:
    synced(project, settings)
    lockfile = project.lockfile(print)
    (package,) = lockfile.packages
    other = replace(package, tree=replace(package.tree, hex="0" * 64))  # type: ignore[type-var]
    project.write_lockfile(replace(lockfile, packages=(other,)))
    with pytest.raises(IntegrityError, match="is locked"):
        synced(project, settings)
    with pytest.raises(IntegrityError, match="is locked"):
        api.path("chat", settings=settings)


def test_another_converter_s_tree_is_not_compared(
    project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synced(project, settings)
    monkeypatch.setattr("weightpkg.convert.CONVERTER_VERSION", 99)
    assert synced(project, settings).keys() == first.keys()


def test_a_role_is_what_the_lockfile_says(project: Project, settings: Settings) -> None:
    with pytest.raises(NotInstalledError):
        api.path("chat", settings=settings)
    with api.load("chat", task="text-generation", settings=settings) as model:
        assert model.generate("a", max_tokens=2).tokens
    directory = api.path("chat", settings=settings)
    assert api.path("tiny-q4", settings=settings) == directory
    assert api.ensure("tiny", settings=settings) == directory
    (project.root / "below").mkdir()
    for name in ("tiny-q8", "tiny>=2", "other", "./x.gguf"):
        with pytest.raises(ProjectError, match="is not locked in"):
            api.load(name, settings=settings)


def test_a_role_that_changed_since_it_was_locked_is_refused(
    project: Project, settings: Settings
) -> None:
    project.manifest_path.write_text('[models]\nchat = "tiny-q8"\n')
    with pytest.raises(ProjectError, match="does not have `chat` as the manifest wants it"):
        api.load("chat", settings=settings)
    project.lockfile_path.unlink()
    with pytest.raises(ProjectError, match=r"has no weights\.lock"):
        api.load("chat", settings=settings)


def test_a_role_that_does_not_verify_is_refused(project: Project, settings: Settings) -> None:
    synced(project, settings)
    damage(_weights(settings.store()))
    with pytest.raises(IntegrityError, match="`chat` is not as it was installed"):
        api.load("chat", settings=settings, allow_install=False)


def test_outside_of_a_project_any_name_is_loaded(
    project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert api.ensure("tiny-q8", settings=settings).is_dir()


def test_what_is_sealed_is_not_hashed_again(
    project: Project, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced(project, settings)
    monkeypatch.setattr("weightpkg.verify.verify", lambda *_: pytest.fail("it was hashed"))
    synced(project, settings)
    api.path("chat", settings=settings)


def test_a_source_that_fails_leaves_the_project_as_it_was(
    project: Project, settings: Settings
) -> None:
    before = project.lockfile_path.read_bytes()
    for path in settings.index_dir.glob("*.gguf"):
        path.unlink()
    with pytest.raises(WeightpkgError):
        synced(project, settings)
    assert project.lockfile_path.read_bytes() == before


def test_a_conversion_that_is_not_of_the_files_is_refused(
    project: Project, settings: Settings
) -> None:
    lockfile = project.lockfile(print)
    (package,) = lockfile.packages
    other = replace(package, conversion="0" * 64)
    project.write_lockfile(replace(lockfile, packages=(other,)))
    with pytest.raises(ProjectError, match="is not of its files"):
        synced(project, settings)
    assert settings.store().installed() == []
