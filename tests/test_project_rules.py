"""Names outside of a lockfile: what a project around them allows, and what they led to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from weightpkg.cli import cli
from weightpkg.errors import DocumentError, LicenseError, NothingFitsError
from weightpkg.settings import Settings

Command = Callable[..., Result]


@pytest.fixture
def weightpkg(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Commands in an empty directory, with an index that has `tiny`, and `little` for it."""
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (settings.index_dir / "aliases").mkdir()
    alias = settings.index_dir / "aliases" / "little.toml"
    alias.write_text('schema = 1\nmodel = "tiny"\n')
    (tmp_path / "project" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "below")

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return run


def project(text: str) -> None:
    """Have a project in the directory above."""
    Path("../weights.toml").write_text(text)


def test_install_keeps_to_the_project_s_licenses(weightpkg: Command, settings: Settings) -> None:
    project('deny = ["MIT"]\n')
    result = weightpkg("install", "tiny")
    assert isinstance(result.exception, LicenseError)
    assert "`tiny-q4 1.0` cannot be used in this project" in result.exception.message
    assert settings.store().installed() == []
    assert not (settings.home / "blobs").exists()
    project('allow-licenses = ["MIT"]\n')
    assert weightpkg("install", "tiny").exit_code == 0


def test_what_nobody_licensed_is_not_installed_where_licenses_are_named(
    weightpkg: Command, settings: Settings
) -> None:
    project('allow-licenses = ["MIT"]\n')
    result = weightpkg("install", str(settings.index_dir / "tiny-q8.gguf"))
    assert isinstance(result.exception, LicenseError)
    assert "its licen" in result.exception.message
    project("")
    assert weightpkg("install", str(settings.index_dir / "tiny-q8.gguf")).exit_code == 0


def test_resolve_keeps_to_the_project_s_licenses(weightpkg: Command) -> None:
    assert weightpkg("resolve", "tiny").exit_code == 0
    project('allow-licenses = ["Apache-2.0"]\n')
    result = weightpkg("resolve", "tiny")
    assert isinstance(result.exception, NothingFitsError)
    assert "`MIT` is not allowed" in result.exception.message
    assert weightpkg("resolve", "tiny", "--allow-license", "MIT").exit_code == 0
    project('deny = ["MIT"]\n')
    assert isinstance(
        weightpkg("resolve", "tiny", "--allow-license", "MIT").exception, NothingFitsError
    )


def test_a_project_s_namespaces_are_known_in_it(
    weightpkg: Command, settings: Settings, tmp_path: Path
) -> None:
    shutil.copytree(settings.index_dir, tmp_path / "acme")
    assert weightpkg("resolve", "acme/tiny").exception is not None
    project('[indexes]\nacme = "../acme"\n')
    assert weightpkg("resolve", "acme/tiny-q8").stdout == "acme/tiny-q8==1.0\n"
    assert weightpkg("install", "acme/tiny-q8").exit_code == 0
    assert [record.full_name for record in settings.store().installed()] == ["tiny-q8"]


@pytest.mark.parametrize("words", [("install", "tiny"), ("resolve", "tiny")])
def test_a_manifest_that_is_wrong_is_said(weightpkg: Command, words: tuple[str, ...]) -> None:
    project("deny = 3\n")
    assert isinstance(weightpkg(*words).exception, DocumentError)


def test_another_pyproject_is_no_project(weightpkg: Command) -> None:
    Path("../pyproject.toml").write_text('[project]\nname = "x"\n')
    assert weightpkg("install", "tiny").exit_code == 0


@pytest.mark.parametrize(
    "words",
    [("install", "little-q8"), ("install", "little", "--dry-run"), ("show", "little"), ("run", "little", "x", "--max-tokens", "1")],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_an_alias_that_was_followed_is_said(weightpkg: Command, words: tuple[str, ...]) -> None:
    assert weightpkg("install", "tiny").exit_code == 0
    result = weightpkg(*words)
    assert result.exit_code == 0, result.exception
    name = words[1]
    assert f"note: `{name}` is an alias: the model is `tiny`" in result.stderr
    assert result.stderr.count("is an alias") == 1
    assert "alias" not in result.stdout


@pytest.mark.parametrize("words", [("install", "tiny"), ("show", "tiny"), ("run", "tiny", "x", "--max-tokens", "1")], ids=lambda w: w[0])  # fmt: skip
def test_what_of_a_page_was_not_understood_is_said(
    weightpkg: Command, settings: Settings, words: tuple[str, ...]
) -> None:
    page = settings.index_dir / "models" / "tiny.toml"
    text = (
        page.read_text()
        .replace("schema = 1", 'schema = "1.9"')
        .replace("task =", "mood = 1\ntask =")
    )
    page.write_text(text)
    result = weightpkg(*words)
    assert result.exit_code == 0, result.exception
    assert "note: models/tiny.toml is of schema 1.9" in result.stderr
    assert "ignored `mood`" in result.stderr
    assert "alias" not in result.stderr


def test_json_is_nothing_but_json(weightpkg: Command) -> None:
    result = weightpkg("install", "little", "--dry-run", "--json")
    assert json.loads(result.stdout)[0]["name"] == "tiny-q4"
