"""One member of a wheel, read without unpacking the wheel, wherever that lies.

The wheel is a zip file (https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.10.TXT). Its
directory is read by the standard library; the member's own bytes are one range, streamed.

Nothing in the file is believed: names are unique, the directory ends the file, members do not
overlap, the header in front of the member agrees with the directory, only stored and deflated
members that are not encrypted are read, never past their declared size, and the CRC-32 is
checked. Whether they are the right bytes is for the reader's digest to say.
"""

from __future__ import annotations

import difflib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import BinaryIO, Protocol

from weightpkg.errors import FetchError
from weightpkg.sources import Stream
from weightpkg.sources.transport import PIECE_SIZE, Transport

MAX_MEMBERS = 100_000
_MAX_DIRECTORY = 16 * 1024 * 1024
_TAIL_SIZE = 64 * 1024  # holds the directory of a wheel of a few hundred members
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_SIZE = 22
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_SIZES_FOLLOW = 0x8


class MissingMemberError(FetchError):
    """The wheel is sound but has no such member."""


class Ranges(Protocol):
    """Something with a name and a size, of which any range can be streamed."""

    name: str
    size: int

    def stream(self, start: int, end: int) -> AbstractContextManager[Iterator[bytes]]:
        """Open the bytes from `start` up to but not including `end`."""


