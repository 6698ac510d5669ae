"""The file that a bundle is: members one after the other, in the form of a tar archive.

    bundle.toml        which members follow, in order: path, size, digests; what the base has of it
    mirror.toml        what a mirror of it would have
    the rest           files of that mirror, in order of their paths; or patches of such; wheels

`tar` can list and unpack it; we do neither. All that a reader believes is `bundle.toml`: each header that
follows must be, byte for byte, the one that we would write for that path and size, so that there are no
links, devices, owners, times, other names or other orders to be careful of. The sum of all is known
beforehand, so a file that was cut is refused before anything is read from it.

Volumes are the same bytes in several files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Self

import tomli_w
from blake3 import blake3

from weightpkg import files
from weightpkg.contents import (
    CONTENTS,
    Contents,
    Entry,
    dump_entry,
    entry_of,
    read_contents,
    read_entry,
    rows_of,
)
from weightpkg.digest import READ_SIZE, Digest
from weightpkg.document import MAX_DOCUMENT_SIZE, Table, parse_document
from weightpkg.errors import DigestMismatchError, DocumentError, IntegrityError, StoreError
from weightpkg.package import RelativePath

LIST = "bundle.toml"
PATCHES = "patches/"
WHEELS = "wheels/"
VERSION = (1, 0)
MAX_PATCH = 128 * 1024 * 1024
_BLOCK = 512
_END = bytes(2 * _BLOCK)
_MAX_OCTAL = 8**11

_HEADER = b"# Written by `weightpkg bundle create`: the members that follow.\n"
_CHECK = re.compile(re.escape(_HEADER) + rb'check = "([0-9a-f]{64})"\n')


@dataclass(frozen=True, slots=True)
class Patch:
    """A file of the contents that is told by one of the base's.

    member: the patch.
    path: what comes out, an entry of the contents.
    base: the path that the base has.
    """

    member: Entry
    path: str
    base: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a bundle says that it has.

    members: carried as they are, but for `mirror.toml`, which comes first.
    copies: files of the contents, by path, with the paths that the base has them under, or that this very
        bundle has had before.
    base: the digest that names the bundle which must have been imported before.
    """

    contents: Entry
    members: tuple[Entry, ...]
    patches: tuple[Patch, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    base: Digest | None = None

    def carried(self) -> list[Entry]:
        """The members in their order: patches stand where what they make would."""
        rows = [(entry.path, entry) for entry in self.members]
        rows += [(patch.path, patch.member) for patch in self.patches]
        return [self.contents, *(entry for _, entry in sorted(rows, key=lambda row: row[0]))]


def dump_listing(listing: Listing) -> bytes:
    """Return the one form in which a listing is written."""
    document: dict[str, object] = {"version": VERSION[0]}
    if listing.base:
        document["base"] = listing.base.hex
    document["contents"] = dump_entry(listing.contents)
    document["members"] = [dump_entry(e) for e in sorted(listing.members, key=lambda e: e.path)]
    document["patches"] = [
        dump_entry(p.member) | {"of": p.path, "base": p.base}
        for p in sorted(listing.patches, key=lambda p: p.path)
    ]
    document["copies"] = [{"path": path, "base": base} for path, base in sorted(listing.copies)]
    body = tomli_w.dumps(document).encode()
    return _HEADER + f'check = "{sha256(body).hexdigest()}"\n'.encode() + body


def read_listing(content: bytes, *, source: str) -> tuple[Listing, Digest]:
    """Read what a bundle says that it has, and the digest that names it.

    Raises:
        DocumentError: it is damaged, was edited, or is of another version.
    """
    match = _CHECK.match(content)
    if match is None:
        raise DocumentError("is not what `weightpkg bundle create` writes", source=source)
    body = content[match.end() :]
    digest = Digest("sha256", sha256(body).hexdigest())
    if digest.hex.encode() != match[1]:
        raise DocumentError("does not fit the rest: it was changed", where="check", source=source)
    table = parse_document(body, source=source)
    table.version("version", VERSION)
    listing = Listing(
        contents=read_entry(table.table("contents")),
        members=tuple(read_entry(row) for row in rows_of(table, "members")),
        patches=tuple(_read_patch(row) for row in rows_of(table, "patches")),
        copies=tuple(_read_copy(row) for row in rows_of(table, "copies")),
        base=table.optional_parsed("base", lambda text: Digest("sha256", text)),
    )
    table.finish()
    if listing.contents.path != CONTENTS or listing.contents.size > MAX_DOCUMENT_SIZE:
        raise table.error("contents", f"must be {CONTENTS}, of at most {MAX_DOCUMENT_SIZE:,} bytes")
    return listing, digest


def _read_patch(row: Table) -> Patch:
    of, base = row.parsed("of", RelativePath).text, row.parsed("base", RelativePath).text
    patch = Patch(read_entry(row), of, base)
    if patch.member.path != f"{PATCHES}{of}" or patch.member.size > MAX_PATCH:
        raise row.error("path", f"must be {PATCHES}{of}, of at most {MAX_PATCH:,} bytes")
    return patch


def _read_copy(row: Table) -> tuple[str, str]:
    copy = row.parsed("path", RelativePath).text, row.parsed("base", RelativePath).text
    row.finish()
    return copy


def check_listing(listing: Listing, contents: Contents, source: str) -> None:
    """Refuse a listing that does not say of each file of the contents where it is, and once.

    Raises:
        DocumentError: so it is.
    """
    carried = {entry.path: entry for entry in listing.members}
    patched = [patch.path for patch in listing.patches]
    told = [
        *(entry.path for entry in listing.members),
        *patched,
        *(path for path, _ in listing.copies),
    ]
    if len(set(told)) < len(told):
        raise DocumentError("says of a file twice where it is", source=source)
    wheels = {path for path in carried if path.startswith(WHEELS) and path.count("/") == 1}
    if stray := sorted(set(told) - wheels - contents.files.keys()):
        raise DocumentError(f"has `{stray[0]}`, which nothing needs", source=source)
    if missing := sorted(contents.files.keys() - set(told)):
        raise DocumentError(f"does not have `{missing[0]}`", source=source)
    for path in carried.keys() - wheels:
        if carried[path] != contents.files[path]:
            raise DocumentError(f"tells two things of `{path}`", source=source)
    for path, base in listing.copies:
        if base not in contents.files:
            continue
        is_late = base > path and listing.base is None
        if is_late or contents.files[base].blake3 != contents.files[path].blake3:
            raise DocumentError(f"has `{path}` as a copy of what is another file", source=source)
    if listing.base is None and (patched or any(base not in carried for _, base in listing.copies)):
        raise DocumentError("has less than all, and no base", source=source)


def header(path: str, size: int) -> bytes:
    """Return what stands before a member: one block, three where the path or the size is too long.

    POSIX.1-1988 `ustar`, and POSIX.1-2001 `pax` records where that has no room.
    """
    name, prefix = _split(path)
    records = b""
    if name is None:
        records += _record("path", path)
        name = path[:100]
    if size >= _MAX_OCTAL:
        records += _record("size", str(size))
    before = b""
    if records:
        before = _block("PaxHeader", "", len(records), b"x") + records + padding(len(records))
    return before + _block(name, prefix, size if size < _MAX_OCTAL else 0, b"0")


def _split(path: str) -> tuple[str | None, str]:
    if len(path) <= 100:
        return path, ""
    for i, char in enumerate(path):
        if char == "/" and len(path) - i - 1 <= 100 and i <= 155:
            return path[i + 1 :], path[:i]
    return None, ""


def _record(key: str, value: str) -> bytes:
    """A record says its own length, whose digits count, too."""
    rest = f" {key}={value}\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return f"{length}{rest}".encode()


def _block(name: str, prefix: str, size: int, kind: bytes) -> bytes:
    fields = [
        name.encode().ljust(100, b"\0"),
        b"0000644\0" + 2 * b"0000000\0",
        f"{size:011o}\0".encode() + b"00000000000\0",
        8 * b" ",
        kind + bytes(100) + b"ustar\x0000" + bytes(64) + 2 * b"0000000\0",
        prefix.encode().ljust(155, b"\0") + bytes(12),
    ]
    check = f"{sum(b''.join(fields)):06o}\0 ".encode()
    return b"".join([*fields[:3], check, *fields[4:]])


def padding(size: int) -> bytes:
    """What fills a member's last block."""
    return bytes(-size % _BLOCK)


def packed_size(entries: Sequence[Entry], listing_size: int) -> int:
    """How large a bundle with these members is."""
    total = len(header(LIST, listing_size)) + listing_size + len(padding(listing_size))
    for entry in entries:
        total += len(header(entry.path, entry.size)) + entry.size + len(padding(entry.size))
    return total + len(_END)


class Volumes:
    """Several files read as one, in the order of their names."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open them.

        Raises:
            StoreError: one cannot be read, or is no regular file.
        """
        self._stack = ExitStack()
        self._files: list[tuple[int, BinaryIO]] = []
        self.size = 0
        self.name = str(paths[0])
        self._position = 0
        for path in sorted(paths) if len(paths) > 1 else paths:
            with files.mapped(path):
                if not path.is_file():
                    raise StoreError(f"`{path}`: no such file")
                stream = self._stack.enter_context(path.open("rb"))
                self._files.append((self.size, stream))
                self.size += path.stat().st_size

    def seek(self, position: int) -> None:
        """Go on reading at a place."""
        self._position = position

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes.

        Raises:
            IntegrityError: there are fewer.
            StoreError: they cannot be read.
        """
        parts = []
        while size:
            piece = self._read_some(size)
            if not piece:
                raise IntegrityError(f"`{self.name}`: ends after {self._position:,} bytes")
            parts.append(piece)
            size -= len(piece)
        return b"".join(parts)

    def _read_some(self, size: int) -> bytes:
        for start, stream in reversed(self._files):
            if start <= self._position:
                with files.mapped(Path(self.name)):
                    stream.seek(self._position - start)
                    piece = stream.read(size)
                self._position += len(piece)
                return piece
        return b""

    def close(self) -> None:
        """Close all."""
        self._stack.close()


class Bundle:
    """A bundle that is read; use it in a `with` statement."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Read what it says that it has; nothing else is looked at.

        Raises:
            DocumentError: it is no bundle, or its lists are damaged.
            IntegrityError: it is cut, or longer than it says, or its contents have another digest.
            StoreError: it cannot be read.
        """
        self._volumes = Volumes(paths)
        self.name = self._volumes.name
        try:
            self._read_lists()
        except BaseException:
            self._volumes.close()
            raise

    def _read_lists(self) -> None:
        content = self._first()
        self.listing, self.digest = read_listing(content, source=f"{self.name}: {LIST}")
        self.carried = self.listing.carried()
        total = packed_size(self.carried, len(content))
        if total != self._volumes.size:
            raise IntegrityError(
                f"`{self.name}`: has {self._volumes.size:,} bytes, and should have {total:,}",
                hint="a part of it, or one of its volumes, is missing, or it is not one bundle; copy it again",
            )
        self.offsets: dict[str, int] = {}
        position = len(header(LIST, len(content))) + len(content) + len(padding(len(content)))
        for entry in self.carried:
            position += len(header(entry.path, entry.size))
            self.offsets[entry.path] = position
            position += entry.size + len(padding(entry.size))
        document = b"".join(self.pieces(self.listing.contents))
        self.contents = read_contents(document, source=f"{self.name}: {CONTENTS}")
        check_listing(self.listing, self.contents, f"{self.name}: {LIST}")

    def _first(self) -> bytes:
        size = None
        if self._volumes.size >= _BLOCK:
            block = self._volumes.read(_BLOCK)
            field = re.match(rb"([0-7]{11})\0", block[124:136])
            size = int(field[1], 8) if field else None
        if size is None or size > MAX_DOCUMENT_SIZE or block != header(LIST, size):
            raise DocumentError(
                "is no bundle of weightpkg, or not its first volume", source=self.name
            )
        if size + len(padding(size)) > self._volumes.size - _BLOCK:
            raise IntegrityError(f"`{self.name}`: ends before its list does")
        content = self._volumes.read(size)
        if any(self._volumes.read(len(padding(size)))):
            raise DocumentError(f"what stands behind `{LIST}` is not right", source=self.name)
        return content

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """Yield the bytes of a member, and refuse them at the end if they are not the right ones.

        Raises:
            DocumentError: what stands before or behind it is not what we would write.
            DigestMismatchError: it has another digest.
        """
        offset, before = self.offsets[entry.path], header(entry.path, entry.size)
        self._volumes.seek(offset - len(before))
        if self._volumes.read(len(before)) != before:
            raise DocumentError(f"what stands before `{entry.path}` is not right", source=self.name)
        hasher, left = blake3(), entry.size
        while left:
            piece = self._volumes.read(min(left, READ_SIZE))
            hasher.update(piece)
            left -= len(piece)
            yield piece
            self._volumes.seek(offset + entry.size - left)
        found = Digest("blake3", hasher.hexdigest())
        if found != entry.blake3:
            raise DigestMismatchError(
                f"{self.name}: {entry.path}",
                expected=str(entry.blake3),
                found=str(found),
                hint="copy the bundle again",
            )
        if any(self._volumes.read(len(padding(entry.size)))):
            raise DocumentError(f"what stands behind `{entry.path}` is not right", source=self.name)

    def check_end(self) -> None:
        """Refuse anything behind the last member.

        Raises:
            DocumentError: there is something.
        """
        self._volumes.seek(self._volumes.size - len(_END))
        if self._volumes.read(len(_END)) != _END:
            raise DocumentError("what stands at its end is not right", source=self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._volumes.close()


class BundleWriter:
    """Writes a bundle, in volumes if that is wanted; it has its names when all of it is durable."""

    def __init__(self, path: Path, volume_size: int | None) -> None:
        """Nothing is written yet.

        Args:
            path: its name; volumes have `.001` and so on behind it.
            volume_size: bytes of a volume; None for one file.
        """
        self._path = path
        self._limit = volume_size
        self._stack = ExitStack()
        self._volumes: list[files.NewFile] = []
        self._room = 0

    def write(self, data: bytes) -> None:
        """Write at the end."""
        rest = memoryview(data)
        while rest.nbytes:
            if not self._room:
                new = files.NewFile(self._path.absolute().parent)
                self._volumes.append(self._stack.enter_context(new))
                self._room = self._limit or 2**63
            part = rest[: self._room]
            self._volumes[-1].write(part)
            self._room -= part.nbytes
            rest = rest[part.nbytes :]

    def add(self, entry: Entry, pieces: Iterator[bytes]) -> None:
        """Write a member.

        Raises:
            IntegrityError: its bytes are not what the list says.
        """
        self.write(header(entry.path, entry.size))
        hasher, size = blake3(), 0
        for piece in pieces:
            hasher.update(piece)
            size += len(piece)
            self.write(piece)
        found = Digest("blake3", hasher.hexdigest())
        if size != entry.size or found != entry.blake3:
            raise DigestMismatchError(
                entry.path,
                expected=str(entry.blake3),
                found=str(found),
                hint="`weightpkg verify --repair` makes good what is damaged in the store",
            )
        self.write(padding(size))

    def start(self, listing: Listing) -> None:
        """Write the list, which comes first."""
        content = dump_listing(listing)
        self.add(entry_of(LIST, content), iter([content]))

    def finish(self) -> list[Path]:
        """Write the end, and give all volumes their names; return these."""
        self.write(_END)
        if self._limit is None:
            names = [self._path]
        else:
            digits = max(3, len(str(len(self._volumes))))
            names = [
                self._path.with_name(f"{self._path.name}.{i + 1:0{digits}}")
                for i in range(len(self._volumes))
            ]
        for volume, name in zip(self._volumes, names, strict=True):
            volume.publish(name, mode=0o644)
        return names

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
