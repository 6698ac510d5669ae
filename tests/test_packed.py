"""Checkpoints that others quantised: every weight is what its own method says, to the bit."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import pytest
import safetensors.numpy

from decoder import Decoder
from test_checkpoints import convert, feed, golden, load
from tiny_checkpoint import TinyCheckpoint
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.packed import read_packed
from weightpkg.convert.packings import read_packing
from weightpkg.errors import (
    TensorMismatchError,
    UnsupportedArchitectureError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.formats.ggml import dequantize
from weightpkg.formats.safetensors import SafetensorsCheckpoint
from weightpkg.tensor import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bits = Literal[4, 8]
Tensors = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Matrix:
    """What a method has before it packs: q and zero from 0, scale of each group, group of each input."""

    bits: Bits
    q: NDArray[np.int64]  # (N, K)
    scale: NDArray[np.float16]  # (N, G)
    zero: NDArray[np.int64]  # (N, G)
    groups: NDArray[np.int64]  # (K,)

    @classmethod
    def draw(
        cls,
        shape: tuple[int, int],
        group_size: int,
        *,
        bits: Bits = 4,
        is_symmetric: bool = False,
        is_ordered: bool = True,
        seed: int = 0,
    ) -> Matrix:
        random, (n_rows, width) = np.random.default_rng(seed), shape
        n_groups, levels = width // group_size, 1 << bits
        zero = random.integers(1, levels, (n_rows, n_groups))
        groups = np.arange(width) // group_size
        return cls(
            bits,
            random.integers(0, levels, shape),
            (random.integers(512, 1024, (n_rows, n_groups)) / 2**14).astype(np.float16),
            np.full_like(zero, levels // 2) if is_symmetric else zero,
            groups if is_ordered else random.permutation(groups),
        )

    def weights(self) -> NDArray[np.float32]:
        """What the matrix means, (N, K), exactly."""
        scale, zero = self.scale.astype(np.float64)[:, self.groups], self.zero[:, self.groups]
        exact = scale * (self.q - zero)
        rounded = exact.astype(np.float32)
        np.testing.assert_array_equal(rounded, exact)
        return rounded


def pack(values: NDArray[np.int64], bits: int, order: list[int] | None = None) -> NDArray[np.int32]:
    """values: (rows, columns) -> words of 32 bits, (rows, columns * bits / 32), the first one low."""
    per_word = 32 // bits
    parts = values.reshape(len(values), -1, per_word)
    words = np.zeros(parts.shape[:2], np.int64)
    for place, value in enumerate(order or range(per_word)):
        words |= parts[:, :, value] << (bits * place)
    return words.astype(np.uint32).view(np.int32)


def gptq(matrix: Matrix, *, less: int = 1) -> Tensors:
    return {
        "qweight": pack(matrix.q, matrix.bits).T.copy(),
        "qzeros": pack(matrix.zero.T - less, matrix.bits),
        "scales": matrix.scale.T.copy(),
        "g_idx": matrix.groups.astype(np.int32),
    }


def awq(matrix: Matrix) -> Tensors:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        "qweight": pack(matrix.q.T, 4, order),
        "qzeros": pack(matrix.zero.T, 4, order),
        "scales": matrix.scale.T.copy(),
    }


def compressed(matrix: Matrix) -> Tensors:
    zeros = np.pad(matrix.zero.T, ((0, 0), (0, -len(matrix.q) % (32 // matrix.bits))))
    return {
        "weight_packed": pack(matrix.q, matrix.bits),
        "weight_scale": matrix.scale,
        "weight_zero_point": pack(zeros, matrix.bits).T.copy(),
        "weight_shape": np.array(matrix.q.shape, np.int64),
        "weight_g_idx": matrix.groups.astype(np.int32),
    }


def gptq_config(**changes: Any) -> dict[str, Any]:
    keys = {"bits": 4, "group_size": 32, "desc_act": False, "sym": False, "damp_percent": 0.1}
    return {"quant_method": "gptq", **keys, **changes}


def awq_config(**changes: Any) -> dict[str, Any]:
    keys = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return {"quant_method": "awq", **keys, "modules_to_not_convert": ["lm_head"], **changes}


def compressed_config(weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    keys = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    scheme = {"weights": {**keys, "dynamic": False, **(weights or {})}, "targets": ["Linear"]}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**scheme, "input_activations": None}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "sparsity_config": {},
        **changes,
    }


def read(path: Path, tensors: Tensors, config: dict[str, Any]) -> Any:
    """Return the one matrix `m.weight` of a file of these tensors."""
    safetensors.numpy.save_file({f"m.{name}": value for name, value in tensors.items()}, path)
    packing = read_packing(HFConfig("config.json", {"quantization_config": config}))
    assert packing is not None
    with SafetensorsCheckpoint.open(path) as checkpoint:
        weights = read_packed(checkpoint, lambda name: name, packing)
        weight = weights.take("m.weight", expected_shape(tensors, config))
        parts = list(weight.slices())
        assert all(isinstance(part, Blocks) for part in parts)
        rows = np.concatenate([dequantize(part) for part in parts if isinstance(part, Blocks)])
        weights.finish()
    if weight.columns is not None:
        ordered = np.empty_like(rows)
        ordered[:, weight.columns] = rows
        rows = ordered
    return weight, rows


def expected_shape(tensors: Tensors, config: dict[str, Any]) -> tuple[int, int]:
    if "weight_shape" in tensors:
        n_rows, width = tensors["weight_shape"].tolist()
        return n_rows, width
    n_rows, per_word = tensors["scales"].shape[1], 32 // int(config["bits"])
    length = tensors["qweight"].shape[0]
    return n_rows, length if config["quant_method"] == "awq" else length * per_word


# SHA-256 of what auto-gptq 0.7.1, autoawq 0.2.9 and compressed-tensors 0.20.0 make of a matrix
# that Matrix.draw() gives for shape (64, 256) and groups of 32.
REFERENCE = {
    "gptq": "adb0a9cac12ae6030caf8a245294886d2377b092b36e13520328a0c69bab8efb",
    "awq": "582cd4edd0af0a6ca14ee09abecdef35030deefa2f8ab645e44007b2a7c516be",
    "compressed": "c3060a7b37dcb97b14cb8a6f40d4a0d3ef566246231a742221199debbce7cae6",
}


@pytest.mark.parametrize("name", REFERENCE)
def test_the_tests_pack_as_the_methods_own_libraries(name: str) -> None:
    tensors = {"gptq": gptq, "awq": awq, "compressed": compressed}[name](Matrix.draw((64, 256), 32))
    packed = [k for k in sorted(tensors) if tensors[k].dtype == np.int32 and "g_idx" not in k]
    digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in packed))
    assert digest.hexdigest() == REFERENCE[name]


@pytest.mark.parametrize("is_ordered", [True, False], ids=["in order", "act-order"])
@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "zero points"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 16), (4, 128), (8, 64), (4, 256), (8, -1)])  # fmt: skip
def test_gptq_means_what_it_says(
    tmp_path: Path, bits: Bits, group_size: int, *, is_symmetric: bool, is_ordered: bool
) -> None:
    size = 256 if group_size == -1 else group_size
    matrix = Matrix.draw((64, 256), size, bits=bits, is_symmetric=is_symmetric, is_ordered=is_ordered)  # fmt: skip
    config = gptq_config(bits=bits, group_size=group_size)
    weight, rows = read(tmp_path / "a", gptq(matrix), config)
    np.testing.assert_array_equal(rows, matrix.weights())
    assert weight.layout.has_offset is not is_symmetric
    assert weight.layout.block_size == min(size, 128)
    assert (weight.columns is None) is (is_ordered or size == 256)


@pytest.mark.parametrize("key", ["checkpoint_format", "format"])
def test_the_second_form_of_gptq_has_zero_points_as_they_are(tmp_path: Path, key: str) -> None:
    matrix = Matrix.draw((64, 256), 32)
    _, rows = read(tmp_path / "a", gptq(matrix, less=0), gptq_config(**{key: "gptq_v2"}))
    np.testing.assert_array_equal(rows, matrix.weights())


def test_gptq_without_an_order_of_its_own(tmp_path: Path) -> None:
    matrix = Matrix.draw((64, 256), 32)
    tensors = gptq(matrix)
    del tensors["g_idx"]
    _, rows = read(tmp_path / "a", tensors, gptq_config())
    np.testing.assert_array_equal(rows, matrix.weights())


@pytest.mark.parametrize("is_symmetric", [True, False], ids=["symmetric", "zero points"])
def test_awq_means_what_it_says(tmp_path: Path, *, is_symmetric: bool) -> None:
    matrix = Matrix.draw((64, 256), 32, is_symmetric=is_symmetric)
    weight, rows = read(tmp_path / "a", awq(matrix), awq_config())
    np.testing.assert_array_equal(rows, matrix.weights())
    assert weight.layout.has_offset is not is_symmetric


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_ordered", [True, False], ids=["in order", "actorder"])
def test_compressed_tensors_mean_what_they_say(
    tmp_path: Path, bits: Bits, *, is_ordered: bool
) -> None:
    matrix = Matrix.draw((60, 256), 32, bits=bits, is_ordered=is_ordered)
    config = compressed_config({"num_bits": bits})
    tensors = compressed(matrix)
    weight, rows = read(tmp_path / "a", tensors, config)
    np.testing.assert_array_equal(rows, matrix.weights())
    assert (weight.columns is None) is is_ordered


def test_compressed_tensors_without_what_can_be_left_out(tmp_path: Path) -> None:
    matrix = Matrix.draw((64, 256), 256, is_symmetric=True)  # a scale for each channel
    tensors = compressed(matrix)
    del tensors["weight_zero_point"]
    tensors["weight_g_idx"][:] = -1
    tensors["weight_scale"] = matrix.scale.astype(np.float32)
    weight, rows = read(tmp_path / "a", tensors, compressed_config({"strategy": "channel"}))
    np.testing.assert_array_equal(rows, matrix.weights())
    assert not weight.layout.has_offset


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed"])
def test_rows_do_not_depend_on_the_slice_they_are_read_in(tmp_path: Path, method: str) -> None:
    matrix = Matrix.draw((64, 256), 32)
    tensors = {"gptq": gptq, "awq": awq, "compressed": compressed}[method](matrix)
    config = {"gptq": gptq_config, "awq": awq_config, "compressed": compressed_config}[method]()
    safetensors.numpy.save_file({f"m.{n}": v for n, v in tensors.items()}, tmp_path / "a")
    packing = read_packing(HFConfig("config.json", {"quantization_config": config}))
    assert packing is not None
    with SafetensorsCheckpoint.open(tmp_path / "a") as checkpoint:
        weight = read_packed(checkpoint, lambda name: name, packing).take("m.weight", (64, 256))
        step = weight.row_step
        for start in range(0, 64, step):
            some = weight.rows(start, start + step)
            assert isinstance(some, Blocks)
            np.testing.assert_array_equal(dequantize(some), matrix.weights()[start : start + step])


# Whole models


def quantised(page: TinyCheckpoint, method: Callable[[Matrix], Tensors], **settings: Any) -> tuple[Tensors, Tensors]:  # fmt: skip
    """A page's tensors with random packed projections, and the same as dense ones."""
    packed: Tensors = {}
    dense: Tensors = {}
    for seed, (name, values) in enumerate(page.tensors().items()):
        if "proj.weight" not in name:
            packed[name] = dense[name] = values
            continue
        matrix = Matrix.draw(values.shape, 32, seed=seed, **settings)
        dense[name] = matrix.weights()
        prefix = name.removesuffix("weight")
        packed |= {f"{prefix}{part}": value for part, value in method(matrix).items()}
    return packed, dense


