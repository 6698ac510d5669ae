"""One conversion from a checkpoint of safetensors to a model directory, step by step.

Matrices in float32 are not copied: the graph points into the checkpoint's own files, which the
caller puts into the model directory. Those in other types are converted once to float32.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self, cast

from weightpkg.convert import CONVERTER_VERSION, MODEL_TYPES, conversion_key
from weightpkg.convert.directory import ModelDirectory
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_tokenizer import read_tokenizer
from weightpkg.convert.pipeline import Conversion
from weightpkg.convert.weights import Weights, read_safetensors
from weightpkg.digest import Digest
from weightpkg.errors import TensorMismatchError, UnsupportedArchitectureError, shown
from weightpkg.formats.checkpoint import Checkpoint
from weightpkg.progress import Progress

_EMBEDDINGS = ("model.embed_tokens.weight",)
_HEAD = "lm_head.weight"
"""Canonical names."""

PlaceFile = Callable[[Path, Path], None]
"""Puts the first file where the second path says; it must not change from then on."""


class CheckpointConfig(DecoderConfig, Protocol):
    """The `Config` class of an architecture."""

    @classmethod
    def from_hf(cls, config: HFConfig, /) -> Self:
        """Read config.json."""


class Architecture(Protocol):
    """What a module of `archs` has for checkpoints."""

    Config: type[CheckpointConfig]
    HF_IGNORED: re.Pattern[str]
    TIED_BY_DEFAULT: bool

    def build(self, graph: Graph, weights: Weights, config: CheckpointConfig, /) -> None:
        """Add the whole model to the graph."""


def convert_checkpoint(
    checkpoint: Checkpoint,
    digests: Mapping[str, Digest],
    directory: Path,
    progress: Progress,
    place: PlaceFile,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: its files.
        digests: their SHA-256 by name, for the manifest; not checked here.
        directory: an empty directory; on an error, what was written is left to the caller.
        progress: told of the bytes of weights as they are written.
        place: puts a file of weights that the graph points into in the directory.

    Raises:
        FormatError: a file is malformed.
        ConvertError: the checkpoint is well-formed and not one that can be converted.
    """
    config = HFConfig(f"{checkpoint.name}/config.json", checkpoint.fields("config.json"))
    kind = config.get("model_type", str)
    architecture = _architecture(config, kind)
    graph, output = Graph(kind), ModelDirectory(directory)
    with checkpoint.open_weights() as tensors:
        weights = read_safetensors(tensors, architecture.HF_IGNORED)
        documents = _build_decoder(graph, checkpoint, config, architecture, weights)
        weights.finish()
        _write_data(graph, checkpoint, output, progress, place)
        source_size = sum(checkpoint.files[name].stat().st_size for name in tensors.files)
    key = conversion_key([digests[name] for name in checkpoint.files])
    output.write("model.onnx", graph.model({"weightpkg.conversion": key}))
    for name, content in documents.items():
        output.write(name, content)
    files = output.finish(_provenance(kind, checkpoint, digests))
    return Conversion(kind, source_size, files, frozenset(graph.locations))


def _architecture(config: HFConfig, kind: str) -> Architecture:
    module = MODEL_TYPES.get(kind)
    if module is None:
        raise UnsupportedArchitectureError(
            f"`{config.name}`: model type `{shown(kind)}` is not converted yet",
            hint=f"those that are: {', '.join(sorted(MODEL_TYPES))}",
        )
    return cast("Architecture", importlib.import_module(f"weightpkg.convert.archs.{module}"))


def _write_data(
    graph: Graph,
    checkpoint: Checkpoint,
    output: ModelDirectory,
    progress: Progress,
    place: PlaceFile,
) -> None:
    """Write what is not in the checkpoint as it is, and have the files placed that are."""
    if graph.data_size:
        with (
            progress.task(f"converting {checkpoint.name}", graph.data_size) as advance,
            output.create(DATA_FILE, advance) as data,
        ):
            graph.write_data(data)
    for name in graph.locations:
        place(checkpoint.files[name], output.path / name)
        output.adopt(name)


def _build_decoder(
    graph: Graph,
    checkpoint: Checkpoint,
    config: HFConfig,
    architecture: Architecture,
    weights: Weights,
) -> dict[str, bytes]:
    """Add the model to the graph; return the files that belong to it."""
    is_tied = config.get("tie_word_embeddings", bool, architecture.TIED_BY_DEFAULT)
    sizes = architecture.Config.from_hf(config)
    tokenizer = read_tokenizer(checkpoint, sizes.vocab_size)
    _settle_head(weights, is_tied=is_tied)
    architecture.build(graph, weights, sizes)
    return {**tokenizer.files(), "genai_config.json": genai_config(sizes, tokenizer)}


def _settle_head(weights: Weights, *, is_tied: bool) -> None:
    """Leave out a head that is written out although it is the embedding.

    Raises:
        TensorMismatchError: it is said to be the embedding and is not, or not to be and is missing.
    """
    if is_tied:
        weights.drop_copy(_HEAD, next(filter(weights.__contains__, _EMBEDDINGS), ""))
    elif _HEAD not in weights:
        raise TensorMismatchError(f"`{weights.source}`: tensor `{_HEAD}` is missing")


def _provenance(
    kind: str, checkpoint: Checkpoint, digests: Mapping[str, Digest]
) -> dict[str, object]:
    common = {"format": "safetensors", "architecture": kind}
    sources = [{"path": f, "sha256": digests[f].hex, **common} for f in checkpoint.files]
    return {"converter-version": CONVERTER_VERSION, "sources": sources}
