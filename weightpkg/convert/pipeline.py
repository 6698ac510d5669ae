"""One conversion from file to model directory, step by step."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Protocol, Self, cast

from weightpkg.convert import (
    ARCHITECTURES,
    CONVERTER_VERSION,
    GGUF_ENCODERS,
    WITH_EXPERTS,
    SourceFile,
    tokenizer,
)
from weightpkg.convert.directory import Conversion, ModelDirectory, OutputFile, Prepared
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph, Value
from weightpkg.convert.sentence import add_sentence_embedding, read_gguf_head
from weightpkg.convert.weights import Weights, plan_of, read_gguf
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


@contextmanager
def prepare(source: SourceFile) -> Iterator[Prepared]:
    """Read a GGUF file as far as it takes to know what its conversion will be.

    Its digest, for the manifest, is not checked here; where it is not known, the file is hashed while
    it is converted.

    Raises:
        GGUFError: the file is malformed.
        ConvertError: the file is well-formed and not one that can be converted.
    """
    with GGUFFile.open(source.path, name=source.name) as file:
        kind = file.get("general.architecture", str)
        architecture, graph = _architecture(file, kind), Graph(kind)
        build = _build_encoder if kind in GGUF_ENCODERS else _build_decoder
        weights, documents = build(graph, file, kind, architecture)
        weights.finish()
        plan = plan_of(kind, source.path.stat().st_size, graph, weights)

        def write(output: ModelDirectory, progress: Progress) -> tuple[OutputFile, ...]:
            with ThreadPoolExecutor(1) as pool:
                hashed = pool.submit(source.sha256)
                write_data(graph, file.name, output, progress)
                digest = hashed.result()
            output.write("model.onnx", graph.model({"weightpkg.source": str(digest)}))
            for name, content in documents.items():
                output.write(name, content)
            row = {"format": "gguf", "sha256": digest.hex, "architecture": kind}
            return output.finish({"converter-version": CONVERTER_VERSION, "sources": [row]})

        yield Prepared(plan, write)


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
        source: the file, which is read as `prepare` does, with the same errors.
        digest: its SHA-256, for the manifest; not checked here.
        directory: an empty directory; on an error, what was written is left to the caller.
        progress: told of the bytes of weights as they are written.
        name: what to call the file, if not by its path.
    """
    with prepare(SourceFile(source, digest, name or str(source))) as prepared:
        return prepared.convert(directory, progress)


def write_data(graph: Graph, name: str, output: ModelDirectory, progress: Progress) -> None:
    """Write the weights of a graph that are not in other files; `name` is the model's."""
    if graph.data_size:
        with (
            progress.task(f"converting {name}", graph.data_size) as advance,
            output.create(DATA_FILE, advance) as data,
        ):
            graph.write_data(data)


def _architecture(file: GGUFFile, kind: str) -> ModuleType:
    module = ARCHITECTURES.get(kind)
    if module is None:
        raise UnsupportedArchitectureError(
            f"`{file.name}`: architecture `{kind}` is not converted yet",
            hint=f"those that are: {', '.join(sorted(ARCHITECTURES))}",
        )
    if file.get(f"{kind}.expert_count", int, 0):
        module = WITH_EXPERTS.get(kind, module)
    return importlib.import_module(f"weightpkg.convert.archs.{module}")


def _build_decoder(
    graph: Graph, file: GGUFFile, _: str, architecture: ModuleType
) -> tuple[Weights, dict[str, bytes]]:
    """Add the model to the graph; return its weights, and the files that belong to it."""
    decoder = cast("Decoder", architecture)
    config = decoder.Config.from_gguf(file)
    words = tokenizer.read_gguf(file, config.vocab_size)
    weights = read_gguf(file, decoder.gguf_names(config))
    decoder.build(graph, weights, config)
    return weights, {**words.files(), "genai_config.json": genai_config(config, words)}


def _build_encoder(
    graph: Graph, file: GGUFFile, kind: str, architecture: ModuleType
) -> tuple[Weights, dict[str, bytes]]:
    """The same, with what makes one vector of a text if the file says so."""
    encoder = cast("Encoder", architecture)
    config = encoder.Config.from_gguf(file)
    head = read_gguf_head(file, kind, config.hidden_size)
    words = tokenizer.read_gguf(file, config.vocab_size)
    weights = read_gguf(file, encoder.gguf_names(config))
    x, mask = encoder.build(graph, weights, config)
    if head is not None:
        add_sentence_embedding(graph, x, mask, head)
    return weights, replace(words, max_length=config.max_length).files()
