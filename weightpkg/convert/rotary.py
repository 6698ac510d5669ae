"""Rows of cosines and sines for just the positions at hand, computed in the graph.

A table of every position is large where contexts are long and heads wide: 34 MB for 32,768 positions
of heads of 256, and Gemma needs two. A position is 256 * i + j instead, and its row comes from row i
of one small table and row j of another (docs/decisions/rotary-rows.md):

    cos(a + b) = cos(a) cos(b) - sin(a) sin(b)
    sin(a + b) = sin(a) cos(b) + cos(a) sin(b)

in float64, so that the result, rounded to float32, is as near to the truth as a table's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks, rope
from weightpkg.convert.graph import Graph, Payload, Tensor, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEP = 256


@dataclass(frozen=True, slots=True)
class Rotation:
    """What turns the heads of a step's tokens.

    cos, sin: (N, D/2) float32; rows: (B, T) int64, which of the N is a token's.
    """

    cos: Value
    sin: Value
    rows: Value


def rotate(graph: Graph, x: Value, rotation: Rotation) -> Value:
    """x: (B, T, H*D) -> the same, elements i and D/2 + i of each head turned by an angle."""
    inputs = (x, rotation.rows, rotation.cos, rotation.sin)
    return graph.op("RotaryEmbedding", inputs, domain=blocks.MICROSOFT)[0]


def rotations(
    graph: Graph, ids: Value, last: Value, frequencies: Sequence[NDArray[np.float64]], limit: int
) -> list[Rotation]:
    """Return a rotation for each of `frequencies`.

    Args:
        graph: the graph.
        ids: (B, T) int64, the tokens.
        last: (B,) int32, last position of each row.
        frequencies: each (D/2,).
        limit: how many positions there are.
    """
    rows = token_rows(graph, ids)
    tables = cos_sin(graph, token_positions(graph, ids, last), frequencies, limit)
    return [Rotation(cos, sin, rows) for cos, sin in tables]


def token_positions(graph: Graph, ids: Value, last: Value) -> Value:
    """ids: (B, T) int64, last: (B,) int32, last position of each row -> positions (B*T,) int64.

    The first tokens of a row, shorter ones padded at their end, count from 0; later ones end at last.
    """
    one = graph.constant(np.array([1], np.int64), "one")
    (count,) = graph.op("Shape", (ids,), attributes={"start": 1, "end": 2})
    (before,) = graph.op("Sub", (count, one))
    (last,) = graph.op("Cast", (last,), attributes={"to": int(TensorProto.INT64)})
    (start,) = graph.op("Sub", (last, before))
    (start,) = graph.op("Max", (start, graph.constant(np.array([0], np.int64), "zero")))
    (start,) = graph.op("Unsqueeze", (start, one))  # (B,) -> (B, 1)
    (position,) = graph.op("Add", (start, _range(graph, count)))  # (B, T)
    flat = graph.constant(np.array([-1], np.int64), "shape")
    return graph.op("Reshape", (position, flat))[0]


def token_rows(graph: Graph, ids: Value) -> Value:
    """ids: (B, T) -> (B, T) int64: each token's place in what `token_positions` returns."""
    (shape,) = graph.op("Shape", (ids,))
    (count,) = graph.op("Size", (ids,))
    return graph.op("Reshape", (_range(graph, count), shape))[0]


def _range(graph: Graph, count: Value) -> Value:
    """count: one int64 -> 0 .. count - 1."""
    (stop,) = graph.op("Squeeze", (count,))
    zero, one = (graph.constant(np.array(n, np.int64), "scalar") for n in (0, 1))
    return graph.op("Range", (zero, stop, one))[0]


def cos_sin(
    graph: Graph, positions: Value, frequencies: Sequence[NDArray[np.float64]], limit: int
) -> list[tuple[Value, Value]]:
    """Return cos and sin of position * frequency, each (N, D/2) float32, for each of `frequencies`.

    Args:
        graph: the graph.
        positions: (N,) int64, from 0 to limit - 1.
        frequencies: each (D/2,).
        limit: how many positions there are.
    """
    step = graph.constant(np.array(_STEP, np.int64), "step")
    (i,) = graph.op("Div", (positions, step))
    (j,) = graph.op("Mod", (positions, step))
    every = np.concatenate(frequencies)
    coarse = _look_up(graph, "rotary.coarse", every, np.arange(-(-limit // _STEP)) * _STEP, i)
    fine = _look_up(graph, "rotary.fine", every, np.arange(min(limit, _STEP)), j)
    products = {
        (a, b): graph.op("Mul", (coarse[a], fine[b]))[0] for a in range(2) for b in range(2)
    }
    cos = graph.op("Sub", (products[0, 0], products[1, 1]))
    sin = graph.op("Add", (products[1, 0], products[0, 1]))
    parts = [_parts(graph, value, [len(each) for each in frequencies]) for (value,) in (cos, sin)]
    return list(zip(*parts, strict=True))


def _look_up(
    graph: Graph,
    name: str,
    frequencies: NDArray[np.float64],
    positions: NDArray[np.int64],
    rows: Value,
) -> list[Value]:
    """rows: (N,) int64 -> cos and sin of the positions of these rows, each (N, D/2) float64."""
    tensor = Tensor(np.dtype(np.float64), (len(positions), len(frequencies)))

    def slices() -> Iterator[NDArray[np.generic]]:
        yield from rope.cos_sin_float64(frequencies, positions)

    tables = graph.external(name, Payload((tensor, tensor), slices))
    return [graph.op("Gather", (table.value, rows))[0] for table in tables]


def _parts(graph: Graph, x: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
    """x: (N, sum of sizes) float64 -> float32 columns of these sizes."""
    (x,) = graph.op("Cast", (x,), attributes={"to": int(TensorProto.FLOAT)})
    return blocks.split(graph, x, sizes)
