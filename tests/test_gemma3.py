"""Converted Gemma 3 models against NumPy's arithmetic on the same weights, and another runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as genai
import pytest

from decoder import Decoder
from factories import (
    GEMMA_LAYERS,
    HEADS,
    HIDDEN_SIZE,
    WINDOW,
    edit_gguf,
    tiny_gemma3,
)
from float32_gemma3 import Gemma3
from weightpkg.convert import CONVERTER_VERSION
from weightpkg.convert.archs.gemma3 import Config
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import (
    GGUFError,
    UnsupportedArchitectureError,
    WeightpkgError,
)
from weightpkg.formats.gguf import GGUFFile
from weightpkg.progress import Silence
from weightpkg.run.model import Model
from weightpkg.run.session import ModelConfig, Session
from weightpkg.store import tree_digest

Convert = Callable[..., Path]
DIGEST = Digest("sha256", 64 * "0")
TOKENS = np.random.default_rng(1).integers(6, 400, 24).tolist()  # far longer than the window
assert len(TOKENS) > 4 * WINDOW


@pytest.fixture
def convert_tiny(tmp_path: Path) -> Convert:
    """Write a tiny Gemma 3 and convert it; the GGUF is beside the directory that is returned."""

    def make(name: str = "tiny", changes: dict[str, Any] | None = None, **settings: Any) -> Path:
        source = tiny_gemma3(tmp_path / f"{name}.gguf", **settings)
        if changes is not None:
            edit_gguf(source, changes)
        directory = tmp_path / name
        directory.mkdir()
        convert(source, DIGEST, directory, Silence())
        return directory

    return make


def check_logits(directory: Path, tokens: list[int] = TOKENS) -> None:
    """Compare with the reference, activations in float32."""
    expected = Gemma3.read(directory.with_suffix(".gguf")).logits(tokens)
    logits = Decoder.exact(directory).run(np.array([tokens]))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


VARIATIONS: dict[str, dict[str, Any]] = {
    "F32": {"weights": "F32", "embedding": "F32"},
    "Q4_0": {"weights": "Q4_0"},
    "Q5_0 and Q8_0": {"weights": "Q5_0", "overrides": {"attn_v": "Q8_0"}},
    "offsets": {"weights": "Q4_1", "embedding": "Q5_1"},
    "k of another type": {"weights": "Q4_1", "overrides": {"attn_k.": "F16"}},
    "head of its own": {"weights": "Q4_0", "output": "Q8_0"},
}


@pytest.mark.parametrize("variation", VARIATIONS)
def test_logits_equal_exact_arithmetic(convert_tiny: Convert, variation: str) -> None:
    check_logits(convert_tiny(**VARIATIONS[variation]))


CHANGES: dict[str, dict[str, Any]] = {
    "another window": {"gemma3.attention.sliding_window": 9},
    "a window of one": {"gemma3.attention.sliding_window": 1},
    "no window": {"gemma3.attention.sliding_window": None},
    "another pattern": {"gemma3.attention.sliding_window_pattern": 2},
    "another base": {"gemma3.rope.freq_base": 500_000.0},
    "another local base": {"gemma3.rope.freq_base_swa": 500.0},
    "another scale": {"gemma3.attention.scale": 0.5},
    "linear scaling": {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0},
}


@pytest.mark.parametrize("change", CHANGES)
def test_variations_equal_exact_arithmetic(convert_tiny: Convert, change: str) -> None:
    directory = convert_tiny(changes=CHANGES[change], **VARIATIONS["F32"])
    plain = tiny_gemma3(directory.with_name("plain.gguf"), **VARIATIONS["F32"])
    changed = Gemma3.read(directory.with_suffix(".gguf"))
    assert np.abs(changed.logits(TOKENS) - Gemma3.read(plain).logits(TOKENS)).max() > 0.01
    check_logits(directory)


def test_layers_may_be_listed(convert_tiny: Convert) -> None:
    key = "gemma3.attention.sliding_window_pattern"
    listed = convert_tiny("listed", {key: [True, False] * 3})
    period = convert_tiny("period", {key: 2})
    assert (listed / "model.onnx.data").read_bytes() == (period / "model.onnx.data").read_bytes()
    assert windows(listed) == windows(period) == [WINDOW, -1] * 3


def test_five_of_six_layers_are_local(convert_tiny: Convert) -> None:
    assert windows(convert_tiny()) == [WINDOW] * 5 + [-1]
    every = convert_tiny("every", {"gemma3.attention.sliding_window_pattern": 0})
    assert windows(every) == [WINDOW] * 6


def windows(directory: Path) -> list[int]:
    """The window of each layer, -1 where it has none."""
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    layers = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    assert len(layers) == GEMMA_LAYERS
    return [
        next((a.i for a in node.attribute if a.name == "local_window_size"), -1) for node in layers
    ]


def test_queries_of_the_27b_model_are_scaled_by_the_width_of_a_head(tmp_path: Path) -> None:
    """It is known by its 62 layers, and its heads are not of the width divided by their number."""
    sizes = {"gemma3.attention.key_length": 32, "gemma3.attention.value_length": 32}
    for layers, size in ((62, HIDDEN_SIZE // HEADS), (61, 32)):
        source = tiny_gemma3(tmp_path / "tiny.gguf")
        edit_gguf(source, {**sizes, "gemma3.block_count": layers})
        with GGUFFile.open(source) as file:
            assert Config.from_gguf(file).scaling == 1 / math.sqrt(size)


def test_logits_to_keep_gives_the_last_positions(convert_tiny: Convert) -> None:
    decoder = Decoder.load(convert_tiny())
    every = decoder.run(np.array([TOKENS]))[0]
    for count in (1, 3):
        kept = decoder.run(np.array([TOKENS]), logits_to_keep=np.array([count]))[0]
        np.testing.assert_array_equal(kept, every[:, -count:])


def test_a_long_text_equals_exact_arithmetic(convert_tiny: Convert) -> None:
    """Beyond the 256 positions of one table, and the piece in which the runner reads prompts."""
    directory = convert_tiny(weights="F32", embedding="F32")
    tokens = np.random.default_rng(2).integers(6, 400, 590).tolist()
    expected = Gemma3.read(directory.with_suffix(".gguf")).logits(tokens)
    atol = 2e-4 * np.abs(expected).max()
    logits = Decoder.load(directory).run(np.array([tokens]))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=atol)
    session = Session(directory, ModelConfig.read(directory), threads=1)
    np.testing.assert_allclose(session.forward(tokens), expected[-1], rtol=0, atol=atol)


# As in test_llama: if this fails, CONVERTER_VERSION must go up, and both numbers here.
GOLDEN_TREE = (3, "sha256:df8c6cb375c73137750118cc734d466def5cb2cdf1c49fcabc341b4c28648548")


def test_bytes_change_only_with_the_converters_version(convert_tiny: Convert) -> None:
    assert (CONVERTER_VERSION, str(tree_digest(convert_tiny()))) == GOLDEN_TREE


def test_onnxruntime_genai_loads_it_unchanged_and_says_the_same(convert_tiny: Convert) -> None:
    directory = convert_tiny()
    prompt = "the sky is "
    with Model(directory, threads=1) as model:
        ours = model.generate(prompt, max_tokens=24)
        ids = model._tokenizer.encode(prompt).ids
    other = genai.Model(str(directory))
    found = genai.Tokenizer(other).encode(prompt).tolist()  # it leaves <bos> to templates
    assert [2, *found] == ids
    parameters = genai.GeneratorParams(other)
    parameters.set_search_options(max_length=len(ids) + len(ours.tokens), do_sample=False)
    generator = genai.Generator(other, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist()[len(ids) :] == list(ours.tokens)


PATTERN = "gemma3.attention.sliding_window_pattern"


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        pytest.param({"gemma3.rope.scaling.type": "yarn"}, UnsupportedArchitectureError, "yarn", id="scaling"),
        pytest.param({"gemma3.rope.freq_base_swa": 0.0}, UnsupportedArchitectureError, "rope_local_base_freq", id="base"),
        pytest.param({"gemma3.attention.scale": -1.0}, UnsupportedArchitectureError, "scaling", id="scale"),
        pytest.param({"gemma3.attention.sliding_window": 2**31 - 1}, UnsupportedArchitectureError, "sliding_window", id="window"),
        pytest.param({PATTERN: [True]}, UnsupportedArchitectureError, "1 layers .* not 6", id="too few layers listed"),
        pytest.param({PATTERN: [1] * 6}, GGUFError, "true or false", id="numbers listed"),
        pytest.param({PATTERN: -1}, UnsupportedArchitectureError, "pattern` is -1", id="no period"),
        pytest.param({PATTERN: "6"}, GGUFError, "whole number", id="text for a pattern"),
    ],
)  # fmt: skip
def test_refuses_a_key_that_does_not_fit(
    tmp_path: Path, changes: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    path = edit_gguf(tiny_gemma3(tmp_path / "odd.gguf"), changes)
    with pytest.raises(error, match=reason) as caught:
        convert(path, DIGEST, tmp_path, Silence())
    assert "odd.gguf" in str(caught.value)
