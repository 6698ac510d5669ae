"""One conversion from file to model directory, step by step."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, Self, cast

from weightpkg.convert import ARCHITECTURES, CONVERTER_VERSION, WITH_EXPERTS, SourceFile, tokenizer
from weightpkg.convert.directory import Conversion, ModelDirectory, OutputFile, Prepared
from weightpkg.convert.genai import DecoderConfig, genai_config
from weightpkg.convert.graph import DATA_FILE, Graph
from weightpkg.convert.weights import Weights, plan_of, read_gguf
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
        architecture = _architecture(file, kind)
        config = architecture.Config.from_gguf(file)
        words = tokenizer.read_gguf(file, config.vocab_size)
        weights = read_gguf(file, architecture.gguf_names(config))
        graph = Graph(kind)
        architecture.build(graph, weights, config)
        weights.finish()
        plan = plan_of(kind, source.path.stat().st_size, graph, weights)

        def write(output: ModelDirectory, progress: Progress) -> tuple[OutputFile, ...]:
            with ThreadPoolExecutor(1) as pool:
                hashed = pool.submit(source.sha256)
                write_data(graph, file.name, output, progress)
                digest = hashed.result()
            output.write("model.onnx", graph.model({"weightpkg.source": str(digest)}))
            output.write("tokenizer.json", words.tokenizer_json())
            output.write("tokenizer_config.json", words.tokenizer_config_json())
            output.write("genai_config.json", genai_config(config, words))
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


def _architecture(file: GGUFFile, kind: str) -> Architecture:
    module = ARCHITECTURES.get(kind)
    if module is None:
        raise UnsupportedArchitectureError(
            f"`{file.name}`: architecture `{kind}` is not converted yet",
            hint=f"those that are: {', '.join(sorted(ARCHITECTURES))}",
        )
    if file.get(f"{kind}.expert_count", int, 0):
        module = WITH_EXPERTS.get(kind, module)
    return cast("Architecture", importlib.import_module(f"weightpkg.convert.archs.{module}"))
