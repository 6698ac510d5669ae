"""Audits: what is known of a project's models, and each thing that can be wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from weightpkg.cli import cli
from weightpkg.convert import CONVERTER_VERSION
from weightpkg.digest import Digest
from weightpkg.errors import NotInstalledError, ProjectError, UnsupportedVersionError
from weightpkg.lockfile import dump_lockfile, read_lockfile
from weightpkg.package import parse_source
from weightpkg.settings import Settings
from weightpkg.store import Store

Command = Callable[..., Result]


@pytest.fixture
def weightpkg(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run commands in this process, in a project that has `tiny` synced in the role `chat`."""
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("weights.toml").write_text('[models]\nchat = "tiny"\n')

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    assert run("sync").exit_code == 0
    return run


def edit_page(settings: Settings, *changes: tuple[str, str]) -> None:
    path = settings.index_dir / "models" / "tiny.toml"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def edit_manifest(line: str) -> None:
    Path("weights.toml").write_text(f"{line}\n{Path('weights.toml').read_text()}")


def audited(weightpkg: Command, *words: str, code: int = 0) -> dict[str, Any]:
    """The one model that an audit has."""
    result = weightpkg("audit", "--json", *words)
    assert result.exit_code == code, result.output
    (model,) = json.loads(result.stdout)["models"]
    assert isinstance(model, dict)
    return model


def rules(model: dict[str, Any], level: str) -> list[str]:
    return [finding["rule"] for finding in model["findings"] if finding["level"] == level]


def message(model: dict[str, Any], rule: str) -> str:
    (found,) = [f["message"] for f in model["findings"] if f["rule"] == rule]
    return str(found)


def test_all_that_is_known_of_a_sound_model(weightpkg: Command, settings: Settings) -> None:
    model = audited(weightpkg)
    (record,) = settings.store().installed()
    assert model["findings"] == []
    assert (model["name"], model["version"], model["roles"]) == ("tiny-q4", "1.0", ["chat"])
    assert (model["index"], model["signatures"]) == ("default", None)
    assert model["installed"] is True
    assert model["verified"].endswith("+00:00")
    assert (model["license"], model["accepted"]) == ("MIT", [])
    (file,) = model["files"]
    assert (file["sha256"], file["blake3"]) == (
        record.files[0].sha256.hex,
        record.files[0].blake3.hex,
    )
    conversion = model["conversion"]
    assert record.tree is not None
    assert conversion["tree"] == record.tree.hex
    assert conversion["inputs"] == [file["sha256"]]
    assert conversion["version"] == CONVERTER_VERSION
    exact = {part["kind"]: part["exactness"] for part in conversion["parts"]}
    assert exact == {
        "F32": "equal to the bit",
        "Q4_1": "offsets rounded once",
        "Q8_0": "equal to the bit",
    }


def test_people_read_the_same(weightpkg: Command) -> None:
    result = weightpkg("audit")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny-q4 1.0 (chat)"
    assert "  from        the index default: unsigned, local" in lines
    assert any(line.startswith("              Q4_1: ") for line in lines)
    assert result.stderr.endswith("1 model: 0 errors, 0 warnings, 0 notes\n")


def test_a_yanked_release_is_an_error_with_its_reason(
    weightpkg: Command, settings: Settings
) -> None:
    edit_page(settings, ('changes = "first', 'yanked = "wrong tokenizer"\nchanges = "first'))
    model = audited(weightpkg, code=1)
    assert rules(model, "error") == ["yanked"]
    assert message(model, "yanked") == "1.0 was yanked: wrong tokenizer"


def test_a_newer_release_is_a_note_with_what_changed(
    weightpkg: Command, settings: Settings
) -> None:
    path = settings.index_dir / "models" / "tiny.toml"
    head, mark, release = path.read_text().partition("[[releases]]")
    newer = release.replace('"1.0"', '"1.1"').replace("first release", "a better template")
    path.write_text(head + mark + newer + mark + release)
    model = audited(weightpkg)
    assert message(model, "newer-release") == "there is a newer release: 1.1: a better template"


