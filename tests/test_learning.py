"""References whose digest nobody says: `lock` fetches the file once, and says what it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from factories import tiny_llama
from http_server import Site, serve
from weightpkg.cli import cli
from weightpkg.errors import FetchError, LicenseError, ProjectError
from weightpkg.settings import Settings

Command = Callable[..., Result]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serve() as found:
        found.files["/tiny.gguf"] = tiny_llama(tmp_path / "served.gguf").read_bytes()
        yield found


@pytest.fixture
def weightpkg(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, site: Site
) -> Command:
    """Commands in a project that wants a file of a server, of which only the URL is known."""
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("weights.toml").write_text(f'[models]\nfile = "{site.url}/tiny.gguf"\n')

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return run


def digest(site: Site) -> str:
    return hashlib.sha256(site.files["/tiny.gguf"]).hexdigest()


def test_lock_fetches_a_file_to_learn_its_digest(
    weightpkg: Command, site: Site, settings: Settings
) -> None:
    assert weightpkg("lock").exit_code == 0
    text = Path("weights.lock").read_text()
    assert f'sha256 = "{digest(site)}"' in text
    assert f"size = {len(site.files['/tiny.gguf'])}" in text
    assert "blake3 = " in text
    assert site.paths().count("/tiny.gguf") >= 1
    site.files.clear()  # it is here, and is not fetched again
    assert weightpkg("lock", "--check").exit_code == 0
    assert weightpkg("sync", "--frozen").exit_code == 0
    (record,) = settings.store().installed()
    assert record.files[0].sha256.hex in text


def test_add_and_sync_do_so_too(weightpkg: Command, site: Site) -> None:
    Path("weights.toml").write_text("[models]\n")
    assert weightpkg("add", f"{site.url}/tiny.gguf", "--role", "file").exit_code == 0
    assert digest(site) in Path("weights.lock").read_text()
    Path("weights.lock").unlink()
    assert weightpkg("sync").exit_code == 0
    assert digest(site) in Path("weights.lock").read_text()


@pytest.mark.parametrize("option", ["--check", "--dry-run"])
def test_nothing_is_fetched_only_to_look(
    option: str, weightpkg: Command, site: Site, settings: Settings
) -> None:
    result = weightpkg("lock", option)
    assert isinstance(result.exception, ProjectError)
    assert "nobody says what digest `tiny.gguf` has" in result.exception.message
    assert result.exception.hint is not None
    assert result.exception.hint.startswith("`weightpkg lock`, without --check or --dry-run")
    assert site.paths() == []
    assert not Path("weights.lock").exists()


def test_a_dry_run_of_add_fetches_nothing(weightpkg: Command, site: Site) -> None:
    Path("weights.toml").write_text("[models]\n")
    result = weightpkg("add", f"{site.url}/tiny.gguf", "--dry-run")
    assert isinstance(result.exception, ProjectError)
    assert site.paths() == []
    assert Path("weights.toml").read_text() == "[models]\n"


def test_what_the_policy_refuses_is_not_fetched(weightpkg: Command, site: Site) -> None:
    path = Path("weights.toml")
    path.write_text(f'allow-licenses = ["MIT"]\n{path.read_text()}')
    result = weightpkg("lock")
    assert isinstance(result.exception, LicenseError)
    assert site.paths() == []


def test_a_file_that_is_not_there_changes_nothing(weightpkg: Command, site: Site) -> None:
    site.files.clear()
    assert isinstance(weightpkg("lock").exception, FetchError)
    assert not Path("weights.lock").exists()


def test_other_bytes_later_are_refused(
    weightpkg: Command,
    site: Site,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert weightpkg("lock").exit_code == 0
    content = site.files["/tiny.gguf"]
    site.files["/tiny.gguf"] = content[:-1] + bytes([content[-1] ^ 1])
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "another"))
    result = weightpkg("sync", "--frozen")
    assert getattr(result.exception, "exit_code", None) == 3
    assert not (tmp_path / "another" / "installed").is_dir() or not list(
        (tmp_path / "another" / "installed").rglob("*.toml")
    )
