"""Products and look-ups with every block layout, against plain arithmetic on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest

from test_ggml import BLOCK_TYPES, TYPES, random_rows, weights
from weightpkg.convert import blocks
from weightpkg.convert.directory import ModelDirectory
from weightpkg.convert.graph import DATA_FILE, Graph, Payload, Tensor, Value
from weightpkg.convert.weights import Weight
from weightpkg.formats import ggml

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS, WIDTH = 40, 512


def weight(name: str) -> tuple[Weight, NDArray[np.float32]]:
    """A matrix of random blocks, and what it stands for."""
    kind = TYPES[name]
    raw = random_rows(name, ROWS, WIDTH // kind.block_size)
    assert kind.layout is not None
    made = Weight("w", (ROWS, WIDTH), kind.layout, lambda a, b: ggml.decode_rows(kind, raw[a:b]))
    return made, weights(name, raw)


def run(
    graph: Graph, output: Value, directory: Path, **feed: NDArray[np.generic]
) -> NDArray[np.float32]:
    graph.output(output, np.float32, ("a", "b", "c"))
    files = ModelDirectory(directory)
    with files.create(DATA_FILE) as data:
        graph.write_data(data)
    files.write("model.onnx", graph.model({}))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    result: NDArray[np.float32] = ort.InferenceSession(directory / "model.onnx", options).run(
        None, feed
    )[0]
    return result


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_product_is_that_of_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tokens: int
) -> None:
    monkeypatch.setattr(blocks, "ACCURACY_LEVEL", 1)  # activations in float32
    made, plain = weight(name)
    x = np.random.default_rng(0).standard_normal((1, tokens, WIDTH)).astype(np.float32)
    graph = Graph("product")
    y = blocks.linear(
        graph, graph.input("x", np.float32, (1, "t", WIDTH)), blocks.add_matrix(graph, "w", [made])
    )
    expected = x @ plain.T
    np.testing.assert_allclose(
        run(graph, y, tmp_path, x=x), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rounding_activations_costs_little(tmp_path: Path, name: str) -> None:
    made, plain = weight(name)
    x = np.random.default_rng(0).standard_normal((1, 8, WIDTH)).astype(np.float32)
    graph = Graph("product")
    y = blocks.linear(
        graph, graph.input("x", np.float32, (1, "t", WIDTH)), blocks.add_matrix(graph, "w", [made])
    )
    expected = x @ plain.T
    error = run(graph, y, tmp_path, x=x) - expected
    assert np.sqrt((error**2).mean()) < 0.01 * np.sqrt((expected**2).mean())


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_looked_up_row_is_the_weights(tmp_path: Path, name: str) -> None:
    made, plain = weight(name)
    ids = np.array([[0, 3, ROWS - 1], [7, 7, 1]])
    graph = Graph("look-up")
    x = blocks.embedding(
        graph, graph.input("ids", np.int64, ("b", "t")), blocks.add_matrix(graph, "w", [made])
    )
    found = run(graph, x, tmp_path, ids=ids)
    np.testing.assert_allclose(found, plain[ids], rtol=0, atol=4e-7 * np.abs(plain).max())


@pytest.mark.parametrize(
    "pieces", [[3], [5, 4], [9, 1]], ids=["too few", "too many", "one too many"]
)
def test_a_payload_that_breaks_its_promise_is_caught(tmp_path: Path, pieces: list[int]) -> None:
    graph = Graph("broken")
    tensor = Tensor(np.dtype(np.uint8), (8,))
    graph.external("w", Payload((tensor,), lambda: (np.zeros(n, np.uint8) for n in pieces)))
    with (tmp_path / "data").open("wb") as sink, pytest.raises(ValueError, match="promised"):
        graph.write_data(sink)
