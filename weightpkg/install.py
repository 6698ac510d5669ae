"""From a resolved requirement to a model that is there: plan, fetch, convert, record.

`plan_install` decides and touches nothing; `install` does what the plan says. Each step leaves the
store whole: a blob is there when its digest was right, a model directory when its conversion was
finished, and the record that points at both is written last.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from weightpkg import convert
from weightpkg.digest import Digest
from weightpkg.errors import UnsupportedArchitectureError, UnsupportedFormatError
from weightpkg.fetch import OpenSource, fetch_file
from weightpkg.package import File, Resolved
from weightpkg.progress import Progress
from weightpkg.store import Installed, InstalledFile, Store, tree_digest


@dataclass(frozen=True, slots=True)
class Plan:
    """What an install will do."""

    resolved: Resolved
    missing: tuple[File, ...]
    conversion: str | None
    is_converted: bool

    @property
    def download_size(self) -> int | None:
        """Bytes to be fetched, None where the index does not know."""
        sizes = [file.size for file in self.missing]
        return None if None in sizes else sum(size for size in sizes if size is not None)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to fetch and nothing to convert."""
        return not self.missing and (self.conversion is None or self.is_converted)


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
    missing = tuple(file for file in files if store.blob(file.sha256) is None)
    if not allow_conversion:
        return Plan(resolved, missing, None, is_converted=False)
    _check_convertible(resolved)
    key = convert.conversion_key([file.sha256 for file in files])
    return Plan(resolved, missing, key, is_converted=store.model(key) is not None)


def _check_convertible(resolved: Resolved) -> None:
    """Refuse before the download what could only be refused after it."""
    hint = "`--no-convert` fetches, verifies and keeps the files as they are"
    variant = resolved.variant
    if variant.format not in convert.FORMATS or len(variant.files) != 1:
        raise UnsupportedFormatError(
            f"`{resolved.full_name}` is in {variant.format} format, which is not converted yet",
            hint=hint,
        )
    if resolved.model.architecture not in convert.ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"`{resolved.full_name}` has architecture `{resolved.model.architecture}`, "
            "which is not converted yet",
            hint=hint,
        )


def install(plan: Plan, store: Store, open_source: OpenSource, progress: Progress) -> Installed:
    """Do what a plan says; return the record of what is installed.

    Args:
        plan: made for this store.
        store: where everything goes.
        open_source: opens the sources of files.
        progress: told of each step.

    Raises:
        FetchError: no source has a file.
        IntegrityError: a source delivered other bytes than the index promises.
        StoreError: the store cannot be written.
        FormatError: a file is malformed.
        ConvertError: a file cannot be converted.
    """
    variant = plan.resolved.variant
    files = []
    for file in variant.files:
        fingerprint = fetch_file(file, open_source, store, progress)
        files.append(
            InstalledFile(str(file.path), fingerprint.size, fingerprint.sha256, fingerprint.blake3)
        )
    model = None
    if plan.conversion is not None:
        model = _convert(plan.conversion, variant.files[0], store, progress)
    installed = Installed(
        name=plan.resolved.model.normalized_name,
        version=plan.resolved.release.version,
        variant=variant.name,
        files=tuple(files),
        conversion=plan.conversion,
        tree=tree_digest(model) if model else None,
    )
    store.record(installed)
    return installed


def _convert(key: str, file: File, store: Store, progress: Progress) -> Path:
    """Return the model directory of a conversion, making it if it is not there."""
    with store.lock(Digest("sha256", key)):
        directory = store.model(key)
        if directory is not None:
            return directory
        from weightpkg.convert.pipeline import convert as convert_file  # noqa: PLC0415  needs NumPy

        start = time.perf_counter()
        source = store.blob_path(file.sha256)
        with store.new_model(key) as new:
            done = convert_file(source, file.sha256, new, progress, name=str(file.path))
    seconds = time.perf_counter() - start
    ratio = done.size / done.source_size
    progress.note(f"converted {file.path} to ONNX in {seconds:.1f} s, {ratio:.2f} times its size")
    return store.model_path(key)
