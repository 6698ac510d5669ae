"""Fixtures for all tests: no network but loopback, no home but a temporary one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from factories import index_page, tiny_llama
from weightpkg.project import Project, lock
from weightpkg.settings import Settings
from weightpkg.store import Store

# no test fails for being slow, as a machine may have other work
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def offline(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Let nobody see the user's home, or connect to anything but this machine.

    Tests that are marked `network` may, as pip's configuration can be in the one and lead to others.
    """
    if request.node.get_closest_marker("network"):
        return
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1", "localhost"}:
            raise AssertionError(f"a test that is not marked `network` connects to {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A store, and an index that has `tiny` in variants `q4` and `q8`, as files of this machine."""
    index = tmp_path / "index"
    (index / "models").mkdir(parents=True)
    q4 = tiny_llama(index / "tiny-q4.gguf", weights="Q4_1")
    q8 = tiny_llama(index / "tiny-q8.gguf", weights="Q8_0")
    (index / "models" / "tiny.toml").write_text(index_page("tiny", {"q4": [q4], "q8": [q8]}))
    environ = {"WEIGHTPKG_HOME": str(tmp_path / "store"), "WEIGHTPKG_INDEX": str(index)}
    return Settings.from_environment(environ)


@pytest.fixture
def locked(tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in the current directory that has `tiny` locked, and its settings in the environment."""
    directory = tmp_path / "project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    for name, value in settings.environ.items():
        monkeypatch.setenv(name, value)
    (directory / "weights.toml").write_text('[models]\nchat = "tiny"\n')
    project = Project(directory / "weights.toml")
    project.write_lockfile(lock(project, settings, print).lockfile)
    return project
