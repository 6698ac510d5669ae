"""One conversion from a checkpoint of safetensors to a model directory, step by step.

Matrices in float32 are not copied: the graph points into the checkpoint's own files, which whoever
asked for the conversion puts into the model directory. Those in other types are converted once to
float32.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, Self, cast, runtime_checkable

from weightpkg.convert import CONVERTER_VERSION, DECODERS, ENCODERS, Job, SourceFile
from weightpkg.convert.directory import ModelDirectory, OutputFile, Prepared
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import Graph, Value
from weightpkg.convert.heads import (
    Head,
    HeadKind,
    HeadLayout,
    add_head,
    canonical_names,
    read_head,
)
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_tokenizer import read_tokenizer
from weightpkg.convert.packed import Packing, read_packed
from weightpkg.convert.packings import read_packing
from weightpkg.convert.pipeline import write_data
from weightpkg.convert.quantize import quantizer
from weightpkg.convert.sentence import (
    add_sentence_embedding,
    is_sentence_model,
    read_max_length,
    read_sentence_head,
)
from weightpkg.convert.weights import Weight, Weights, plan_of, read_safetensors
from weightpkg.digest import hash_file
from weightpkg.errors import TensorMismatchError, UnsupportedArchitectureError, shown
from weightpkg.formats.checkpoint import Checkpoint
from weightpkg.formats.checkpoint_files import is_checkpoint_file, is_weights
from weightpkg.formats.safetensors import SafetensorsCheckpoint
from weightpkg.progress import Progress

_EMBEDDINGS = (
    "model.embed_tokens.weight",
    "transformer.wte.weight",
    "transformer.word_embeddings.weight",
)
_HEAD = "lm_head.weight"
"""Canonical names."""


class CheckpointConfig(Protocol):
    """The `Config` class of an architecture."""

    vocab_size: int
    hidden_size: int

    @classmethod
    def from_hf(cls, config: HFConfig, /) -> Self:
        """Read config.json."""


class CheckpointDecoderConfig(DecoderConfig, CheckpointConfig, Protocol):
    """The same of a decoder."""


class CheckpointEncoderConfig(CheckpointConfig, Protocol):
    """The same of an encoder."""

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""


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


@runtime_checkable
class Stacking(Protocol):
    """What it has as well if tensors of its checkpoints hold several matrices."""

    def unstacked(self, weights: Weights, /) -> Weights:
        """Return each matrix by its own canonical name."""


class Encoder(Architecture, Protocol):
    """What an encoder's has: one that makes vectors of text."""

    Config: type[CheckpointEncoderConfig]

    def build(
        self, graph: Graph, weights: Weights, config: CheckpointEncoderConfig, /
    ) -> tuple[Value, Value]:
        """Add the whole model to the graph; return its last hidden state and attention mask."""


@runtime_checkable
class Headed(Protocol):
    """What it has as well if checkpoints of it have heads. PREFIX: before the names of the encoder."""

    Config: type[CheckpointEncoderConfig]
    PREFIX: str

    def head_layout(
        self, kind: HeadKind, config: CheckpointEncoderConfig, keys: HFConfig, /
    ) -> HeadLayout:
        """Return how a head is made."""


@dataclass(frozen=True, slots=True)
class _EncoderHead:
    """What a checkpoint has on top of its encoder, and the names of all tensors then."""

    head: Head
    layout: HeadLayout
    canonical_name: Callable[[str], str | None]