def test_damage_is_an_error(weightpkg: Command, settings: Settings) -> None:
    blob = settings.store().installed()[0].files[0].sha256
    path = settings.store().blob_path(blob)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)
    model = audited(weightpkg, code=1)
    assert rules(model, "error") == ["damaged"]
    assert model["verified"] is None
    assert "weightpkg verify --repair" in message(model, "damaged")


def test_other_bytes_under_the_same_name_are_an_error(
    weightpkg: Command, settings: Settings
) -> None:
    store = settings.store()
    (record,) = store.installed()
    text = store.record_path(record).read_text()
    store.record_path(record).write_text(text.replace("tiny-q4.gguf", "other.gguf"))
    model = audited(weightpkg, code=1)
    assert "installed-differs" in rules(model, "error")
    assert model["installed"] is False


def test_another_tree_than_the_locked_one_is_an_error(weightpkg: Command) -> None:
    path = Path("weights.lock")
    lockfile = read_lockfile(path.read_bytes(), source="weights.lock", warn=print)
    package = replace(lockfile.packages[0], tree=Digest("sha256", 64 * "a"))
    path.write_bytes(dump_lockfile(replace(lockfile, packages=(package,))))
    assert rules(audited(weightpkg, code=1), "error") == ["tree-differs"]


def test_other_bytes_in_the_index_are_an_error(weightpkg: Command, settings: Settings) -> None:
    digest = settings.store().installed()[0].files[0].sha256.hex
    edit_page(settings, (digest, 64 * "0"))
    model = audited(weightpkg, code=1)
    assert rules(model, "error") == ["index-differs"]
    assert "`tiny-q4.gguf`" in message(model, "index-differs")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('allow-licenses = ["Apache-2.0"]', "`MIT` is not allowed"),
        ('deny = ["MIT"]', "`MIT` is denied"),
    ],
)
def test_a_license_that_the_project_does_not_allow(
    weightpkg: Command, line: str, reason: str
) -> None:
    edit_manifest(line)
    model = audited(weightpkg, code=1)
    assert rules(model, "error") == ["license-refused"]
    assert message(model, "license-refused") == reason


def test_a_license_that_was_not_accepted_is_a_warning(
    weightpkg: Command, settings: Settings
) -> None:
    edit_page(settings, ('license = "MIT"', 'license = "LicenseRef-tiny"'))
    model = audited(weightpkg)
    assert rules(model, "warning") == ["license-changed"]
    assert weightpkg("lock").exit_code == 0
    assert rules(audited(weightpkg), "warning") == ["license-not-accepted"]
    assert weightpkg("audit", "--strict").exit_code == 1
    settings.store().remove(settings.home / "installed")
    for path in (settings.home / "blobs").rglob("*"):
        if path.is_file():
            path.unlink()
    assert weightpkg("sync", "--accept-license", "LicenseRef-tiny").exit_code == 0
    model = audited(weightpkg)
    assert rules(model, "warning") == []
    (accepted,) = model["accepted"]
    assert accepted["license"] == "LicenseRef-tiny"
    assert accepted["who"]
    assert "accepted: LicenseRef-tiny by " in weightpkg("audit").stdout


def test_a_release_that_is_gone_is_a_warning(weightpkg: Command, settings: Settings) -> None:
    (settings.index_dir / "models" / "tiny.toml").unlink()
    model = audited(weightpkg)
    assert rules(model, "warning") == ["gone"]
    assert weightpkg("audit", "--strict").exit_code == 1


def test_a_page_that_cannot_be_read_is_a_warning(weightpkg: Command, settings: Settings) -> None:
    (settings.index_dir / "models" / "tiny.toml").write_text("schema = 1\n")
    assert rules(audited(weightpkg), "warning") == ["index-unreadable"]


def test_a_deprecated_model_is_a_warning(weightpkg: Command, settings: Settings) -> None:
    edit_page(settings, ('tags = ["tests"]', 'tags = ["Deprecated"]'))
    assert rules(audited(weightpkg), "warning") == ["deprecated"]


