"""What a conversion may use, and how its own process is held to that.

A model file is a stranger's. Its readers are strict; should one of them be wrong all the same, the
process that it is wrong in has bounded memory, time and output, no network, and starts no others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from weightpkg.errors import ConvertError

try:
    import resource
except ImportError:  # not on Windows, where the parent's clock is the only limit
    resource = None  # type: ignore[assignment]

_GIB = 1024**3
# a conversion takes a quarter of a GiB, whatever the model's size
_MEMORY = 2 * _GIB
# read whole by protobuf, which takes at most this and makes one copy
_MAX_PROTOBUF = 2 * _GIB
# 98 MB take 0.6 s on a machine of 2 cores: a fortieth of that speed is enough
_BYTES_PER_CPU_S = 4_000_000
# disks may be slower than processors, above all those of others
_BYTES_PER_WALL_S = 1_000_000
_START_S = 120

_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


@dataclass(frozen=True, slots=True)
class Limits:
    """What one conversion may use.

    memory: bytes of address space, beside what the process has before it begins.
    cpu_s, wall_s: seconds of processor time, and in all.
    file_size: bytes of each file that it writes.
    open_files: how many at once.
    """

    memory: int
    cpu_s: int
    wall_s: float
    file_size: int
    open_files: int

    @classmethod
    def for_size(cls, size: int, n_files: int = 1) -> Limits:
        """Return generous limits for sources of `size` bytes in all.

        They are mapped, which counts as address space. A weight of 1.6 bits in a file has 9 in the
        output, and an embedding may be there twice.
        """
        return cls(
            memory=_MEMORY + size + 2 * min(size, _MAX_PROTOBUF),
            cpu_s=_START_S + size // _BYTES_PER_CPU_S,
            wall_s=_START_S + size // _BYTES_PER_WALL_S,
            file_size=12 * size + _GIB,
            open_files=64 + n_files,
        )

    def apply(self) -> None:
        """Hold this process to them, as far as the system has such limits."""
        if resource is None:
            return
        usage = resource.getrusage(resource.RUSAGE_SELF)
        if (present := _address_space()) is not None:
            _set(resource.RLIMIT_AS, present + self.memory)
        # at the first limit the system says why, at the second it only kills
        cpu_s = int(usage.ru_utime + usage.ru_stime) + self.cpu_s
        _set(resource.RLIMIT_CPU, cpu_s, cpu_s + 5)
        _set(resource.RLIMIT_FSIZE, self.file_size)
        _set(resource.RLIMIT_NOFILE, self.open_files)
        _set(resource.RLIMIT_CORE, 0)


def _set(kind: int, soft: int, hard: int | None = None) -> None:
    present = resource.getrlimit(kind)[1]
    wanted = (soft, soft if hard is None else hard)
    if present != resource.RLIM_INFINITY:
        wanted = (min(wanted[0], present), min(wanted[1], present))
    with suppress(ValueError, OSError):  # not every system has every limit
        resource.setrlimit(kind, wanted)


def peak_memory() -> int | None:
    """Bytes that this process has had at most; None where the system does not say."""
    with suppress(OSError, IndexError, ValueError):
        # getrusage tells of the process that this one was started by as well
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _address_space() -> int | None:
    """Bytes of address space now; None where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
    except OSError:
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def cut_off() -> None:
    """Leave the network, and end with the parent, where the system lets us.

    To be called while there is only one thread, as user namespaces want it. Whoever is not root
    needs one of them to have a network of their own; root would lose rights to files by it.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    own_user = 0 if os.geteuid() == 0 else _CLONE_NEWUSER
    libc.unshare(own_user | _CLONE_NEWNET)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # last: new rights would undo it


_FORBIDDEN = {
    "socket.": "the network",
    "subprocess.": "another program",
    "os.exec": "another program",
    "os.fork": "another process",
    "os.posix_spawn": "another program",
    "os.system": "another program",
}


def forbid() -> None:
    """Let nothing in this process use the network or start a program, for the rest of its life."""
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[object, ...]) -> None:  # noqa: ARG001  what the interpreter calls
    for start, what in _FORBIDDEN.items():
        if event.startswith(start):
            raise ConvertError(f"a conversion asked for {what} (`{event}`), which none may have")


def fullest(directory: Path) -> int:
    """Bytes of the largest file in a directory."""
    return max(_sizes(directory), default=0)


def _sizes(directory: Path) -> Iterator[int]:
    for path in directory.rglob("*"):
        with suppress(OSError):
            yield path.lstat().st_size
