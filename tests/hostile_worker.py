"""A conversion's process in which the converter does harm; the source's content says which.

Run as a script in place of `weightpkg/convert/child_worker.py`, with all else as it is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weightpkg.convert import Job
from weightpkg.convert.child_worker import Work, main
from weightpkg.convert.directory import ModelDirectory, OutputFile, Prepared
from weightpkg.convert.plan import Plan
from weightpkg.errors import DigestMismatchError, DocumentError, GGUFError, TensorMismatchError
from weightpkg.progress import Progress


def take_memory(directory: Path, progress: Progress) -> None:
    bytearray(64 * 1024**3)


def take_memory_bit_by_bit(directory: Path, progress: Progress) -> None:
    taken = []
    while True:
        taken.append(bytearray(2**20))


def never_end(directory: Path, progress: Progress) -> None:
    while True:
        pass


def sleep(directory: Path, progress: Progress) -> None:
    time.sleep(60)


def fill_the_disk(directory: Path, progress: Progress) -> None:
    with (directory / "big").open("wb") as stream:
        while True:
            stream.write(bytes(2**20))


def open_files(directory: Path, progress: Progress) -> None:
    _opened = [(directory / str(i)).open("w") for i in range(999)]


def kill_itself(directory: Path, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def crash(directory: Path, progress: Progress) -> None:
    ctypes.string_at(0)


def leave(directory: Path, progress: Progress) -> None:
    os._exit(7)


def close_the_pipe(directory: Path, progress: Progress) -> None:
    os.closerange(3, 64)
    time.sleep(60)


def talk_nonsense(directory: Path, progress: Progress) -> None:
    os.write(3, b"[1, 2")


def have_a_bug(directory: Path, progress: Progress) -> None:
    [].pop()


def connect(directory: Path, progress: Progress) -> None:
    socket.create_connection(("127.0.0.1", 9))


def look_up_a_name(directory: Path, progress: Progress) -> None:
    socket.getaddrinfo("localhost", 80)


def run_a_program(directory: Path, progress: Progress) -> None:
    subprocess.run(["/bin/true"], check=True)


def run_a_shell(directory: Path, progress: Progress) -> None:
    os.system("/bin/true")  # noqa: S605


def fork(directory: Path, progress: Progress) -> None:
    os.fork()


def forge_an_answer(directory: Path, progress: Progress) -> None:
    print('["done", {}]', flush=True)  # noqa: T201
    os._exit(0)


def fill_up(directory: Path, progress: Progress) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def raise_a_gguf_error(directory: Path, progress: Progress) -> None:
    raise GGUFError("a.gguf", "header", "x", hint="y")


def raise_a_tensor_mismatch_error(directory: Path, progress: Progress) -> None:
    raise TensorMismatchError("ünï")


def raise_a_digest_mismatch_error(directory: Path, progress: Progress) -> None:
    raise DigestMismatchError("a", expected="b", found="c")


def raise_a_document_error(directory: Path, progress: Progress) -> None:
    raise DocumentError("a", where="b", source="c")


def tell(directory: Path, progress: Progress) -> None:
    progress.note("begun")
    with progress.task("large", 5_000_000) as advance:
        for _ in range(5):
            advance(1_000_000)
    with progress.task("of no known size", None) as advance:
        advance(7)


def fail_in_a_task(directory: Path, progress: Progress) -> None:
    with progress.task("failing", 10):
        raise TensorMismatchError("no")


def show_the_environment(directory: Path, progress: Progress) -> None:
    progress.note(" ".join(sorted(os.environ)))


def count_interfaces(directory: Path, progress: Progress) -> None:
    progress.note(str(len(Path("/proc/net/dev").read_text().splitlines()) - 2))


def load(form: str) -> Work:
    @contextmanager
    def prepare(job: Job) -> Iterator[Prepared]:
        def write(output: ModelDirectory, progress: Progress) -> tuple[OutputFile, ...]:
            (output.path / "begun").touch()
            progress.note(f"pid {os.getpid()}")
            harm: Callable[[Path, Progress], None] = globals()[job.sources[0].path.read_text()]
            harm(output.path, progress)
            return ()

        yield Prepared(Plan("none", 1, 0, (), None), write)

    return prepare


if __name__ == "__main__":
    main(load)
