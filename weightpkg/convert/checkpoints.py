"""One conversion from a checkpoint of safetensors to a model directory, step by step.

Matrices in float32 are not copied: the graph points into the checkpoint's own files, which the
caller puts into the model directory. Those in other types are converted once to float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, Self, cast, runtime_checkable

from weightpkg.convert import CONVERTER_VERSION, DECODERS, ENCODERS, conversion_key
from weightpkg.convert.directory import ModelDirectory
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph, Value
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_tokenizer import read_tokenizer
from weightpkg.convert.packed import Packing, read_packed
from weightpkg.convert.packings import read_packing
from weightpkg.convert.pipeline import Conversion
from weightpkg.convert.quantize import Quantization, quantizer
from weightpkg.convert.sentence import (
    add_sentence_embedding,
    read_max_length,
    read_sentence_head,
)
from weightpkg.convert.weights import Weight, Weights, read_safetensors
from weightpkg.digest import Digest
from weightpkg.errors import TensorMismatchError, UnsupportedArchitectureError, shown
from weightpkg.formats.checkpoint import Checkpoint
from weightpkg.formats.safetensors import SafetensorsCheckpoint
from weightpkg.progress import Progress

_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
)
_HEAD = "lm_head.weight"
"""Canonical names."""

PlaceFile = Callable[[Path, Path], None]
"""Puts the first file where the second path says; it must not change from then on."""


class CheckpointConfig(Protocol):
    """The `Config` class of an architecture."""

    vocab_size: int
    hidden_size: int
    max_position_embeddings: int

    @classmethod
    def from_hf(cls, config: HFConfig, /) -> Self:
        """Read config.json."""


class CheckpointDecoderConfig(DecoderConfig, CheckpointConfig, Protocol):
    """The same of a decoder."""


class Architecture(Protocol):
    """What a module of `archs` has for checkpoints."""

    def canonical_name(self, name: str, /) -> str | None:
        """Return a tensor's canonical name, None if there is no use for it."""


@runtime_checkable
class Rearranging(Protocol):
    """What a module has as well if GGUF, and so `build`, has tensors in another form."""

    def canonical_weight(self, weight: Weight, /) -> Weight:
        """Return a tensor of a checkpoint in that form."""


class Decoder(Architecture, Protocol):
    """What a decoder's has: one that writes text."""

    Config: type[CheckpointDecoderConfig]
    TIED_BY_DEFAULT: bool

    def build(self, graph: Graph, weights: Weights, config: CheckpointDecoderConfig, /) -> None:
        """Add the whole model to the graph."""


class Encoder(Architecture, Protocol):
    """What an encoder's has: one that makes vectors of text."""

    Config: type[CheckpointConfig]

    def build(
        self, graph: Graph, weights: Weights, config: CheckpointConfig, /
    ) -> tuple[Value, Value]:
        """Add the whole model to the graph; return its last hidden state and attention mask."""


def convert_checkpoint(
    checkpoint: Checkpoint,
    digests: Mapping[str, Digest],
    directory: Path,
    progress: Progress,
    place: PlaceFile,
    *,
    quantization: Quantization | None = None,
) -> Conversion:
    """Convert a checkpoint.

    Args:
        checkpoint: its files.
        digests: their SHA-256 by name, for the manifest; not checked here.
        directory: an empty directory; on an error, what was written is left to the caller.
        progress: told of the bytes of weights as they are written.
        place: puts a file of weights that the graph points into in the directory.
        quantization: what to make of dense matrices; None leaves them as they are.

    Raises:
        FormatError: a file is malformed.
        ConvertError: the checkpoint is well-formed and not one that can be converted.
    """
    config = HFConfig(f"{checkpoint.name}/config.json", checkpoint.fields("config.json"))
    kind = config.get("model_type", str)
    architecture = _architecture(config, kind)
    graph, output = Graph(kind), ModelDirectory(directory)
    with checkpoint.open_weights() as tensors:
        weights = _read_weights(tensors, architecture, read_packing(config))
        if quantization is not None:
            weights = weights.changed(quantizer(quantization))
        build = _build_encoder if kind in ENCODERS else _build_decoder
        documents = build(graph, checkpoint, config, architecture, weights)
        weights.finish()
        _write_data(graph, checkpoint, output, progress, place)
        source_size = sum(checkpoint.files[name].stat().st_size for name in tensors.files)
    options = {} if quantization is None else {"quantize": quantization}
    key = conversion_key(
        [digests[name] for name in checkpoint.files], [f"{k}={v}" for k, v in options.items()]
    )
    output.write("model.onnx", graph.model({"weightpkg.conversion": key}))
    for name, content in documents.items():
        output.write(name, content)
    files = output.finish({**_provenance(kind, checkpoint, digests), **options})
    return Conversion(kind, source_size, files, frozenset(graph.locations))


def _architecture(config: HFConfig, kind: str) -> Architecture:
    model_types = DECODERS | ENCODERS
    if kind not in model_types:
        raise UnsupportedArchitectureError(
            f"`{config.name}`: model type `{shown(kind)}` is not converted yet",
            hint=f"those that are: {', '.join(sorted(model_types))}",
        )
    module = importlib.import_module(f"weightpkg.convert.archs.{model_types[kind]}")
    return cast("Architecture", module)


def _read_weights(
    tensors: SafetensorsCheckpoint, architecture: Architecture, packing: Packing | None
) -> Weights:
    if packing is None:
        weights = read_safetensors(tensors, architecture.canonical_name)
    else:
        weights = read_packed(tensors, architecture.canonical_name, packing)
    if isinstance(architecture, Rearranging):
        return weights.changed(architecture.canonical_weight)
    return weights


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
    decoder = cast("Decoder", architecture)
    is_tied = config.get("tie_word_embeddings", bool, decoder.TIED_BY_DEFAULT)
    sizes = decoder.Config.from_hf(config)
    tokenizer = read_tokenizer(checkpoint, sizes.vocab_size)
    _settle_head(weights, is_tied=is_tied)
    decoder.build(graph, weights, sizes)
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


def _build_encoder(
    graph: Graph,
    checkpoint: Checkpoint,
    config: HFConfig,
    architecture: Architecture,
    weights: Weights,
) -> dict[str, bytes]:
    """Add the model to the graph, with what makes one vector of a text if the checkpoint says so."""
    encoder = cast("Encoder", architecture)
    sizes = encoder.Config.from_hf(config)
    head = read_sentence_head(checkpoint, sizes.hidden_size)
    length = read_max_length(checkpoint, sizes.max_position_embeddings)
    tokenizer = read_tokenizer(checkpoint, sizes.vocab_size, max_length=length)
    x, mask = encoder.build(graph, weights, sizes)
    if head is not None:
        add_sentence_embedding(graph, x, mask, head)
    return tokenizer.files()


def _provenance(
    kind: str, checkpoint: Checkpoint, digests: Mapping[str, Digest]
) -> dict[str, object]:
    common = {"format": "safetensors", "architecture": kind}
    sources = [{"path": f, "sha256": digests[f].hex, **common} for f in checkpoint.files]
    return {"converter-version": CONVERTER_VERSION, "sources": sources}
