"""MXFP4 and FP8 checkpoints: every weight is what its format says, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from decoder import Decoder
from test_checkpoints import convert, feed, golden, load
from test_ggml import TYPES
from tiny_checkpoint import TinyCheckpoint, aligned
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.packed import read_packed
from weightpkg.convert.packings import read_packing
from weightpkg.convert.small_floats import E4M3
from weightpkg.errors import (
    CheckpointError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.formats import ggml
from weightpkg.formats.safetensors import SafetensorsCheckpoint
from weightpkg.tensor import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.weights import Weight

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Type, shape and bytes of each tensor of a file."""

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
MXFP4: dict[str, Any] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn"],
}
FP8 = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def float_quantized(**weights: Any) -> dict[str, Any]:
    keys = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    activations = {"num_bits": 8, "type": "float", "dynamic": True, "strategy": "token"}
    scheme = {"weights": {**keys, "dynamic": False, **weights}, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**scheme, "targets": ["Linear"]}},
        "ignore": ["lm_head"],
    }


def floats(values: NDArray[np.float32]) -> tuple[str, tuple[int, ...], bytes]:
    return "F32", values.shape, values.tobytes()


def words(kind: str, values: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes]:
    return kind, values.shape, values.tobytes()


def draw(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    """Bytes of 8-bit floats, all but the two that are no numbers."""
    raw = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return np.where((raw & 127) == 127, np.uint8(0), raw)


def widened(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = raw.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return values


def read(path: Path, tensors: Tensors, config: dict[str, Any], name: str = "m.weight") -> tuple[Weight, NDArray[np.float32]]:  # fmt: skip
    """The one matrix of a file and its numbers, read in slices of 16 rows."""
    path.write_bytes(aligned(tensors))
    packing = read_packing(HFConfig("config.json", {"quantization_config": config}))
    assert packing is not None
    with SafetensorsCheckpoint.open(path) as checkpoint:
        weights = read_packed(checkpoint, lambda name: name, packing)
        (shape,) = {weight.shape for weight in weights._tensors.values()}
        weight = weights.take(name, shape)
        weights.finish()
        n_rows = int(np.prod(shape[:-1]))
        parts = [weight.rows(start, min(start + 16, n_rows)) for start in range(0, n_rows, 16)]
        rows = [ggml.dequantize(part) if isinstance(part, Blocks) else part for part in parts]
        return weight, np.concatenate(rows)


# FP8


def test_every_byte_is_the_number_that_others_say_it_is() -> None:
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(E4M3, widened(every))
    assert np.signbit(E4M3[128])


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (1, 1), (129, 128)], ids=str)
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_each_block_of_deepseek_has_its_scale(
    tmp_path: Path, shape: tuple[int, int], kind: str
) -> None:
    raw = draw(shape)
    counts = (-(-shape[0] // 128), -(-shape[1] // 128))
    scale = np.random.default_rng(1).uniform(1e-5, 1e-3, counts).astype(np.float32)
    if kind == "BF16":
        scale = scale.astype(ml_dtypes.bfloat16)
    tensors = {
        "m.weight": words("F8_E4M3", raw),
        "m.weight_scale_inv": words(kind, scale),
    }
    weight, rows = read(tmp_path / "a", tensors, FP8)
    scales = scale.astype(np.float32).repeat(128, axis=0).repeat(128, axis=1)
    np.testing.assert_array_equal(rows, widened(raw) * scales[: shape[0], : shape[1]])
    assert weight.shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (64, 1)], ids=str)
