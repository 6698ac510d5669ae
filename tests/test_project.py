"""Projects from end to end: manifest, lockfile and store by the commands that a user types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from weightpkg.cli import cli
from weightpkg.errors import WeightpkgError
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