def test_what_a_lockfile_lacks(settings: Settings, weightpkg: Command) -> None:
    path = Path("weights.lock")
    lockfile = read_lockfile(path.read_bytes(), source="weights.lock", warn=print)
    package = lockfile.packages[0]
    loose = (parse_source("hf:acme/tiny@main/tiny-q4.gguf"),)
    pinned = (parse_source(f"hf:acme/tiny@{40 * 'a'}/tiny-q4.gguf"),)
    bare = replace(package.files[0], size=None, blake3=None, sources=(pinned, loose))
    path.write_bytes(dump_lockfile(replace(lockfile, packages=(replace(package, files=(bare,)),))))
    model = audited(weightpkg)
    assert rules(model, "warning") == ["no-size", "not-pinned"]
    assert message(model, "not-pinned").endswith(": `acme/tiny@main`")
    assert rules(model, "note") == ["no-blake3"]


def test_what_is_not_installed_is_a_note(weightpkg: Command) -> None:
    assert weightpkg("uninstall", "tiny-q4").exit_code == 0
    model = audited(weightpkg)
    assert (model["installed"], model["verified"]) == (False, None)
    assert rules(model, "note") == ["not-installed"]
    assert model["conversion"]["parts"] is None


def test_installed_models_by_name(weightpkg: Command, settings: Settings) -> None:
    assert weightpkg("install", str(settings.index_dir / "tiny-q8.gguf")).exit_code == 0
    named = audited(weightpkg, "tiny-q4")
    assert (named["name"], named["index"], named["license"]) == ("tiny-q4", "default", "MIT")
    assert named["findings"] == []
    result = weightpkg("audit", "--installed", "--json")
    models = json.loads(result.stdout)["models"]
    assert [model["license"] for model in models] == ["MIT", "unknown"]
    assert rules(models[1], "warning") == ["license-unknown"]
    (settings.index_dir / "models" / "tiny.toml").unlink()
    assert "gone" in rules(audited(weightpkg, "tiny-q4"), "warning")


def test_another_lockfile(
    weightpkg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = Path("weights.lock").absolute()
    edit_manifest('deny = ["MIT"]')
    monkeypatch.chdir(tmp_path)
    model = audited(weightpkg, str(path), code=1)
    assert rules(model, "error") == ["license-refused"]  # by the policy beside it
    other = tmp_path / "other.lock"
    other.write_bytes(path.read_bytes())
    assert audited(weightpkg, "other.lock")["findings"] == []


def test_a_model_that_is_not_installed_is_named(weightpkg: Command) -> None:
    result = weightpkg("audit", "tony")
    assert isinstance(result.exception, NotInstalledError)


def test_outside_of_a_project_something_must_be_named(
    weightpkg: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(weightpkg("audit").exception, ProjectError)
    assert weightpkg("audit", "--installed").exit_code == 0


def test_a_lockfile_and_a_name_are_not_mixed(weightpkg: Command) -> None:
    result = weightpkg("audit", "weights.lock", "tiny-q4")
    assert result.exit_code == 2
    assert "name one lockfile, or installed models" in result.stderr


def test_a_newer_lockfile_is_refused(weightpkg: Command) -> None:
    path = Path("weights.lock")
    path.write_text(path.read_text().replace('lock-version = "1.0"', 'lock-version = "9.0"'))
    assert isinstance(weightpkg("audit").exception, UnsupportedVersionError)


def test_a_manifest_of_a_conversion_that_is_damaged_stops_nothing(
    weightpkg: Command, settings: Settings
) -> None:
    store: Store = settings.store()
    (record,) = store.installed()
    assert record.conversion is not None
    path = store.model_path(record.conversion) / "weightpkg.toml"
    path.chmod(0o644)
    path.write_text("not TOML = = ")
    model = audited(weightpkg, code=1)
    assert "damaged" in rules(model, "error")
    assert model["conversion"]["tree"] == record.tree.hex if record.tree else None
