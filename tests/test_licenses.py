"""Licenses that must be accepted: shown before the download, recorded, asked for once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from weightpkg import api
from weightpkg.cli import cli
from weightpkg.errors import LicenseError
from weightpkg.licenses import acceptances, is_restricted, to_accept
from weightpkg.settings import Settings

URL = "https://example.com/terms"
Command = Callable[..., Result]


@pytest.fixture
def restricted(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The index's model comes under terms of its own; the current directory is no project."""
    page = settings.index_dir / "models" / "tiny.toml"
    line = f'license = "LicenseRef-tiny"\nlicense-url = "{URL}"'
    page.write_text(page.read_text().replace('license = "MIT"', line))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    return settings


def weightpkg(*words: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, words, input=stdin)


@pytest.mark.parametrize(
    "name",
    [
        "Apache-2.0",
        "MIT",
        "BSD-3-Clause",
        "CC0-1.0",
        "CC-BY-4.0",
        "ISC",
        "GPL-3.0-only",
        "Unlicense",
    ],
)
def test_most_licenses_ask_nobody(name: str) -> None:
    assert not is_restricted(name)
    assert to_accept(name) == []


@pytest.mark.parametrize(
    "name",
    ["LicenseRef-llama3", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0", "BUSL-1.1", "PolyForm-Noncommercial-1.0.0", "Elastic-2.0"],
)  # fmt: skip
def test_those_that_restrict_use_ask(name: str) -> None:
    assert to_accept(name) == [name]


@pytest.mark.parametrize(
    ("expression", "accepted", "asked"),
    [
        ("MIT OR LicenseRef-x", [], []),
        ("MIT AND LicenseRef-x", [], ["LicenseRef-x"]),
        ("LicenseRef-x OR LicenseRef-y", [], ["LicenseRef-x", "LicenseRef-y"]),
        ("LicenseRef-x OR LicenseRef-y", ["LicenseRef-y"], []),
        ("LicenseRef-x AND LicenseRef-y", ["licenseref-Y"], ["LicenseRef-x", "LicenseRef-y"]),
        ("unknown", [], []),
    ],
)
def test_expressions(expression: str, accepted: list[str], asked: list[str]) -> None:
    assert to_accept(expression, accepted) == asked


def test_it_is_shown_where_nobody_can_be_asked(restricted: Settings) -> None:
    result = weightpkg("install", "tiny")
    assert result.exit_code == 0
    assert f"tiny-q4: licensed as LicenseRef-tiny: {URL}" in result.stderr
    assert acceptances("LicenseRef-tiny", restricted.store()) == []
    assert "licensed as" not in weightpkg("install", "tiny").stderr


def test_nothing_is_downloaded_for_a_project_before_it_is_accepted(restricted: Settings) -> None:
    assert weightpkg("add", "tiny", "--role", "chat").exit_code == 0
    result = weightpkg("sync")
    assert isinstance(result.exception, LicenseError)
    assert result.exception.exit_code == 11
    message = "`tiny-q4`: the license LicenseRef-tiny was not accepted; LicenseRef-tiny: " + URL
    assert result.exception.message == message
    hint = "read it, then `weightpkg install tiny-q4 --accept-license LicenseRef-tiny`"
    assert result.exception.hint == hint
    assert not (restricted.home / "blobs").exists()
    with pytest.raises(LicenseError):
        api.ensure("chat", settings=restricted)
    assert weightpkg("sync", "--dry-run").exit_code == 0


def test_it_is_recorded_and_asked_once(restricted: Settings) -> None:
    assert weightpkg("install", "tiny", "--accept-license", "LicenseRef-tiny").exit_code == 0
    (accepted,) = acceptances("LicenseRef-tiny", restricted.store())
    text = f"LicenseRef-tiny: {URL}\n"
    assert accepted.text.hex == hashlib.sha256(text.encode()).hexdigest()
    assert accepted.who
    assert accepted.when.tzinfo is not None
    assert weightpkg("install", "tiny-q8").exit_code == 0
    assert len(acceptances("LicenseRef-tiny", restricted.store())) == 1


def test_another_text_is_asked_for_again(restricted: Settings) -> None:
    assert weightpkg("install", "tiny", "--accept-license", "LicenseRef-tiny").exit_code == 0
    (restricted.index_dir / "licenses").mkdir()
    (restricted.index_dir / "licenses" / "LicenseRef-tiny.txt").write_text("You owe us a cake.\n")
    result = weightpkg("install", "tiny-q8", "--dry-run")
    assert result.exit_code == 0
    result = weightpkg("install", "tiny-q8")
    assert "tiny-q8: licensed as You owe us a cake." in result.stderr
    weightpkg("uninstall", "tiny-q8")
    weightpkg("gc", "--yes")
    assert weightpkg("install", "tiny").exit_code == 0  # which is here already
    assert weightpkg("install", "tiny-q8", "--accept-license", "licenseref-TINY").exit_code == 0
    assert len(acceptances("LicenseRef-tiny", restricted.store())) == 2


def test_a_person_is_asked_on_a_terminal(
    restricted: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpkg.cli.agreement._is_terminal", lambda: True)
    result = weightpkg("install", "tiny", stdin="n\n")
    assert isinstance(result.exception, LicenseError)
    assert f"tiny-q4: LicenseRef-tiny\n\nLicenseRef-tiny: {URL}" in result.stderr
    assert acceptances("LicenseRef-tiny", restricted.store()) == []
    assert weightpkg("install", "tiny", stdin="y\n").exit_code == 0
    assert len(acceptances("LicenseRef-tiny", restricted.store())) == 1


def test_sync_asks_as_well(restricted: Settings) -> None:
    assert weightpkg("add", "tiny", "--role", "chat").exit_code == 0
    assert "license LicenseRef-tiny" not in Path("weights.toml").read_text()
    assert isinstance(weightpkg("sync", "--frozen").exception, LicenseError)
    with pytest.raises(LicenseError):
        api.load("chat", settings=restricted)
    assert restricted.store().installed() == []
    result = weightpkg("sync", "--frozen", "--accept-license", "LicenseRef-tiny")
    assert result.exit_code == 0
    assert re.search(r"tiny-q4 1\.0 \(LicenseRef-tiny\): fetch", result.stderr)


def test_a_record_that_cannot_be_read_is_named(restricted: Settings) -> None:
    weightpkg("install", "tiny", "--accept-license", "LicenseRef-tiny")
    (restricted.home / "licenses" / "LicenseRef-tiny.toml").write_text("x")
    result = weightpkg("install", "tiny-q8")
    assert result.exit_code == 1
    assert "LicenseRef-tiny.toml" in str(result.exception)
