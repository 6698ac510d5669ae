"""The parts that encoders are made of: every token sees every other that is not padding.

`post_norm_layers` is BERT's layer, which RoBERTa and DistilBERT have too, by BERT's canonical names;
letters in shapes are those of `blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks, rotary
from weightpkg.convert.graph import Graph, Value
from weightpkg.tensor import BlockLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.weights import Weight, Weights

ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}
"""`hidden_act` to the operator that adds a bias and activates."""

_SHAPE = ("batch_size", "sequence_length")
_NORM = 2  # a norm's weight and bias


class LayerSizes(Protocol):
    """What a `Config` has for `post_norm_layers`."""

    @property
    def hidden_size(self) -> int:
        """E."""

    @property
    def intermediate_size(self) -> int:
        """F."""

    @property
    def num_hidden_layers(self) -> int:
        """How many layers."""

    @property
    def num_attention_heads(self) -> int:
        """H."""

    @property
    def layer_norm_eps(self) -> float:
        """What is added to variances."""

    @property
    def hidden_act(self) -> str:
        """One of `ACTIVATIONS`."""


def token_inputs(graph: Graph) -> tuple[Value, Value]:
    """Declare `input_ids` and `attention_mask`, each (B, T) int64."""
    ids = graph.input("input_ids", np.int64, _SHAPE)
    return ids, graph.input("attention_mask", np.int64, _SHAPE)


def segments(graph: Graph, weights: Weights, rows: int, width: int) -> Value:
    """Declare `token_type_ids` (B, T) int64, and return their vectors, (B, T, E).

    Where there is one segment only, there is nothing to say, and what is returned is its (E,).
    """
    name = "embeddings.token_type_embeddings.weight"
    if rows == 1:
        only = weights.take(name, (rows, width))
        return graph.constant(only.dense()[0], name)
    ids = graph.input("token_type_ids", np.int64, _SHAPE)
    return blocks.embedding(graph, ids, table(graph, weights, name, (rows, width)))


def output_hidden_state(graph: Graph, x: Value, width: int) -> Value:
    """x: (B, T, E), which becomes the output `last_hidden_state`."""
    (x,) = graph.op("Identity", (x,), outputs=("last_hidden_state",))
    graph.output(x, np.float32, (*_SHAPE, width))
    return x


def table(graph: Graph, weights: Weights, name: str, shape: tuple[int, int]) -> blocks.Matrix:
    """Promise a matrix whose rows are looked up."""
    weight = weights.take(name, shape)
    return blocks.add_matrix(graph, weight.name, [weight])


def table_again(graph: Graph, weights: Weights, name: str, shape: tuple[int, int]) -> blocks.Matrix:
    """Return the matrix that `table` promised under this name, for a product by it."""
    weight = weights.take(name, shape)
    parts = [graph.find_external(weight.name + end) for end in ("", ".1", ".2")]
    q, scale, offset = parts
    assert q is not None  # noqa: S101  the encoder has its words
    layout = weight.layout if isinstance(weight.layout, BlockLayout) else None
    return blocks.Matrix(shape, layout, q, scale, offset)


def positions(graph: Graph, ids: Value) -> Value:
    """ids: (B, T) -> 0 .. T - 1, (T,) int64."""
    (length,) = graph.op("Shape", (ids,), attributes={"start": 1, "end": 2})
    (length,) = graph.op("Squeeze", (length,))
    start, step = (graph.constant(np.array(n, np.int64), "range") for n in (0, 1))
    return graph.op("Range", (start, length, step))[0]


def seen_tokens(graph: Graph, mask: Value) -> Value:
    """mask: (B, T) int64 -> the same as int32, as the attention operator takes it."""
    return graph.op("Cast", (mask,), attributes={"to": int(TensorProto.INT32)})[0]


def post_norm_layers(
    graph: Graph, x: Value, mask: Value, weights: Weights, sizes: LayerSizes
) -> Value:
    """x: (B, T, E), mask: (B, T) int64, 0 for padding -> (B, T, E), after all layers."""
    seen = seen_tokens(graph, mask)
    for i in range(sizes.num_hidden_layers):
        x = _layer(graph, x, seen, weights, sizes, f"encoder.layer.{i}.")
    return x


def _layer(
    graph: Graph, x: Value, seen: Value, weights: Weights, sizes: LayerSizes, prefix: str
) -> Value:
    """x: (B, T, E), seen: (B, T) int32 -> (B, T, E)."""
    width, inner = sizes.hidden_size, sizes.intermediate_size

    attended = _attention(graph, x, seen, weights, sizes, f"{prefix}attention.self.")
    x = _add_and_norm(graph, x, attended, weights, f"{prefix}attention.output.", width, sizes)

    up = weights.take(f"{prefix}intermediate.dense.weight", (inner, width))
    bias = weights.take(f"{prefix}intermediate.dense.bias", (inner,))
    inputs = (blocks.project(graph, x, up), graph.constant(bias.dense(), bias.name))
    (h,) = graph.op(ACTIVATIONS[sizes.hidden_act], inputs, domain=blocks.MICROSOFT)
    return _add_and_norm(graph, x, h, weights, f"{prefix}output.", inner, sizes)


def _attention(
    graph: Graph, x: Value, seen: Value, weights: Weights, sizes: LayerSizes, prefix: str
) -> Value:
    """x: (B, T, E), seen: (B, T) int32 -> (B, T, E)."""
    width, names = sizes.hidden_size, ("query", "key", "value")
    matrices = [weights.take(f"{prefix}{name}.weight", (width, width)) for name in names]
    biases = [weights.take(f"{prefix}{name}.bias", (width,)) for name in names]
    qkv = blocks.projections(graph, x, matrices, f"{prefix}qkv")
    bias = graph.constant(np.concatenate([bias.dense() for bias in biases]), f"{prefix}bias")
    return attend(graph, (*qkv, bias), seen, sizes.num_attention_heads)


def attend(
    graph: Graph,
    qkv: tuple[Value | None, ...],
    seen: Value,
    n_heads: int,
    distance: Value | None = None,
) -> Value:
    """Let tokens attend to each other.

    Args:
        graph: the graph.
        qkv: queries, keys and values, each (B, T, H*D), and perhaps a bias of the three, (3*H*D,).
        seen: (B, T) int32, 0 for padding.
        n_heads: H.
        distance: (1, 1, T, T) float32, what is added to the products of queries and keys.

    Returns:
        (B, T, H*D).
    """
    inputs = (*qkv, None)[:4]
    (y,) = graph.op(
        "MultiHeadAttention",
        (*inputs, seen) if distance is None else (*inputs, seen, distance),
        domain=blocks.MICROSOFT,
        attributes={"num_heads": n_heads},
    )
    return y


def _add_and_norm(
    graph: Graph,
    x: Value,
    h: Value,
    weights: Weights,
    prefix: str,
    inputs: int,
    sizes: LayerSizes,
) -> Value:
    """x: (B, T, E), h: (B, T, inputs) -> norm(x + dense(h)), (B, T, E)."""
    width = sizes.hidden_size
    down = weights.take(f"{prefix}dense.weight", (width, inputs))
    y = blocks.project(graph, h, down)
    names = ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")
    vectors = [weights.take(f"{prefix}{name}", (width,)) for name in names]
    return add_and_norm(graph, y, x, vectors, sizes.layer_norm_eps)


def rotation(graph: Graph, frequencies: NDArray[np.float64], limit: int) -> rotary.Rotation:
    """Return what turns heads at positions that count from 0 in each row.

    Args:
        graph: the graph.
        frequencies: (D/2,).
        limit: how many positions there are.
    """
    cos, sin = blocks.rotary_tables(graph, frequencies, limit)
    # one number stands for 0, 1, 2, ... from there on
    return rotary.Rotation(cos, sin, graph.constant(np.array([0], np.int64), "first"))


def add_and_norm(
    graph: Graph, y: Value, x: Value, vectors: Sequence[Weight], epsilon: float
) -> Value:
    """y, x: (B, T, E) -> norm(x + y), (B, T, E).

    vectors: the norm's weight and bias, and perhaps a bias of y, each (E,).
    """
    if len(vectors) > _NORM:
        bias = vectors[_NORM]
        y = blocks.add(graph, y, graph.constant(bias.dense(), bias.name))
    return blocks.add_layer_norm(graph, x, y, vectors[:_NORM], epsilon)[0]
