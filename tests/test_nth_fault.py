"""A disk that fails at its nth call, for every n: a clean error, nothing half done, and on it goes.

After SQLite's loops (https://www.sqlite.org/testing.html, section 3): a command is run with a fault
at the first call of a kind, then at the second, and so on, until it is done before the fault comes;
with each reason that a system has, once and from then on. All of them are over ten thousand: of each
command some are drawn, more with WEIGHTPKG_THOROUGH=1.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from durability import COMMANDS, Bench, convert_here, is_thorough, report
from weightpkg import files
from weightpkg.errors import WeightpkgError
from weightpkg.settings import Settings

CODES = (
    errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EXDEV, errno.EROFS, errno.EMFILE,
)  # fmt: skip
CALLS = (
    "open", "write", "short write", "truncate", "fsync", "chmod", "rename", "link", "mkdir",
    "unlink", "rmdir",
)  # fmt: skip
N_FAULTS = 500 if is_thorough() else 90  # of each command


@dataclass(frozen=True, slots=True)
class Fault:
    """The nth call of a kind fails, and all later ones too if it is persistent.

    A short write takes half of the bytes, and the call after it fails; with code 0 none fails.
    """

    call: str
    n: int
    code: int
    is_persistent: bool


class FaultyDisk(files.Disk):
    """A disk with a fault, that counts its calls; syncing is only counted."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.n_failed = 0

    def step(self, call: str) -> None:
        """Count a call, and let it fail if it is the one."""
        self.calls[call] += 1
        fault, n = self.fault, self.calls[call]
        if fault and fault.call == call and (n == fault.n or (fault.is_persistent and n > fault.n)):
            self._fail(fault)

    def _fail(self, fault: Fault) -> None:
        self.n_failed += 1
        raise OSError(fault.code, os.strerror(fault.code))

    def write(self, descriptor: int, data: memoryview) -> int:
        self.step("write")
        fault, n = self.fault, self.calls["write"]
        if fault is None or fault.call != "short write" or n < fault.n:
            return super().write(descriptor, data)
        if fault.code and (n == fault.n + 1 or (fault.is_persistent and n > fault.n)):
            self._fail(fault)
        if n > fault.n and not fault.is_persistent:
            return super().write(descriptor, data)
        return super().write(descriptor, data[: (data.nbytes + 1) // 2])

    def truncate(self, descriptor: int, size: int) -> None:
        self.step("truncate")
        super().truncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:  # noqa: ARG002  the machine goes on: nothing need last
        self.step("fsync")

    def chmod(self, path: Path, mode: int) -> None:
        self.step("chmod")
        super().chmod(path, mode)

    def rename(self, path: Path, new: Path) -> None:
        self.step("rename")
        super().rename(path, new)

    def link(self, path: Path, new: Path) -> None:
        self.step("link")
        super().link(path, new)

    def mkdir(self, path: Path) -> None:
        self.step("mkdir")
        super().mkdir(path)

    def unlink(self, path: Path) -> None:
        self.step("unlink")
        super().unlink(path)

    def rmdir(self, path: Path) -> None:
        self.step("rmdir")
        super().rmdir(path)


class ConvertedFile(io.FileIO):
    """A file that a conversion writes, on the disk that may fail."""

    def write(self, data: Any, /) -> int:
        return files.disk.write(self.fileno(), memoryview(data))


@pytest.fixture
def bench(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    """A command, and a system whose opening and writing of files in the store can fail."""
    open_path, open_descriptor = Path.open, os.open

    def opened(path: Path, mode: str = "r", buffering: int = -1, **how: Any) -> Any:
        if mode != "xb":
            return open_path(path, mode, buffering, **how)
        step()
        file = ConvertedFile(str(path), "x")
        return io.BufferedWriter(file) if buffering else file

    def descriptor(path: Any, *how: Any, **more: Any) -> int:
        if str(path).startswith(str(settings.home)):
            step()
        return open_descriptor(path, *how, **more)

    def step() -> None:
        if isinstance(files.disk, FaultyDisk):
            files.disk.step("open")

    monkeypatch.setattr(files, "disk", FaultyDisk())
    monkeypatch.setattr("weightpkg.convert.child.convert", convert_here)
    monkeypatch.setattr(os, "open", descriptor)
    monkeypatch.setattr(Path, "open", opened)
    yield Bench.build(request.param, settings)
    monkeypatch.undo()


def open_files() -> list[str]:
    """What this process has open in a store or an index."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found.append(str(entry.readlink()))
    return sorted(name for name in found if name.startswith("/") and "/proc/" not in name)


def run(bench: Bench, fault: Fault | None) -> tuple[FaultyDisk, WeightpkgError | None]:
    """Do the command on a disk with a fault; return the disk, and the error that it ended with."""
    disk = FaultyDisk(fault)
    bench.reset()
    before = open_files()
    error = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "disk", disk)
        try:
            bench.command.run(bench.settings)
        except WeightpkgError as caught:
            error = caught
    assert open_files() == before, "a file was left open"
    return disk, error


def faults(bench: Bench) -> list[Fault]:
    """Every fault that the command can meet, and for each call one that comes too late."""
    calls = run(bench, None)[0].calls
    calls["short write"] = calls["write"]
    found = [
        Fault(call, n, code, is_persistent)
        for call in CALLS
        for code in (*CODES, *([0] if call == "short write" else []))
        for is_persistent in (False, True)
        for n in range(1, calls[call] + 1)
    ]
    late = [Fault(call, 2 * calls[call] + 9, errno.EIO, is_persistent=True) for call in CALLS]
    if len(found) <= N_FAULTS:
        return found + late
    seeded = random.Random(bench.command.name)
    return seeded.sample(found, N_FAULTS) + late


@pytest.mark.parametrize("bench", COMMANDS, ids=str, indirect=True)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files cannot be counted here")
@pytest.mark.timeout(7200 if is_thorough() else 120)
def test_a_disk_that_fails_at_its_nth_call_loses_nothing(bench: Bench) -> None:
    n_failed = 0
    for fault in faults(bench):
        try:
            disk, error = run(bench, fault)
            assert error or fault.call != "fsync" or not disk.n_failed, "nothing is durable"
            assert error is None or disk.n_failed, "it is not the disk's fault"
            bench.check(is_acknowledged=error is None)
        except BaseException as failure:
            failure.add_note(f"{bench.command}: {fault}")
            raise
        n_failed += bool(disk.n_failed) or fault.code == 0
    report(f"disk faults: {bench.command}", n_failed, 0)
