"""A conversion in a process of its own, with limits and without network.

A model file is a stranger's, and what reads it may have faults. Whatever it does in that process,
here it ends as a conversion or as one error that names the file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from weightpkg.convert import Job
from weightpkg.convert.directory import Conversion
from weightpkg.convert.limits import Limits
from weightpkg.convert.messages import Request, load_conversion, load_error, load_plan
from weightpkg.convert.plan import Plan
from weightpkg.errors import ConvertError
from weightpkg.progress import Advance, Progress

_WORKER = Path(__file__).with_name("child_worker.py")
_MAX_LINE = 1024 * 1024
_END_TIMEOUT_S = 5.0

# what the system's loader needs to find Python itself
_KEPT_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")

# Arrays of some MiB come and go; glibc would give each back to the system and have its pages made
# anew, which takes up to six times as long as decoding what is in them.
# https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024 * 1024),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 1024 * 1024),
}


def convert(
    job: Job,
    directory: Path,
    progress: Progress,
    *,
    limits: Limits | None = None,
) -> Conversion:
    """Convert files to a model directory in a child process.

    Args:
        job: the files; their digests, for the manifest, are not checked here.
        directory: an empty directory; on an error, what was written is left to the caller.
        progress: told of the bytes of weights as they are written.
        limits: what the process may use; what `Limits.for_size` gives if not given.

    Raises:
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted, or the process did not live to its end.
        OSError: a file cannot be read, or the directory not written.
    """
    _, fields = _run(job, directory, progress, limits)
    return load_conversion(fields)


def plan(job: Job, progress: Progress) -> Plan:
    """Say what a conversion would be: the same process reads the files, and writes nothing.

    Args:
        job: the files; nobody looks at their digests.
        progress: told how it goes.

    Raises:
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted, or the process did not live to its end.
        OSError: a file cannot be read.
    """
    _, fields = _run(job, None, progress, None)
    return load_plan(fields)


def _run(
    job: Job, directory: Path | None, progress: Progress, limits: Limits | None
) -> tuple[str, dict[str, Any]]:
    """Return the last word of a process that did what it was asked."""
    sizes = [source.path.stat().st_size for source in job.sources]
    request = Request(job, directory, limits or Limits.for_size(sum(sizes), len(sizes)))
    name = job.name
    with (
        _process(name) as process,
        _Clock(process, request.limits.wall_s) as clock,
        _Tasks(progress) as tasks,
    ):
        match _ask(process, request, tasks):
            case ["done" | "planned" as word, fields]:
                return word, fields
            case ["error", kind, attributes]:
                raise load_error(kind, attributes)
            case ["system", number, reason]:
                raise OSError(number, reason)
            case ["limit", limit]:
                raise _over_limit(name, limit, request.limits)
        raise _death(name, _exit_code(process), request.limits, is_late=clock.is_over)


def _ask(process: subprocess.Popen[str], request: Request, tasks: _Tasks) -> list[Any]:
    """Send the request, pass on what is told, return the last word; nothing if there was none."""
    assert process.stdin is not None  # noqa: S101  it is a pipe
    assert process.stdout is not None  # noqa: S101  the same
    with suppress(OSError):  # it has ended, and will be found to have said nothing
        process.stdin.write(request.dump())
        process.stdin.flush()
    while line := process.stdout.readline(_MAX_LINE):
        try:
            message: list[Any] = json.loads(line)
        except ValueError:  # it ended within a word
            return []
        if not tasks.take(message):
            return message
    return []


class _Tasks:
    """Passes on what the child tells of its work; a task that an error ends is told of it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open = ExitStack()
        self._advance: Advance = lambda _: None

    def take(self, message: list[Any]) -> bool:
        """Pass a message on, if it is one to be passed on; return whether it was."""
        match message:
            case ["task", description, total]:
                self._advance = self._open.enter_context(self._progress.task(description, total))
            case ["advance", size]:
                self._advance(size)
            case ["end"]:
                self._open.close()
            case ["note", text]:
                self._progress.note(text)
            case _:
                return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, traceback)


@contextmanager
def _process(name: str) -> Iterator[subprocess.Popen[str]]:
    """Start the process; it has ended at the end of the `with`, also where that was an interrupt."""
    try:
        process = _start()
    except OSError as error:
        raise ConvertError(
            f"`{name}`: no process can be started to convert it: {error.strerror}"
        ) from error
    try:
        yield process
    finally:
        process.kill()
        with suppress(OSError):  # what could not be written to it any more
            process.communicate()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        # -P: a `numpy.py` in the current directory is not imported
        [sys.executable, "-P", "-X", "utf8", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=_environment(),
        start_new_session=True,  # Ctrl-C is the parent's affair
    )


def _environment() -> dict[str, str] | None:
    """Return what the process may know: no user's home, no token, no proxy."""
    if os.name == "nt":  # which does not start programs without some of its own variables
        return None
    kept = {name: os.getenv(name) for name in _KEPT_VARIABLES}
    found = {name: value for name, value in kept.items() if value}
    # the modules that this process has; one thread, as each costs memory and time to start
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return found | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", **_KEEP_MEMORY}


class _Clock:
    """Kills a process that takes longer than it may."""

    def __init__(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        self.is_over = False
        self._process = process
        self._timer = threading.Timer(timeout_s, self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        self.is_over = True
        self._process.kill()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()


def _exit_code(process: subprocess.Popen[str]) -> int | None:
    """Wait for a process that closed its pipe; None if it lives on."""
    try:
        return process.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return None


_HARM = "the file may be made to do harm: use another one, of a publisher that you trust"


def _over_limit(name: str, limit: str, limits: Limits) -> ConvertError:
    what = {
        "memory": f"more than {limits.memory / 1e9:.1f} GB of memory",
        "cpu_s": f"more than {limits.cpu_s:,} s of processor time",
        "wall_s": f"more than {limits.wall_s:,g} s",
        "file_size": f"more than {limits.file_size / 1e9:.1f} GB for a file",
        "open_files": f"more than {limits.open_files} open files",
    }
    needs = what.get(limit, "more than it may have")
    return ConvertError(f"`{name}`: its conversion takes {needs}, and was ended", hint=_HARM)


def _death(name: str, code: int | None, limits: Limits, *, is_late: bool) -> ConvertError:
    """Say why a process ended without a last word."""
    if is_late:
        return _over_limit(name, "wall_s", limits)
    if os.name != "nt" and code == -signal.SIGXCPU:
        return _over_limit(name, "cpu_s", limits)
    if os.name != "nt" and code == -signal.SIGKILL:
        return ConvertError(
            f"`{name}`: its conversion was killed",
            hint="if nobody did, the system ran out of memory: close other programs and try again",
        )
    how = "without an answer"
    if code is not None:
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
    return ConvertError(f"`{name}`: its conversion ended {how}", hint=_HARM)