def test_a_scale_of_compressed_tensors_is_for_all_or_for_each_row(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    raw = draw((64, 96))
    scale = np.random.default_rng(1).uniform(1e-5, 1e-3, shape or 1).astype(np.float32)
    tensors = {
        "m.weight": words("F8_E4M3", raw),
        "m.weight_scale": words("F32", scale.reshape(shape)),
        "m.input_scale": floats(np.ones(1, np.float32)),
    }
    config = float_quantized(strategy="channel" if shape == (64, 1) else "tensor")
    _, rows = read(tmp_path / "a", tensors, config)
    np.testing.assert_array_equal(rows, widened(raw) * scale.reshape(-1, 1))


def fp8_page(page: TinyCheckpoint) -> tuple[Tensors, Tensors]:
    """A page's tensors with random 8-bit floats for projections, and the same widened."""
    packed: Tensors = {}
    dense: Tensors = {}
    for seed, (name, values) in enumerate(page.tensors().items()):
        packed[name] = dense[name] = floats(values)
        if "_proj" in name and values.ndim == 2:
            raw, scale = draw(values.shape, seed), np.array([[2.0**-11]], np.float32)
            packed[name] = words("F8_E4M3", raw)
            packed[f"{name}_scale_inv"] = floats(scale)
            dense[name] = floats(widened(raw) * scale)
    return packed, dense


def test_logits_of_fp8_are_those_of_the_weights_widened(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("deepseek-v3")
    tokens, found = golden("deepseek-v3")[0], []
    tensors = dict(zip(("packed", "dense"), fp8_page(page), strict=True))
    for name, config in {"packed": FP8, "dense": None}.items():
        source = page.changed(quantization_config=config).write(tmp_path / f"{name}-source")
        (source / "model.safetensors").write_bytes(aligned(tensors[name]))
        convert(source, tmp_path / name)
        found.append(feed(load(tmp_path / name), tokens, {})[0])
    np.testing.assert_array_equal(found[0], found[1])


# MXFP4


def draw_mxfp4(shape: tuple[int, int, int], seed: int = 0) -> tuple[NDArray[np.uint8], ...]:
    """Bytes and exponents, and what they mean, (X, N, K)."""
    random = np.random.default_rng(seed)
    n_experts, n_rows, width = shape
    blocks = random.integers(0, 256, (n_experts, n_rows, width // 32, 16), np.uint8)
    scales = random.integers(119, 126, blocks.shape[:3], np.uint8)
    return blocks, scales


def meaning(blocks: NDArray[np.uint8], scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As transformers' `convert_moe_packed_tensors` has it: (X, N, K)."""
    pairs = np.stack((FP4[blocks & 15], FP4[blocks >> 4]), axis=-1)
    exponents = scales[..., None, None].astype(np.int32) - 127
    values: NDArray[np.float32] = np.ldexp(pairs, exponents).astype(np.float32)
    return values.reshape(*blocks.shape[:2], -1)


def test_mxfp4_is_what_the_format_says_and_the_same_blocks_as_gguf(tmp_path: Path) -> None:
    blocks, scales = draw_mxfp4((3, 24, 64))
    scales[0, 0], scales[1, 1] = 0, 250
    tensors = {"m_blocks": words("U8", blocks), "m_scales": words("U8", scales)}
    weight, rows = read(tmp_path / "a", tensors, MXFP4, "m")
    assert weight.shape == (3, 24, 64)
    np.testing.assert_array_equal(rows, meaning(blocks, scales).reshape(72, 64))

    nibbles = np.stack((blocks & 15, blocks >> 4), axis=-1).reshape(72, 2, 32)
    halves = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    raw = np.concatenate((scales.reshape(72, 2, 1), halves), axis=-1).astype(np.uint8)
    expected = ggml.decode_rows(TYPES["MXFP4"], raw.reshape(72, -1))
    with SafetensorsCheckpoint.open(tmp_path / "a") as checkpoint:
        packing = read_packing(HFConfig("c", {"quantization_config": MXFP4}))
        assert packing is not None
        found = (
            read_packed(checkpoint, lambda name: name, packing).take("m", (3, 24, 64)).rows(0, 72)
        )
    assert isinstance(found, Blocks)
    assert isinstance(expected, Blocks)
    np.testing.assert_array_equal(found.q, expected.q)
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_gpt_oss_in_mxfp4_has_the_logits_of_its_weights(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("gpt-oss")
    dense = {name: floats(values) for name, values in page.tensors().items()}
    packed = dict(dense)
    for seed, (name, (_, (n, width, rows), _)) in enumerate(
        (name, dense[name]) for name in list(dense) if name.endswith(("gate_up_proj", "down_proj"))
    ):
        blocks, scales = draw_mxfp4((n, rows, width), seed)
        del packed[name]
        packed |= {f"{name}_blocks": words("U8", blocks), f"{name}_scales": words("U8", scales)}
        dense[name] = floats(np.ascontiguousarray(meaning(blocks, scales).swapaxes(1, 2)))
    files = {"packed": (packed, MXFP4), "dense": (dense, None)}
    for name, (tensors, config) in files.items():
        source = page.changed(quantization_config=config).write(tmp_path / f"{name}-source")
        (source / "model.safetensors").write_bytes(aligned(tensors))
        convert(source, tmp_path / name)
    tokens = golden("gpt-oss")[0]
    expected, _ = feed(load(tmp_path / "dense"), tokens, {})
    logits = Decoder.exact(tmp_path / "packed").run(tokens)[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    model = onnx.load(tmp_path / "packed" / "model.onnx", load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 2 * (4 + 4)  # gate and up are one, for each of 4 experts in 2 layers


# What is not handled is refused


def matrix(**changes: tuple[str, tuple[int, ...], bytes] | None) -> Tensors:
    raw = words("F8_E4M3", draw((256, 256)))
    scale = floats(np.ones((2, 2), np.float32))
    tensors = {"m.weight": raw, "m.weight_scale_inv": scale}
    tensors |= {f"m.{name}": value for name, value in changes.items() if value is not None}
    return {k: v for k, v in tensors.items() if changes.get(k.removeprefix("m."), v) is not None}


@pytest.mark.parametrize(
    ("tensors", "config", "error", "reason"),
    [
        (matrix(), {"fmt": "e5m2"}, UnsupportedArchitectureError, "`quantization_config.fmt` is e5m2"),
        (matrix(), {"weight_block_size": [128]}, UnsupportedArchitectureError, "weight_block_size"),
        (matrix(), {"weight_block_size": [0, 128]}, UnsupportedArchitectureError, "weight_block_size"),
        (matrix(), {"weight_block_size": 128}, CheckpointError, "weight_block_size"),
        (matrix(), {"some_rotation": True}, UnsupportedArchitectureError, "some_rotation"),
        (matrix(), {"weight_block_size": [64, 128]}, TensorMismatchError, r"m\.weight_scale_inv` has shape \(2, 2\), not \(4, 2\)"),
        (matrix(), {"weight_block_size": None}, TensorMismatchError, r"not \(256, 1\)"),
        (matrix(weight=None), {}, TensorMismatchError, r"m\.weight` is missing"),
        (matrix(weight_scale_inv=None), {}, UnsupportedQuantizationError, r"m\.weight` has type F8_E4M3"),
        (matrix(weight=words("F8_E5M2", draw((256, 256)))), {}, TensorMismatchError, "has type F8_E5M2, not F8_E4M3"),
        (matrix(weight_scale_inv=words("U8", draw((2, 2)))), {}, TensorMismatchError, "has type U8"),
        ({"m_blocks": words("U8", draw((2, 4, 2, 16)))}, MXFP4, TensorMismatchError, "m_scales` is missing"),
        ({"m_blocks": words("U8", draw((2, 4, 2, 8)))}, MXFP4, TensorMismatchError, "m_blocks` has shape"),
        (matrix(), float_quantized(num_bits=4), UnsupportedArchitectureError, "num_bits"),
        (matrix(), float_quantized(strategy="block"), UnsupportedArchitectureError, "strategy"),
        (matrix(), {**float_quantized(), "kv_cache_scheme": {"num_bits": 8}}, UnsupportedArchitectureError, "kv_cache_scheme"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_refuses_what_does_not_fit(
    tmp_path: Path,
    tensors: Tensors,
    config: dict[str, Any],
    error: type[WeightpkgError],
    reason: str,
) -> None:
    with pytest.raises(error, match=reason):
        read(tmp_path / "a", tensors, config if "quant_method" in config else {**FP8, **config})
