"""Model files to ONNX model directories: exactly, offline, and to the same bytes everywhere.

A model directory holds `model.onnx`, `model.onnx.data`, the tokenizer's files,
`genai_config.json`, and the manifest `weightpkg.toml`: what it was made from, by which converter,
and size and BLAKE3 of every other file. So the manifest's own digest stands for the whole tree.

This module is what can be known about conversions without NumPy; `pipeline` does them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from weightpkg.digest import Digest, hash_file
from weightpkg.formats.checkpoint_files import is_checkpoint

CONVERTER_VERSION = 3
"""Goes up with every change of the bytes that a conversion writes."""

FORMATS = ("gguf", "safetensors", "onnx")
"""File formats that are converted; ONNX is checked and stays as it is."""

ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "gpt2": "gpt2",
    "falcon": "falcon",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "qwen3moe": "qwen3moe",
    "gpt-oss": "gpt_oss",
    "deepseek2": "deepseek2",
    "bert": "bert",
    "nomic-bert": "nomic_bert",
}
"""`general.architecture` to the module in `archs`; no other module is ever imported for a file."""

WITH_EXPERTS = {"llama": "mixtral"}
"""The same for files with experts, where GGUF has no name of its own for them."""

GGUF_ENCODERS = frozenset({"bert", "nomic-bert"})
"""Those of them that make vectors of text."""


DECODERS = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "olmo2",
    "olmo3": "olmo2",
    "smollm3": "smollm3",
    "gpt2": "gpt2",
    "stablelm": "stablelm",
    "starcoder2": "starcoder2",
    "falcon": "falcon",
    "mixtral": "mixtral",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt_oss",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
ENCODERS = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "distilbert": "distilbert",
    "modernbert": "modernbert",
    "nomic_bert": "nomic_bert",
}
"""The same for `model_type` of a checkpoint's config.json."""

CONVERTIBLE = {
    "gguf": frozenset(ARCHITECTURES),
    "safetensors": frozenset(DECODERS) | frozenset(ENCODERS),
}
"""The architectures that are converted, by format; of ONNX, all are kept as they are."""


SIGNATURE = "model.sig"
"""What a publisher signed a model's files with, if it is among them; it is no part of the model."""

Quantization = Literal["q4", "q8"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file to be converted.

    digest: its SHA-256; None where whoever needs it is to compute it.
    name: what it is called in its model, as a blob's path tells nobody anything.
    blake3: of its content, if that is known.
    """

    path: Path
    digest: Digest | None
    name: str
    blake3: Digest | None = None

    def sha256(self) -> Digest:
        """Return what is known, or else hash the file."""
        return self.digest or hash_file(self.path, "sha256")


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion to be done.

    form: one of `FORMATS`.
    name: what to call the model in errors.
    quantization: what to make of a checkpoint's dense matrices; None leaves them as they are.
    """

    form: str
    name: str
    sources: tuple[SourceFile, ...]
    quantization: Quantization | None = None

    @property
    def key(self) -> str:
        """The name of the conversion."""
        options = [f"quantize={self.quantization}"] if self.quantization else []
        return conversion_key({source.name: source.sha256() for source in self.sources}, options)


def format_of(names: Sequence[str]) -> str:
    """Return the format of files that are to be converted, by their names."""
    if any(name.endswith(".onnx") for name in names):
        return "onnx"
    return "safetensors" if is_checkpoint(names) else "gguf"


def conversion_key(sources: Mapping[str, Digest], options: Sequence[str] = ()) -> str:
    """Return the name of a conversion: 64 hex digits from its inputs and the converter's version.

    Args:
        sources: digests of the files by their names in the model; what a single one is called is
            all the same.
        options: what was asked for beside them, such as `quantize=q4`.
    """
    rows = {name: digest for name, digest in sources.items() if name != SIGNATURE}
    inputs = [f"{digest} {name}" for name, digest in sorted(rows.items())]
    if len(rows) == 1:
        inputs = [str(digest) for digest in rows.values()]
    lines = [f"weightpkg conversion {CONVERTER_VERSION}", *inputs, *options]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
