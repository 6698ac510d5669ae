"""Mixtures of experts with every block layout, against plain arithmetic on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from test_blocks import run
from test_ggml import BLOCK_TYPES, TYPES, random_rows, weights
from weightpkg.convert import blocks, experts
from weightpkg.convert.archs import gpt_oss
from weightpkg.convert.graph import Graph
from weightpkg.convert.weights import Weight
from weightpkg.formats import ggml

if TYPE_CHECKING:
    from numpy.typing import NDArray

EXPERTS, CHOSEN, WIDTH, INNER = 5, 2, 256, 512


def stacked(
    name: str, part: str, rows: int, width: int
) -> tuple[experts.Experts, NDArray[np.float32]]:
    """A random matrix for each expert, and what they stand for."""
    kind = TYPES[name]
    assert kind.layout is not None
    raw = random_rows(name, EXPERTS * rows, width // kind.block_size)
    shape = (EXPERTS, rows, width)
    made = Weight(part, shape, kind.layout, lambda a, b: ggml.decode_rows(kind, raw[a:b]))
    plain = weights(name, raw).reshape(shape)
    return [experts.one_of(made, i) for i in range(EXPERTS)], plain


def mixture(
    x: NDArray[np.float32], scores: NDArray[np.float32], *plain: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the chosen experts make of each token."""
    gate, up, down = (part.astype(np.float64) for part in plain)
    result = np.zeros(x.shape)
    for at in np.ndindex(*x.shape[:2]):
        chosen = np.argsort(-scores[at])[:CHOSEN]
        share = np.exp(scores[at][chosen]) / np.exp(scores[at][chosen]).sum()
        for weight, i in zip(share, chosen, strict=True):
            g = gate[i] @ x[at]
            result[at] += weight * (down[i] @ (g / (1 + np.exp(-g)) * (up[i] @ x[at])))
    return result.astype(np.float32)


@pytest.mark.parametrize("shape", [(1, 1), (2, 7)], ids=["one token", "two rows"])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_mixture_is_that_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, int]
) -> None:
    monkeypatch.setattr(blocks, "ACCURACY_LEVEL", 1)  # activations in float32
    parts = {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}
    made = [stacked(name, part, *size) for part, size in parts.items()]
    random = np.random.default_rng(0)
    x = random.standard_normal((*shape, WIDTH)).astype(np.float32)
    scores = random.standard_normal((*shape, EXPERTS)).astype(np.float32)
    scale = np.float32(1 / np.abs(made[0][1]).max() / WIDTH**0.5)  # keeps silu in its range
    x *= scale
    graph = Graph("mixture")
    x_in = graph.input("x", np.float32, ("b", "t", WIDTH))
    scores_in = graph.input("scores", np.float32, ("b", "t", EXPERTS))
    choice = experts.choose_by_softmax(graph, scores_in, EXPERTS, CHOSEN)
    (gate, _), (up, _), (down, _) = made
    y = experts.swiglu_mixture(graph, x_in, choice, (gate, up), down, "experts")
    expected = mixture(x, scores, *(plain for _, plain in made))
    found = run(graph, y, tmp_path, x=x, scores=scores)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_experts_of_two_layouts_have_two_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "ACCURACY_LEVEL", 1)
    random = np.random.default_rng(1)
    (gate, one), (up, other) = (stacked(kind, kind, 32, WIDTH) for kind in ("Q8_0", "Q4_K"))
    x = random.standard_normal((1, 4, WIDTH)).astype(np.float32)
    scores = random.standard_normal((1, 4, EXPERTS)).astype(np.float32)
    graph = Graph("two")
    x_in = graph.input("x", np.float32, (1, "t", WIDTH))
    choice = experts.choose_by_softmax(
        graph, graph.input("scores", np.float32, (1, "t", EXPERTS)), EXPERTS, 1
    )
    pairs = experts.dispatch(graph, choice)
    rows = experts.gather(graph, x_in, WIDTH, pairs)
    values = experts.projections(graph, rows, (gate, up), "pair", pairs)
    y = experts.combine(graph, blocks.add(graph, *values), x_in, 32, choice, pairs)
    found = run(graph, y, tmp_path, x=x, scores=scores)
    chosen = scores[0].argmax(-1)
    expected = np.einsum("tnk,tk->tn", one[chosen] + other[chosen], x[0])
    np.testing.assert_allclose(found[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("value", [-20.0, -1.0, 0.0, 2.5, 20.0])
def test_gpt_oss_clamps_before_it_multiplies(tmp_path: Path, value: float) -> None:
    graph = Graph("swiglu")
    gate, up = (graph.input(name, np.float32, (1, 1, 1)) for name in ("gate", "up"))
    y = gpt_oss.clamped_swiglu(graph, gate, up, 1.702, 7.0)
    feed = {"gate": np.array([[[value]]], "f4"), "up": np.array([[[-value]]], "f4")}
    high, low = min(value, 7.0), max(-7.0, min(-value, 7.0))
    expected = high / (1 + np.exp(-1.702 * high)) * (low + 1)
    np.testing.assert_allclose(run(graph, y, tmp_path, **feed).item(), expected, atol=1e-5)
