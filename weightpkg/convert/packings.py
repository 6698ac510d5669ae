"""GPTQ, AWQ and compressed-tensors: how each lays integers, scales and zero points out.

Letters in shapes: N outputs, K inputs, G groups of inputs, P integers in a word of 32 bits.

GPTQ, https://github.com/AutoGPTQ/AutoGPTQ/blob/v0.7.1/auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py
    qweight (K/P, N), qzeros (G, N/P) each less 1, scales (G, N), g_idx (K,)
AWQ, https://github.com/casper-hansen/AutoAWQ/blob/v0.2.9/awq/modules/linear/gemm.py
    qweight (K, N/P) and qzeros (G, N/P), outputs of a word in the order below, scales (G, N)
compressed-tensors, https://github.com/vllm-project/compressed-tensors/tree/0.12.2, `pack-quantized`
    weight_packed (N, K/P), weight_scale (N, G), weight_zero_point (N/P, G), weight_g_idx (K,),
    weight_shape (2,); integers and zero points are signed, and packed with the middle added
Floats are in `small_floats`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.packed import PackedMatrix, Packing, Parts, of_integers, unpack_words
from weightpkg.convert.small_floats import read_float_quantized, read_fp8, read_mxfp4
from weightpkg.errors import UnsupportedQuantizationError, shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bits = Literal[4, 8]

# Where the outputs of a word of AWQ are in it.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)

# How the integers were found, and what computes with them; nothing of what they mean.
_IGNORED = {
    "gptq": """
    adapter backend batch_size block_name_to_quantize cache_block_outputs damp_auto_increment
    damp_percent dataset desc_act exllama_config lm_head max_input_length meta model_file_base_name
    model_name_or_path model_seqlen module_name_preceding_first_block modules_in_block_to_quantize mse
    pad_token_id quantizer static_groups sym tokenizer true_sequential use_cuda_fp16 use_exllama
    """,
    "awq": "backend do_fuse exllama_config fuse_max_seq_len modules_to_fuse modules_to_not_convert",
    "compressed-tensors": "global_compression_ratio ignore version",
    "fp8": "ignored_layers modules_to_not_convert",
    "mxfp4": "modules_to_not_convert",
}


def read_packing(config: HFConfig) -> Packing | None:
    """Read `quantization_config`; None if there is none.

    Raises:
        CheckpointError: a key is missing or has a value of another kind.
        UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        UnsupportedQuantizationError: a method that is not known.
    """
    group = config.group("quantization_config")
    if group is None:
        return None
    method = group.get("quant_method", str)
    if method not in METHODS:
        raise UnsupportedQuantizationError(
            f"`{config.name}`: quantization method `{shown(method)}` is not converted",
            hint=f"those that are: {', '.join(sorted(METHODS))}",
        )
    group.ignore(*_IGNORED[method].split())
    packing = METHODS[method](group)
    group.finish()
    return packing


def _read_gptq(group: HFConfig) -> Packing:
    """4 and 8 bits, with and without act-order, in GPTQ's first and second format."""
    group.expect("bits", 4, 8)
    group.expect("pack_dtype", "int32")
    keys = ("checkpoint_format", "format")
    for key in keys:
        group.expect(key, "gptq", "gptq_v2")
    is_second = any(group.get(key, str, "gptq") == "gptq_v2" for key in keys)
    bits: Bits = 4 if group.get("bits", int) == 4 else 8
    unpack = partial(
        _unpack_gptq, bits=bits, group_size=group.get("group_size", int), less=int(not is_second)
    )
    return of_integers("GPTQ", ("qweight", "qzeros", "scales", "g_idx"), unpack)


