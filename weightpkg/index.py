"""An index: a directory of TOML pages, one a model, that says what exists and where its bytes are.

A name is looked up by opening its page and no other. `docs/index.md` is the specification; what it
says of one page is checked by `page`, and `lint` adds what only the whole index can tell.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from weightpkg import files
from weightpkg.digest import Digest
from weightpkg.document import MAX_DOCUMENT_SIZE, Table, nearest, parse_document
from weightpkg.errors import DocumentError, ModelNotFoundError
from weightpkg.listing import Listing
from weightpkg.package import File, Model, Resolved
from weightpkg.page import read_alias, read_model
from weightpkg.requirement import NormalizedName, normalize_name

if TYPE_CHECKING:
    from weightpkg.catalog import Catalog, Source

UNSIGNED = "unsigned"
"""The root of an index that has no signatures."""

_NEAREST = 3
_MAX_ALIASES = 8  # one after the other
_MANY = 10_000  # to compare so many names takes 0.1 s


@dataclass(frozen=True, slots=True)
class Hit:
    """A model that a search found; higher scores are better."""

    listing: Listing
    score: int


class Pages(Protocol):
    """The pages of an index, wherever they are; a kind of page is `models` or `aliases`.

    directory: where texts of licenses are, and what `file:` sources are relative to.
    root: what names the root of their trust, as lockfiles have it.
    """

    @property
    def directory(self) -> Path:
        """A directory of this machine."""

    @property
    def root(self) -> str:
        """`unsigned`, or the digest of the first root."""

    def names(self, kind: str) -> list[str]:
        """The normalised names of all pages of a kind, in order."""

    def known(self, kind: str) -> list[str]:
        """The same, as far as nothing has to be fetched for it."""

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a page."""

    def read(self, kind: str, name: str) -> bytes:
        """Return a page; `DocumentError` where it cannot be read."""

    def listing(self, name: str) -> Listing | None:
        """What is known of a model without its page; None where that must be read."""

    def catalog_source(self) -> Source:
        """What a catalogue of the models is made of."""


@dataclass(frozen=True, slots=True)
class DirectoryPages:
    """Pages in a directory: the user's own, or one that came with this package."""

    directory: Path

    @property
    def root(self) -> str:
        """The digest of the first root where there is one, and nobody has checked it."""
        path = self.directory / "metadata" / "1.root.json"
        if not path.is_file():
            return UNSIGNED
        with files.mapped(path):
            return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"

    def names(self, kind: str) -> list[str]:
        """The names of all files; `DocumentError` where the directory is no index."""
        directory = self.directory / kind
        if not directory.is_dir():
            if kind == "aliases":
                return []
            hint = "an index is a directory that holds `models/NAME.toml`"
            if (self.directory / "metadata" / "timestamp.json").is_file():
                hint = f"it is a signed index: `weightpkg index add {self.directory} --root FILE`"
            raise DocumentError("is not a directory", source=str(directory), hint=hint)
        return _names(directory)

    def known(self, kind: str) -> list[str]:
        """The same: all is here."""
        return self.names(kind)

    def has(self, kind: str, name: str) -> bool:
        """Whether there is such a file."""
        return (self.directory / kind / f"{name}.toml").is_file()

    def read(self, kind: str, name: str) -> bytes:
        """Return a file; `DocumentError` where it cannot be read."""
        return read_page(self.directory / kind / f"{name}.toml")

    def listing(self, name: str) -> None:  # noqa: ARG002  as `Pages` has it
        """Nothing: pages are at hand."""
        return

    def catalog_source(self) -> Source:
        """The directory; `DocumentError` where it is no index."""
        from weightpkg.catalog import Directory  # noqa: PLC0415  SQLite, which only searches need

        if not (self.directory / "models").is_dir():
            self.names("models")
        return Directory(self.directory / "models")


