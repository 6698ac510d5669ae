"""weightpkg's own wheel, and a machine that has nothing but Python and a bundle's wheels."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from weightpkg.errors import FetchError
from weightpkg.mirror.wheels import gather_wheels, repack
from weightpkg.progress import Silence


def installed(directory: Path, *wheels: str | Path) -> metadata.Distribution:
    """Install wheels into a directory, without what they need; return the first one found there."""
    words = ["install", "-q", "--no-index", "--no-deps", "--target", directory, *wheels]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    (distribution,) = metadata.distributions(path=[str(directory)])
    return distribution


@pytest.fixture
def click(tmp_path: Path) -> metadata.Distribution:
    """A distribution of pure Python, in a directory of its own, as pip made it of its wheel."""
    folder = tmp_path / "site"
    own = metadata.distribution("click")
    for file in own.files or []:
        if ".." not in file.parts:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(str(file.locate()), target)
    (distribution,) = metadata.distributions(path=[str(folder)])
    return distribution


def test_what_is_made_of_installed_files_installs_the_same_again(
    click: metadata.Distribution, tmp_path: Path
) -> None:
    wheel = repack(click, tmp_path)
    again = installed(tmp_path / "again", wheel)
    assert again.version == click.version
    assert list(again.entry_points) == list(click.entry_points)
    sources = [file for file in click.files or [] if file.suffix == ".py"]
    assert len(sources) > 10
    for file in sources:
        assert (tmp_path / "again" / file).read_bytes() == Path(str(file.locate())).read_bytes()
    assert repack(again, tmp_path / "again").read_bytes() == wheel.read_bytes()
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith((".pyc", "INSTALLER", "direct_url.json"))]


def test_a_file_that_was_changed_is_not_carried_on(
    click: metadata.Distribution, tmp_path: Path
) -> None:
    path = tmp_path / "site" / "click" / "core.py"
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(FetchError, match=r"click/core\.py.* is not as it was installed"):
        repack(click, tmp_path)


@pytest.mark.network
@pytest.mark.timeout(300)
def test_a_bare_machine_starts_from_the_wheels_alone(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    wheels = gather_wheels(tmp_path / "wheels", Silence())
    assert [wheel.name for wheel in wheels if wheel.name.startswith("weightpkg-")]
    venv.create(tmp_path / "bare", with_pip=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "-q", "--no-index", "--find-links", "wheels"]
    subprocess.run([*pip, "weightpkg"], check=True, cwd=tmp_path)
    line = [python, "-m", "weightpkg", "show", "smollm2-135m-q4", "--json"]
    shown = subprocess.run(line, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert '"smollm2-135m"' in shown.stdout
