"""What a mirror or a bundle has, and for whom: `mirror.toml`, the proof that it is complete.

    check = "..."                  SHA-256 of all that follows
    version = 1
    [[needs]]                      a lockfile (by its digest) or a name, and its packages: the digest of
                                   each file, the key and tree of the conversion, the pages of the index
    [[files]]                      every file but this one: path, size, blake3, and sha256 where known

What a need says must all be among the files: `gaps` is empty, or the proof is none. The same content
is always the same bytes. Paths are plain relative ones (`RelativePath`), and nothing else is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import tomli_w
from blake3 import blake3

from weightpkg.digest import Digest
from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError
from weightpkg.package import RelativePath

CONTENTS = "mirror.toml"
VERSION = (1, 0)
MODEL_MANIFEST = "weightpkg.toml"

_HEADER = b"# Written by `weightpkg mirror create`: what is here, for whom, and its digests.\n"
_CHECK = re.compile(re.escape(_HEADER) + rb'check = "([0-9a-f]{64})"\n')
_PLACE = re.compile(
    r"blobs/sha256/([0-9a-f]{2})/\1[0-9a-f]{62}(\.chunks)?\Z"
    r"|models/[0-9a-f]{64}/.+|index/[a-z0-9-]+/.+|locks/[0-9a-f]{64}\.lock\Z"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A file, by its path below the mirror; `sha256` is None where only BLAKE3 was computed."""

    path: str
    size: int
    blake3: Digest
    sha256: Digest | None = None

    def __post_init__(self) -> None:
        RelativePath(self.path)


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """What one package of a need consists of.

    files: names in the model, with their digests.
    conversion, tree: of the converted model; None where it was left out, or there is none.
    pages: of the index: its page, aliases and license texts.
    """

    name: str
    license: str
    files: tuple[tuple[str, Digest], ...]
    conversion: str | None = None
    tree: Digest | None = None
    pages: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """A lockfile or a name that all is here for.

    lock: the digest of the lockfile, which is here as `locks/<hex>.lock`; None for a name.
    """

    name: str
    lock: Digest | None = None
    packages: tuple[Package, ...]

    @property
    def key(self) -> str:
        """What tells it from others."""
        return self.lock.hex if self.lock else self.name


@dataclass(frozen=True, slots=True)
class Contents:
    """All of it; files by path."""

    needs: tuple[Need, ...]
    files: Mapping[str, Entry]


def blob_name(digest: Digest) -> str:
    """Where a blob is below a mirror.

    >>> blob_name(Digest("sha256", 64 * "a"))[:20]
    'blobs/sha256/aa/aaaa'
    """
    return f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"


def lock_name(digest: Digest) -> str:
    """Where a lockfile is below a mirror."""
    return f"locks/{digest.hex}.lock"


def entry_of(path: str, content: bytes) -> Entry:
    """Describe a small file."""
    return Entry(
        path=path,
        size=len(content),
        blake3=Digest("blake3", blake3(content).hexdigest()),
        sha256=Digest("sha256", hashlib.sha256(content).hexdigest()),
    )


def needed_by(need: Need, files: Iterable[str]) -> set[str]:
    """Return the paths that a need needs; `files` are those that are there, for whole directories."""
    paths = {lock_name(need.lock)} if need.lock else set()
    directories = []
    for package in need.packages:
        for _, digest in package.files:
            paths |= {blob_name(digest), f"{blob_name(digest)}.chunks"}
        paths |= set(package.pages)
        if package.conversion:
            directories.append(f"models/{package.conversion}/")
            paths.add(f"models/{package.conversion}/{MODEL_MANIFEST}")
        # the metadata of a signed index says nothing if part of it is missing
        directories += [
            page.partition("/targets/")[0] + "/metadata/"
            for page in package.pages
            if "/targets/" in page
        ]
    wanted = tuple(dict.fromkeys(directories))
    return paths | {path for path in files if wanted and path.startswith(wanted)}


def gaps(contents: Contents) -> list[str]:
    """Return what needs need and the list of files does not have; empty for a proof that is one."""
    found = []
    for need in contents.needs:
        missing = sorted(needed_by(need, contents.files) - contents.files.keys())
        found += [f"`{path}` is not here, and `{need.name}` needs it" for path in missing]
        for package in need.packages:
            found += _wrong_trees(need, package, contents.files)
    return found


def _wrong_trees(need: Need, package: Package, files: Mapping[str, Entry]) -> Iterator[str]:
    for name, digest in package.files:
        entry = files.get(blob_name(digest))
        if entry is not None and entry.sha256 != digest:
            yield f"`{entry.path}` is listed with other bytes than `{name}` of `{need.name}` has"
    path = f"models/{package.conversion}/{MODEL_MANIFEST}"
    if package.conversion and path in files and files[path].sha256 != package.tree:
        yield f"`{path}` is listed with other bytes than `{need.name}` needs"


def dump_contents(contents: Contents) -> bytes:
    """Return the one form in which contents are written."""
    needs = sorted(contents.needs, key=lambda need: need.key)
    document = {
        "version": VERSION[0],
        "needs": [_dump_need(need) for need in needs],
        "files": [dump_entry(contents.files[path]) for path in sorted(contents.files)],
    }
    body = tomli_w.dumps(document).encode()
    return _HEADER + f'check = "{hashlib.sha256(body).hexdigest()}"\n'.encode() + body


