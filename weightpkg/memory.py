"""How much memory a model takes while it runs: weights, cache, workspace, and the process itself.

Before a download it is an estimate from what the index says: the size of the files, their
quantisation, and the shape of the published model that is nearest (`shapes`). Of an installed model
the shape and the size of its converted weights are known. `scripts/bench/memory.py` holds both
against what real processes take; the constants are measured with onnxruntime 1.31's CPU kernels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from weightpkg.package import Model, Variant
from weightpkg.shapes import Shape, nearest_shape

DEFAULT_CONTEXT = 4096
"""Tokens of which there is memory for, where nobody says how many."""

Basis = Literal["index", "installed"]
KvCache: TypeAlias = Literal["float", "int8"]
"""What keys and values are kept as."""

_FLOAT = 4
_KEPT: Mapping[KvCache, int] = {"float": _FLOAT, "int8": 1}  # bytes of a key or value
_CHUNK = 512  # tokens of a prompt that enter at a time: run/session.py

# Python, onnxruntime and the rest with nothing loaded, and what a token of the vocabulary takes in a
# tokenizer, in bytes
_PROCESS = 65_000_000
_TOKEN = 640
# Kernels keep weights in an order of their own, with sums for each block beside them, so that loaded
# weights are larger than the file; while the largest of them, the head, is put in order, it is
# there twice.
_PACKED = 1.3
_TWICE = 0.9
_HEAD_BITS = 9
# floats that a token of the prompt takes on its way through a layer, in units of the hidden size
_ACTIVATIONS = 22
# a large matrix in blocks of 16 is multiplied as floats: three times the square of the hidden size
_UNPACKED = 3

BITS = {
    "Q1_0": (1.5, 9), "Q2_0": (2.3, 9), "Q2_K": (3.2, 7.6), "Q2_K_S": (2.9, 7.8),
    "Q3_K_S": (3.5, 6.2), "Q3_K": (3.9, 6.6), "Q3_K_M": (3.9, 6.6), "Q3_K_L": (4.3, 7.2),
    "Q4_0": (4.55, 5.1), "Q4_1": (5.0, 6), "Q4_K": (4.85, 6.7), "Q4_K_S": (4.6, 6.2),
    "Q4_K_M": (4.85, 6.7), "Q4_K_L": (5.0, 6.8), "Q4_K_XL": (5.0, 6.8),
    "Q5_0": (5.5, 9), "Q5_1": (6, 10), "Q5_K": (5.7, 10), "Q5_K_S": (5.55, 10), "Q5_K_M": (5.7, 10),
    "Q6_K": (6.56, 10), "Q8_0": (8.5, 9), "Q8_K": (8.5, 9),
    "IQ1_S": (1.6, 9), "IQ1_M": (1.8, 10), "IQ2_XXS": (2.1, 9), "IQ2_XS": (2.3, 10),
    "IQ2_S": (2.5, 10), "IQ2_M": (2.7, 10), "IQ3_XXS": (3.1, 9), "IQ3_XS": (3.3, 9),
    "IQ3_S": (3.45, 9), "IQ3_M": (3.7, 9), "IQ4_XS": (4.3, 9), "IQ4_NL": (4.5, 9),
    "TQ1_0": (1.7, 5), "TQ2_0": (2.1, 5), "MXFP4": (4.25, 9), "MXFP4_MOE": (4.25, 9),
    "F16": (16, 32), "BF16": (16, 32), "F32": (32, 32),
}  # fmt: skip
"""Bits of a weight by quantisation: in the published file, and as it is converted.

