"""Tiny checkpoints: each page of tests/checkpoints/ is a config.json, tensors and golden numbers.

The weights are drawn as the page's seed says, so that they need not be kept and are the same here and
where the golden numbers are made (scripts/make_golden_checkpoints.py).
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from factories import (
    CHAT_TEMPLATE,
    MERGES,
    SPECIAL_TOKENS,
    safetensors_bytes,
    tiny_vocabulary,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

DenseType = Literal["F32", "F16", "BF16"]

PAGES = Path(__file__).parent / "checkpoints"


@dataclass(frozen=True)
class TinyCheckpoint:
    """A page. documents: JSON files beside config.json; changes: other keys, each with golden numbers."""

    name: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    seed: int
    golden: dict[str, Any]
    documents: dict[str, Any]
    changes: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, name: str) -> TinyCheckpoint:
        page = tomllib.loads((PAGES / f"{name}.toml").read_text(encoding="utf-8"))
        config = page["config"] | dict.fromkeys(page.get("nulls", []))
        sizes = (config.get(key) for key in ("num_hidden_layers", "n_layers"))
        n_layers = next(filter(None, sizes), None) or page["layers"]
        shapes = dict(_expanded(page["tensors"], n_layers))
        documents, changes = page.get("documents", {}), page.get("changes", {})
        golden = page.get("golden", {})
        return cls(name, config, shapes, page["seed"], golden, documents, changes)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Draw the weights: norms around 1, biases around 0, matrices so that products keep sizes."""
        random = np.random.default_rng(self.seed)
        drawn = {}
        for name, shape in self.shapes.items():
            is_norm = len(shape) == 1 and name.endswith("weight")
            spread = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
            drawn[name] = random.normal(float(is_norm), spread, shape).astype(np.float32)
        return drawn

    def write(self, directory: Path, dtype: DenseType = "F32", *, n_shards: int = 1) -> Path:
        """Write a checkpoint as transformers would, into a new directory; return it."""
        directory.mkdir(parents=True)
        tensors = {
            name: (dtype, values.shape, stored(values, dtype))
            for name, values in sorted(self.tensors().items())
        }
        _write_weights(directory, tensors, n_shards)
        tokenizer = {
            "tokenizer.json": tokenizer_json(),
            "tokenizer_config.json": tokenizer_config(),
        }
        documents = {"config.json": self.config, **tokenizer, **self.documents}
        for name, document in documents.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_text(json.dumps(document), encoding="utf-8")
        return directory

    def changed(self, **config: Any) -> TinyCheckpoint:
        """The same with other keys in config.json; None removes one."""
        kept = {key: value for key, value in self.config.items() if key not in config}
        given = {key: value for key, value in config.items() if value is not None}
        return replace(self, config={**kept, **given})


def _expanded(
    tensors: Mapping[str, Sequence[int]], n_layers: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each tensor of each layer; {j} is of all layers but the first."""
    for name, shape in tensors.items():
        for i in range(n_layers if "{" in name else 1):
            if i or "{j}" not in name:
                yield name.replace("{i}", str(i)).replace("{j}", str(i)), tuple(shape)


def stored(values: NDArray[np.float32], dtype: DenseType) -> bytes:
    """Bytes of a tensor; a bfloat16 is cut off, not rounded."""
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.tobytes()


def _write_weights(
    directory: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], n_shards: int
) -> None:
    if n_shards == 1:
        (directory / "model.safetensors").write_bytes(aligned(tensors))
        return
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        shard = f"model-{i + 1:05}-of-{n_shards:05}.safetensors"
        part = dict(list(tensors.items())[i::n_shards])
        (directory / shard).write_bytes(aligned(part))
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def aligned(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], alignment: int = 8) -> bytes:
    """A file whose data begins at a multiple of 8 bytes, as the reference writes it."""
    content = safetensors_bytes(tensors, {"format": "pt"})
    header_size = int.from_bytes(content[:8], "little")
    end = 8 + header_size
    padding = -end % alignment
    size = (header_size + padding).to_bytes(8, "little")
    return size + content[8:end] + b" " * padding + content[end:]


def tokenizer_json() -> dict[str, Any]:
    """The vocabulary of the tiny GGUF files, as Hugging Face writes it."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}  # fmt: skip
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": i, "content": token, **flags, "special": True} for i, token in enumerate(SPECIAL_TOKENS)]  # fmt: skip
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tiny_vocabulary())},
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def tokenizer_config() -> dict[str, Any]:
    eos = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|im_start|>",
        "eos_token": eos,
        "model_max_length": 1e30,
        "chat_template": CHAT_TEMPLATE,
    }
