"""The process that converts: reads a request, tells how it goes, answers, and ends.

Run as a script. It leaves the network before it imports what has threads, and takes its limits once
all is imported and before it opens a file. What it says is in `messages`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NoReturn, TextIO

from weightpkg.convert import Job
from weightpkg.convert.directory import Prepared
from weightpkg.convert.limits import cut_off, forbid, fullest
from weightpkg.convert.messages import Request, dump_conversion, dump_error, dump_plan
from weightpkg.errors import WeightpkgError
from weightpkg.progress import Advance

Work = Callable[[Job], AbstractContextManager[Prepared]]

_SAID_AT_ONCE = 1024 * 1024


class Channel:
    """The pipe to the parent: what is told as `Progress` goes there."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def say(self, *message: object) -> None:
        """Send one message.

        Raises:
            BrokenPipeError: the parent has gone.
        """
        self._stream.write(json.dumps(message) + "\n")
        self._stream.flush()

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:
        """Tell of work, and of its steps where they have come to something."""
        unsaid = 0

        def advance(size: int) -> None:
            nonlocal unsaid
            unsaid += size
            if unsaid >= _SAID_AT_ONCE:
                self.say("advance", unsaid)
                unsaid = 0

        self.say("task", description, total)
        yield advance
        self.say("advance", unsaid)
        self.say("end")

    def note(self, message: str) -> None:
        """Send a line."""
        self.say("note", message)


def load_work(form: str) -> Work:
    """Import what converts a format, and return it."""
    return {"gguf": _load_gguf, "onnx": _load_onnx, "safetensors": _load_safetensors}[form]()


def _load_gguf() -> Work:
    from weightpkg.convert import pipeline  # noqa: PLC0415  what it imports has threads

    def prepare(job: Job) -> AbstractContextManager[Prepared]:
        (source,) = job.sources
        return pipeline.prepare(source)

    return prepare


def _load_onnx() -> Work:
    from weightpkg.convert import published  # noqa: PLC0415  the same

    return lambda job: published.prepare(job.sources)


def _load_safetensors() -> Work:
    from weightpkg.convert import checkpoints  # noqa: PLC0415  the same

    return checkpoints.prepare


def main(load: Callable[[str], Work] = load_work) -> NoReturn:
    """Answer one request.

    Args:
        load: gives what converts a format.
    """
    request = Request.load(sys.stdin.readline())
    channel = Channel(_take_stdout())
    cut_off()
    work = load(request.job.form)
    request.limits.apply()
    forbid()
    try:
        channel.say(*_answer(work, request, channel))
    except BrokenPipeError:  # the parent has gone
        os._exit(1)
    os._exit(0)  # nothing is left to be done, and the parent waits


def _answer(work: Work, request: Request, channel: Channel) -> tuple[object, ...]:
    try:
        with work(request.job) as prepared:
            if request.directory is None:
                return "planned", dump_plan(prepared.plan)
            return "done", dump_conversion(prepared.convert(request.directory, channel))
    except WeightpkgError as error:
        return ("error", *dump_error(error))
    except MemoryError:
        return "limit", "memory"
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno == errno.EMFILE:
            return "limit", "open_files"
        if error.errno == errno.EFBIG and _is_full(request):
            return "limit", "file_size"
        return "system", error.errno, error.strerror or str(error)


def _is_full(request: Request) -> bool:
    """Whether a file has reached its limit, and not one of the system's."""
    directory = request.directory
    return directory is not None and fullest(directory) >= request.limits.file_size


def _take_stdout() -> TextIO:
    """Return standard output, and let what else is printed there go nowhere."""
    own = os.dup(sys.stdout.fileno())
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return os.fdopen(own, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
