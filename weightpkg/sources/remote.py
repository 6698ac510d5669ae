"""A file on a server: any range of it, in as many connections as it takes.

The first request asks for a range, and its answer tells how large the file is, what its bytes are
called (`ETag`), and whether there are ranges at all. Later requests go on exactly where a broken
one stopped, while the file is as large as it was. Where its `ETag` changes meanwhile there is no
`validator` any more: either the file has changed, or its servers do not agree on what they call it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from weightpkg.errors import FetchError
from weightpkg.sources import Pieces
from weightpkg.sources.transport import Body, HTTPStatusError, PassingError, Patience, Transport

FIRST_RANGE = 16 * 1024 * 1024
RANGE_NOT_SATISFIABLE = 416
_PROGRESS = 16 * 1024
_WASTE = 5  # a fifth of the file may come a second time


class RemoteFile:
    """A file at a URL as `Content`; made by `open_remote`.

    The open answer of the first request is used by the first `stream` that begins where it does.
    """

    def __init__(self, transport: Transport, url: str, name: str) -> None:
        self._transport = transport
        self._url = url
        self._first: tuple[int, Body, ExitStack] | None = None
        self._etag: str | None = None
        self._wasted = 0
        self.name = name
        self.size: int | None = None
        self.validator: str | None = None
        self.has_ranges = False
        self.n_busy = 0

    def connect(self, start: int, last: int) -> None:
        """Send the first request, for the bytes from `start` up to but not including `last`.

        Raises:
            FetchError: the file cannot be had.
        """
        patience = Patience(self._transport)
        stack = ExitStack()
        end: int | None = last
        while True:
            try:
                body = stack.enter_context(self._transport.get(self._url, start=start, end=end))
                break
            except PassingError as error:
                self.n_busy += error.is_busy
                patience.wait(error)
            except HTTPStatusError as error:
                # what is empty has no range, and some servers have none of anything
                if error.status != RANGE_NOT_SATISFIABLE or end is None:
                    raise
                start, end = 0, None
        self.has_ranges = body.range is not None
        self.size = body.range.total if body.range else body.size
        self._etag = body.etag
        self.validator = body.etag if body.is_strong else None
        self._first = (start if body.range else 0, body, stack)

    def close(self) -> None:
        """Close the first answer, if nobody has read it."""
        if self._first:
            self._first[2].close()
            self._first = None

    def stream(self, start: int, end: int | None = None) -> Pieces:
        """Yield the bytes of a range, or of the whole, in order.

        Raises:
            FetchError: it cannot be had, or is not the same file any more.
        """
        stop = self.size if end is None else end
        position = start
        patience = Patience(self._transport)
        progress = 0
        while stop is None or position < stop:
            try:
                for piece in self._attempt(position, stop):
                    position += len(piece)
                    progress += len(piece)
                    yield piece
            except PassingError as error:
                self.n_busy += error.is_busy
                self._check_restart(position, error)
                if progress >= _PROGRESS:
                    patience.renew()
                progress = 0
                patience.wait(error)
            else:
                if stop is None:
                    return

    def _attempt(self, position: int, stop: int | None) -> Iterator[bytes]:
        """Yield what one connection gives from a position on, at most up to `stop`."""
        with self._open(position, stop) as (begin, body):
            skipped = position - begin
            for piece in body.pieces:
                rest = memoryview(piece)
                if skipped:
                    taken = min(skipped, len(piece))
                    skipped -= taken
                    self._wasted += taken
                    rest = rest[taken:]
                if stop is not None:
                    rest = rest[: stop - position]
                position += rest.nbytes
                if rest.nbytes:
                    yield piece if rest.nbytes == len(piece) else bytes(rest)
                if position == stop:
                    return
        if self.size is not None and not self.has_ranges and position < self.size:
            raise PassingError(f"`{self.name}`: ended after {position:,} of {self.size:,} bytes")

    @contextmanager
    def _open(self, position: int, stop: int | None) -> Iterator[tuple[int, Body]]:
        """Open an answer, and say at which byte it begins."""
        first = self._first
        if first and (first[0] == position or not self.has_ranges):
            self._first = None
            with first[2]:
                yield first[:2]
            return
        start, end = (position, stop) if self.has_ranges else (0, None)
        with self._transport.get(self._url, start=start, end=end) as body:
            self._check_same(body)
            yield start, body

    def _check_same(self, body: Body) -> None:
        """Refuse a file that is another one, as far as an answer tells."""
        size = body.range.total if body.range else body.size
        if size != self.size or (body.range is None) == self.has_ranges:
            raise FetchError(
                f"`{self.name}`: changed on the server while it was read",
                hint="run the same command again",
            )
        if body.etag != self._etag:
            self.validator = None

    def _check_restart(self, position: int, error: PassingError) -> None:
        """Refuse to fetch much of a file twice from a server that cannot go on in its middle."""
        if self.has_ranges or (self._wasted + position) * _WASTE <= (self.size or 0):
            return
        raise FetchError(
            f"{error.message}; this server does not answer ranges, so all of it must come at once",
            hint="run the same command again to begin anew",
        ) from error


@contextmanager
def open_remote(
    transport: Transport, url: str, name: str, start: int = 0, end: int | None = None
) -> Iterator[RemoteFile]:
    """Open a URL for reading from `start` on.

    Args:
        transport: what reaches the server.
        url: where the file is.
        name: what messages call it.
        start: the byte that will be read first.
        end: where reading will stop for the first time, None for the end of the file.

    Raises:
        FetchError: it cannot be had.
    """
    remote = RemoteFile(transport, url, name)
    try:
        last = start + FIRST_RANGE
        remote.connect(start, last if end is None else min(end, last))
        yield remote
    finally:
        remote.close()