class Index:
    """An index."""

    def __init__(
        self,
        place: Path | Pages,
        *,
        cache: Path | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Open an index; nothing is read before it is asked for.

        Args:
            place: its directory, or its pages.
            cache: where to keep what searches need; without it, each search reads every page.
            note: told what takes a while.
        """
        self.pages: Pages = DirectoryPages(place) if isinstance(place, Path) else place
        self._cache = cache
        self._note = note
        self._models: dict[str, Model] = {}

    @property
    def directory(self) -> Path:
        """Where texts of licenses are, and what `file:` sources are relative to."""
        return self.pages.directory

    @property
    def root(self) -> str:
        """What names the root of its trust: the digest of its first root, if it is signed."""
        return self.pages.root

    def names(self) -> list[str]:
        """The normalised names of all models, in order.

        Raises:
            DocumentError: the directory is no index.
        """
        return self.pages.names("models")

    def aliases(self) -> list[str]:
        """The normalised names of all aliases, in order."""
        return self.pages.names("aliases")

    def __contains__(self, name: NormalizedName) -> bool:
        return self.pages.has("models", name) or self.pages.has("aliases", name)

    def model(self, name: NormalizedName) -> Model:
        """Return a model by its name, or by an alias.

        Raises:
            ModelNotFoundError: there is none of that name.
            DocumentError: its page is not valid, or the alias leads nowhere.
        """
        if name not in self._models:
            self._models[name] = self._read(self.target(name))
        return self._models[name]

    def target(self, name: NormalizedName) -> NormalizedName:
        """Follow aliases to the name of a model; a model's own name is returned as it is.

        Raises:
            ModelNotFoundError: there is neither a model nor an alias of that name.
            DocumentError: an alias leads nowhere, or back to itself, or is a model, too.
        """
        way = [name]
        while self.pages.has("aliases", way[-1]):
            source = f"aliases/{way[-1]}.toml"
            if self.pages.has("models", way[-1]):
                raise DocumentError(f"`{way[-1]}` is a model, too", source=source)
            way.append(read_alias(self._parse("aliases", way[-1])))
            if way[-1] in way[:-1] or len(way) > _MAX_ALIASES + 1:
                what = (
                    "goes in a circle" if way[-1] in way[:-1] else "leads through too many aliases"
                )
                reason = f"{what}: {' -> '.join(way)}"
                raise DocumentError(reason, where="model", source=source)
        if self.pages.has("models", way[-1]):
            return way[-1]
        if len(way) == 1:
            raise ModelNotFoundError(name, self.nearest(name))
        reason = f"no model is called `{way[-1]}`"
        raise DocumentError(reason, where="model", source=f"aliases/{way[-2]}.toml")

    def nearest(self, name: str) -> list[str]:
        """The names most like one that is not there."""
        known = self.pages.known("models") + self.pages.known("aliases")
        if len(known) > _MANY:
            known = [other for other in known if other[:2] == name[:2]]
        near = nearest(name, known, n=_NEAREST)
        return near or [other for other in known if other in name or name in other][:_NEAREST]

    def search(self, words: Sequence[str], *, limit: int | None = None) -> list[Hit]:
        """Return the models that match all of the words, best first.

        Pages that are not valid are left out: `faulty` names them.

        Args:
            words: parts of names, tags, summaries and the like; capitals do not count.
            limit: how many to return at most.

        Raises:
            DocumentError: the directory is no index.
        """
        found = self._catalog().search(words, limit)
        return [Hit(self._listing(name), score) for name, score in found]

    def faulty(self) -> list[NormalizedName]:
        """Return the names of the pages that a search leaves out because they are not valid.

        Raises:
            DocumentError: the directory is no index.
        """
        return [NormalizedName(name) for name in self._catalog().faulty()]

    def _catalog(self) -> Catalog:
        from weightpkg.catalog import Catalog  # noqa: PLC0415  SQLite, which only searches need

        return Catalog(self.pages.catalog_source(), self._cache, self._listing, self._note)

    def _listing(self, name: str) -> Listing:
        return self.pages.listing(name) or Listing.of(self._read(name))

    def find(self, digest: Digest) -> Iterator[tuple[Resolved, File]]:
        """Yield each variant that has a file of a SHA-256, with that file.

        Raises:
            DocumentError: the directory is no index.
        """
        for name in self._holders(digest):
            model = self.model(NormalizedName(name))
            for release in model.releases:
                for variant in release.variants:
                    for file in variant.files:
                        if file.sha256 == digest:
                            yield Resolved(model=model, release=release, variant=variant), file

    def _holders(self, digest: Digest) -> Iterable[str]:
        """The models that may have a file of a SHA-256."""
        return self._catalog().holders(digest)

    def lint(self) -> list[DocumentError]:
        """Return every fault of the index, by page."""
        faults: list[DocumentError] = []
        models: list[Model] = []
        for path in sorted((self.directory / "models").iterdir()):
            try:
                models.append(_read_path(path))
            except DocumentError as error:
                faults.append(error)
        faults += self._faults_of_aliases()
        return faults + list(_ambiguities(models, self.aliases()))

    def _faults_of_aliases(self) -> Iterator[DocumentError]:
        directory = self.directory / "aliases"
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            try:
                _check_page_name(path)
                self.target(normalize_name(path.stem))
            except DocumentError as error:
                yield error

    def warnings(self) -> list[str]:
        """Return what is allowed in a valid index, and not good."""
        found: list[str] = []
        sizeless: list[str] = []
        for name in self.names():
            model = self.model(NormalizedName(name))
            found += model.notes
            variants = [variant for release in model.releases for variant in release.variants]
            if any(variant.size is None for variant in variants):
                sizeless.append(f"models/{name}.toml")
        if sizeless:
            more = f" and {len(sizeless) - 3} more" if len(sizeless) > 3 else ""
            found.append(
                f"{', '.join(sizeless[:3])}{more}: files have no size, so only their digests and "
                "the free disk bound the download"
            )
        return found

    def _parse(self, kind: str, name: str) -> Table:
        return parse_document(self.pages.read(kind, name), source=f"{kind}/{name}.toml")

    def _read(self, name: str) -> Model:
        return _checked(read_model(self._parse("models", name)), name)


def read_page(path: Path) -> bytes:
    """Return the bytes of a page; `DocumentError` where it is no page, or cannot be read."""
    source = _source(path)
    try:
        if path.is_symlink() or not path.is_file() or path.suffix != ".toml":
            raise DocumentError("is not a regular file NAME.toml", source=source)
        if path.stat().st_size > MAX_DOCUMENT_SIZE:
            raise DocumentError(f"larger than {MAX_DOCUMENT_SIZE:,} bytes", source=source)
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DocumentError(f"cannot be read: {reason}", source=source) from error


def _read_path(path: Path) -> Model:
    return _checked(read_model(parse_document(read_page(path), source=_source(path))), path.stem)


def _checked(model: Model, name: str) -> Model:
    if model.normalized_name != name:
        reason = f"`{model.name}` belongs on the page {model.normalized_name}.toml"
        raise DocumentError(reason, where="name", source=f"models/{name}.toml")
    return model


def _names(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:  # for a hundred thousand, paths would be slow
        pages = [entry.name for entry in entries]
    return sorted(page.removesuffix(".toml") for page in pages if page.endswith(".toml"))


def _source(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _check_page_name(path: Path) -> None:
    """Refuse a page that no name leads to."""
    try:
        is_right = path.suffix == ".toml" and normalize_name(path.stem) == path.stem
    except ValueError:
        is_right = False
    if not is_right:
        raise DocumentError("is not called by a normalised name", source=_source(path))


def _ambiguities(models: Sequence[Model], aliases: Sequence[str]) -> Iterator[DocumentError]:
    named = (
        (model.name, {variant.name for release in model.releases for variant in release.variants})
        for model in models
    )
    return ambiguities(named, aliases)


def ambiguities(
    models: Iterable[tuple[str, Iterable[str]]], aliases: Sequence[str]
) -> Iterator[DocumentError]:
    """Yield each name that two things have: a variant's full name, a model's, or an alias.

    Args:
        models: each one's name, and its variants'.
        aliases: all of them.
    """
    taken = set(aliases)
    owners: dict[str, list[str]] = defaultdict(list)
    for alias in aliases:
        owners[alias].append(f"alias `{alias}`")
    for model, variants in models:
        if normalize_name(model) not in taken:  # else it is said of the alias
            owners[normalize_name(model)].append(f"model `{model}`")
        for variant in sorted(variants):
            owner = f"variant `{variant}` of `{model}`"
            owners[normalize_name(f"{model}-{variant}")].append(owner)
    for name, owned in sorted(owners.items()):
        if len(owned) > 1:
            yield DocumentError(f"is ambiguous: {' and '.join(owned)}", source=name)
