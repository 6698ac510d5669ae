"""Rows of cosines and sines made in the graph, against the truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest

from weightpkg.convert import rope, rotary
from weightpkg.convert.directory import ModelDirectory
from weightpkg.convert.graph import DATA_FILE, Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray


def session(graph: Graph, directory: Path) -> ort.InferenceSession:
    files = ModelDirectory(directory)
    with files.create(DATA_FILE) as data:
        graph.write_data(data)
    files.write("model.onnx", graph.model({}))
    return ort.InferenceSession(directory / "model.onnx")


def test_rows_are_within_half_a_float32_step_of_the_truth(tmp_path: Path) -> None:
    bases = [rope.inverse_frequencies(theta, 64) for theta in (10_000.0, 1_000_000.0)]
    graph = Graph("rows")
    positions = graph.input("positions", np.int64, ("n",))
    for cos, sin in rotary.cos_sin(graph, positions, bases, 131_072):
        for value in (cos, sin):
            graph.output(value, np.float32, ("n", 32))
    every = np.array([0, 1, 255, 256, 257, 32_767, 65_536, 131_071])
    found = session(graph, tmp_path).run(None, {"positions": every})
    for i, frequencies in enumerate(bases):
        angle = every[:, None] * frequencies
        np.testing.assert_allclose(found[2 * i], np.cos(angle), rtol=0, atol=6.1e-8)
        np.testing.assert_allclose(found[2 * i + 1], np.sin(angle), rtol=0, atol=6.1e-8)


@pytest.mark.parametrize(
    ("shape", "last", "expected"),
    [
        pytest.param((1, 4), [3], [[0, 1, 2, 3]], id="a prompt"),
        pytest.param((1, 1), [7], [[7]], id="the next token"),
        pytest.param((1, 3), [9], [[7, 8, 9]], id="the next piece"),
        pytest.param((2, 4), [3, 1], [[0, 1, 2, 3], [0, 1, 2, 3]], id="a padded batch"),
        pytest.param((2, 1), [7, 2], [[7], [2]], id="the next tokens of a batch"),
    ],
)
def test_positions_are_those_of_the_attention(
    tmp_path: Path, shape: tuple[int, int], last: list[int], expected: list[list[int]]
) -> None:
    graph = Graph("positions")
    ids = graph.input("ids", np.int64, ("b", "t"))
    lasts = graph.input("last", np.int32, ("b",))
    graph.output(rotary.token_positions(graph, ids, lasts), np.int64, ("n",))
    graph.output(rotary.token_rows(graph, ids), np.int64, ("b", "t"))
    feed: dict[str, NDArray[np.generic]] = {
        "ids": np.zeros(shape, np.int64),
        "last": np.array(last, np.int32),
    }
    positions, rows = session(graph, tmp_path).run(None, feed)
    np.testing.assert_array_equal(positions[rows], expected)
