"""Projects from end to end: manifest, lockfile and store by the commands that a user types."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner, Result

from factories import index_page, tiny_llama
from weightpkg import files
from weightpkg.cli import cli
from weightpkg.errors import StoreError, WeightpkgError
from weightpkg.locking import this_platform
from weightpkg.retention import Policy, plan_collection
from weightpkg.settings import Settings
from weightpkg.store import tree_digest

Command = Callable[..., Result]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is the current one."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def weightpkg(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run commands in this process, with the store and index of `settings`."""
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")

    def run(*words: str, fails: bool = False) -> Result:
        result = CliRunner().invoke(cli, words)
        if not fails and result.exception is not None:
            raise result.exception
        return result

    return run


def refused(result: Result) -> WeightpkgError:
    """The error that a command ended with."""
    assert isinstance(result.exception, WeightpkgError), result.exception
    return result.exception


def files_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_model_is_added_locked_and_synced(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    assert "added tiny-q4 1.0 (MIT)" in weightpkg("add", "tiny", "--role", "chat").stderr
    assert 'chat = "tiny"' in (project / "weights.toml").read_text()
    locked = (project / "weights.lock").read_bytes()
    weightpkg("lock", "--check")
    weightpkg("sync", "--frozen")
    assert (project / "weights.lock").read_bytes() == locked
    (record,) = settings.store().installed()
    assert record.full_name == "tiny-q4"
    weightpkg("sync")
    text = (project / "weights.lock").read_text()
    directory = settings.store().model(record.conversion or "")
    assert directory is not None
    assert f'tree = "{tree_digest(directory).hex}"' in text
    before = files_of(project)
    assert "installed" not in weightpkg("sync", "--frozen").stderr
    weightpkg("lock", "--check")
    assert files_of(project) == before


def locked(weightpkg: Command, *names: str) -> None:
    """Have some names locked and synced, and the lockfile with all digests."""
    for name in names or ("tiny",):
        weightpkg("add", name, "--role", name.partition("=")[0])
    weightpkg("sync")


def new_release(
    settings: Settings, version: str, *, yank: str = "", license_id: str = "MIT", old: bool = True
) -> None:
    """Give `tiny` a newer release of the same files, and perhaps yank or drop the older one."""
    page = settings.index_dir / "models" / "tiny.toml"
    head, _, releases = page.read_text().partition("[[releases]]")
    first = f"[[releases]]{releases}"
    newer = first.replace('"1.0"', f'"{version}"').replace("first release", "better template")
    if yank:
        first = first.replace('changes = "first', f'yanked = "{yank}"\nchanges = "first')
    head = head.replace('"MIT"', f'"{license_id}"')
    page.write_text(head + newer + (first if old else ""))


def test_a_lockfile_keeps_what_it_has_until_told_to_upgrade(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    before = (project / "weights.lock").read_bytes()
    new_release(settings, "1.1")
    weightpkg("lock", "--check")
    weightpkg("add", "tiny-q8", "--dev")
    weightpkg("remove", "tiny-q8")
    assert (project / "weights.lock").read_bytes() == before
    rows = json.loads(weightpkg("outdated", "--json").stdout)
    assert [(r["locked"], r["wanted"], r["remark"]) for r in rows] == [
        ("1.0", "1.1", "newer release")
    ]
    assert (
        "changed tiny-q4 1.0 to 1.1" in weightpkg("lock", "--upgrade", "tiny", "--dry-run").stderr
    )
    assert (project / "weights.lock").read_bytes() == before
    (project / "old.lock").write_bytes(before)
    weightpkg("lock", "--upgrade", "tiny")
    text = weightpkg("diff", "old.lock").stdout
    assert "changed tiny-q4 1.0 -> 1.1" in text
    assert "changes in 1.1: better template" in text
    assert weightpkg("diff", "old.lock", "--exit-code", fails=True).exit_code == 1
    assert weightpkg("diff", "weights.lock", "--exit-code").stdout == ""
    assert weightpkg("outdated").stdout == ""


def test_a_manifest_that_asks_for_more_moves_only_that(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg, "tiny", "tiny-q8")
    new_release(settings, "1.1")
    weightpkg("add", "tiny>=1.1", "--role", "tiny")
    text = (project / "weights.lock").read_text()
    assert 'package = "tiny-q4==1.1"' in text
    assert 'package = "tiny-q8==1.0"' in text


def test_a_yanked_release_works_and_warns(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    new_release(settings, "1.1", yank="template was wrong")
    assert (
        "1.0 is locked, and was yanked: template was wrong" in weightpkg("sync", "--frozen").stderr
    )
    assert "was yanked" in weightpkg("lock", "--check").stderr
    assert "yanked: template was wrong" in weightpkg("outdated").stdout


def test_a_release_that_is_gone_is_named_with_what_to_do(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    new_release(settings, "1.1", old=False)
    before = files_of(project)
    error = refused(weightpkg("lock", fails=True))
    assert error.message == "`tiny-q4 1.0` is locked, and the index `default` has it no more"
    assert error.hint == "`weightpkg lock --upgrade tiny` takes another release"
    assert "has it no more" in weightpkg("sync", "--frozen").stderr  # its bytes are here
    assert "gone from the index" in weightpkg("outdated").stdout
    assert files_of(project) == before
    weightpkg("lock", "--upgrade", "tiny")
    weightpkg("lock", "--check")


def test_a_release_that_became_other_bytes_is_refused(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    page = settings.index_dir / "models" / "tiny.toml"
    text = page.read_text()
    digest = re.findall('sha256 = "(.*)"', text)[0]
    page.write_text(text.replace(digest, "0" * 64))
    before = files_of(project)
    error = refused(weightpkg("lock", fails=True))
    assert "is locked with other bytes than the index has today: `tiny-q4.gguf`" in error.message
    weightpkg("sync", "--frozen")
    assert files_of(project) == before


BROKEN = {
    "conflict": ("check = ", "<<<<<<< HEAD\ncheck = ", "is a merge conflict's marker"),
    "version": ('lock-version = "1.0"', 'lock-version = "2.0"', "`lock-version`: is 2.0, and this"),
    "no version": ('lock-version = "1.0"', 'lock-version = "x"', "must be two whole numbers"),
    "digest": ('sha256 = "', 'sha256 = "00', "`packages[0].files[0].sha256`"),
    "other digest": ("size = 67424", "size = 67425", "`tiny-q4 1.0` was edited by hand"),
    "release": ('version = "1.0"\nvariant', 'version = "1.1"\nvariant', "edited by hand"),
    "package": ('package = "tiny-q4==1.0"', 'package = "tiny-q4==1.1"', "which is not there"),
    "key": ('variant = "q4"', 'varaint = "q4"', "`packages[0].variant`: is missing"),
    "more": ('variant = "q4"', 'variant = "q4"\nnaem = "x"', "did you mean `name`?"),
    "not TOML": ("[[packages]]", "[[packages]", "not TOML"),
    "root": ('root = "unsigned"', 'root = "sha256:00"', "has the root unsigned, and the lockfile"),
    "no index": ('name = "default"\nroot', 'name = "acme"\nroot', "of an index that is not there"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize(
    "words", [["lock"], ["lock", "--check"], ["sync"], ["sync", "--frozen"], ["add", "tiny-q8"]],
    ids=" ".join,
)  # fmt: skip
def test_a_broken_lockfile_is_one_clear_error_and_nothing_changes(
    name: str, words: list[str], weightpkg: Command, project: Path, settings: Settings
) -> None:
    weightpkg("add", "tiny")
    old, new, message = BROKEN[name]
    text = (project / "weights.lock").read_text()
    assert old in text
    (project / "weights.lock").write_text(text.replace(old, new, 1))
    before = files_of(project)
    error = refused(weightpkg(*words, fails=True))
    assert message in error.message
    assert error.hint
    assert files_of(project) == before
    assert settings.store().installed() == []


def test_a_newer_minor_version_is_read_with_a_warning(weightpkg: Command, project: Path) -> None:
    weightpkg("add", "tiny")
    path = project / "weights.lock"
    text = path.read_text().replace('"1.0"\ncreated', '"1.7"\ncreated')
    path.write_text(text.replace("[[models]]\n", '[[models]]\nmood = "new"\n'))
    assert (
        "has lock-version 1.7, and this weightpkg knows 1.0" in weightpkg("sync", "--frozen").stderr
    )
    path.write_text(path.read_text().replace("1.7", "1.0"))
    assert (
        "`models[0].mood`: is not a key"
        in refused(weightpkg("sync", "--frozen", fails=True)).message
    )


MANIFESTS = {
    "key": ("allow-license = []\n[models]\n", "did you mean `allow-licenses`?"),
    "models": ('[modles]\nchat = "tiny"\n', "did you mean `models`?"),
    "entry": ('[models]\nchat = { name = "tiny", verison = "1" }\n', "did you mean `version`?"),
    "platform": ('platforms = ["linx"]\n[models]\n', "did you mean `linux`?"),
    "requirement": ('[models]\nchat = "tiny q4"\n', "is not a requirement"),
    "specifier": ('[models]\nchat = { name = "tiny", version = "^1" }\n', "`models.chat.version`"),
    "twice": (
        '[models]\nchat = "tiny"\n[models.dev]\nCHAT = "tiny"\n',
        "has the role `chat` twice",
    ),
    "group": ('[models]\ndev = "tiny"\n[models.Dev]\na = "tiny"\n', "called `dev`"),
    "reserved": ('[models]\nname = "tiny"\n', "cannot be what a role is called"),
    "indexes": ('[indexes]\nacme = "a"\nACME = "b"\n', "is the same namespace as `acme`"),
    "license": ('deny = ["no way"]\n', "is not the SPDX name of a license"),
    "conflict": ("<<<<<<< HEAD\n[models]\n=======\n>>>>>>> b\n", "is a merge conflict's marker"),
    "type": ("[models]\nchat = 7\n", "must be a string"),
    "nested": ("[models.dev]\na.b.c = 1\n", "`models.dev.a"),
}


@pytest.mark.parametrize("name", MANIFESTS)
@pytest.mark.parametrize("words", [["lock"], ["sync"], ["add", "tiny-q8"]], ids=" ".join)
def test_a_mistake_in_a_manifest_is_named(
    name: str, words: list[str], weightpkg: Command, project: Path
) -> None:
    text, message = MANIFESTS[name]
    (project / "weights.toml").write_text(text)
    before = files_of(project)
    assert message in refused(weightpkg(*words, fails=True)).message
    assert files_of(project) == before


def test_frozen_refuses_any_drift(weightpkg: Command, project: Path, settings: Settings) -> None:
    assert "has no weights.lock" in refused(_sync_of(project, weightpkg, "")).message
    weightpkg("add", "tiny", "--role", "chat")
    for text, reason in {
        'chat = "tiny-q8"': "`chat` is locked for `tiny`, and wants `tiny-q8`",
        'chat = "tiny"\nmore = "tiny-q8"': "`more` is not locked",
        "": "`chat` is locked, and not wanted",
    }.items():
        before = (project / "weights.lock").read_bytes()
        error = refused(_sync_of(project, weightpkg, text))
        assert (reason in error.message, error.exit_code) == (True, 10)
        assert (project / "weights.lock").read_bytes() == before
    assert settings.store().installed() == []


def _sync_of(project: Path, weightpkg: Command, text: str) -> Result:
    (project / "weights.toml").write_text(f"[models]\n{text}\n")
    return weightpkg("sync", "--frozen", fails=True)


def test_groups_and_platforms(weightpkg: Command, project: Path, settings: Settings) -> None:
    here, other = this_platform(), "windows-arm64"
    (project / "weights.toml").write_text(
        f'[models]\nchat = {{ name = "tiny", variant = "q4", variants = {{ {here} = "q8" }} }}\n'
        f'far = {{ name = "tiny", variants = {{ {other} = "q4" }} }}\n'
        '[models.dev]\njudge = "tiny-q4"\n'
    )
    weightpkg("lock")
    assert (project / "weights.lock").read_text().count("[[packages]]") == 2
    weightpkg("sync", "--frozen", "--no-dev")
    assert [record.full_name for record in settings.store().installed()] == ["tiny-q8"]
    weightpkg("sync", "--frozen", "--group", "dev")
    assert len(settings.store().installed()) == 2
    assert [row["group"] for row in json.loads(weightpkg("why", "judge", "--json").stdout)] == [
        "dev"
    ]
    tree = weightpkg("tree").stdout
    assert f"chat: tiny-q8 on {here}" in tree
    assert "[dev]" in tree
    assert "far" in weightpkg("why", "tiny-q4").stdout
    lines = weightpkg("export", "--format", "requirements", "--no-dev").stdout.splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["tiny-q4==1.0", "tiny-q8==1.0"]
    assert len(json.loads(weightpkg("export").stdout)["models"]) == 4
    (project / "weights.toml").write_text(f'platforms = ["{other}"]\n[models]\n')
    assert "the project is for windows-arm64" in refused(weightpkg("sync", fails=True)).message


def test_nothing_is_removed_without_prune(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg, "tiny", "tiny-q8")
    weightpkg("remove", "tiny-q8")
    weightpkg("sync")
    assert len(settings.store().installed()) == 2
    assert "uninstalled tiny-q8 1.0" in weightpkg("sync", "--frozen", "--prune").stderr
    assert [record.full_name for record in settings.store().installed()] == ["tiny-q4"]


def test_prune_leaves_what_others_have(
    weightpkg: Command, project: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked(weightpkg, "tiny", "tiny-q8")
    other = project.parent / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    locked(weightpkg, "tiny-q8")
    monkeypatch.chdir(project)
    weightpkg("remove", "tiny-q8")
    weightpkg("sync", "--prune")
    assert len(settings.store().installed()) == 2


def test_collection_keeps_what_a_project_has_locked(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    weightpkg("uninstall", "tiny")
    assert "installed" in weightpkg("sync", "--frozen").stderr
    assert plan_collection(settings.store(), Policy(now=time.time() + 1e6, unused_for_s=1)) == []


def test_a_policy_is_enforced_by_lock_and_by_sync(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    weightpkg("add", "tiny")
    manifest = project / "weights.toml"
    text = manifest.read_text()
    for policy in ('allow-licenses = ["Apache-2.0"]\n', 'deny = ["MIT"]\n'):
        manifest.write_text(policy + text)
        before = files_of(project)
        for words in (["lock"], ["lock", "--check"], ["sync"], ["sync", "--frozen"]):
            error = refused(weightpkg(*words, fails=True))
            assert "`tiny-q4 1.0` cannot be used in this project" in error.message
            assert error.exit_code == 11
        assert files_of(project) == before
    manifest.write_text('allow-licenses = ["MIT"]\n' + text)
    weightpkg("sync", "--frozen")


def test_a_project_may_be_a_table_of_pyproject(weightpkg: Command, project: Path) -> None:
    (project / "pyproject.toml").write_text('[project]\nname = "x"  # mine\n')
    weightpkg("init", "--pyproject")
    weightpkg("add", "tiny", "--role", "chat")
    text = (project / "pyproject.toml").read_text()
    assert text.startswith('[project]\nname = "x"  # mine\n')
    assert '[tool.weightpkg.models]\nchat = "tiny"' in text
    assert "there already" in refused(weightpkg("init", fails=True)).message
    weightpkg("lock", "--check")


def test_a_namespace_has_an_index_of_its_own(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    (project / "ours" / "models").mkdir(parents=True)
    for path in settings.index_dir.glob("*.gguf"):
        (project / "ours" / path.name).write_bytes(path.read_bytes())
    page = (settings.index_dir / "models" / "tiny.toml").read_text()
    (project / "ours" / "models" / "tiny.toml").write_text(page.replace('"1.0"', '"9.0"'))
    (project / "weights.toml").write_text('[indexes]\nacme = "ours"\n[models]\na = "tiny"\n')
    weightpkg("add", "acme/tiny-q8", "--role", "b")
    text = (project / "weights.lock").read_text()
    assert 'package = "tiny-q4==1.0"' in text
    assert 'package = "acme/tiny-q8==9.0"' in text
    weightpkg("sync", "--frozen")
    error = refused(weightpkg("add", "other/tiny", fails=True))
    assert error.message == "no index owns the namespace `other`"
    (project / "weights.toml").write_text('[models]\na = "tiny"\nb = "acme/tiny-q8"\n')
    assert "needs the index `acme`" in refused(weightpkg("sync", "--frozen", fails=True)).message


def test_a_file_that_no_index_names_is_locked_by_its_digest(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    path = settings.index_dir / "tiny-q4.gguf"
    weightpkg("add", str(path), "--role", "chat")
    weightpkg("sync", "--frozen")
    path.write_bytes(path.read_bytes() + b"!")
    weightpkg("uninstall", str(path))
    assert "installed" in weightpkg("sync", "--frozen").stderr  # the blob is kept by the lockfile


def test_a_shell_is_offered_what_is_locked(weightpkg: Command, project: Path) -> None:
    def offered(words: list[str], start: str) -> list[str]:
        complete = BashComplete(cli, {}, "weightpkg", "_WEIGHTPKG_COMPLETE")
        return [item.value for item in complete.get_completions(words, start)]

    assert offered(["remove"], "") == []
    weightpkg("add", "tiny", "--role", "chat")
    assert offered(["remove"], "") == ["chat", "tiny-q4"]
    assert offered(["lock", "--upgrade"], "ti") == ["tiny-q4"]
    assert offered(["why"], "c") == ["chat"]


def test_an_empty_project_is_one(weightpkg: Command, project: Path) -> None:
    assert "wrote weights.toml" in weightpkg("init").stderr
    weightpkg("lock")
    weightpkg("lock", "--check")
    assert json.loads(weightpkg("sync", "--frozen", "--json").stdout) == []
    assert weightpkg("tree").stdout == ""
    weightpkg("add", "tiny")
    weightpkg("remove", "tiny")
    assert "[[" not in (project / "weights.lock").read_text()


def test_what_cannot_be_added_leaves_nothing_behind(weightpkg: Command, project: Path) -> None:
    for words in (["add", "nonesuch"], ["add", "tiny==7"], ["add", "tiny", "--role", "a b"]):
        assert weightpkg(*words, fails=True).exception is not None
        assert list(project.iterdir()) == []
    assert "is not in a project" in refused(weightpkg("sync", fails=True)).message
    weightpkg("add", "tiny")
    before = files_of(project)
    assert "did you mean `tiny`?" in (refused(weightpkg("remove", "tinny", fails=True)).hint or "")
    assert "nothing called `x`" in refused(weightpkg("lock", "--upgrade", "x", fails=True)).message
    assert "is called `x`" in refused(weightpkg("why", "x", fails=True)).message
    weightpkg("add", "tiny-q8", "--dry-run")
    assert files_of(project) == before


def test_two_versions_of_a_model_are_two_packages(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    new_release(settings, "1.1")
    weightpkg("add", "tiny==1.0", "--role", "old")
    weightpkg("add", "tiny", "--role", "new")
    assert (project / "weights.lock").read_text().count("[[packages]]") == 1  # as it will do
    weightpkg("lock", "--upgrade", "new")
    weightpkg("lock", "--check")
    assert weightpkg("tree").stdout.count("tiny-q4 1.") == 2
    weightpkg("sync", "--frozen")
    assert len(settings.store().installed()) == 2
    weightpkg("remove", "old")
    assert [row["locked"] for row in json.loads(weightpkg("outdated", "--json").stdout)] == []


def test_a_store_that_cannot_be_written_is_synced_where_all_is_there(
    weightpkg: Command, project: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked(weightpkg)
    shutil.rmtree(settings.home / "projects")
    shutil.rmtree(settings.home / "sealed")

    def refuse(*_: object, **__: object) -> None:
        raise StoreError("`store`: Read-only file system")

    monkeypatch.setattr("weightpkg.store.Store.write", refuse)
    monkeypatch.setattr("weightpkg.seals._write", refuse)
    assert "does not know of the project" in weightpkg("sync", "--frozen").stderr


def test_a_disk_that_fails_leaves_a_project_as_it_was(
    weightpkg: Command, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weightpkg("add", "tiny")
    before = files_of(project)
    for call in ("create", "write", "fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(files.disk, call, _fail)
            assert "space" in refused(weightpkg("add", "tiny-q8", fails=True)).message
        assert files_of(project) == before
    weightpkg("add", "tiny-q8")


def _fail(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_index_with_another_root_is_refused(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    locked(weightpkg)
    (settings.index_dir / "metadata").mkdir()
    (settings.index_dir / "metadata" / "1.root.json").write_text("{}")
    before = files_of(project)
    for words in (["lock"], ["sync"], ["sync", "--frozen"], ["add", "tiny-q8"]):
        error = refused(weightpkg(*words, fails=True))
        assert "the index `default` has the root sha256:44136fa3" in error.message
        assert "lock --upgrade" in (error.hint or "")
    assert files_of(project) == before
    weightpkg("lock", "--upgrade")
    weightpkg("sync", "--frozen")
    (settings.index_dir / "metadata" / "1.root.json").unlink()
    assert "has the root unsigned" in refused(weightpkg("lock", "--check", fails=True)).message


def test_two_indexes_that_offer_other_files_under_one_name_are_told_apart_and_refused(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    theirs = project / "theirs" / "models"
    theirs.mkdir(parents=True)
    other = tiny_llama(project / "theirs" / "tiny-q4.gguf", weights="Q8_0")
    (theirs / "tiny.toml").write_text(index_page("tiny", {"q4": [other]}))
    wants = '[indexes]\nacme = "theirs"\n[models]\na = "tiny"\n'
    (project / "weights.toml").write_text(wants)
    weightpkg("sync")
    (project / "weights.toml").write_text(f'{wants}b = "acme/tiny"\n')
    before = files_of(project) | files_of(settings.home)
    for words in (["lock"], ["sync"], ["lock", "--upgrade"], ["add", "acme/tiny", "--role", "c"]):
        error = refused(weightpkg(*words, fails=True))
        assert error.exit_code == 10
        assert "`tiny-q4 1.0` and `acme/tiny-q4 1.0` are called alike" in error.message
    assert files_of(project) | files_of(settings.home) == before


def test_two_indexes_that_offer_the_same_files_under_one_name_are_no_trouble(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    theirs = f"{settings.index_dir}"
    wants = f'[indexes]\nacme = "{theirs}"\n[models]\na = "tiny"\nb = "acme/tiny"\n'
    (project / "weights.toml").write_text(wants)
    weightpkg("sync")
    before = files_of(project)
    assert weightpkg("sync", "--frozen").stderr == ""
    assert files_of(project) == before


def test_two_files_that_are_called_alike_are_refused(weightpkg: Command, project: Path) -> None:
    for directory, weights in (("one", "Q4_1"), ("two", "Q8_0")):
        (project / directory).mkdir()
        tiny_llama(project / directory / "model.gguf", weights=weights)
    weightpkg("add", "./one/model.gguf", "--role", "a")
    before = files_of(project)
    error = refused(weightpkg("add", "./two/model.gguf", "--role", "b", fails=True))
    assert "`./one/model.gguf` and `./two/model.gguf` are called alike" in error.message
    assert files_of(project) == before


@pytest.mark.parametrize("name", ["x", "y-q4"])
def test_aliases_in_a_circle_change_nothing(
    weightpkg: Command, project: Path, settings: Settings, name: str
) -> None:
    aliases = settings.index_dir / "aliases"
    aliases.mkdir()
    (aliases / "x.toml").write_text('schema = 1\nmodel = "y"\n')
    (aliases / "y.toml").write_text('schema = 1\nmodel = "x"\n')
    for words in (["show"], ["resolve"], ["install", "--dry-run"], ["install"], ["add"]):
        error = refused(weightpkg(*words, name, fails=True))
        assert "goes in a circle" in error.message
        assert error.exit_code == 7
    assert files_of(project) == {}
    assert not settings.home.exists()


def test_where_all_releases_are_yanked_it_says_so(
    weightpkg: Command, project: Path, settings: Settings
) -> None:
    page = settings.index_dir / "models" / "tiny.toml"
    page.write_text(page.read_text().replace("changes =", 'yanked = "bad template"\nchanges ='))
    error = refused(weightpkg("add", "tiny", fails=True))
    assert error.message == "every release of `tiny` was yanked"
    assert error.hint == "there is 1.0 (yanked: bad template)"
    assert files_of(project) == {}
