"""Mixtures of experts: which experts a token goes to, and what they make of it.

Tokens are sorted by their experts, so that each expert has one product with all of its tokens, of
which there may be none: the operators return at once then. Every expert's matrix is a constant of
its own, in the same form as any other matrix, so that every type of block goes in unchanged. QMoE,
one operator for all of it, has no offsets (docs/decisions/mixtures-of-experts.md).

Letters in shapes as in `blocks`; X experts, C experts that a token goes to, R = B*T*C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks
from weightpkg.convert.weights import Place, Weight, Weights, alike

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.graph import Graph, Value
    from weightpkg.tensor import Blocks

Experts = Sequence[Weight]
"""A matrix (N, K) for each expert."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where tokens go. experts: (B, T, C) int64; weights: (B, T, C) float32."""

    experts: Value
    weights: Value
    n_experts: int
    n_chosen: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The R pairs of a token and an expert, in the order of the experts.

    tokens, experts: (R,) int64, of each pair; counts: (X,) int64, pairs of each expert; places:
    (R,) int64, where in that order the pairs of the first token are, and of the second...
    """

    tokens: Value
    experts: Value
    counts: Value
    places: Value
    n_experts: int


def choose_by_softmax(graph: Graph, logits: Value, n_experts: int, n_chosen: int) -> Choice:
    """logits: (B, T, X) -> the highest; their weights are a softmax of them alone.

    It is the same as a softmax of all, of which the highest are kept and divided by their sum.
    """
    highest, experts = top(graph, logits, n_chosen)
    (weights,) = graph.op("Softmax", (highest,), attributes={"axis": -1})
    return Choice(experts, weights, n_experts, n_chosen)


def choose_by_share(graph: Graph, logits: Value, n_experts: int, n_chosen: int) -> Choice:
    """logits: (B, T, X) -> the highest; their weights are those of a softmax of all."""
    (shares,) = graph.op("Softmax", (logits,), attributes={"axis": -1})
    weights, experts = top(graph, shares, n_chosen)
    return Choice(experts, weights, n_experts, n_chosen)


def top(graph: Graph, x: Value, count: int) -> tuple[Value, ...]:
    """x: (..., N) -> the largest values and their places, each (..., count)."""
    k = graph.constant(np.array([count], np.int64), "count")
    return graph.op("TopK", (x, k), outputs=2, attributes={"axis": -1})


def dispatch(graph: Graph, choice: Choice) -> Dispatch:
    """Sort the pairs of tokens and experts by the expert."""
    flat = graph.constant(np.array([-1], np.int64), "shape")
    (chosen,) = graph.op("Reshape", (choice.experts, flat))  # (B, T, C) -> (R,)
    (size,) = graph.op("Shape", (chosen,))
    ascending = {"axis": 0, "largest": 0}
    experts, order = graph.op("TopK", (chosen, size), outputs=2, attributes=ascending)
    _, places = graph.op("TopK", (order, size), outputs=2, attributes=ascending)
    per_token = graph.constant(np.array(choice.n_chosen, np.int64), "chosen")
    (tokens,) = graph.op("Div", (order, per_token))
    counts = _count(graph, chosen, choice.n_experts)
    return Dispatch(tokens, experts, counts, places, choice.n_experts)


def _count(graph: Graph, chosen: Value, n_experts: int) -> Value:
    """chosen: (R,) int64 -> how often each expert is chosen, (X,) int64."""
    numbers = graph.constant(np.arange(n_experts)[:, None], "experts")
    (matches,) = graph.op("Equal", (numbers, chosen))  # (X, 1), (R,) -> (X, R)
    (ones,) = graph.op("Cast", (matches,), attributes={"to": int(TensorProto.INT64)})
    axes = graph.constant(np.array([1], np.int64), "axes")
    return graph.op("ReduceSum", (ones, axes), attributes={"keepdims": 0})[0]


def gather(graph: Graph, x: Value, width: int, pairs: Dispatch) -> Value:
    """x: (B, T, E) -> the token of each pair, (1, R, E)."""
    rows = graph.constant(np.array([1, -1, width], np.int64), "shape")
    (tokens,) = graph.op("Reshape", (x, rows))  # (B, T, E) -> (1, B*T, E)
    return graph.op("Gather", (tokens, pairs.tokens), attributes={"axis": 1})[0]


def combine(graph: Graph, y: Value, x: Value, width: int, choice: Choice, pairs: Dispatch) -> Value:
    """y: (1, R, E), of each pair -> (B, T, E): each token's, weighted and added up."""
    (rows,) = graph.op("Gather", (y, pairs.places), attributes={"axis": 1})
    apart = graph.constant(np.array([-1, choice.n_chosen, width], np.int64), "shape")
    (rows,) = graph.op("Reshape", (rows, apart))  # (1, R, E) -> (B*T, C, E)
    single = graph.constant(np.array([-1, 1, choice.n_chosen], np.int64), "shape")
    (weights,) = graph.op("Reshape", (choice.weights, single))  # (B, T, C) -> (B*T, 1, C)
    (total,) = graph.op("MatMul", (weights, rows))  # (B*T, 1, E)
    (tokens,) = graph.op("Shape", (x,), attributes={"end": 2})
    last = graph.constant(np.array([-1], np.int64), "shape")
    (shape,) = graph.op("Concat", (tokens, last), attributes={"axis": 0})
    return graph.op("Reshape", (total, shape))[0]  # (B*T, 1, E) -> (B, T, E)


