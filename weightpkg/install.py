"""From a resolved requirement to a model that is there: plan, fetch, convert, record.

`plan_install` decides and touches nothing; `install` does what the plan says. Each step leaves the
store whole: a blob is there when its digest was right, a model directory when its conversion was
finished, and the record that points at both is written last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg import convert
from weightpkg.digest import Digest
from weightpkg.errors import StoreError, UnsupportedArchitectureError, UnsupportedFormatError
from weightpkg.package import UNKNOWN, File, Resolved, Variant
from weightpkg.placing import place_files
from weightpkg.progress import Progress
from weightpkg.store import Installed, InstalledFile, Store, tree_digest

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher


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
    check_convertible(resolved)
    digests = {file.path.text: file.sha256 for file in files if file.sha256}
    if len(digests) < len(files):
        return Plan(resolved, missing, None, converts=True, is_converted=False)
    key = convert.conversion_key(digests)
    is_converted = store.model(key) is not None
    if is_converted:
        dropped = {file.sha256 for file in _recorded(resolved, store, key) if not file.is_kept}
        missing = tuple(file for file in missing if file.sha256 not in dropped)
    return Plan(resolved, missing, key, converts=True, is_converted=is_converted)


def _recorded(resolved: Resolved, store: Store, key: str) -> tuple[InstalledFile, ...]:
    """The files as they are recorded with this conversion; some may have been dropped since."""
    name, version = resolved.model.normalized_name, resolved.release.version
    record = store.find(name, resolved.variant.name, version)
    return record.files if record is not None and record.conversion == key else ()


def check_convertible(resolved: Resolved) -> None:
    """Refuse before the download what could only be refused after it.

    Raises:
        UnsupportedFormatError: its files are of a format that is not converted.
        UnsupportedArchitectureError: its architecture is not converted.
    """
    hint = "`--no-convert` fetches, verifies and keeps the files as they are"
    variant = resolved.variant
    if variant.format not in convert.FORMATS:
        raise UnsupportedFormatError(
            f"`{resolved.full_name}` is in {variant.format} format, which is not converted yet",
            hint=hint,
        )
    if not _is_one_model(variant):
        raise UnsupportedFormatError(
            f"the files of `{resolved.full_name}` are not one model in {variant.format} format",
            hint=hint,
        )
    known = convert.CONVERTIBLE.get(variant.format)
    if known is not None and resolved.model.architecture not in {*known, UNKNOWN}:
        raise UnsupportedArchitectureError(
            f"`{resolved.full_name}` has architecture `{resolved.model.architecture}`, "
            "which is not converted yet",
            hint=hint,
        )


def _is_one_model(variant: Variant) -> bool:
    """Whether it has what makes one model, and of a GGUF file nothing else."""
    names = [file.path.text for file in variant.files if file.path.text != convert.SIGNATURE]
    if convert.format_of(names) != variant.format:
        return False
    if variant.format == "onnx":
        return sum(name.endswith(".onnx") for name in names) == 1
    return variant.format == "safetensors" or len(names) == 1


Check = Callable[[str, Sequence[InstalledFile]], None]
"""Raises where files that were fetched, and are what they should be, shall not be used all the same."""


def install(
    plan: Plan, store: Store, fetcher: Fetcher, *, check: Check = lambda *_: None
) -> Installed:
    """Do what a plan says; return the record of what is installed.

    Args:
        plan: made for this store.
        store: where everything goes.
        fetcher: fetches files into this store, and is told of each step.
        check: asked about the files before anything is made of them.

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
        check(plan.resolved.full_name, files)
        conversion = tree = None
        if plan.converts:
            conversion = convert.conversion_key({file.path: file.sha256 for file in files})
            name = plan.resolved.full_name
            tree = tree_digest(convert_model(conversion, name, files, store, fetcher.progress))
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
    """The files as they are recorded, where some were dropped and are not needed."""
    if not plan.is_done or not plan.conversion:
        return []
    recorded = _recorded(plan.resolved, store, plan.conversion)
    return [] if all(file.is_kept for file in recorded) else list(recorded)


def _fetch(file: File, fetcher: Fetcher) -> InstalledFile:
    found = fetcher.fetch(file)
    sources = tuple(tuple(source.text for source in parts) for parts in file.sources)
    return InstalledFile(str(file.path), found.size, found.sha256, found.blake3, sources)


def convert_model(
    key: str, name: str, files: Sequence[InstalledFile], store: Store, progress: Progress
) -> Path:
    """Return the model directory of a conversion, making it if it is not there.

    Raises:
        StoreError: a blob is missing, or the store cannot be written.
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted.
    """
    if directory := store.model(key):
        return directory
    with store.lock(
        Digest("sha256", key),
        on_wait=lambda: progress.note("another process is converting it; waiting"),
    ):
        if store.model(key) is None:  # another process may have made it meanwhile
            with store.new_model(key) as new:
                convert_blobs(name, files, store, new, progress)
    return store.model_path(key)


def convert_blobs(
    name: str, files: Sequence[InstalledFile], store: Store, directory: Path, progress: Progress
) -> None:
    """Convert installed files into an empty directory.

    Args:
        name: of the model, which is called by its file's name if it has one only.
        files: the model's.
        store: where they are.
        directory: where the model goes; weights that are used as they are have a second name there.
        progress: told of the bytes of weights as they are written.

    Raises:
        StoreError: a blob is missing, or the directory cannot be written.
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted.
    """
    from weightpkg.convert import child  # noqa: PLC0415  for its own time

    files = [file for file in files if file.path != convert.SIGNATURE]
    name = name if len(files) > 1 else files[0].path
    form = convert.format_of([file.path for file in files])
    sources = tuple(
        convert.SourceFile(_blob(file, store), file.sha256, file.path, file.blake3)
        for file in files
    )
    start = time.perf_counter()
    done = child.convert(convert.Job(form, name, sources), directory, progress)
    place_files({source.name: source.path for source in sources}, done.placed, directory)
    seconds = time.perf_counter() - start
    if form != "onnx":
        ratio = done.size / done.source_size
        progress.note(f"converted {name} to ONNX in {seconds:.1f} s, {ratio:.3g} times its size")


def _blob(file: InstalledFile, store: Store) -> Path:
    path = store.blob(file.sha256)
    if path is None:
        raise StoreError(f"`{file.path}`: its blob is missing", hint="weightpkg verify --repair")
    return path
