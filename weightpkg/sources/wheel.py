"""One member of a wheel, read without unpacking the wheel, wherever that lies.

The wheel is a zip file (https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.10.TXT). Its
directory is read by the standard library. A stored member is a range of the wheel, and has ranges
itself; a deflated one is streamed from its beginning.

Nothing in the file is believed: names are unique, the directory ends the file, members do not
overlap, the header in front of the member agrees with the directory, only stored and deflated
members that are not encrypted are read, never past their declared size, and the CRC-32 of what is
inflated is checked. Whether they are the right bytes is for the reader's digest to say.
"""

from __future__ import annotations

import difflib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator

from weightpkg.errors import FetchError
from weightpkg.sources import PIECE_SIZE, Content, Pieces

MAX_MEMBERS = 100_000
_MAX_DIRECTORY = 16 * 1024 * 1024
_TAIL_SIZE = 64 * 1024  # holds the directory of a wheel of a few hundred members
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_HEADER_GUESS = 1024
_END_SIZE = 22
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_SIZES_FOLLOW = 0x8


class MissingMemberError(FetchError):
    """The wheel is sound but has no such member."""


class _Window(io.RawIOBase):
    """What zipfile needs of a file to read its directory, with the file's end kept."""

    def __init__(self, wheel: Content) -> None:
        self._wheel = wheel
        self._size = wheel.size or 0
        self._position = 0
        self._tail_start = max(0, self._size - _TAIL_SIZE)
        self._tail = _read(wheel, self._tail_start, self._size)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, start[whence] + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = min(self._position, self._size)
        end = self._size if size < 0 else min(start + size, self._size)
        if end - start > _MAX_DIRECTORY:
            raise FetchError(f"`{self._wheel.name}`: its directory is absurdly large")
        if start >= self._tail_start:
            found = self._tail[start - self._tail_start : end - self._tail_start]
        else:
            found = _read(self._wheel, start, end)
        self._position = end
        return found


def open_member(wheel: Content, path: str) -> Content:
    """Return the content of the member `path` of a wheel, which must have ranges.

    Raises:
        MissingMemberError: the wheel has no such member.
        FetchError: it cannot be read, or is not a sound zip file.
    """
    member, end = _find(wheel, path)
    start = _data_start(wheel, member, end)
    return _Member(wheel, member, start)


class _Member:
    """A member's own bytes."""

    def __init__(self, wheel: Content, member: zipfile.ZipInfo, start: int) -> None:
        self._wheel = wheel
        self._member = member
        self._start = start
        self.name = f"{wheel.name}/{member.filename}"
        self.size: int | None = member.file_size
        self.validator = wheel.validator
        self.has_ranges = member.compress_type == zipfile.ZIP_STORED

    @property
    def n_busy(self) -> int:
        """How often the wheel's source has asked for patience."""
        return self._wheel.n_busy

    def stream(self, start: int, end: int | None = None) -> Pieces:
        """Yield a range of a stored member, or all of a deflated one."""
        if self.has_ranges:
            stop = self._member.file_size if end is None else end
            yield from self._wheel.stream(self._start + start, self._start + stop)
        else:
            compressed = self._wheel.stream(self._start, self._start + self._member.compress_size)
            yield from _inflate(self._wheel.name, self._member, compressed)


def _find(wheel: Content, path: str) -> tuple[zipfile.ZipInfo, int]:
    """Look the member up; also where the next thing in the file begins."""
    try:
        window = _Window(wheel)
        # zipfile would search backwards for an end; it is the last thing, or this is no wheel
        window.seek(-_END_SIZE, os.SEEK_END)
        ending = window.read()
        if not ending.startswith(b"PK\5\6") or not ending.endswith(b"\0\0"):
            raise _broken(wheel.name, "not a zip file, or something follows its directory")
        with zipfile.ZipFile(window) as archive:
            members = archive.infolist()
            directory = archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise _broken(wheel.name, str(error)) from error
    names = [member.orig_filename for member in members]
    if len(members) > MAX_MEMBERS or len(set(names)) != len(names):
        raise _broken(wheel.name, "two members have one name, or there are absurdly many")
    if path not in names:
        raise _missing(wheel.name, path, names)
    member = members[names.index(path)]
    later = (m.header_offset for m in members if m.header_offset > member.header_offset)
    end = min(later, default=directory)
    if min(m.header_offset for m in members) != 0 or end > directory:
        raise _broken(wheel.name, "its members are not where they should be")
    _check(wheel.name, member, end)
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


def _data_start(wheel: Content, member: zipfile.ZipInfo, end: int) -> int:
    """Check the header in front of the member, and return where its bytes begin."""
    start = member.header_offset
    header = _read(wheel, start, min(start + _HEADER_GUESS, end))
    size = _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack_from(header)[-2:])
    if size > len(header):
        header = _read(wheel, start, min(start + size, end))
    if start + size + member.compress_size > end:
        raise _broken(wheel.name, f"`{member.filename}` overlaps what follows it")
    _check_local_header(wheel.name, member, header[:size])
    return int(start + size)


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
    left, crc = member.file_size, 0
    try:
        for piece in _deflated(content):
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


def _read(wheel: Content, start: int, end: int) -> bytes:
    return b"".join(wheel.stream(start, end))


def _missing(wheel: str, path: str, names: list[str]) -> MissingMemberError:
    near = difflib.get_close_matches(path, names, n=3, cutoff=0.5)
    hint = f"it has {', '.join(f'`{name}`' for name in near)}" if near else None
    return MissingMemberError(f"`{wheel}` has no member `{path}`", hint=hint)


def _broken(wheel: str, reason: str) -> FetchError:
    return FetchError(f"`{wheel}`: {reason}")
