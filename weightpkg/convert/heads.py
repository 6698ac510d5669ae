"""What encoders have on top for a task: scores of labels for a text or its tokens, or of words for a gap.

All are a dense layer, perhaps, with an activation and perhaps a norm, and a product behind it: what
differs is in `HeadLayout`, by architecture and task. The graph's output is `logits`, as elsewhere; the
labels go into `config.json` of the model directory, as transformers writes them.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightpkg.convert import blocks, encoder
from weightpkg.convert.graph import Graph, Value
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.sentence import mean_of_tokens
from weightpkg.errors import CheckpointError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from weightpkg.convert.weights import Weights

HeadKind = Literal["sequence", "token", "masked"]
_KINDS: dict[str, HeadKind] = {
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForMaskedLM": "masked",
}
_MAX_LABELS = 2**17
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}

_ACTIVATIONS: dict[str, Callable[[Graph, Value], Value]] = {
    "gelu": blocks.gelu,
    "gelu_new": blocks.gelu_tanh,
    "gelu_pytorch_tanh": blocks.gelu_tanh,
    "relu": lambda graph, x: graph.op("Relu", (x,))[0],
    "tanh": lambda graph, x: graph.op("Tanh", (x,))[0],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadLayout:
    """One head, by the names of a checkpoint's tensors.

    output: the product, whose weight is `tied`'s if that is named and the checkpoint ties them.
    output_bias: where it is, "" for none; pooling: what of a text's tokens is used, None for all.
    """

    output: str
    output_bias: str
    dense: str | None = None
    has_dense_bias: bool = True
    activation: str = "tanh"
    norm: str | None = None
    has_norm_bias: bool = True
    epsilon: float = 1e-12
    pooling: Literal["cls", "mean"] | None = None
    tied: str | None = None

    def tensors(self) -> Iterator[str]:
        """Yield the name of every tensor that may belong to it."""
        for part in (self.dense, self.norm, self.output):
            if part is not None:
                yield from (f"{part}.weight", f"{part}.bias")
        if self.output_bias:
            yield self.output_bias


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What a checkpoint says of its head. labels: what each score is of, none for words."""

    kind: HeadKind
    architecture: str
    labels: tuple[str, ...] = ()
    problem_type: str | None = None

    def document(self, model_type: str) -> bytes:
        """Return what a runner needs to know of it, as `config.json`."""
        fields: dict[str, object] = {
            "architectures": [self.architecture],
            "model_type": model_type,
        }
        if self.labels:
            fields["id2label"] = {str(i): label for i, label in enumerate(self.labels)}
            fields["label2id"] = {label: i for i, label in enumerate(self.labels)}
        if self.problem_type is not None:
            fields["problem_type"] = self.problem_type
        return json.dumps(fields, ensure_ascii=False, indent=2).encode() + b"\n"


def read_head(config: HFConfig) -> Head | None:
    """Read which head a checkpoint has; None for an encoder alone.

    Raises:
        CheckpointError: a key is of the wrong type.
        UnsupportedArchitectureError: the labels are not numbered from 0, or too many.
    """
    names = config.strings("architectures")
    found = [(kind, name) for name in names for end, kind in _KINDS.items() if name.endswith(end)]
    if not found:
        return None
    kind, name = found[0]
    if kind == "masked":
        return Head(kind=kind, architecture=name)
    problem = config.optional("problem_type", str)
    labels = _read_labels(config)
    return Head(kind=kind, architecture=name, labels=labels, problem_type=problem)