@contextmanager
def prepare(job: Job) -> Iterator[Prepared]:
    """Read a checkpoint as far as it takes to know what its conversion will be.

    Args:
        job: its files; those that are not known by name are left alone.

    Raises:
        FormatError: a file is malformed.
        ConvertError: the checkpoint is well-formed and not one that can be converted.
    """
    sources = {source.name: source for source in job.sources if is_checkpoint_file(source.name)}
    checkpoint = Checkpoint(job.name, {name: source.path for name, source in sources.items()})
    config = HFConfig(f"{checkpoint.name}/config.json", checkpoint.fields("config.json"))
    kind = config.get("model_type", str)
    architecture = _architecture(config, kind)
    graph = Graph(kind)
    with checkpoint.open_weights() as tensors:
        head = _read_head(config, checkpoint, architecture, tensors)
        weights = _read_weights(tensors, architecture, read_packing(config), head)
        if job.quantization is not None:
            weights = weights.changed(quantizer(job.quantization))
        if kind in ENCODERS:
            documents = _build_encoder(graph, checkpoint, config, architecture, weights, head)
        else:
            documents = _build_decoder(graph, checkpoint, config, architecture, weights)
        weights.finish()
        source_size = sum(checkpoint.files[name].stat().st_size for name in tensors.files)
        placed = frozenset(graph.locations)
        used = [name for name in sources if name in tensors.files or not is_weights(name)]
        rows = [_row(kind, sources[name], is_placed=name in placed) for name in used]

        def write(output: ModelDirectory, progress: Progress) -> tuple[OutputFile, ...]:
            write_data(graph, checkpoint.name, output, progress)
            for name in graph.locations:
                output.expect(_as_it_is(sources[name]))
            output.write("model.onnx", graph.model({"weightpkg.conversion": job.key}))
            for name, content in documents.items():
                output.write(name, content)
            options = {} if job.quantization is None else {"quantize": job.quantization}
            return output.finish(
                {"converter-version": CONVERTER_VERSION, "sources": rows, **options}
            )

        yield Prepared(plan_of(kind, source_size, graph, weights), write, placed)


def _as_it_is(source: SourceFile) -> OutputFile:
    digest = source.blake3 or hash_file(source.path, "blake3")
    return OutputFile(source.name, source.path.stat().st_size, digest)


def _architecture(config: HFConfig, kind: str) -> Architecture:
    model_types = DECODERS | ENCODERS
    if kind not in model_types:
        raise UnsupportedArchitectureError(
            f"`{config.name}`: model type `{shown(kind)}` is not converted yet",
            hint=f"those that are: {', '.join(sorted(model_types))}",
        )
    module = importlib.import_module(f"weightpkg.convert.archs.{model_types[kind]}")
    return cast("Architecture", module)


def _read_head(
    config: HFConfig,
    checkpoint: Checkpoint,
    architecture: Architecture,
    tensors: SafetensorsCheckpoint,
) -> _EncoderHead | None:
    """Read what an encoder has on top; one of words is left out of what makes vectors of texts."""
    head = read_head(config) if isinstance(architecture, Headed) else None
    if head is None or (head.kind == "masked" and is_sentence_model(checkpoint)):
        return None
    headed = cast("Headed", architecture)
    layout = headed.head_layout(head.kind, headed.Config.from_hf(config), config)
    names = canonical_names(layout, headed.PREFIX, architecture.canonical_name)
    is_there = not set(layout.tensors()).isdisjoint(map(names, tensors.tensors))
    return _EncoderHead(head, layout, names) if is_there or head.kind != "masked" else None


def _read_weights(
    tensors: SafetensorsCheckpoint,
    architecture: Architecture,
    packing: Packing | None,
    head: _EncoderHead | None,
) -> Weights:
    names = architecture.canonical_name if head is None else head.canonical_name
    if packing is None:
        weights = read_safetensors(tensors, names)
    else:
        weights = read_packed(tensors, names, packing)
    if isinstance(architecture, Rearranging):
        return weights.changed(architecture.canonical_weight)
    return architecture.unstacked(weights) if isinstance(architecture, Stacking) else weights


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
    top: _EncoderHead | None,
) -> dict[str, bytes]:
    """Add the model to the graph, with its head, or with what makes one vector of a text."""
    encoder = cast("Encoder", architecture)
    sizes = encoder.Config.from_hf(config)
    head = read_sentence_head(checkpoint, sizes.hidden_size)
    length = read_max_length(checkpoint, sizes.max_length)
    tokenizer = read_tokenizer(checkpoint, sizes.vocab_size, max_length=length)
    x, mask = encoder.build(graph, weights, sizes)
    if head is not None:
        add_sentence_embedding(graph, x, mask, head)
    if top is None:
        return tokenizer.files()
    add_head(graph, (x, mask), weights, top.head, top.layout, (sizes.hidden_size, sizes.vocab_size))
    document = top.head.document(config.get("model_type", str))
    return {**tokenizer.files(), "config.json": document}


def _row(kind: str, source: SourceFile, *, is_placed: bool) -> dict[str, object]:
    row = {"path": source.name, "sha256": source.sha256().hex}
    placed = {"in-place": True} if is_placed else {}
    return {**row, "format": "safetensors", "architecture": kind, **placed}
