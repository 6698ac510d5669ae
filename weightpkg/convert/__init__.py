"""Model files to ONNX model directories: exactly, offline, and to the same bytes everywhere.

A model directory holds `model.onnx`, `model.onnx.data`, the tokenizer's files,
`genai_config.json`, and the manifest `weightpkg.toml`: what it was made from, by which converter,
and size and BLAKE3 of every other file. So the manifest's own digest stands for the whole tree.

This module is what can be known about conversions without NumPy; `pipeline` does them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from weightpkg.digest import Digest

CONVERTER_VERSION = 1
"""Goes up with every change of the bytes that a conversion writes."""

FORMATS = ("gguf",)
"""File formats that are converted."""

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
}
"""`general.architecture` to the module in `archs`; no other module is ever imported for a file."""


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
}
ENCODERS = {"bert": "bert"}
"""The same for `model_type` of a checkpoint's config.json."""


def conversion_key(sources: Sequence[Digest], options: Sequence[str] = ()) -> str:
    """Return the name of a conversion: 64 hex digits from its inputs and the converter's version.

    Args:
        sources: digests of the files, in the order of their names.
        options: what was asked for beside them, such as `quantize=q4`.
    """
    lines = [f"weightpkg conversion {CONVERTER_VERSION}", *map(str, sources), *options]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
