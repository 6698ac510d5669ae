"""A mirror in one file: written, split, told by another one, checked, imported, and lied about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from weightpkg.bundle import verify_bundle
from weightpkg.cli import cli
from weightpkg.mirror import Mirror, verify
from weightpkg.progress import Silence
from weightpkg.project import Project, lock
from weightpkg.settings import Settings

if TYPE_CHECKING:
    from click.testing import Result


@pytest.fixture
def project(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project that has `tiny` locked in the role `chat`, in the current directory."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    for name in ("WEIGHTPKG_HOME", "WEIGHTPKG_INDEX"):
        monkeypatch.setenv(name, settings.environ[name])
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    project.write_lockfile(lock(project, settings, print).lockfile)
    return project


def weightpkg(*words: str | Path) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_a_bundle_is_the_same_bytes_each_time_and_becomes_a_mirror(
    project: Project, tmp_path: Path
) -> None:
    one, other = tmp_path / "one.wpk", tmp_path / "other.wpk"
    weightpkg("bundle", "create", project.lockfile_path, "-o", one)
    weightpkg("bundle", "create", project.lockfile_path, "-o", other)
    assert one.read_bytes() == other.read_bytes()
    assert verify_bundle([one], Silence()).listing.base is None
    weightpkg("bundle", "import", one, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []
    weightpkg("mirror", "create", tmp_path / "created", "--lock", project.lockfile_path)
    assert (tmp_path / "mirror" / "mirror.toml").read_bytes() == (
        tmp_path / "created" / "mirror.toml"
    ).read_bytes()