A block of 32 has a scale in float32, and, where the format has minima, an offset as well (design.md's
table); of mixtures such as Q4_K_M it is what their files have on average.
"""

_AS_PUBLISHED = {"onnx"}

# Where a layer sees a window only, there are rows for it, for what may be taken back, and for a piece of
# a prompt; and for the first pieces in any case: run/windows.py.
_WINDOW_ROWS, _LEAST_ROWS = 768, 1024
_WINDOWED = {"gemma2": (1 / 2, 4096), "gemma3": (5 / 6, 1024), "gpt_oss": (1 / 2, 128)}
"""Which share of its layers sees a window, and of how many tokens, by architecture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes that a model takes while it runs.

    process: Python, onnxruntime and the tokenizer.
    weights: as the kernels keep them.
    loading: what is needed beside them until they are loaded.
    kv_cache: keys and values of `context` tokens.
    workspace: activations, while a prompt enters.
    basis: whether it is known from the installed model, or estimated from the index.
    """

    process: int
    weights: int
    loading: int = 0
    kv_cache: int = 0
    workspace: int = 0
    context: int = 0
    basis: Basis

    @property
    def total(self) -> int:
        """The most that is needed at a time; what loading takes is free again afterwards."""
        return self.process + self.weights + max(self.loading, self.kv_cache + self.workspace)

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "total": self.total,
            "weights": self.weights,
            "kv-cache": self.kv_cache,
            "workspace": self.workspace,
            "loading": self.loading,
            "process": self.process,
            "context": self.context,
            "basis": self.basis,
        }


def estimate(
    model: Model, variant: Variant, context: int | None = None, kv_cache: KvCache = "float"
) -> Need | None:
    """Return what a variant will need, from what the index says; None where that is too little.

    Args:
        model: its architecture, and, if known, its number of parameters.
        variant: its size and quantisation.
        context: tokens; if not given, `DEFAULT_CONTEXT`, or as many as the model can have.
        kv_cache: what keys and values are kept as.
    """
    weights = converted_size(model.parameters, variant)
    if weights is None:
        return None
    if not _is_decoder(model):
        return need_of(weights, None, 0, basis="index")
    parameters = model.parameters or _parameters(weights, variant)
    shape = nearest_shape(model.architecture, parameters)
    n_tokens = tokens(context, model.context_length)
    windows = typical_windows(model.architecture, shape.n_layers)
    return need_of(weights, shape, n_tokens, basis="index", kv_cache=kv_cache, windows=windows)


def need_of(
    weights: int,
    shape: Shape | None,
    context: int,
    *,
    basis: Basis,
    kv_cache: KvCache = "float",
    windows: Sequence[int] = (),
) -> Need:
    """Return what a model of a shape needs; a model without one has no cache.

    Args:
        weights: bytes of the converted weights.
        shape: of a decoder.
        context: tokens.
        basis: where the two come from.
        kv_cache: what keys and values are kept as.
        windows: of the layers that see no more, in tokens.
    """
    packed = int(weights * _PACKED)
    if shape is None:
        return Need(process=_PROCESS, weights=packed, basis=basis)
    head = shape.vocab_size * shape.hidden_size * _HEAD_BITS // 8
    return Need(
        process=_PROCESS + shape.vocab_size * _TOKEN,
        weights=packed,
        loading=int(min(head, weights) * _TWICE),
        kv_cache=cache_size(shape, context, kv_cache, windows),
        workspace=_workspace(shape, context),
        context=context,
        basis=basis,
    )


def need_of_config(
    config: Mapping[str, object],
    weights: int,
    context: int | None,
    kv_cache: KvCache = "float",
    windows: Sequence[int] = (),
) -> Need:
    """Return what an installed model needs, from its `genai_config.json`; ValueError if it is none.

    Args:
        config: the document.
        weights: the size of `model.onnx.data`.
        context: tokens; as in `estimate`.
        kv_cache: what keys and values are kept as.
        windows: of the layers that see no more, in tokens.
    """
    model = _section(config, "model")
    decoder = _section(model, "decoder")
    shape = Shape(
        parameters=0,
        n_layers=_natural(decoder, "num_hidden_layers"),
        hidden_size=_natural(decoder, "hidden_size"),
        n_heads=_natural(decoder, "num_attention_heads"),
        n_kv_heads=_natural(decoder, "num_key_value_heads"),
        head_size=_natural(decoder, "head_size"),
        vocab_size=_natural(model, "vocab_size"),
    )
    n_tokens = tokens(context, _natural(model, "context_length"))
    return need_of(weights, shape, n_tokens, basis="installed", kv_cache=kv_cache, windows=windows)


def cache_size(
    shape: Shape, context: int, kind: KvCache = "float", windows: Sequence[int] = ()
) -> int:
    """Bytes of keys and values of all layers.

    >>> cache_size(nearest_shape("llama", 8_030_261_248), 8192) == 2**31
    True
    """
    row = 2 * shape.n_kv_heads * shape.head_size * _KEPT[kind]
    n_rows = (shape.n_layers - len(windows)) * context
    n_rows += sum(min(context, max(_LEAST_ROWS, size + _WINDOW_ROWS)) for size in windows)
    return row * n_rows


def typical_windows(architecture: str | None, n_layers: int) -> list[int]:
    """Return the windows of a model's layers, of those that have one.

    >>> len(typical_windows("gemma3", 18)), typical_windows("llama", 32)
    (15, [])
    """
    share, size = _WINDOWED.get((architecture or "").replace("-", "_"), (0, 0))
    return [size] * round(share * n_layers)


def tokens(context: int | None, limit: int | None) -> int:
    """Return for how many tokens there shall be memory: what is asked for, within the model's limit."""
    return min(DEFAULT_CONTEXT if context is None else context, limit or math.inf)  # type: ignore[return-value]  # never the infinity