MODELS: dict[str, tuple[Callable[[Matrix], Tensors], dict[str, Any], dict[str, Any]]] = {
    "gptq": (gptq, gptq_config(sym=True), {"is_symmetric": True}),
    "gptq, act-order": (gptq, gptq_config(desc_act=True), {"is_ordered": False}),
    "gptq, 8 bits": (gptq, gptq_config(bits=8), {"bits": 8}),
    "awq": (awq, awq_config(), {}),
    "compressed-tensors": (compressed, compressed_config(), {"is_ordered": False}),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_the_same_weights_unpacked(tmp_path: Path, name: str) -> None:
    method, config, settings = MODELS[name]
    page = TinyCheckpoint.read("llama")
    packed, dense = quantised(page, method, **settings)
    source = page.changed(quantization_config=config).write(tmp_path / "packed")
    safetensors.numpy.save_file(packed, source / "model.safetensors")
    convert(source, tmp_path / "out")
    source = page.write(tmp_path / "dense")
    safetensors.numpy.save_file(dense, source / "model.safetensors")
    convert(source, tmp_path / "expected")
    tokens = golden("llama")[0]
    expected, _ = feed(load(tmp_path / "expected"), tokens, {})
    logits = Decoder.exact(tmp_path / "out").run(tokens)[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert "MatMulNBits" in {node.op_type for node in model.graph.node}


def test_biases_of_zeros_are_no_obstacle_and_others_are(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("llama").changed(quantization_config=gptq_config())
    packed, _ = quantised(page, gptq)
    source = page.write(tmp_path / "packed")
    name = "model.layers.0.self_attn.q_proj.bias"
    packed[name] = np.zeros(64, np.float16)
    safetensors.numpy.save_file(packed, source / "model.safetensors")
    convert(source, tmp_path / "out")
    packed[name] = np.ones(64, np.float16)
    safetensors.numpy.save_file(packed, source / "model.safetensors")
    with pytest.raises(TensorMismatchError, match=r"no use for .*q_proj\.bias"):
        convert(source, tmp_path / "again")


# What is not handled is refused


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"quant_method": "bitsandbytes"}, UnsupportedQuantizationError, "`bitsandbytes`"),
        (gptq_config(bits=3), UnsupportedArchitectureError, "`quantization_config.bits` is 3"),
        (gptq_config(checkpoint_format="marlin"), UnsupportedArchitectureError, "is marlin"),
        (gptq_config(is_marlin_format=True), UnsupportedArchitectureError, "is_marlin_format"),
        (gptq_config(dynamic={"-:.*": {}}), UnsupportedArchitectureError, "dynamic"),
        (gptq_config(group_size=48), TensorMismatchError, "not groups of 48"),
        (gptq_config(group_size=0), TensorMismatchError, "not groups of 0"),
        (gptq_config(group_size=64), TensorMismatchError, "scales` has shape"),
        (awq_config(version="gemv"), UnsupportedArchitectureError, "is gemv"),
        (awq_config(zero_point=False), UnsupportedArchitectureError, "zero_point"),
        (compressed_config(format="naive-quantized"), UnsupportedArchitectureError, "naive-quantized"),
        (compressed_config(kv_cache_scheme={"num_bits": 8}), UnsupportedArchitectureError, "kv_cache_scheme"),
        (compressed_config({"num_bits": 3}), UnsupportedArchitectureError, "num_bits"),
        (compressed_config({"strategy": "block"}), UnsupportedArchitectureError, "strategy"),
        (compressed_config(config_groups={"a": {"input_activations": {"num_bits": 8}}}), UnsupportedArchitectureError, "input_activations"),
    ],
    ids=str,
)  # fmt: skip
def test_refuses_a_method(
    tmp_path: Path, config: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        read(tmp_path / "a", gptq(Matrix.draw((64, 256), 32)), {"bits": 4, **config})


def broken(**changes: NDArray[Any] | None) -> Tensors:
    tensors = {**gptq(Matrix.draw((64, 256), 32)), **changes}
    return {name: value for name, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (broken(scales=None), r"m\.scales` is missing"),
        (broken(scales=np.ones((8, 64), np.float64)), "has type F64"),
        (broken(scales=np.ones((8, 32), np.float16)), r"has shape \(8, 32\), not \(8, 64\)"),
        (broken(qzeros=np.ones((8, 8), np.int64)), "has type I64, not I32"),
        (broken(qzeros=np.full((8, 8), -1, np.int32)), "has 15, which readers"),
        (broken(qzeros=np.ones(64, np.int32)), r"has shape \(64,\)"),
        (broken(g_idx=np.zeros(256, np.int32)), "does not have 32 inputs in each of 8 groups"),
        (broken(g_idx=np.full(256, 9, np.int32)), "does not have 32 inputs"),
        (broken(qweight=np.ones((0, 64), np.int32)), "has shape"),
    ],
)
def test_refuses_parts_that_do_not_fit(tmp_path: Path, tensors: Tensors, reason: str) -> None:
    with pytest.raises(TensorMismatchError, match=reason):
        read(tmp_path / "a", tensors, gptq_config())


def test_refuses_groups_that_are_no_blocks(tmp_path: Path) -> None:
    matrix = Matrix.draw((64, 256), 8)
    with pytest.raises(TensorMismatchError, match="groups of 8 weights"):
        read(tmp_path / "a", gptq(matrix), gptq_config(group_size=8))


def test_refuses_a_matrix_that_is_there_dense_as_well(tmp_path: Path) -> None:
    tensors = {**gptq(Matrix.draw((64, 256), 32)), "weight": np.ones((64, 256), np.float32)}
    with pytest.raises(TensorMismatchError, match="there twice"):
        read(tmp_path / "a", tensors, gptq_config())


def test_words_of_compressed_tensors_have_4_or_8_bits(tmp_path: Path) -> None:
    tensors = compressed(Matrix.draw((64, 256), 32))
    tensors["weight_packed"] = tensors["weight_packed"][:, :24].copy()
    with pytest.raises(TensorMismatchError, match="24 words for 256 inputs"):
        read(tmp_path / "a", tensors, compressed_config())
