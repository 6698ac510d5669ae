"""A disk that is really full, of bytes or of files: a clean error, and on it goes when there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from durability import (
    COMMANDS,
    LARGE_SIZE,
    Bench,
    Command,
    add_large,
    check_store,
    end,
    find,
    put_model,
    report,
    start,
)
from weightpkg import files
from weightpkg.errors import StoreError, WeightpkgError
from weightpkg.progress import Silence
from weightpkg.settings import Settings
from weightpkg.verify import verify

KIB = 1024


@contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    """Have a small disk of its own at a path; skip where that is not allowed."""
    path.mkdir(exist_ok=True)
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        pytest.skip("there is no `mount` here")
    line = [mount, "-t", "tmpfs", "-o", options, "weightpkg", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([unmount, "--lazy", str(path)], check=True)


def enlarge(path: Path) -> None:
    """Give the disk room for 32 MiB."""
    line = [str(shutil.which("mount")), "-o", "remount,size=32m", "weightpkg", str(path)]
    subprocess.run(line, check=True)


def fill(home: Path, *, leave: int) -> Path:
    """Write a file that leaves so many bytes free."""
    path = home / "filler"
    with path.open("wb", buffering=0) as stream:
        size = shutil.disk_usage(home).free - leave
        stream.write(bytes(max(0, size)))
    return path


def use_up_files(home: Path, *, leave: int) -> Path:
    """Make files until only so many more can be made."""
    directory = home / "filler"
    directory.mkdir()
    for i in range(max(0, os.statvfs(home).f_ffree - leave)):
        (directory / str(i)).touch()
    return directory


def check_whole(settings: Settings) -> None:
    check_store(settings.home)
    assert verify(settings.store(), Silence()) == []


def test_a_disk_without_room_for_the_last_bytes(settings: Settings) -> None:
    n_full = 0
    with mounted(settings.home, "size=8m"):
        for leave in range(0, 640 * KIB, 8 * KIB):
            filler = fill(settings.home, leave=leave)
            try:
                put_model(settings, "tiny-q4")
                filler.unlink()
                break
            except StoreError as error:
                assert "`weightpkg gc`" in (error.hint or ""), error  # noqa: PT017  not every run fails
                n_full += 1
            check_whole(settings)
            assert find(settings, "tiny-q4") is None
            filler.unlink()
            put_model(settings, "tiny-q4")
            check_whole(settings)
            shutil.rmtree(settings.home / "installed")
            shutil.rmtree(settings.home / "models")
            shutil.rmtree(settings.home / "blobs")
        check_whole(settings)
    assert n_full > 5
    report("full disk: bytes", n_full, 0)


def test_a_disk_without_room_for_the_last_files(settings: Settings) -> None:
    n_full = 0
    with mounted(settings.home, "size=8m,nr_inodes=64"):
        for leave in range(64):
            filler = use_up_files(settings.home, leave=leave)
            try:
                put_model(settings, "tiny-q4")
                shutil.rmtree(filler)
                break
            except StoreError:
                n_full += 1
            check_whole(settings)
            shutil.rmtree(filler)
            put_model(settings, "tiny-q4")
            check_whole(settings)
            for path in settings.home.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        check_whole(settings)
    assert n_full > 10
    report("full disk: files", n_full, 0)


def test_a_download_goes_on_when_there_is_room(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_large(settings)
    with mounted(settings.home, "size=8m"):
        with monkeypatch.context() as patch:  # somebody else takes the room after it was looked for
            patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
            with pytest.raises(StoreError, match="no space left"):
                put_model(settings, "large-raw", allow_conversion=False)
        check_whole(settings)
        (partial,) = (p for p in settings.home.glob("partial/*") if not p.suffix)
        assert partial.stat().st_size > LARGE_SIZE // 2
        before = partial.stat().st_ino
        enlarge(settings.home)
        record = put_model(settings, "large-raw", allow_conversion=False)
        assert settings.store().blob_path(record.files[0].sha256).stat().st_ino == before
        check_whole(settings)
    report("full disk: a download", 1, 0)


@pytest.mark.parametrize("options", ["size=8m", "size=8m,nr_inodes=64"])
def test_the_command_line_ends_with_its_exit_code(settings: Settings, options: str) -> None:
    add_large(settings)
    line = [sys.executable, "-m", "weightpkg", "install", "--no-convert", "large-raw"]
    environ = {**os.environ, **settings.environ}
    with mounted(settings.home, options):
        if "inodes" in options:
            enlarge(settings.home)
            filler = use_up_files(settings.home, leave=3)
        done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 6, done.stderr
        assert "Traceback" not in done.stderr
        assert "hint: `weightpkg gc`" in done.stderr
        check_whole(settings)
        if "inodes" in options:
            shutil.rmtree(filler)
        else:
            enlarge(settings.home)
        subprocess.run(line, env=environ, capture_output=True, check=True)
        check_whole(settings)
        assert find(settings, "large-raw")
    report(f"full disk: the command line, {options}", 1, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_process_that_may_open_no_more_files(
    settings: Settings, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource  # noqa: PLC0415  not on Windows

    def act() -> None:
        taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
        free = (number for number in count() if number not in taken)
        limit = next(islice(free, n_more, None))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            command.run(settings)
        except WeightpkgError as error:
            os._exit(error.exit_code)

    monkeypatch.setattr(files.Disk, "fsync", lambda *_: None)
    bench = Bench.build(command, settings)
    n_failed = 0
    for n_more in range(16):
        bench.reset()
        code = end(start(act))
        assert code in (0, 5, 6, 8), n_more  # the source, the store, the model file
        bench.check(is_acknowledged=code == 0)
        n_failed += code != 0
    assert n_failed
    report(f"too many open files: {command}", n_failed, 0)
