"""From a resolved requirement to a model that is there: plan, fetch, convert, record.

`plan_install` decides and touches nothing; `install` does what the plan says. Each step leaves the
store whole: a blob is there when its digest was right, a model directory when its conversion was
finished, and the record that points at both is written last.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weightpkg import convert
from weightpkg.digest import Digest
from weightpkg.errors import StoreError, UnsupportedArchitectureError, UnsupportedFormatError
from weightpkg.fetch import Fetcher
from weightpkg.package import UNKNOWN, File, Resolved, Variant
from weightpkg.progress import Progress
from weightpkg.store import Installed, InstalledFile, Store, tree_digest


@dataclass(frozen=True, slots=True)
class Plan:
    """What an install will do.

    missing: files to be fetched.
    conversion: the key of the conversion; None where there is none, or where it is not known before
        a file without a digest was fetched.
    converts: whether there is to be a conversion.
    is_converted: whether it is there already.
    """

    resolved: Resolved
    missing: tuple[File, ...]
    conversion: str | None
    converts: bool
    is_converted: bool

    @property
    def download_size(self) -> int | None:
        """Bytes to be fetched, None where the index does not know."""
        sizes = [file.size for file in self.missing]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to fetch and nothing to convert."""
        return not self.missing and (not self.converts or self.is_converted)


def plan_install(resolved: Resolved, store: Store, *, allow_conversion: bool = True) -> Plan:
    """Decide what is to be done for a variant to be installed.

    Args:
        resolved: what was asked for.
        store: where it shall be.
        allow_conversion: False to keep the verified files only.

    Raises:
        UnsupportedFormatError: its files are of a format that is not converted.
        UnsupportedArchitectureError: its architecture is not converted.
    """
    files = resolved.variant.files
    missing = tuple(f for f in files if f.sha256 is None or store.blob(f.sha256) is None)
    if not allow_conversion:
        return Plan(resolved, missing, None, converts=False, is_converted=False)
    _check_convertible(resolved)
    digests = [file.sha256 for file in files if file.sha256]
    if len(digests) < len(files):
        return Plan(resolved, missing, None, converts=True, is_converted=False)
    key = convert.conversion_key(digests)
    is_converted = store.model(key) is not None
    if is_converted and _is_without_sources(resolved, store, key):
        missing = ()
    return Plan(resolved, missing, key, converts=True, is_converted=is_converted)


def _is_without_sources(resolved: Resolved, store: Store, key: str) -> bool:
    """Whether the sources were dropped on purpose, once the conversion was there."""
    name, version = resolved.model.normalized_name, resolved.release.version
    record = store.find(name, resolved.variant.name, version)
    if record is None or record.conversion != key:
        return False
    return not any(file.is_kept for file in record.files)


def _check_convertible(resolved: Resolved) -> None:
    """Refuse before the download what could only be refused after it."""
    hint = "`--no-convert` fetches, verifies and keeps the files as they are"
    variant = resolved.variant
    if variant.format not in convert.FORMATS or not _is_one_model(variant):
        raise UnsupportedFormatError(
            f"`{resolved.full_name}` is in {variant.format} format, which is not converted yet",
            hint=hint,
        )
    known = {*convert.ARCHITECTURES, UNKNOWN}
    if variant.format != "onnx" and resolved.model.architecture not in known:
        raise UnsupportedArchitectureError(
            f"`{resolved.full_name}` has architecture `{resolved.model.architecture}`, "
            "which is not converted yet",
            hint=hint,
        )


def _is_one_model(variant: Variant) -> bool:
    """Whether it has one file to be converted; ONNX models have others beside it."""
    suffix = ".onnx" if variant.format == "onnx" else ""
    return sum(file.path.text.endswith(suffix) for file in variant.files) == 1


def install(plan: Plan, store: Store, fetcher: Fetcher) -> Installed:
    """Do what a plan says; return the record of what is installed.

    Args:
        plan: made for this store.
        store: where everything goes.
        fetcher: fetches files into this store, and is told of each step.

    Raises:
        FetchError: no source has a file.
        IntegrityError: a source delivered other bytes than the index promises.
        StoreError: the store cannot be written.
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted.
    """
    with store.use():
        known = _known_files(plan, store)
        files = known or [_fetch(file, fetcher) for file in plan.resolved.variant.files]
        conversion = tree = None
        if plan.converts:
            conversion = convert.conversion_key([file.sha256 for file in files])
            tree = tree_digest(_convert(conversion, files, store, fetcher.progress))
        installed = Installed(
            name=plan.resolved.model.normalized_name,
            version=plan.resolved.release.version,
            variant=plan.resolved.variant.name,
            files=tuple(files),
            conversion=conversion,
            tree=tree,
            reference=plan.resolved.reference,
        )
        store.record(installed)
        return installed


def _known_files(plan: Plan, store: Store) -> list[InstalledFile]:
    """The files as they are recorded, where their sources were dropped and are not needed."""
    if not plan.is_done or not plan.conversion:
        return []
    if not _is_without_sources(plan.resolved, store, plan.conversion):
        return []
    resolved = plan.resolved
    record = store.find(
        resolved.model.normalized_name, resolved.variant.name, resolved.release.version
    )
    return list(record.files) if record else []


def _fetch(file: File, fetcher: Fetcher) -> InstalledFile:
    found = fetcher.fetch(file)
    sources = tuple(tuple(source.text for source in parts) for parts in file.sources)
    return InstalledFile(str(file.path), found.size, found.sha256, found.blake3, sources)


def _convert(key: str, files: Sequence[InstalledFile], store: Store, progress: Progress) -> Path:
    """Return the model directory of a conversion, making it if it is not there."""
    if directory := store.model(key):
        return directory
    with store.lock(
        Digest("sha256", key),
        on_wait=lambda: progress.note("another process is converting it; waiting"),
    ):
        if store.model(key) is None:  # another process may have made it meanwhile
            with store.new_model(key) as new:
                convert_blobs(files, store, new, progress)
    return store.model_path(key)


def convert_blobs(
    files: Sequence[InstalledFile], store: Store, directory: Path, progress: Progress
) -> None:
    """Convert installed files into an empty directory.

    Raises:
        StoreError: a blob is missing, or the directory cannot be written.
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted.
    """
    from weightpkg.convert.child import convert as convert_in_child  # noqa: PLC0415  for its own time

    form = convert.format_of([file.path for file in files])
    sources = [convert.SourceFile(_blob(file, store), file.sha256, file.path) for file in files]
    start = time.perf_counter()
    done = convert_in_child(form, sources, directory, progress)
    seconds = time.perf_counter() - start
    if form != "onnx":
        ratio, name = done.size / done.source_size, files[0].path
        progress.note(f"converted {name} to ONNX in {seconds:.1f} s, {ratio:.2f} times its size")


def _blob(file: InstalledFile, store: Store) -> Path:
    path = store.blob(file.sha256)
    if path is None:
        raise StoreError(f"`{file.path}`: its blob is missing", hint="weightpkg verify --repair")
    return path
