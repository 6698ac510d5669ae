"""weightpkg itself and all that it needs, as wheels, for a machine that has neither.

pip does it: what it downloads is what this environment has, version by version. weightpkg's own wheel is
built of the checkout that runs, or made again of the files that were installed: no index need have it.
"""

from __future__ import annotations

import subprocess
import sys
from base64 import urlsafe_b64encode
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import tomli
from packaging.requirements import InvalidRequirement, Requirement

from weightpkg.errors import FetchError
from weightpkg.progress import Progress

_TIMEOUT_S = 1800.0
_ADDED = {"INSTALLER", "RECORD", "REQUESTED", "direct_url.json"}
_PROJECT = Path(__file__).parents[2] / "pyproject.toml"
"""Where the source is, in a checkout."""


def pinned(root: str = "weightpkg") -> list[str]:
    """Return what a distribution needs of this environment, itself left out: `NAME==VERSION` each.

    >>> any(line.startswith("click==") for line in pinned())
    True
    """
    found: dict[str, str] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        for text in _requires(name):
            try:
                requirement = Requirement(text)
            except InvalidRequirement:
                continue
            key = requirement.name.lower().replace("_", "-").replace(".", "-")
            if key in found or (
                requirement.marker and not requirement.marker.evaluate({"extra": ""})
            ):
                continue
            try:
                found[key] = metadata.version(requirement.name)
            except metadata.PackageNotFoundError:
                continue
            waiting.append(requirement.name)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _requires(name: str) -> list[str]:
    if name == "weightpkg" and _PROJECT.is_file():  # what was installed from it may be older
        table = tomli.loads(_PROJECT.read_text(encoding="utf-8"))
        return [str(text) for text in table["project"]["dependencies"]]
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def gather_wheels(directory: Path, progress: Progress) -> list[Path]:
    """Have weightpkg and all that it needs as wheels in a directory; return them, sorted.

    Raises:
        FetchError: pip cannot get them.
    """
    progress.note("asking pip for weightpkg and what it needs")
    _pip("download", "--no-deps", "--only-binary", ":all:", "-d", directory, *pinned())
    if _PROJECT.is_file():
        _pip("wheel", "--no-deps", "-w", directory, _PROJECT.parent)
    else:
        repack(metadata.distribution("weightpkg"), directory)
    return sorted(directory.glob("*.whl"))


def repack(distribution: metadata.Distribution, directory: Path) -> Path:
    """Make the wheel again that a distribution of pure Python was installed from.

    What pip added is left out, and made again by the pip that installs it. The same files give the same
    bytes. Format: https://packaging.python.org/en/latest/specifications/binary-distribution-format/

    Raises:
        FetchError: a file is not as it was installed.
    """
    name, version = distribution.metadata["Name"], distribution.version
    path = directory / f"{name}-{version}-py3-none-any.whl"
    record = f"{name}-{version}.dist-info/RECORD"
    rows: list[str] = []
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for file in sorted(distribution.files or [], key=str):
            if file.name in _ADDED or file.suffix == ".pyc" or ".." in file.parts:
                continue
            content = Path(str(file.locate())).read_bytes()
            digest = urlsafe_b64encode(sha256(content).digest()).decode().rstrip("=")
            if file.hash is None or file.hash.value != digest:
                raise FetchError(
                    f"`{file}` is not as it was installed", hint="`pip install --force-reinstall`"
                )
            archive.writestr(ZipInfo(file.as_posix()), content, ZIP_DEFLATED)
            rows.append(f"{file.as_posix()},sha256={digest},{len(content)}\n")
        archive.writestr(ZipInfo(record), "".join([*rows, f"{record},,\n"]), ZIP_DEFLATED)
    return path


def _pip(*words: str | Path) -> None:
    line = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, words)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FetchError(f"pip cannot be run: {error}") from error
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["it says nothing"]
        raise FetchError(
            f"pip cannot get the wheels: {told[-1]}", hint="`python -m pip install pip` may help"
        )