def take(weights: Weights, name: str, n_experts: int, shape: tuple[int, int]) -> Experts:
    """Return a matrix for each expert: of one tensor for all, as GGUF has it, or of one for each.

    Args:
        weights: of the model.
        name: of all of a layer's experts, with {} where the number of one of them stands, if it does.
        n_experts: how many there are.
        shape: (N, K).

    Raises:
        TensorMismatchError: a tensor is missing or has another shape.
    """
    whole = name.replace(".{}", "")
    if whole not in weights:
        return [weights.take(name.format(i), shape) for i in range(n_experts)]
    stacked = weights.take(whole, (n_experts, *shape))
    return [one_of(stacked, i) for i in range(n_experts)]


def one_of(weight: Weight, i: int) -> Weight:
    """Return the matrix of one expert, or of one head: (X, N, K) -> (N, K)."""
    height, width = weight.shape[1:]

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        return weight.rows(i * height + start, i * height + stop)

    place = weight.place
    if place is not None:
        place = Place(place.file, place.offset + 4 * i * height * width)
    shape = (height, width)
    return replace(weight, name=f"{weight.name}.{i}", shape=shape, rows=rows, place=place)


def projections(
    graph: Graph,
    x: Value,
    parts: Sequence[Experts],
    name: str,
    pairs: Dispatch,
    biases: Sequence[Weight] = (),
) -> tuple[Value, ...]:
    """x: (1, R, K) -> (1, R, N) for each part, each row by its own expert.

    Parts share one product where that takes no copy for any expert. biases: (X, N), of each part.
    """
    values: list[Value] = []
    for count in _together(parts):
        group = parts[len(values) :][:count]
        matrices = [
            blocks.add_matrix(graph, f"{name}.{i}", weights)
            for i, weights in enumerate(zip(*group, strict=True))
        ]
        y = _linear(graph, x, matrices, pairs)
        if biases:
            y = _add_bias(graph, y, biases[len(values) :][:count], pairs)
        values += blocks.split(graph, y, [part[0].shape[0] for part in group])
    return tuple(values)


def _together(parts: Sequence[Experts]) -> list[int]:
    """Return how many neighbours are one matrix, which must be the same for all experts."""
    ways = {tuple(map(len, alike(weights))) for weights in zip(*parts, strict=True)}
    return list(ways.pop()) if len(ways) == 1 else [1] * len(parts)


def project(
    graph: Graph, x: Value, part: Experts, name: str, pairs: Dispatch, bias: Weight | None = None
) -> Value:
    """x: (1, R, K) -> (1, R, N), by a matrix for each expert and perhaps a bias (X, N)."""
    return projections(graph, x, [part], name, pairs, () if bias is None else (bias,))[0]


def _linear(graph: Graph, x: Value, matrices: Sequence[blocks.Matrix], pairs: Dispatch) -> Value:
    """x: (1, R, K) -> (1, R, N), each row by the matrix of its own expert."""
    rows = _split(graph, x, pairs)
    if any(matrix.columns for matrix in matrices):
        zipped = zip(rows, matrices, strict=True)
        rows = tuple(blocks.in_order(graph, part, matrix) for part, matrix in zipped)
        x = _join(graph, rows)
    zipped = zip(rows, matrices, strict=True)
    products = [blocks.product(graph, part, matrix) for part, matrix in zipped]
    # means are computed of all rows at once: the operator does not take none
    layouts = dict.fromkeys(matrix.layout for matrix in matrices if matrix.offset)
    means = {
        layout: _split(graph, blocks.block_mean(graph, x, layout), pairs)
        for layout in layouts
        if layout is not None
    }
    offsets = {
        i: graph.op("MatMul", (means[matrix.layout][i], matrix.offset.value))[0]
        for i, matrix in enumerate(matrices)
        if matrix.layout is not None and matrix.offset is not None
    }
    if len(offsets) == len(products):
        return blocks.add(graph, _join(graph, products), _join(graph, list(offsets.values())))
    for i, offset in offsets.items():
        products[i] = blocks.add(graph, products[i], offset)
    return _join(graph, products)


def _split(graph: Graph, x: Value, pairs: Dispatch) -> tuple[Value, ...]:
    """x: (1, R, K) -> each expert's rows, together R."""
    return graph.op("Split", (x, pairs.counts), outputs=pairs.n_experts, attributes={"axis": 1})


def _join(graph: Graph, parts: Sequence[Value]) -> Value:
    """Each expert's rows -> (1, R, N)."""
    return graph.op("Concat", parts, attributes={"axis": 1})[0]


def _add_bias(graph: Graph, y: Value, biases: Sequence[Weight], pairs: Dispatch) -> Value:
    """y: (1, R, N) -> y + each row's expert's biases, one beside the other."""
    values = np.concatenate([bias.dense() for bias in biases], axis=1)
    table = graph.constant(values, biases[0].name)  # (X, N)
    (rows,) = graph.op("Gather", (table, pairs.experts))
    return blocks.add(graph, y, rows)


def swiglu_mixture(
    graph: Graph, x: Value, choice: Choice, gate_up: Sequence[Experts], down: Experts, name: str
) -> Value:
    """x: (B, T, E) -> (B, T, E): down(silu(gate(x)) * up(x)) of each chosen expert, weighted.

    gate_up: matrices (F, E); down: (E, F); name: of the mixture.
    """
    pairs = dispatch(graph, choice)
    width = down[0].shape[0]
    rows = gather(graph, x, width, pairs)
    gate, up = projections(graph, rows, gate_up, f"{name}.gate_up", pairs)
    y = project(graph, blocks.swiglu(graph, gate, up), down, f"{name}.down", pairs)
    return combine(graph, y, x, width, choice, pairs)