def _read_labels(config: HFConfig) -> tuple[str, ...]:
    """The labels by their numbers; two where nothing is said, as transformers has it."""
    table = config.table("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    labels = tuple(table.get(str(i)) for i in range(len(table)))
    if len(labels) > _MAX_LABELS or None in labels:
        raise config.unsupported("`id2label` does not number its labels from 0")
    if not all(isinstance(label, str) for label in labels):
        raise CheckpointError(config.name, "key `id2label`", "has a label that is not a string")
    return tuple(map(str, labels))


def canonical_names(
    layout: HeadLayout, prefix: str, rest: Callable[[str], str | None]
) -> Callable[[str], str | None]:
    """Return what gives tensors their canonical names, with those of a head, which keep theirs.

    Args:
        layout: the head.
        prefix: what models with a head put before the encoder's names.
        rest: gives names to the tensors of the encoder.
    """
    names = set(layout.tensors())

    def canonical_name(name: str) -> str | None:
        stem, _, last = name.removeprefix(prefix).rpartition(".")
        plain = f"{stem}.{_OLD_NAMES.get(last, last)}"
        return plain if plain in names else rest(name)

    return canonical_name


def add_head(
    graph: Graph,
    states: tuple[Value, Value],
    weights: Weights,
    head: Head,
    layout: HeadLayout,
    sizes: tuple[int, int],
) -> None:
    """Add a head to the graph: the output `logits`, (B, L), (B, T, L) or (B, T, V).

    Args:
        graph: the graph, with the encoder.
        states: (B, T, E) float32, and the mask (B, T) int64.
        weights: of which the head's are taken.
        head: which one.
        layout: how it is made.
        sizes: E, and V.

    Raises:
        TensorMismatchError: a tensor is missing, or has another shape.
    """
    width, vocab_size = sizes
    count = vocab_size if head.kind == "masked" else len(head.labels)
    x = _pooled(graph, states, layout)
    if layout.dense is not None:
        x = _dense(graph, x, weights, layout, width)
    logits = _product(graph, x, weights, layout, (count, width))
    (logits,) = graph.op("Identity", (logits,), outputs=("logits",))
    dims = ("batch_size",) if head.kind == "sequence" else ("batch_size", "sequence_length")
    graph.output(logits, np.float32, (*dims, count))


def _pooled(graph: Graph, states: tuple[Value, Value], layout: HeadLayout) -> Value:
    x, mask = states
    if layout.pooling is None:
        return x
    if layout.pooling == "mean":
        return mean_of_tokens(graph, x, mask)
    first = graph.constant(np.array(0, np.int64), "first")
    return graph.op("Gather", (x, first), attributes={"axis": 1})[0]  # (B, T, E) -> (B, E)


def _dense(graph: Graph, x: Value, weights: Weights, layout: HeadLayout, width: int) -> Value:
    weight = weights.take(f"{layout.dense}.weight", (width, width))
    has_bias = layout.has_dense_bias
    bias = weights.take(f"{layout.dense}.bias", (width,)) if has_bias else None
    x = _ACTIVATIONS[layout.activation](graph, blocks.project(graph, x, weight, bias))
    if layout.norm is None:
        return x
    parts = ("weight", "bias") if layout.has_norm_bias else ("weight",)
    vectors = [weights.take(f"{layout.norm}.{part}", (width,)) for part in parts]
    return blocks.layer_norm(graph, x, vectors, layout.epsilon)


def _product(
    graph: Graph, x: Value, weights: Weights, layout: HeadLayout, shape: tuple[int, int]
) -> Value:
    """x: (..., E) -> (..., L), by a matrix of its own or the one that embeds words."""
    if layout.tied is not None:
        weights.drop_copy(f"{layout.output}.weight", layout.tied)
        matrix = encoder.table_again(graph, weights, layout.tied, shape)
    else:
        matrix = encoder.table(graph, weights, f"{layout.output}.weight", shape)
    y = blocks.linear(graph, x, matrix)
    if not layout.output_bias:
        return y
    name = f"{layout.output}.bias"
    if name not in weights:
        name = layout.output_bias
    elif name != layout.output_bias:  # it may be there under two names
        weights.drop_copy(layout.output_bias, name)
    return blocks.add_bias(graph, y, [weights.take(name, shape[:1])])


def check_activation(config: HFConfig, name: str) -> str:
    """Return the name of an activation.

    Raises:
        UnsupportedArchitectureError: it is not known.
    """
    if name not in _ACTIVATIONS:
        raise UnsupportedArchitectureError(f"`{config.name}`: the head's activation `{name}`")
    return name
