"""weightpkg itself and all that it needs, as wheels, for a machine that has neither.

pip does it: what it downloads is what this environment has, version by version; weightpkg's own wheel is
made of the installed files where there is no index that has it.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import tomli
from packaging.requirements import InvalidRequirement, Requirement

from weightpkg.errors import FetchError
from weightpkg.progress import Progress

_TIMEOUT_S = 1800.0
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
        own = f"weightpkg=={metadata.version('weightpkg')}"
        _pip("download", "--no-deps", "--only-binary", ":all:", "-d", directory, own)
    return sorted(directory.glob("*.whl"))


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
