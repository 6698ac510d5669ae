"""Time a mixture of experts beside QMoE, onnxruntime's one operator for it, on the same weights.

Usage: python scripts/bench/experts.py [--experts 128] [--chosen 8] [--width 2048] [--inner 768]

Weights are random blocks of 32 with 4 bits, symmetric, as nothing else is the same for both. Exits
with 1 if the two disagree.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from weightpkg.convert import blocks, experts
from weightpkg.convert.graph import DATA_FILE, Graph, Payload, Tensor, Value
from weightpkg.convert.weights import Weight
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYOUT = BlockLayout(4, 32, has_offset=False)
TOKENS = (1, 8, 64, 512)
REPEATS = 7

Build = Callable[[Graph, Value, Value, argparse.Namespace], Value]


def main() -> None:
    """Print milliseconds of each for some numbers of tokens."""
    sizes = arguments()
    with tempfile.TemporaryDirectory() as folder:
        builds: dict[str, Build] = {"each expert": each_expert, "QMoE": qmoe}
        sessions = {
            name: session(Path(folder) / name.replace(" ", "-"), build, sizes)
            for name, build in builds.items()
        }
        worst = max(compare(sessions, sizes, tokens) for tokens in TOKENS)
    print(f"largest difference: {worst:.2g} of the largest value")
    raise SystemExit(worst > 0.02)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    sizes = {"experts": 128, "chosen": 8, "width": 2048, "inner": 768, "threads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def each_expert(graph: Graph, x: Value, scores: Value, sizes: argparse.Namespace) -> Value:
    """As a conversion has it."""
    shapes = {
        "gate": (sizes.inner, sizes.width),
        "up": (sizes.inner, sizes.width),
        "down": (sizes.width, sizes.inner),
    }
    gate, up, down = (
        [weight(f"{part}.{i}", shape) for i in range(sizes.experts)]
        for part, shape in shapes.items()
    )
    choice = experts.choose_by_softmax(graph, scores, sizes.experts, sizes.chosen)
    return experts.swiglu_mixture(graph, x, choice, (gate, up), down, "experts")


def qmoe(graph: Graph, x: Value, scores: Value, sizes: argparse.Namespace) -> Value:
    """One operator."""
    flat = graph.constant(np.array([-1, sizes.experts], np.int64), "shape")
    (scores,) = graph.op("Reshape", (scores, flat))
    parts = {
        "up": (("gate", "up"), 2 * sizes.inner, sizes.width),
        "down": (("down",), sizes.width, sizes.inner),
    }
    inputs: list[Value] = []
    for name, (names, rows, width) in parts.items():
        inputs += stacked(graph, name, names, (sizes.experts, rows, width))
    q1, s1, q2, s2 = inputs
    attributes: dict[str, int | float | str] = {
        "k": sizes.chosen,
        "expert_weight_bits": 4,
        "block_size": 32,
        "activation_type": "swiglu",
        "swiglu_fusion": 1,  # rows of gate and up in turn: on a CPU it takes no others
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
        "accuracy_level": 4,
    }
    values = (x, scores, q1, s1, None, q2, s2)
    return graph.op("QMoE", values, domain=blocks.MICROSOFT, attributes=attributes)[0]


def stacked(
    graph: Graph, name: str, names: tuple[str, ...], shape: tuple[int, int, int]
) -> tuple[Value, ...]:
    """The same weights as one tensor, and their scales."""
    n_experts, rows, width = shape
    part = (rows // len(names), width)
    arrays: tuple[list[NDArray[np.generic]], ...] = ([], [])
    for i in range(n_experts):
        parts = [weight(f"{one}.{i}", part).rows(0, part[0]) for one in names]
        for array, field in zip(arrays, ("q", "scale"), strict=True):
            in_turn = np.stack([getattr(each, field) for each in parts], axis=1)
            array.append(in_turn.reshape(-1, *in_turn.shape[2:]))
    q, scale = map(np.concatenate, arrays)
    tensors = (
        Tensor(np.dtype(np.uint8), (n_experts, rows, width // 2)),
        Tensor(np.dtype(np.float32), (n_experts, rows, width // 32)),
    )
    payload = Payload(tensors, lambda: iter((q, scale)))
    return tuple(external.value for external in graph.external(name, payload))


def weight(name: str, shape: tuple[int, int]) -> Weight:
    """Random blocks, the same ones for the same name."""
    rows, width = shape

    def read(start: int, stop: int) -> Blocks:
        random = np.random.default_rng([ord(letter) for letter in name])
        q = random.integers(0, 256, (rows, width // 32, 16), np.uint8)
        scale = random.uniform(0.5, 1.5, (rows, width // 32)).astype(np.float32)
        scale *= np.float32(width**-0.5 / 4)
        return Blocks(LAYOUT, q[start:stop], scale[start:stop], None)

    return Weight(name, shape, LAYOUT, read, row_step=rows)


def session(directory: Path, build: Build, sizes: argparse.Namespace) -> ort.InferenceSession:
    """Write a graph of the one mixture and load it."""
    directory.mkdir()
    graph = Graph("mixture")
    x = graph.input("x", np.float32, (1, "tokens", sizes.width))
    scores = graph.input("scores", np.float32, (1, "tokens", sizes.experts))
    (y,) = graph.op("Identity", (build(graph, x, scores, sizes),), outputs=("y",))
    graph.output(y, np.float32, (1, "tokens", sizes.width))
    with (directory / DATA_FILE).open("wb") as data:
        graph.write_data(data)
    (directory / "model.onnx").write_bytes(graph.model({}))
    options = ort.SessionOptions()
    options.intra_op_num_threads = sizes.threads
    return ort.InferenceSession(directory / "model.onnx", options)


def compare(
    sessions: dict[str, ort.InferenceSession], sizes: argparse.Namespace, tokens: int
) -> float:
    """Print a line; return by how much the answers differ, of the largest value."""
    random = np.random.default_rng(tokens)
    feed = {
        "x": random.standard_normal((1, tokens, sizes.width)).astype(np.float32),
        "scores": random.standard_normal((1, tokens, sizes.experts)).astype(np.float32),
    }
    found: list[NDArray[np.float32]] = [each.run(None, feed)[0] for each in sessions.values()]
    line = [f"{tokens:4} tokens"]
    for name, each in sessions.items():
        line.append(f"{name} {1000 * least(lambda each=each: each.run(None, feed)):8.2f} ms")  # type: ignore[misc]
    print("   ".join(line), flush=True)
    return float(np.abs(found[0] - found[1]).max() / np.abs(found[0]).max())


def least(run: Callable[[], object]) -> float:
    """The shortest of some times, in seconds."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
