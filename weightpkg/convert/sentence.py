"""What sentence-transformers puts on an encoder: one vector for a text, as a part of the graph.

`modules.json` lists the steps: the encoder, pooling over its tokens, and perhaps normalisation. A GGUF
file has the way of pooling alone, and llama.cpp normalises.
https://github.com/UKPLab/sentence-transformers/blob/v5.1.0/sentence_transformers/models/Pooling.py
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert.graph import Graph, Value
from weightpkg.errors import UnsupportedArchitectureError, shown
from weightpkg.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from weightpkg.formats.gguf import GGUFFile
    from weightpkg.formats.json_text import JSON

_MODULES = "modules.json"
_WIDTHS = ("word_embedding_dimension", "embedding_dimension")
_POOLING_KEYS = {*_WIDTHS, "include_prompt", "pooling_mode"}

# Before `pooling_mode` there was a switch for each; in the order of their vectors.
_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class SentenceHead:
    """How a text's vector, of `width` numbers, is made of the vectors of its tokens."""

    poolings: tuple[str, ...]
    is_normalized: bool
    width: int


def is_sentence_model(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint says how the vector of a text is made."""
    return _MODULES in checkpoint


def read_sentence_head(checkpoint: Checkpoint, width: int) -> SentenceHead | None:
    """Read `modules.json` and what it names; None if the checkpoint has no such file.

    Args:
        checkpoint: its files.
        width: of the encoder's vectors.

    Raises:
        CheckpointError: a file is missing or malformed.
        UnsupportedArchitectureError: a step that is not known.
    """
    if not is_sentence_model(checkpoint):
        return None
    steps = _read_modules(checkpoint)
    kinds = [kind for kind, _ in steps]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _unsupported(checkpoint, _MODULES, f"the modules {', '.join(kinds)}")
    if steps[0][1]:
        raise _unsupported(checkpoint, _MODULES, "an encoder that is not in the first directory")
    poolings = _read_poolings(checkpoint, f"{steps[1][1]}/config.json", width)
    is_normalized = kinds[-1] == "Normalize"
    return SentenceHead(poolings=poolings, is_normalized=is_normalized, width=len(poolings) * width)


# `enum llama_pooling_type`; 0 is none, 4 is for ranking
_GGUF_POOLINGS = {1: "mean", 2: "cls", 3: "lasttoken"}


def read_gguf_head(file: GGUFFile, kind: str, width: int) -> SentenceHead | None:
    """Read the pooling of a GGUF file; None if it has none. Vectors are of length 1, as llama.cpp's.

    Args:
        file: an open file.
        kind: its architecture.
        width: of the encoder's vectors.

    Raises:
        GGUFError: the key is of the wrong type.
        UnsupportedArchitectureError: a pooling that is not known.
    """
    pooling = file.get(f"{kind}.pooling_type", int, 0)
    if pooling == 0:
        return None
    if pooling not in _GGUF_POOLINGS:
        raise UnsupportedArchitectureError(f"`{file.name}`: pooling of type {pooling}: not handled")
    return SentenceHead(poolings=(_GGUF_POOLINGS[pooling],), is_normalized=True, width=width)


def _read_modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Return the kind of each step and the directory that it is in."""
    modules = checkpoint.document(_MODULES)
    if not isinstance(modules, list):
        raise checkpoint.error(_MODULES, "is not a list")
    steps = []
    for module in modules:
        fields = module if isinstance(module, dict) else {}
        kind, path = fields.get("type"), fields.get("path")
        if not isinstance(kind, str) or not isinstance(path, str):
            raise checkpoint.error(_MODULES, "a module has no type or no path")
        library, _, _ = kind.partition(".")
        if library != "sentence_transformers":
            raise _unsupported(checkpoint, _MODULES, f"a module of type {shown(kind)}")
        steps.append((shown(kind.rpartition(".")[2]), path))
    return steps


def _read_poolings(checkpoint: Checkpoint, name: str, width: int) -> tuple[str, ...]:
    """Return the ways of pooling that are switched on; their vectors are put side by side."""
    fields = checkpoint.fields(name)
    if unknown := sorted(fields.keys() - _POOLING_KEYS - _SWITCHES.keys()):
        raise _unsupported(checkpoint, name, f"`{shown(unknown[0])}`")
    for key, handled in (*((key, width) for key in _WIDTHS), ("include_prompt", True)):
        if fields.get(key, handled) != handled:
            raise _unsupported(checkpoint, name, f"`{key}` that is not {handled}")
    modes: JSON = fields.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _SWITCHES.items() if fields.get(key)] or "mean"
    modes = modes if isinstance(modes, list) else [modes]
    found = tuple(mode for mode in modes if isinstance(mode, str) and mode in _POOLINGS)
    if len(found) != len(modes) or not found:
        raise _unsupported(checkpoint, name, f"pooling by {shown(' and '.join(map(str, modes)))}")
    return found


