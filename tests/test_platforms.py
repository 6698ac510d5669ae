"""Projects for several platforms: one lockfile, and on each the variants that are for it."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from weightpkg import api
from weightpkg.cli import cli
from weightpkg.errors import DocumentError, ProjectError
from weightpkg.locking import this_platform
from weightpkg.settings import Settings

Command = Callable[..., Result]

PLATFORMS = {
    "linux-x86_64": ("Linux", "x86_64"),
    "linux-arm64": ("Linux", "aarch64"),
    "macos-arm64": ("Darwin", "arm64"),
    "windows-x86_64": ("Windows", "AMD64"),
}
EXPECTED = {
    "linux-x86_64": {"chat": "tiny-q8", "embed": "tiny-q4"},
    "linux-arm64": {"chat": "tiny-q4", "embed": "tiny-q4"},
    "macos-arm64": {"chat": "tiny-q4", "embed": "tiny-q8"},
}
MANIFEST = """
platforms = ["linux", "macos-arm64"]
[models]
chat = { name = "tiny", variant = "q4", variants = { linux-x86_64 = "q8" } }
embed = { name = "tiny", variants = { linux = "q4", macos = "q8" } }
"""


@pytest.fixture
def move(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pretend to be on another platform."""

    def to(name: str) -> None:
        system, machine = PLATFORMS[name]
        monkeypatch.setattr(platform, "system", lambda: system)
        monkeypatch.setattr(platform, "machine", lambda: machine)
        assert this_platform() == name

    return to


@pytest.fixture
def weightpkg(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("weights.toml").write_text(MANIFEST)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return run


def test_the_lockfile_is_the_same_wherever_it_is_made(
    weightpkg: Command, move: Callable[[str], None]
) -> None:
    written = set()
    for name in PLATFORMS:
        move(name)
        Path("weights.lock").unlink(missing_ok=True)
        assert weightpkg("lock").exit_code == 0
        written.add(Path("weights.lock").read_bytes())
    assert len(written) == 1
    assert written.pop().count(b"[[packages]]") == 2


@pytest.mark.parametrize("name", EXPECTED)
def test_each_platform_gets_its_own(
    name: str, weightpkg: Command, move: Callable[[str], None], settings: Settings
) -> None:
    move("windows-x86_64")
    assert weightpkg("lock").exit_code == 0
    before = Path("weights.lock").read_bytes()
    move(name)
    assert weightpkg("sync", "--frozen").exit_code == 0
    assert Path("weights.lock").read_bytes() == before
    installed = {record.full_name for record in settings.store().installed()}
    assert installed == set(EXPECTED[name].values())
    for role, package in EXPECTED[name].items():
        (record,) = [r for r in settings.store().installed() if r.full_name == package]
        assert api.path(role, settings=settings) == settings.store().model(record.conversion or "")


def test_the_lockfile_says_all_of_it(weightpkg: Command) -> None:
    assert weightpkg("lock").exit_code == 0
    rows = json.loads(weightpkg("tree", "--json").stdout)
    found = [(row["role"], row["name"], row["platforms"]) for row in rows]
    assert found == [
        ("chat", "tiny-q8", ["linux-x86_64"]),
        ("chat", "tiny-q4", []),
        ("embed", "tiny-q4", ["linux"]),
        ("embed", "tiny-q8", ["macos"]),
    ]


@pytest.mark.parametrize("words", [("sync",), ("sync", "--frozen")])
def test_a_project_is_not_synced_where_it_is_not_for(
    words: tuple[str, ...], weightpkg: Command, move: Callable[[str], None], settings: Settings
) -> None:
    assert weightpkg("lock").exit_code == 0
    move("windows-x86_64")
    result = weightpkg(*words)
    assert isinstance(result.exception, ProjectError)
    message = "the project is for linux, macos-arm64, and this is windows-x86_64"
    assert result.exception.message == message
    assert settings.store().installed() == []


def test_nor_is_anything_of_it_loaded_there(
    weightpkg: Command, move: Callable[[str], None], settings: Settings
) -> None:
    move("linux-arm64")
    assert weightpkg("sync").exit_code == 0
    move("windows-x86_64")
    for ask in (api.path, api.ensure):
        with pytest.raises(ProjectError, match="and this is windows-x86_64"):
            ask("chat", settings=settings)


def test_other_projects_work_everywhere(
    weightpkg: Command, move: Callable[[str], None], settings: Settings
) -> None:
    Path("weights.toml").write_text('[models]\nchat = "tiny"\n')
    move("windows-x86_64")
    assert weightpkg("sync").exit_code == 0
    assert api.path("chat", settings=settings).is_dir()


def test_a_role_that_is_not_for_a_platform_is_not_there(
    weightpkg: Command, move: Callable[[str], None], settings: Settings
) -> None:
    Path("weights.toml").write_text(
        '[models]\nchat = "tiny"\nnpu = { name = "tiny", variants = { windows = "q8" } }\n'
    )
    move("linux-x86_64")
    assert weightpkg("sync").exit_code == 0
    assert [record.full_name for record in settings.store().installed()] == ["tiny-q4"]
    with pytest.raises(ProjectError, match="`npu` is not locked for linux-x86_64"):
        api.path("npu", settings=settings)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('platforms = ["linus"]', "did you mean `linux`?"),
        ('platforms = "linux"', "must be an array"),
        ("platforms = [1]", "must be a string"),
        ('platforms = ["linux-x86"]', "did you mean"),
        ('platforms = [""]', "is not a platform"),
        ('platforms = ["Linux"]', "did you mean `linux`?"),
    ],
)
def test_what_is_no_platform_is_named(weightpkg: Command, line: str, message: str) -> None:
    Path("weights.toml").write_text(f"{line}\n[models]\n")
    result = weightpkg("lock")
    assert isinstance(result.exception, DocumentError)
    assert message in result.exception.message
    assert not Path("weights.lock").exists()
