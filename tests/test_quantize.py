"""Blocks made of dense weights: as near as a search can find, and the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import pytest
import safetensors.numpy
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from decoder import Decoder
from test_checkpoints import convert, encode, feed, golden, load, two_texts
from tiny_checkpoint import TinyCheckpoint
from weightpkg.cli.convert import command
from weightpkg.convert import conversion_key
from weightpkg.convert.quantize import quantize, quantizer
from weightpkg.convert.weights import Weight
from weightpkg.digest import Digest
from weightpkg.errors import ConvertError
from weightpkg.formats.ggml import dequantize
from weightpkg.tensor import BlockLayout, Blocks, DenseLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYOUTS = {
    4: BlockLayout(4, 32, has_offset=False),
    8: BlockLayout(8, 32, has_offset=False),
}
BITS = sorted(LAYOUTS)

# What quantize() makes of random(). It changes only together with CONVERTER_VERSION.
GOLDEN = {
    4: "04aa93d8a14ae3236d53f3107a2efcb755550b27928006dcee16c8592b604e6d",
    8: "f7e90fa1c9d60de8386afaeb5133b9453be7055bd3f324b9c93d61be3e306598",
}


def random(rows: int = 64, blocks: int = 8) -> NDArray[np.float32]:
    """Weights of every size, some blocks with one that stands out; drawn without a logarithm."""
    source = np.random.default_rng(0)
    values = source.integers(-(2**20), 2**20, (rows, 32 * blocks)).astype(np.float32)
    values[::3, ::32] *= 8
    return values * np.ldexp(np.float32(1), np.arange(rows) - 40)[:, None]


def errors(values: NDArray[np.float32], bits: int) -> NDArray[np.float64]:
    """The squared error of each block, relative to its squares: (blocks,)."""
    made = dequantize(quantize(values, LAYOUTS[bits])).astype(np.float64)
    error = ((made - values) ** 2).reshape(-1, 32).sum(axis=1)
    result: NDArray[np.float64] = error / (values.astype(np.float64) ** 2).reshape(-1, 32).sum(
        axis=1
    )
    return result


@pytest.mark.parametrize("bits", BITS)
def test_makes_the_same_bytes_on_every_machine(bits: int) -> None:
    blocks = quantize(random(), LAYOUTS[bits])
    digest = hashlib.sha256(blocks.q.tobytes() + blocks.scale.tobytes())
    assert digest.hexdigest() == GOLDEN[bits]


@pytest.mark.parametrize("bits", BITS)
def test_rows_do_not_depend_on_the_slice_they_are_made_in(bits: int) -> None:
    values = np.tile(random(), (20, 4))  # more than one chunk
    whole = quantize(values, LAYOUTS[bits])
    part = quantize(values[777:780], LAYOUTS[bits])
    np.testing.assert_array_equal(part.q, whole.q[777:780])
    np.testing.assert_array_equal(part.scale, whole.scale[777:780])


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_fit_stay_as_they_are(bits: int) -> None:
    source, limit = np.random.default_rng(1), 1 << (bits - 1)
    q = source.integers(-limit, limit, (16, 4, 32))
    q[..., 5] = -limit  # every integer is in reach of the scale only if the largest is there
    scale = source.uniform(0.5, 2, (16, 4, 1)).astype(np.float32)
    values = (scale * q.astype(np.float32)).reshape(16, -1)
    np.testing.assert_allclose(dequantize(quantize(values, LAYOUTS[bits])), values, rtol=2e-7)


def test_error_is_near_the_least_that_any_scale_has() -> None:
    values = np.random.default_rng(2).normal(size=(64, 256)).astype(np.float32)
    blocks = values.reshape(-1, 32).astype(np.float64)
    least = np.full(len(blocks), np.inf)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    for target in np.linspace(-11, -5, 400):
        scale = largest / target
        error = (scale * np.clip(np.rint(blocks / scale), -8, 7) - blocks) ** 2
        least = np.minimum(least, error.sum(axis=1))
    least /= (blocks**2).sum(axis=1)
    obvious = np.clip(np.rint(blocks / largest * -8), -8, 7) * largest / -8
    obvious_error = ((obvious - blocks) ** 2).sum() / (blocks**2).sum()
    ours = errors(values, 4)
    assert ours.mean() < 1.005 * least.mean()
    assert ours.mean() < 0.9 * obvious_error


@given(
    arrays.arrays(
        np.float32, (1, 32), elements=st.floats(-(2.0**120), 2.0**120, width=32, allow_nan=False)
    )
)
@settings(max_examples=200)
def test_no_weight_is_off_by_more_than_two_steps(values: NDArray[np.float32]) -> None:
    for bits in BITS:
        blocks = quantize(values, LAYOUTS[bits])
        assert np.isfinite(blocks.scale).all()
        largest = float(np.abs(values).max())
        if largest > 1e-28:
            error = float(np.abs(dequantize(blocks) - values).max())
            assert error <= 2 * largest / ((1 << (bits - 1)) - 1)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-39])
def test_blocks_of_nothing_are_zeros(bits: int, value: float) -> None:
    blocks = quantize(np.full((2, 64), value, np.float32), LAYOUTS[bits])
    assert not dequantize(blocks).any()


def weight(name: str, values: NDArray[np.float32]) -> Weight:
    layout = DenseLayout("float32")
    return Weight(name, values.shape, layout, lambda start, stop: values[start:stop])


@pytest.mark.parametrize(
    ("name", "shape", "layouts"),
    [
        ("model.layers.0.mlp.up_proj.weight", (4, 64), (LAYOUTS[4], LAYOUTS[8])),
        ("model.embed_tokens.weight", (4, 64), (LAYOUTS[8], LAYOUTS[8])),
        ("lm_head.weight", (4, 64), (LAYOUTS[8], LAYOUTS[8])),
        ("embeddings.word_embeddings.weight", (4, 64), (LAYOUTS[8], LAYOUTS[8])),
        ("embeddings.position_embeddings.weight", (4, 64), None),
        ("model.layers.0.mlp.up_proj.weight", (4, 48), None),
        ("model.norm.weight", (64,), None),
    ],
)
def test_each_tensor_has_the_bits_that_it_can_bear(
    name: str, shape: tuple[int, ...], layouts: tuple[BlockLayout, BlockLayout] | None
) -> None:
    dense = weight(name, np.ones(shape, np.float32))
    found = [quantizer(quantization)(dense).layout for quantization in ("q4", "q8")]
    assert tuple(found) == (layouts or (dense.layout, dense.layout))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_refuses_a_weight_that_is_no_number(value: float) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = value
    with pytest.raises(ConvertError, match="`up` has a weight that is not a number"):
        quantizer("q4")(weight("up", values)).rows(0, 2)


# Whole models


@pytest.mark.parametrize("quantization", ["q4", "q8"])
def test_logits_equal_those_of_the_blocks_as_dense_weights(
    tmp_path: Path, quantization: Literal["q4", "q8"]
) -> None:
    page = TinyCheckpoint.read("llama")
    source = page.write(tmp_path / "source")
    convert(source, tmp_path / "out", quantization=quantization)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    again = page.write(tmp_path / "again")
    tensors = {n: as_blocks(n, v, quantization) for n, v in page.tensors().items()}
    safetensors.numpy.save_file(tensors, again / "model.safetensors")
    convert(again, tmp_path / "dense")
    tokens = golden("llama")[0]
    expected, _ = feed(load(tmp_path / "dense"), tokens, {})
    logits = Decoder.exact(tmp_path / "out").run(tokens)[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def as_blocks(
    name: str, values: NDArray[np.float32], quantization: Literal["q4", "q8"]
) -> NDArray[np.float32]:
    made = quantizer(quantization)(weight(name, values)).rows(0, len(values))
    return dequantize(made) if isinstance(made, Blocks) else made


def test_embeddings_in_8_bits_are_near_those_of_sentence_transformers(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    convert(source, tmp_path / "out", quantization="q8")
    ids, mask, expected = two_texts()
    (vectors,) = encode(tmp_path / "out", ["sentence_embedding"], ids, mask)
    assert ((vectors * expected["mean"]).sum(axis=1) > 0.999).all()


def test_a_tied_head_that_is_written_all_the_same_is_compared_as_blocks(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("llama").changed(tie_word_embeddings=True)
    source = page.write(tmp_path / "source")
    tensors = page.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "out", quantization="q4")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {node.op_type for node in model.graph.node} >= {"GatherBlockQuantized", "MatMulNBits"}


def test_the_command_line_says_what_was_asked_for_in_the_manifest(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source", "BF16")
    arguments = [str(source), "-o", str(tmp_path / "out"), "--quantize", "q4"]
    result = CliRunner().invoke(command, arguments, obj=True)
    assert result.exit_code == 0, result.output
    manifest = tomllib.loads((tmp_path / "out" / "weightpkg.toml").read_text())
    assert manifest["quantize"] == "q4"
    assert json.loads((tmp_path / "out" / "genai_config.json").read_bytes())["model"]["vocab_size"]


def test_a_gguf_file_is_not_quantised_again(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(os.urandom(64))
    arguments = [str(tmp_path / "model.gguf"), "-o", str(tmp_path / "out"), "--quantize", "q4"]
    result = CliRunner().invoke(command, arguments, obj=True)
    assert result.exit_code == 2
    assert "only a checkpoint has dense matrices" in result.output


def test_the_key_of_a_conversion_depends_on_its_options() -> None:
    digest = Digest("sha256", 64 * "0")
    assert conversion_key({"a": digest}) != conversion_key({"a": digest}, ["quantize=q4"])