def _unsupported(checkpoint: Checkpoint, name: str, what: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(f"`{checkpoint.name}/{name}`: {what}: not handled")


def add_sentence_embedding(graph: Graph, x: Value, mask: Value, head: SentenceHead) -> None:
    """x: (B, T, E), mask: (B, T) int64, 0 for padding -> the output `sentence_embedding` (B, width)."""
    vectors = [_POOLINGS[pooling](graph, x, mask) for pooling in head.poolings]
    (y,) = graph.op("Concat", vectors, attributes={"axis": 1}) if vectors[1:] else vectors
    if head.is_normalized:
        y = _normalize(graph, y)
    (y,) = graph.op("Identity", (y,), outputs=("sentence_embedding",))
    graph.output(y, np.float32, ("batch_size", head.width))


def mean_of_tokens(graph: Graph, x: Value, mask: Value) -> Value:
    """The mean over the tokens that are not padding."""
    return graph.op("Div", _weighted_sum(graph, x, _as_column(graph, mask)))[0]


def _weighted_sum(graph: Graph, x: Value, weights: Value) -> tuple[Value, Value]:
    """x: (B, T, E), weights: (B, T, 1) -> the sum over T (B, E), and that of the weights (B, 1)."""
    (kept,) = graph.op("Mul", (x, weights))
    axes = graph.constant(np.array([1], np.int64), "axes")
    (total,) = graph.op("ReduceSum", (kept, axes), attributes={"keepdims": 0})
    (count,) = graph.op("ReduceSum", (weights, axes), attributes={"keepdims": 0})
    (count,) = graph.op("Max", (count, graph.constant(np.array(1e-9, np.float32), "least")))
    return total, count


def _cls(graph: Graph, x: Value, _: Value) -> Value:
    """The first token."""
    index = graph.constant(np.array(0, np.int64), "first")
    return graph.op("Gather", (x, index), attributes={"axis": 1})[0]


def _last(graph: Graph, x: Value, mask: Value) -> Value:
    """The last token that is not padding."""
    attributes = {"axis": 1, "keepdims": 1, "select_last_index": 1}
    (index,) = graph.op("ArgMax", (mask,), attributes=attributes)  # (B, 1)
    return graph.op("GatherND", (x, index), attributes={"batch_dims": 1})[0]


def _mean_by_root(graph: Graph, x: Value, mask: Value) -> Value:
    """The sum of the tokens that are not padding, divided by the root of their number."""
    total, count = _weighted_sum(graph, x, _as_column(graph, mask))
    return graph.op("Div", (total, graph.op("Sqrt", (count,))[0]))[0]


def _weighted_mean(graph: Graph, x: Value, mask: Value) -> Value:
    """The mean over the tokens that are not padding, the first counted once, the second twice, ..."""
    seen = _as_column(graph, mask)  # (B, T, 1)
    (ones,) = graph.op("Equal", (seen, seen))
    (ones,) = graph.op("Cast", (ones,), attributes={"to": int(TensorProto.FLOAT)})
    axis = graph.constant(np.array(1, np.int64), "axis")
    (places,) = graph.op("CumSum", (ones, axis))
    (weights,) = graph.op("Mul", (seen, places))
    return graph.op("Div", _weighted_sum(graph, x, weights))[0]


def _max(graph: Graph, x: Value, mask: Value) -> Value:
    """The largest of the tokens that are not padding, for each of E."""
    attributes = {"to": int(TensorProto.BOOL)}
    (seen,) = graph.op("Cast", (_as_column(graph, mask),), attributes=attributes)
    lowest = graph.constant(np.array(-1e9, np.float32), "lowest")
    (kept,) = graph.op("Where", (seen, x, lowest))
    axes = graph.constant(np.array([1], np.int64), "axes")
    return graph.op("ReduceMax", (kept, axes), attributes={"keepdims": 0})[0]


def _as_column(graph: Graph, mask: Value) -> Value:
    """mask: (B, T) int64 -> (B, T, 1) float32."""
    (column,) = graph.op("Cast", (mask,), attributes={"to": int(TensorProto.FLOAT)})
    return graph.op("Unsqueeze", (column, graph.constant(np.array([2], np.int64), "axes")))[0]


def _normalize(graph: Graph, y: Value) -> Value:
    """y: (B, width) -> y divided by its length."""
    axes = graph.constant(np.array([1], np.int64), "axes")
    (length,) = graph.op("ReduceL2", (y, axes))
    (length,) = graph.op("Max", (length, graph.constant(np.array(1e-12, np.float32), "least")))
    return graph.op("Div", (y, length))[0]


_POOLINGS: dict[str, Callable[[Graph, Value, Value], Value]] = {
    "cls": _cls,
    "lasttoken": _last,
    "max": _max,
    "mean": mean_of_tokens,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
}


def read_max_length(checkpoint: Checkpoint, limit: int) -> int:
    """Return how many tokens of a text are used: what sentence-transformers takes, at most `limit`.

    Raises:
        CheckpointError: a file is malformed.
        UnsupportedArchitectureError: texts are changed before the tokenizer gets them.
    """
    name, lengths = "sentence_bert_config.json", [limit]
    if name in checkpoint:
        fields = checkpoint.fields(name)
        if fields.get("do_lower_case"):
            raise _unsupported(checkpoint, name, "`do_lower_case`")
        lengths.append(_length(checkpoint, name, "max_seq_length", fields))
    name = "tokenizer_config.json"
    if len(lengths) == 1 and name in checkpoint:
        lengths.append(_length(checkpoint, name, "model_max_length", checkpoint.fields(name)))
    return min(length for length in lengths if length)


def _length(checkpoint: Checkpoint, name: str, key: str, fields: dict[str, JSON]) -> int:
    """Return a number of tokens; 0 where there is none."""
    value = fields.get(key) or 0
    if not isinstance(value, int | float) or value < 0:
        raise checkpoint.error(name, "is not a number of tokens", place=f"key `{key}`")
    return int(min(value, 2**30))
