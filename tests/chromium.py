"""Debian's Chromium: the machine's own, or its packages unpacked beside the tests, where they leave nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PACKAGES = ("chromium", "fonts-dejavu-core")
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig>
<include ignore_missing="yes">/etc/fonts/fonts.conf</include>
<dir>/usr/share/fonts</dir><dir>{root}/usr/share/fonts</dir><cachedir>{root}/fonts</cachedir>
</fontconfig>
"""


@contextmanager
def launched(cache: Path) -> Iterator[Browser]:
    """Have Chromium run; `cache` keeps what had to be downloaded, for all processes of the tests."""
    program, environ = _chromium(cache)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program,
            chromium_sandbox=False,  # it refuses to run as root with one
            env={**os.environ, **environ, "HOME": str(cache)},
        )
        yield browser
        browser.close()


def _chromium(cache: Path) -> tuple[Path, dict[str, str]]:
    """Return the program, and what its environment needs."""
    if found := shutil.which("chromium"):
        return Path(found), {}
    root = cache / "chromium"
    with FileLock(cache / "chromium.lock"):
        if not root.is_dir():
            _unpack(cache, root)
    libraries = sorted({str(file.parent) for file in root.rglob("*.so*")})
    environ = {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "FONTCONFIG_FILE": str(root / "fonts.conf"),
    }
    return root / "usr" / "lib" / "chromium" / "chromium", environ


def _unpack(cache: Path, root: Path) -> None:
    """Fetch the packages, and those of their libraries that the machine lacks."""
    (cache / "archives" / "partial").mkdir(parents=True)
    if _fetch(cache).returncode:  # no lists here, or old ones
        lists = f"Dir::State::lists={cache}/lists"
        (cache / "lists" / "partial").mkdir(parents=True)
        _apt(cache, "-o", lists, "update").check_returncode()
        _fetch(cache, "-o", lists).check_returncode()
    making = cache / "making"
    making.mkdir()
    (making / "fonts.conf").write_text(_FONTS.format(root=root))
    for package in sorted((cache / "archives").glob("*.deb")):
        subprocess.run([_tool("dpkg-deb"), "-x", package, making], check=True)
        package.unlink()
    making.rename(root)


def _fetch(cache: Path, *options: str) -> subprocess.CompletedProcess[bytes]:
    chosen = ("--yes", "--download-only", "--no-install-recommends")
    return _apt(cache, *options, *chosen, "install", *PACKAGES)


def _apt(cache: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run apt-get, which writes to the cache alone."""
    own = ("-o", f"Dir::Cache={cache}", "-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=")
    return subprocess.run([_tool("apt-get"), "-q", *own, *arguments], check=False)


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip("neither Chromium nor Debian's packages are to be had")
    return found
