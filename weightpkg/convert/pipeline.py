"""One conversion from file to model directory, step by step."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Protocol, Self, cast

from weightpkg.convert import (
    ARCHITECTURES,
    CONVERTER_VERSION,
    GGUF_ENCODERS,
    WITH_EXPERTS,
    tokenizer,
)
from weightpkg.convert.directory import Conversion, ModelDirectory, OutputFile
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph, Value
from weightpkg.convert.sentence import add_sentence_embedding, read_gguf_head
from weightpkg.convert.weights import Weights, read_gguf
from weightpkg.digest import Digest
from weightpkg.errors import UnsupportedArchitectureError
from weightpkg.formats.gguf import GGUFFile
from weightpkg.progress import Progress


class GGUFDecoderConfig(DecoderConfig, Protocol):
    """The `Config` class of a decoder."""

    @classmethod
    def from_gguf(cls, file: GGUFFile, /) -> Self:
        """Read a GGUF file's metadata."""


class Decoder(Protocol):
    """What a decoder's module of `archs` has: one that writes text."""

    Config: type[GGUFDecoderConfig]

    def gguf_names(self, config: GGUFDecoderConfig, /) -> dict[str, str]:
        """Return each GGUF tensor name with its canonical name."""

    def build(self, graph: Graph, weights: Weights, config: GGUFDecoderConfig, /) -> None:
        """Add the whole model to the graph."""


class GGUFEncoderConfig(Protocol):
    """The `Config` class of an encoder."""

    vocab_size: int
    hidden_size: int

    @classmethod
    def from_gguf(cls, file: GGUFFile, /) -> Self:
        """Read a GGUF file's metadata."""

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""


class Encoder(Protocol):
    """What an encoder's module of `archs` has: one that makes vectors of text."""

    Config: type[GGUFEncoderConfig]

    def gguf_names(self, config: GGUFEncoderConfig, /) -> dict[str, str]:
        """Return each GGUF tensor name with its canonical name."""

    def build(
        self, graph: Graph, weights: Weights, config: GGUFEncoderConfig, /
    ) -> tuple[Value, Value]:
        """Add the whole model to the graph; return its last hidden state and attention mask."""


def convert(
    source: Path,
    digest: Digest,
    directory: Path,
    progress: Progress,
    *,
    name: str | None = None,
) -> Conversion:
    """Convert a GGUF file.

    Args:
        source: the file.
        digest: its SHA-256, for the manifest; not checked here.
        directory: an empty directory; on an error, what was written is left to the caller.
        progress: told of the bytes of weights as they are written.
        name: what to call the file, if not by its path, as a blob's path tells nobody anything.

    Raises:
        GGUFError: the file is malformed.
        ConvertError: the file is well-formed and not one that can be converted.
    """
    with GGUFFile.open(source, name=name) as file:
        kind = file.get("general.architecture", str)
        module = ARCHITECTURES.get(kind)
        if module is None:
            raise UnsupportedArchitectureError(
                f"`{file.name}`: architecture `{kind}` is not converted yet",
                hint=f"those that are: {', '.join(sorted(ARCHITECTURES))}",
            )
        if file.get(f"{kind}.expert_count", int, 0):
            module = WITH_EXPERTS.get(kind, module)
        architecture = importlib.import_module(f"weightpkg.convert.archs.{module}")
        files = _convert(file, kind, architecture, digest, ModelDirectory(directory), progress)
        return Conversion(kind, source.stat().st_size, files)


def _convert(
    file: GGUFFile,
    kind: str,
    architecture: ModuleType,
    digest: Digest,
    output: ModelDirectory,
    progress: Progress,
) -> tuple[OutputFile, ...]:
    graph = Graph(kind)
    if kind in GGUF_ENCODERS:
        documents = _build_encoder(graph, file, kind, cast("Encoder", architecture))
    else:
        documents = _build_decoder(graph, file, cast("Decoder", architecture))
    with (
        progress.task(f"converting {file.name}", graph.data_size) as advance,
        output.create(DATA_FILE, advance) as data,
    ):
        graph.write_data(data)
    output.write("model.onnx", graph.model({"weightpkg.source": str(digest)}))
    for name, content in documents.items():
        output.write(name, content)
    source = {"format": "gguf", "sha256": digest.hex, "architecture": kind}
    return output.finish({"converter-version": CONVERTER_VERSION, "sources": [source]})


def _build_decoder(graph: Graph, file: GGUFFile, decoder: Decoder) -> dict[str, bytes]:
    """Add the model to the graph; return the files that belong to it."""
    config = decoder.Config.from_gguf(file)
    words = tokenizer.read_gguf(file, config.vocab_size)
    weights = read_gguf(file, decoder.gguf_names(config))
    decoder.build(graph, weights, config)
    weights.finish()
    return {**words.files(), "genai_config.json": genai_config(config, words)}


def _build_encoder(graph: Graph, file: GGUFFile, kind: str, encoder: Encoder) -> dict[str, bytes]:
    """The same, with what makes one vector of a text if the file says so."""
    config = encoder.Config.from_gguf(file)
    head = read_gguf_head(file, kind, config.hidden_size)
    words = tokenizer.read_gguf(file, config.vocab_size)
    weights = read_gguf(file, encoder.gguf_names(config))
    x, mask = encoder.build(graph, weights, config)
    weights.finish()
    if head is not None:
        add_sentence_embedding(graph, x, mask, head)
    return replace(words, max_length=config.max_length).files()