def _dump_need(need: Need) -> dict[str, object]:
    row: dict[str, object] = {"name": need.name}
    if need.lock:
        row["lock"] = need.lock.hex
    packages = sorted(need.packages, key=lambda package: package.name)
    return row | {"packages": [_dump_package(package) for package in packages]}


def _dump_package(package: Package) -> dict[str, object]:
    row: dict[str, object] = {"name": package.name, "license": package.license}
    if package.conversion and package.tree:
        row |= {"conversion": package.conversion, "tree": package.tree.hex}
    row["pages"] = sorted(package.pages)
    row["files"] = [{"path": name, "sha256": digest.hex} for name, digest in package.files]
    return row


def dump_entry(entry: Entry) -> dict[str, object]:
    """Return an entry as a row."""
    row: dict[str, object] = {"path": entry.path, "size": entry.size, "blake3": entry.blake3.hex}
    return row | ({"sha256": entry.sha256.hex} if entry.sha256 else {})


def read_contents(content: bytes, *, source: str) -> Contents:
    """Read what a mirror has.

    Raises:
        DocumentError: it is damaged, was edited, or is of another version.
    """
    match = _CHECK.match(content)
    if match is None:
        raise DocumentError("is not what `weightpkg mirror create` writes", source=source)
    body = content[match.end() :]
    if hashlib.sha256(body).hexdigest().encode() != match[1]:
        raise DocumentError("does not fit the rest: it was changed", where="check", source=source)
    table = parse_document(body, source=source)
    table.version("version", VERSION)
    needs = tuple(_read_need(row) for row in rows_of(table, "needs"))
    entries = [read_entry(row) for row in rows_of(table, "files")]
    table.finish()
    if reason := _clash([entry.path for entry in entries]):
        raise table.error("files", reason)
    return Contents(needs, {entry.path: entry for entry in entries})


def _clash(paths: Iterable[str]) -> str | None:
    """Say which path has no place here, or stands in the way of another on some system."""
    seen: set[str] = set()
    for path in sorted(paths, key=lambda path: path.count("/")):
        folded = path.casefold()
        above = folded.split("/")
        if not _PLACE.match(path):
            return f"has `{path}`, which has no place here"
        if folded in seen or any("/".join(above[:i]) in seen for i in range(1, len(above))):
            return f"has `{path}` twice, or as a file and as a directory"
        seen.add(folded)
    return None


def rows_of(table: Table, key: str) -> Iterator[Table]:
    """The tables of an array that may be empty, or not there."""
    return table.tables(key) if table.optional(key, list) else iter(())


def _read_need(row: Table) -> Need:
    need = Need(
        name=row.required("name", str),
        lock=row.optional_parsed("lock", _sha256),
        packages=tuple(_read_package(package) for package in rows_of(row, "packages")),
    )
    row.finish()
    return need


def _read_package(row: Table) -> Package:
    package = Package(
        name=row.required("name", str),
        license=row.required("license", str),
        files=tuple(_read_file(file) for file in rows_of(row, "files")),
        conversion=row.optional_parsed("conversion", lambda text: _sha256(text).hex),
        tree=row.optional_parsed("tree", _sha256),
        pages=row.strings("pages"),
    )
    row.finish()
    return package


def _read_file(row: Table) -> tuple[str, Digest]:
    file = row.parsed("path", lambda text: RelativePath(text).text), row.parsed("sha256", _sha256)
    row.finish()
    return file


def read_entry(row: Table) -> Entry:
    """Read a row; `DocumentError` says what is wrong with it."""
    size = row.natural("size")
    if size is None:
        raise row.error("size", "is missing (a whole number)")
    entry = Entry(
        path=row.parsed("path", lambda text: RelativePath(text).text),
        size=size,
        blake3=row.parsed("blake3", lambda text: Digest("blake3", text)),
        sha256=row.optional_parsed("sha256", _sha256),
    )
    row.finish()
    return entry


def _sha256(text: str) -> Digest:
    return Digest("sha256", text)


def read_model_rows(content: bytes, *, source: str) -> tuple[list[Entry], frozenset[str]]:
    """Read the manifest of a converted model.

    Returns:
        Its files, by their names in it; and the SHA-256 of sources that are among them as they are,
        in hex digits.

    Raises:
        DocumentError: it is not valid.
    """
    table = parse_document(content, source=source)
    entries = []
    for row in table.tables("files"):
        size = row.natural("size")
        if size is None:
            raise row.error("size", "is missing (a whole number)")
        path = row.parsed("path", lambda text: RelativePath(text).text)
        digest = row.parsed("blake3", lambda text: Digest("blake3", text))
        entries.append(Entry(path=path, size=size, blake3=digest))
    sources = table.tables("sources") if "sources" in table else iter(())
    placed = (row for row in sources if row.optional("in-place", bool))
    return entries, frozenset(row.parsed("sha256", _sha256).hex for row in placed)
