"""What the store remembers of an installed model: its package, and how it was converted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg import convert, files
from weightpkg.convert import child
from weightpkg.document import Table, parse_document
from weightpkg.errors import (
    ConvertError,
    DocumentError,
    FetchError,
    FormatError,
    ModelNotFoundError,
    TrustError,
)
from weightpkg.lockfile import DEFAULT_INDEX, LockedPackage
from weightpkg.package import UNKNOWN, File, Model, Parts, RelativePath, parse_source
from weightpkg.requirement import NormalizedName
from weightpkg.store import MANIFEST, Installed, InstalledFile, Store

if TYPE_CHECKING:
    from weightpkg.convert.plan import Part
    from weightpkg.progress import Progress
    from weightpkg.project import Indexes

_OPTIONS = ("quantize",)

PartsOf = Callable[[Installed], "tuple[Part, ...] | None"]
"""Says what a conversion made of each type of tensor; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionRecord:
    """How a model was converted, as far as the lockfile and the store know it.

    version: of the converter.
    options: what was asked for beside the files, such as `quantize=q4`.
    inputs: SHA-256 in hex of each file that went in.
    parts: what became of each type of tensor, and how exactly; None where that is not known here.
    """

    key: str
    version: int | None
    tree: str | None
    options: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    parts: tuple[Part, ...] | None = None


def conversion_record(
    package: LockedPackage, record: Installed | None, store: Store, parts_of: PartsOf
) -> ConversionRecord | None:
    """Return how a package was converted, or is to be; None for files that are kept as they are.

    Args:
        package: the package.
        record: what is installed of it.
        store: where its conversion may be.
        parts_of: asked what becomes of each type of tensor; see `make_parts_of`.

    Raises:
        StoreError: the manifest of its conversion cannot be read.
    """
    key = package.conversion or (record.conversion if record else None)
    if key is None:
        return None
    own = record if record is not None and record.conversion == key else None
    tree = package.tree or (own.tree if own else None)
    written = _manifest(store, key)
    sources = [file for file in package.files if file.path.text != convert.SIGNATURE]
    inputs = tuple(file.sha256.hex for file in sources if file.sha256)
    return ConversionRecord(
        key=key,
        version=written.natural("converter-version") if written else package.converter,
        tree=tree.hex if tree else None,
        options=tuple(_options(written)) if written else (),
        inputs=inputs,
        parts=parts_of(own) if own else None,
    )


def _manifest(store: Store, key: str) -> Table | None:
    """The manifest of a conversion, where it is there and can be read."""
    directory = store.model(key)
    if directory is None:
        return None
    path = directory / MANIFEST
    with files.mapped(path):
        content = path.read_bytes()
    with suppress(DocumentError):  # what is damaged is said of the model as a whole
        return parse_document(content, source=str(path))
    return None


def _options(manifest: Table) -> Iterator[str]:
    for name in _OPTIONS:
        with suppress(DocumentError):
            if value := manifest.optional(name, str):
                yield f"{name}={value}"


def make_parts_of(store: Store, progress: Progress) -> PartsOf:
    """Make what says what became of each type of tensor: the conversion's own plan, of the headers.

    What it answers is None where a source was dropped, or is damaged. A conversion that several
    models have is planned once.
    """
    known: dict[str | None, tuple[Part, ...] | None] = {}

    def parts_of(record: Installed) -> tuple[Part, ...] | None:
        if record.conversion not in known:
            known[record.conversion] = _parts(record, store, progress)
        return known[record.conversion]

    return parts_of


def _parts(record: Installed, store: Store, progress: Progress) -> tuple[Part, ...] | None:
    sources = _sources_of(record, store)
    if sources is None:
        return None
    form = convert.format_of([source.name for source in sources])
    with suppress(FormatError, ConvertError, OSError):  # a damaged source is said elsewhere
        return child.plan(convert.Job(form, record.full_name, sources), progress).parts
    return None


def _sources_of(record: Installed, store: Store) -> tuple[convert.SourceFile, ...] | None:
    """The files of a conversion; None where one was dropped."""
    own = [file for file in record.files if file.path != convert.SIGNATURE]
    found = [(file, store.blob(file.sha256)) for file in own]
    if any(path is None for _, path in found):
        return None
    return tuple(
        convert.SourceFile(path, file.sha256, file.path, file.blake3)
        for file, path in found
        if path is not None
    )


def package_of_record(record: Installed, indexes: Indexes) -> LockedPackage:
    """Return what is installed as what a lockfile would say of it.

    A record has neither license nor index. Where the default index has the same files under that
    name and version, it is that one's; else nothing of it is known.
    """
    model = None if record.reference else _model_with(record, indexes)
    names = [file.path for file in record.files if file.path != convert.SIGNATURE]
    return LockedPackage(
        name=record.name,
        version=record.version,
        variant=record.variant,
        index=NormalizedName(DEFAULT_INDEX) if model else None,
        reference=record.reference,
        license=model.license if model else UNKNOWN,
        license_url=model.license_url if model else None,
        format=convert.format_of(names),
        architecture=model.architecture if model else UNKNOWN,
        conversion=record.conversion,
        converter=convert.CONVERTER_VERSION if record.conversion else None,
        tree=record.tree,
        files=tuple(map(_file, record.files)),
    )


def _model_with(record: Installed, indexes: Indexes) -> Model | None:
    default = NormalizedName(DEFAULT_INDEX)
    try:
        model = indexes.model(default, record.name)
    except (DocumentError, ModelNotFoundError, TrustError, FetchError):
        return None
    digests = {file.path: file.sha256 for file in record.files}
    for release in model.releases:
        for variant in release.variants:
            own = {file.path.text: file.sha256 for file in variant.files}
            if (release.version, variant.name, own) == (record.version, record.variant, digests):
                return model
    return None


def _file(file: InstalledFile) -> File:
    return File(
        path=RelativePath(file.path),
        sha256=file.sha256,
        size=file.size,
        blake3=file.blake3,
        sources=tuple(_sources(file)),
    )


def _sources(file: InstalledFile) -> Iterator[Parts]:
    for parts in file.sources:
        with suppress(ValueError):  # of a release that knew other kinds
            yield tuple(map(parse_source, parts))
