"""A directory that has all that lockfiles need: made, broken off, checked, pruned."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

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


def weightpkg(*words: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    error = result.exception
    assert (
        getattr(error, "exit_code", None) if error else 0
    ) == code or result.exit_code == code, (
        result.output,
        error,
    )
    return result


def test_a_mirror_of_a_lockfile_is_complete(project: Project, tmp_path: Path) -> None:
    directory = tmp_path / "mirror"
    weightpkg("mirror", "create", directory, "--lock", project.lockfile_path)
    mirror = Mirror(directory)
    assert verify(mirror, Silence()) == []
    [need] = mirror.contents().needs
    assert need.name == "weights.lock"
    [package] = need.packages
    assert package.tree is not None
    assert package.pages == ("index/default/models/tiny.toml",)
    names = {path.split("/")[0] for path in mirror.contents().files}
    assert names == {"blobs", "index", "models", "locks"}
    written = (directory / "mirror.toml").read_bytes()
    weightpkg("mirror", "create", directory, "--lock", project.lockfile_path)
    assert (directory / "mirror.toml").read_bytes() == written