def _unpack_gptq(parts: Parts, bits: Bits, group_size: int, less: int) -> PackedMatrix:
    per_word = 32 // bits
    words = parts.matrix("qweight", (None, None))
    width, n_rows = words.shape[0] * per_word, words.shape[1]
    n_groups = _n_groups(parts, "qweight", width, group_size)
    scales = parts.floats("scales", (n_groups, n_rows))
    packed_zeros = parts.matrix("qzeros", (n_groups, -(-n_rows // per_word)))
    if n_rows % per_word:
        raise parts.error("qweight", f"has {n_rows} outputs, which are not whole words")
    largest = (1 << bits) - 1
    if less and (unpack_words(packed_zeros, bits) == largest).any():
        raise parts.error("qzeros", f"has {largest}, which readers of the format take differently")

    def zeros(start: int, stop: int) -> NDArray[np.int16]:
        some = packed_zeros[:, start // per_word : stop // per_word]
        return unpack_words(some, bits).T.astype(np.int16) + np.int16(less)

    return PackedMatrix(
        shape=(n_rows, width),
        bits=bits,
        n_groups=n_groups,
        integers=lambda start, stop: unpack_words(words[:, start:stop].T, bits),
        scales=lambda start, stop: scales.float32(slice(None), slice(start, stop)).T,
        zeros=zeros,
        groups=parts.integers("g_idx", width) if "g_idx" in parts else None,
        row_step=per_word,
    )


def _read_awq(group: HFConfig) -> Packing:
    """4 bits with zero points, version GEMM."""
    group.expect("bits", 4)
    group.expect("version", "gemm", "GEMM")
    group.expect("zero_point", True)
    unpack = partial(_unpack_awq, group_size=group.get("group_size", int))
    return of_integers("AWQ", ("qweight", "qzeros", "scales"), unpack)


def _unpack_awq(parts: Parts, group_size: int) -> PackedMatrix:
    words = parts.matrix("qweight", (None, None))
    width, n_rows = words.shape[0], words.shape[1] * 8
    n_groups = _n_groups(parts, "qweight", width, group_size)
    scales = parts.floats("scales", (n_groups, n_rows))
    zeros = parts.matrix("qzeros", (n_groups, n_rows // 8))
    return PackedMatrix(
        shape=(n_rows, width),
        bits=4,
        n_groups=n_groups,
        integers=lambda start, stop: _unpack_awq_words(words, start, stop),
        scales=lambda start, stop: scales.float32(slice(None), slice(start, stop)).T,
        zeros=lambda start, stop: _unpack_awq_words(zeros, start, stop).astype(np.int16),
        groups=None,
        row_step=8,
    )


def _unpack_awq_words(words: NDArray[np.int32], start: int, stop: int) -> NDArray[np.uint8]:
    """words: (K, N/8) -> outputs from start to stop, (stop - start, K)."""
    values = unpack_words(words[:, start // 8 : stop // 8], 4)
    ordered = values.reshape(len(values), -1, 8)[:, :, _AWQ_PLACES]
    return np.ascontiguousarray(ordered.reshape(len(values), -1).T)


def _read_compressed(group: HFConfig) -> Packing:
    """`pack-quantized` (4 and 8 bits by group or by output) and `float-quantized`."""
    group.expect("format", "pack-quantized", "float-quantized")
    if group.get("format", str, "") == "float-quantized":
        return read_float_quantized(group)
    group.expect("quantization_status", "compressed", "frozen")
    group.expect("kv_cache_scheme")
    for scheme in group.groups("config_groups"):
        _check_scheme(scheme)
    parts = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")
    return of_integers("compressed-tensors", parts, _unpack_compressed)


def _check_scheme(scheme: HFConfig) -> None:
    """Refuse a scheme that rounds more than weights, or other than to groups of integers."""
    scheme.ignore("targets")
    for key in ("input_activations", "output_activations"):
        scheme.expect(key)
    scheme.expect("format", "pack-quantized")
    weights = scheme.group("weights")
    if weights is not None:
        weights.ignore("actorder", "group_size", "observer", "observer_kwargs", "symmetric")
        weights.ignore("scale_dtype", "zp_dtype")
        weights.expect("num_bits", 4, 8)
        weights.expect("type", "int")
        weights.expect("strategy", "group", "channel")
        weights.expect("dynamic", False)
        weights.finish()
    scheme.finish()


def _unpack_compressed(parts: Parts) -> PackedMatrix:
    n_rows, width = (int(size) for size in parts.integers("weight_shape", 2))
    words = parts.matrix("weight_packed", (n_rows, None))
    bits = _bits(parts, words.shape[1], width)
    scales = parts.floats("weight_scale", (n_rows, None))
    n_groups = scales.shape[1]
    _n_groups(parts, "weight_scale", width, width // n_groups)
    per_word, middle = 32 // bits, 1 << (bits - 1)
    zeros: Callable[[int, int], NDArray[np.int16]] = partial(_middles, n_groups, middle)
    if "weight_zero_point" in parts:
        packed = parts.matrix("weight_zero_point", (-(-n_rows // per_word), n_groups))
        zeros = partial(_zeros, packed, bits)
    return PackedMatrix(
        shape=(n_rows, width),
        bits=bits,
        n_groups=n_groups,
        integers=lambda start, stop: unpack_words(words[start:stop], bits),
        scales=lambda start, stop: scales.float32(slice(start, stop), slice(None)),
        zeros=zeros,
        groups=_compressed_groups(parts, width),
        row_step=1,
    )


def _compressed_groups(parts: Parts, width: int) -> NDArray[np.int64] | None:
    if "weight_g_idx" not in parts:
        return None
    groups = parts.integers("weight_g_idx", width)
    return None if (groups == -1).any() else groups  # -1 says that they were never set


def _bits(parts: Parts, n_words: int, width: int) -> Bits:
    if n_words * 8 == width:
        return 4
    if n_words * 4 == width:
        return 8
    raise parts.error("weight_packed", f"has {n_words} words for {width} inputs, not 4 or 8 bits")


def _middles(n_groups: int, middle: int, start: int, stop: int) -> NDArray[np.int16]:
    return np.full((stop - start, n_groups), middle, np.int16)


def _zeros(packed: NDArray[np.int32], bits: int, start: int, stop: int) -> NDArray[np.int16]:
    """packed: (N/P, G), outputs of a word below each other -> (stop - start, G)."""
    first = start // (32 // bits)
    words = packed[first : -(-stop // (32 // bits))]
    values = unpack_words(words.T, bits).T.astype(np.int16)
    return values[start - first * (32 // bits) :][: stop - start]


def _n_groups(parts: Parts, part: str, width: int, group_size: int) -> int:
    """How many groups a row of `width` inputs has; -1 says that it is one."""
    if group_size == -1:
        return 1
    if group_size < 1 or width % group_size:
        raise parts.error(part, f"has {width} inputs, which are not groups of {group_size}")
    return width // group_size


METHODS: dict[str, Callable[[HFConfig], Packing]] = {
    "awq": _read_awq,
    "compressed-tensors": _read_compressed,
    "fp8": read_fp8,
    "gptq": _read_gptq,
    "mxfp4": read_mxfp4,
}