def converted_size(parameters: int | None, variant: Variant) -> int | None:
    """Bytes of the weights once they are converted, or None where nothing tells.

    >>> round(_ratio("Q4_1"), 2), round(_ratio("q4-k-m"), 2)
    (1.2, 1.38)
    """
    size = variant.size
    if variant.format in _AS_PUBLISHED:
        return size
    quantization = variant.quantization or _quantization_of(parameters, size, variant)
    if size is not None:
        return int(size * _ratio(quantization))
    bits = BITS.get(_key(quantization))
    return int(parameters * bits[1] / 8) if parameters and bits else None


def _workspace(shape: Shape, context: int) -> int:
    """What one chunk of a prompt takes: activations, attention scores, one unpacked matrix."""
    chunk = min(_CHUNK, context)
    activations = chunk * shape.hidden_size * _ACTIVATIONS
    scores = chunk * context * shape.n_heads
    return _FLOAT * (activations + scores + _UNPACKED * shape.hidden_size**2)


def _ratio(quantization: str) -> float:
    """How much larger weights are once converted; of what is not known, as 4 bits of a mixture."""
    published, converted = BITS.get(_key(quantization), BITS["Q4_K_M"])
    return converted / published


def _quantization_of(parameters: int | None, size: int | None, variant: Variant) -> str:
    """Guess it from the variant's name, or else from the bits that a weight has."""
    if _key(variant.name) in BITS:
        return variant.name
    if parameters and size:
        bits = size * 8 / parameters
        return min(BITS, key=lambda name: abs(BITS[name][0] - bits))
    return "F32" if variant.format == "safetensors" else "Q4_K_M"


def _parameters(weights: int, variant: Variant) -> int:
    bits = BITS.get(_key(variant.quantization or variant.name), BITS["Q4_K_M"])[1]
    return int(weights * 8 / bits)


def _key(quantization: str) -> str:
    """Fold a name to that of the table: publishers write `Q4_K_M`, `q4-k-m`, `UD-Q4_K_XL`."""
    return re.sub(r"\AUD_", "", re.sub(r"[-.]", "_", quantization).upper())


def _is_decoder(model: Model) -> bool:
    return model.task in {"text-generation", "image-text-to-text"}


def _section(document: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = document.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(f"`{key}` is not an object")  # noqa: TRY004  it is a document that is wrong
    return value


def _natural(section: Mapping[str, object], key: str) -> int:
    value = section.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"`{key}` is not a whole number")
    return value