class RemoteRanges:
    """A file on a server that answers ranges."""

    def __init__(self, transport: Transport, url: str, name: str, size: int) -> None:
        self._transport = transport
        self._url = url
        self.name = name
        self.size = size

    @contextmanager
    def stream(self, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Ask the server for a range; `FetchError` where it gives another, or of another file."""
        with self._transport.get(self._url, start=start, end=end) as body:
            if body.range is None or body.range.total != self.size:
                raise FetchError(f"`{self.name}`: changed on the server while it was read")
            yield body.pieces


class LocalRanges:
    """An open file of this machine."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name
        self.size = os.fstat(file.fileno()).st_size

    @contextmanager
    def stream(self, start: int, end: int) -> Iterator[Iterator[bytes]]:
        """Read a range; `FetchError` where the system cannot."""
        yield self._pieces(start, end)

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        try:
            self._file.seek(start)
            while start < end and (piece := self._file.read(min(PIECE_SIZE, end - start))):
                start += len(piece)
                yield piece
        except OSError as error:
            raise FetchError(f"`{self.name}`: {error.strerror}") from error


class _Window(io.RawIOBase):
    """What zipfile needs of a file to read its directory, with the file's end kept."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._position = 0
        self._tail_start = max(0, ranges.size - _TAIL_SIZE)
        self._tail = _read(ranges, self._tail_start, ranges.size)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._ranges.size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = min(self._position, self._ranges.size)
        end = self._ranges.size if size < 0 else min(start + size, self._ranges.size)
        if end - start > _MAX_DIRECTORY:
            raise FetchError(f"`{self._ranges.name}`: its directory is absurdly large")
        if start >= self._tail_start:
            found = self._tail[start - self._tail_start : end - self._tail_start]
        else:
            found = _read(self._ranges, start, end)
        self._position = end
        return found


@contextmanager
def open_member(ranges: Ranges, path: str) -> Iterator[Stream]:
    """Open the member `path` of a wheel.

    Raises:
        MissingMemberError: the wheel has no such member.
        FetchError: it cannot be read, or is not a sound zip file.
    """
    member, end = _find(ranges, path)
    with ranges.stream(member.header_offset, end) as pieces:
        content = _after_local_header(ranges.name, member, pieces)
        yield Stream(member.file_size, _inflate(ranges.name, member, content))


def _find(ranges: Ranges, path: str) -> tuple[zipfile.ZipInfo, int]:
    """Look the member up; also where the next thing in the file begins."""
    try:
        window = _Window(ranges)
        # zipfile would search backwards for an end; it is the last thing, or this is no wheel
        window.seek(-_END_SIZE, os.SEEK_END)
        ending = window.read()
        if not ending.startswith(b"PK\5\6") or not ending.endswith(b"\0\0"):
            raise _broken(ranges.name, "not a zip file, or something follows its directory")
        with zipfile.ZipFile(window) as archive:
            members = archive.infolist()
            directory = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _broken(ranges.name, str(error)) from error
    names = [member.orig_filename for member in members]
    if len(members) > MAX_MEMBERS or len(set(names)) != len(names):
        raise _broken(ranges.name, "two members have one name, or there are absurdly many")
    if path not in names:
        raise _missing(ranges.name, path, names)
    member = members[names.index(path)]
    later = (m.header_offset for m in members if m.header_offset > member.header_offset)
    end = min(later, default=directory)
    if min(m.header_offset for m in members) != 0 or end > directory:
        raise _broken(ranges.name, "its members are not where they should be")
    _check(ranges.name, member, end)
    return member, end


def _check(wheel: str, member: zipfile.ZipInfo, end: int) -> None:
    if member.flag_bits & _ENCRYPTED:
        raise _broken(wheel, f"`{member.filename}` is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _broken(wheel, f"`{member.filename}` is compressed by method {member.compress_type}")
    if member.header_offset + _LOCAL_HEADER.size + member.compress_size > end:
        raise _broken(wheel, f"`{member.filename}` overlaps what follows it")
    if member.compress_type == zipfile.ZIP_STORED and member.compress_size != member.file_size:
        raise _broken(wheel, f"`{member.filename}` has two sizes")


def _after_local_header(
    wheel: str, member: zipfile.ZipInfo, pieces: Iterator[bytes]
) -> Iterator[bytes]:
    """Check the header in front of the member, and give exactly its compressed bytes."""
    buffered = bytearray()
    needed = _LOCAL_HEADER.size
    for piece in pieces:
        buffered += piece
        if len(buffered) >= _LOCAL_HEADER.size:
            lengths = _LOCAL_HEADER.unpack_from(buffered)[-2:]
            needed = _LOCAL_HEADER.size + sum(lengths)
        if len(buffered) >= needed:
            break
    else:
        raise _broken(wheel, f"`{member.filename}` ends in its header")
    _check_local_header(wheel, member, bytes(buffered[:needed]))
    left = member.compress_size
    piece = bytes(buffered[needed:])
    while left:
        yield piece[:left]
        left -= len(piece[:left])
        if left and not (piece := next(pieces, b"")):
            raise _broken(wheel, f"`{member.filename}` ends {left:,} bytes early")


def _check_local_header(wheel: str, member: zipfile.ZipInfo, header: bytes) -> None:
    fields = _LOCAL_HEADER.unpack_from(header)
    signature, _, flags, method, _, _, crc, compressed, size, name_length, _ = fields
    name = header[_LOCAL_HEADER.size : _LOCAL_HEADER.size + name_length]
    encoding = "utf-8" if flags & 0x800 else "cp437"
    same = (
        signature == b"PK\3\4"
        and flags == member.flag_bits
        and method == member.compress_type
        and name.decode(encoding, "replace") == member.orig_filename
    )
    told = ((crc, member.CRC), (compressed, member.compress_size), (size, member.file_size))
    if not flags & _SIZES_FOLLOW:
        # 0xFFFFFFFF: the number is in a zip64 field, and the directory's is used
        same &= all(here in (there, 0xFFFFFFFF) for here, there in told)
    if not same:
        raise _broken(wheel, f"header and directory disagree about `{member.filename}`")


def _inflate(wheel: str, member: zipfile.ZipInfo, content: Iterator[bytes]) -> Iterator[bytes]:
    plain = content if member.compress_type == zipfile.ZIP_STORED else _deflated(content)
    left, crc = member.file_size, 0
    try:
        for piece in plain:
            left -= len(piece)
            if left < 0:
                raise _broken(wheel, f"`{member.filename}` is larger than the wheel says")
            crc = zlib.crc32(piece, crc)
            yield piece
    except zlib.error as error:
        raise _broken(wheel, f"`{member.filename}`: {error}") from error
    if left or crc != member.CRC:
        raise _broken(wheel, f"`{member.filename}` has another size or CRC-32 than the wheel says")


def _deflated(content: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for compressed in content:
        waiting = compressed
        while waiting:
            yield inflater.decompress(waiting, PIECE_SIZE)
            waiting = inflater.unconsumed_tail
    while piece := inflater.decompress(b"", PIECE_SIZE):
        yield piece


def _read(ranges: Ranges, start: int, end: int) -> bytes:
    with ranges.stream(start, end) as pieces:
        return b"".join(pieces)


def _missing(wheel: str, path: str, names: list[str]) -> MissingMemberError:
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.5)
    hint = f"it has {', '.join(f'`{name}`' for name in near)}" if near else None
    return MissingMemberError(f"`{wheel}` has no member `{path}`", hint=hint)


def _broken(wheel: str, reason: str) -> FetchError:
    return FetchError(f"`{wheel}`: {reason}")
