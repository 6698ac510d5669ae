"""What installed models need of memory: their own configuration and the size of their weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from weightpkg.memory import Need, estimate, need_of, need_of_config
from weightpkg.package import Model, Resolved
from weightpkg.store import Installed, Store

_WEIGHTS = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.safetensors")


def installed_needs(store: Store, context: int | None = None) -> dict[str, Need]:
    """Return what each installed model needs, by its full name and version; the rest is left out.

    Args:
        store: where they are.
        context: tokens; if not given, as `memory.estimate`.

    Raises:
        StoreError: a record cannot be read.
    """
    return dict(_needs(store, store.installed(), context))


def _needs(
    store: Store, records: list[Installed], context: int | None
) -> Iterator[tuple[str, Need]]:
    for record in records:
        directory = store.model(record.conversion) if record.conversion else None
        if directory is not None:
            yield str(record), directory_need(directory, context)


def needs_of(model: Model, store: Store, context: int | None = None) -> dict[str, Need]:
    """Return what each variant of a model needs: known where it is installed, else estimated.

    Raises:
        StoreError: a record cannot be read.
    """
    all_of_it = [
        Resolved(model=model, release=release, variant=variant)
        for release in model.releases
        for variant in release.variants
    ]
    estimates = {str(each): estimate(model, each.variant, context) for each in all_of_it}
    known = {name: need for name, need in estimates.items() if need is not None}
    installed = installed_needs(store, context)
    return known | {str(each): installed[str(each)] for each in all_of_it if str(each) in installed}


def directory_need(directory: Path, context: int | None = None) -> Need:
    """Return what a model directory needs; one that is no text model has no cache."""
    weights = sum(path.stat().st_size for pattern in _WEIGHTS for path in directory.glob(pattern))
    try:
        config = json.loads((directory / "genai_config.json").read_bytes())
        return need_of_config(config, weights, context)
    except (OSError, ValueError, AttributeError):
        return need_of(weights, None, 0, basis="installed")
