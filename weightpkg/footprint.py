"""What installed models need of memory: their own configuration and the size of their weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from weightpkg.memory import KvCache, Need, estimate, need_of, need_of_config
from weightpkg.package import Model, Resolved
from weightpkg.store import Installed, Store

# an AttributeProto: its name, and then its integer
_WINDOW = re.compile(rb"\x0a\x11local_window_size\x18([\x80-\xff]{0,9}[\x00-\x7f])", re.DOTALL)
_LARGEST_GRAPH = 32 << 20  # of one with its weights inside nothing is looked at
_WEIGHTS = ("*.onnx", "*.onnx.data", "*.onnx_data", "*.safetensors")


def installed_needs(
    store: Store, context: int | None = None, kv_cache: KvCache = "float"
) -> dict[str, Need]:
    """Return what each installed model needs, by its full name and version; the rest is left out.

    Args:
        store: where they are.
        context: tokens; if not given, as `memory.estimate`.
        kv_cache: what keys and values are kept as.

    Raises:
        StoreError: a record cannot be read.
    """
    return dict(_needs(store, store.installed(), context, kv_cache))


def _needs(
    store: Store, records: list[Installed], context: int | None, kv_cache: KvCache
) -> Iterator[tuple[str, Need]]:
    for record in records:
        directory = store.model(record.conversion) if record.conversion else None
        if directory is not None:
            yield str(record), directory_need(directory, context, kv_cache)


def needs_of(
    model: Model, store: Store, context: int | None = None, kv_cache: KvCache = "float"
) -> dict[str, Need]:
    """Return what each variant of a model needs: known where it is installed, else estimated.

    Raises:
        StoreError: a record cannot be read.
    """
    all_of_it = [
        Resolved(model=model, release=release, variant=variant)
        for release in model.releases
        for variant in release.variants
    ]
    estimates = {str(each): estimate(model, each.variant, context, kv_cache) for each in all_of_it}
    known = {name: need for name, need in estimates.items() if need is not None}
    installed = installed_needs(store, context, kv_cache)
    return known | {str(each): installed[str(each)] for each in all_of_it if str(each) in installed}


def directory_need(
    directory: Path,
    context: int | None = None,
    kv_cache: KvCache = "float",
) -> Need:
    """Return what a model directory needs; one that is no text model has no cache.

    Args:
        directory: of the model.
        context: tokens; if not given, as `memory.estimate`.
        kv_cache: what keys and values are kept as.
    """
    weights = sum(path.stat().st_size for pattern in _WEIGHTS for path in directory.glob(pattern))
    try:
        config = json.loads((directory / "genai_config.json").read_bytes())
        return need_of_config(config, weights, context, kv_cache, _windows(directory))
    except (OSError, ValueError, AttributeError, RecursionError):
        return need_of(weights, None, 0, basis="installed")


def _windows(directory: Path) -> list[int]:
    """The windows of a graph's attention nodes, found in its bytes: reading all of it takes too long."""
    path = directory / "model.onnx"
    if path.stat().st_size > _LARGEST_GRAPH:
        return []
    content = path.read_bytes()
    return [size for match in _WINDOW.finditer(content) if (size := _varint(match[1])) < 1 << 31]


def _varint(content: bytes) -> int:
    """Read a number as protobuf writes it: 7 bits a byte, the lowest first; negative ones are huge."""
    return sum((byte & 127) << 7 * i for i, byte in enumerate(content))
