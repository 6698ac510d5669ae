"""Where a signed index lies: a directory, a web server, or a bundle; bytes by relative path.

Nothing that comes from here is believed: `client` holds it against signatures. So an origin
only bounds what it reads: bytes, redirects, time.
"""

from __future__ import annotations

import stat
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from weightpkg.errors import FetchError
from weightpkg.package import RelativePath

if TYPE_CHECKING:
    from weightpkg.sources.transport import Body, Transport

DEADLINE_S = 300.0
"""What one file of an index may take, however slowly it comes."""

_ABSENT = (403, 404, 410)


class AbsentError(FetchError):
    """There is no such file."""


class OversizeError(FetchError):
    """The file is larger than anything it can be."""


class Origin(Protocol):
    """Has the files of an index."""

    @property
    def place(self) -> str:
        """What messages call it."""

    def read(self, path: str, max_bytes: int, /) -> bytes:
        """Return a file.

        Raises:
            AbsentError: there is none.
            OversizeError: it is larger than `max_bytes`.
            FetchError: it cannot be had.
        """


@dataclass(frozen=True, slots=True)
class DirectoryOrigin:
    """An index in a directory of this machine: a disk, a USB stick, a mirror that was unpacked."""

    directory: Path

    @property
    def place(self) -> str:
        """The directory."""
        return str(self.directory)

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a file; as `Origin.read`."""
        try:
            file = self.directory / RelativePath(path).text
            entry = file.stat()
            if not stat.S_ISREG(entry.st_mode):  # opening a pipe would wait for its writer
                raise FetchError(f"`{file}`: not a regular file")
            if entry.st_size > max_bytes:
                raise _oversize(str(file), max_bytes)
            with file.open("rb") as stream:
                content = stream.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_directory(error)
            raise AbsentError(f"`{path}` is not in `{self.directory}`") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise FetchError(f"`{self.directory}`: `{path}`: {reason}") from error
        if len(content) > max_bytes:
            raise _oversize(str(file), max_bytes)
        return content

    def _check_directory(self, error: OSError) -> None:
        if not self.directory.is_dir():
            hint = "if it is on a disk that can be taken out, put that in"
            raise FetchError(f"`{self.directory}` is not a directory", hint=hint) from error


class WebOrigin:
    """An index on a web server, by the URL that its paths are added to."""

    def __init__(
        self, url: str, connect: Callable[[], Transport], *, deadline_s: float = DEADLINE_S
    ) -> None:
        """Prepare; nothing is reached before something is read.

        Args:
            url: where the index is.
            connect: makes a transport, which is closed when the origin is gone.
            deadline_s: how long one file may take.
        """
        self.place = url
        self._connect = connect
        self._deadline_s = deadline_s

    @cached_property
    def _transport(self) -> Transport:
        transport = self._connect()
        weakref.finalize(self, transport.close)
        return transport

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a file; as `Origin.read`."""
        from weightpkg.sources.transport import (  # noqa: PLC0415  slow to import
            HTTPStatusError,
            PassingError,
            Patience,
        )

        url = f"{self.place.rstrip('/')}/{path}"
        patience, end = Patience(self._transport), time.monotonic() + self._deadline_s
        while True:
            try:
                with self._transport.get(url) as body:
                    return self._read(body, max_bytes, end)
            except PassingError as error:
                if time.monotonic() > end:
                    raise
                patience.wait(error)
            except HTTPStatusError as error:
                if error.status in _ABSENT:
                    raise AbsentError(error.message) from error
                raise

    def _read(self, body: Body, max_bytes: int, end: float) -> bytes:
        content = bytearray()
        for piece in body.pieces:
            content += piece
            if len(content) > max_bytes:
                raise _oversize(body.url, max_bytes)
            if time.monotonic() > end:
                reason = f"took longer than {self._deadline_s:g} seconds"
                raise FetchError(f"`{body.url}`: {reason}", hint="try another mirror of the index")
        return bytes(content)


@dataclass(frozen=True, slots=True)
class BundleOrigin:
    """An index in a bundle.

    place: what messages call it.
    member: returns the bytes at a path; KeyError if there is no such member.
    """

    place: str
    member: Callable[[str], bytes]

    def read(self, path: str, max_bytes: int) -> bytes:
        """Return a member; as `Origin.read`."""
        try:
            content = self.member(path)
        except KeyError as error:
            raise AbsentError(f"`{path}` is not in `{self.place}`") from error
        if len(content) > max_bytes:
            raise _oversize(f"{self.place}: {path}", max_bytes)
        return content


@dataclass(frozen=True, slots=True)
class NoOrigin:
    """No place at all: what is held must do."""

    place: str

    def read(self, path: str, max_bytes: int) -> bytes:  # noqa: ARG002  as `Origin.read`
        """Refuse; as `Origin.read`."""
        raise FetchError(f"`{path}` is not held here, and nothing may be fetched")


def _oversize(name: str, max_bytes: int) -> OversizeError:
    return OversizeError(f"`{name}` is larger than {max_bytes:,} bytes")
