"""One conversion from file to model directory, step by step."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol, Self, cast

from weightpkg.convert import ARCHITECTURES, CONVERTER_VERSION, WITH_EXPERTS, tokenizer
from weightpkg.convert.directory import Conversion, ModelDirectory, OutputFile
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph
from weightpkg.convert.weights import Weights, read_gguf
from weightpkg.digest import Digest
from weightpkg.errors import UnsupportedArchitectureError
from weightpkg.formats.gguf import GGUFFile
from weightpkg.progress import Progress


class ArchitectureConfig(DecoderConfig, Protocol):
    """The `Config` class of an architecture."""

    @classmethod
    def from_gguf(cls, file: GGUFFile, /) -> Self:
        """Read a GGUF file's metadata."""


class Architecture(Protocol):
    """What a module of `archs` has."""

    Config: type[ArchitectureConfig]

    def gguf_names(self, config: ArchitectureConfig, /) -> dict[str, str]:
        """Return each GGUF tensor name with its canonical name."""

    def build(self, graph: Graph, weights: Weights, config: ArchitectureConfig, /) -> None:
        """Add the whole model to the graph."""


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
        architecture = cast(
            "Architecture", importlib.import_module(f"weightpkg.convert.archs.{module}")
        )
        files = _convert(file, kind, architecture, digest, ModelDirectory(directory), progress)
        return Conversion(kind, source.stat().st_size, files)


def _convert(
    file: GGUFFile,
    kind: str,
    architecture: Architecture,
    digest: Digest,
    output: ModelDirectory,
    progress: Progress,
) -> tuple[OutputFile, ...]:
    config = architecture.Config.from_gguf(file)
    words = tokenizer.read_gguf(file, config.vocab_size)
    weights = read_gguf(file, architecture.gguf_names(config))
    graph = Graph(kind)
    architecture.build(graph, weights, config)
    weights.finish()

    with (
        progress.task(f"converting {file.name}", graph.data_size) as advance,
        output.create(DATA_FILE, advance) as data,
    ):
        graph.write_data(data)
    output.write("model.onnx", graph.model({"weightpkg.source": str(digest)}))
    output.write("tokenizer.json", words.tokenizer_json())
    output.write("tokenizer_config.json", words.tokenizer_config_json())
    output.write("genai_config.json", genai_config(config, words))
    source = {"format": "gguf", "sha256": digest.hex, "architecture": kind}
    return output.finish({"converter-version": CONVERTER_VERSION, "sources": [source]})
