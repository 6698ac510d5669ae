"""What installed models need of memory: their own configuration and the size of their weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from weightpkg.memory import Need, need_of, need_of_config
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


def directory_need(directory: Path, context: int | None = None) -> Need:
    """Return what a model directory needs; one that is no text model has no cache."""
    weights = sum(path.stat().st_size for pattern in _WEIGHTS for path in directory.glob(pattern))
    try:
        config = json.loads((directory / "genai_config.json").read_bytes())
        return need_of_config(config, weights, context)
    except (OSError, ValueError, AttributeError):
        return need_of(weights, None, 0, basis="installed")
