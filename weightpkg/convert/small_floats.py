"""Checkpoints of floats with 4 or 8 bits: MXFP4 becomes blocks, FP8 is widened with its scales.

MXFP4, as gpt-oss has it: of a tensor T, T_blocks (X, N, B, 16) and T_scales (X, N, B), B blocks of 32
weights, two of them a byte, the first one low; as in GGUF but for their order.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/integrations/mxfp4.py
FP8, w = weight * scale, both as float32, the product rounded once; there is no product of 8-bit floats
on a CPU. What rounds activations to 8 bits as well is left out: they stay as they are.
    DeepSeek: weight_scale_inv, one for a block of rows and columns, the last ones being cut off
    https://github.com/deepseek-ai/DeepSeek-V3/blob/f6e34dd26772dd4a216be94a8899276c5dca9e43/inference/kernel.py
    compressed-tensors, `float-quantized`: weight_scale, one for all or for each row

Letters in shapes: X experts, N outputs, K inputs.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.packed import Floats, Packing, Parts
from weightpkg.convert.weights import Weight
from weightpkg.formats import ggml_blocks
from weightpkg.tensor import Blocks, DenseLayout

if TYPE_CHECKING:
    from numpy.typing import NDArray

Block = tuple[int, int]
"""Rows and columns that share a scale."""


def _e4m3() -> NDArray[np.float32]:
    """What each byte means: sign, 4 bits of exponent, 3 of fraction; no infinity.

    https://arxiv.org/abs/2209.05433, section 3
    """
    byte = np.arange(128)
    exponent, fraction = byte >> 3, byte & 7
    values = np.where(exponent, (8 + fraction) * 2.0 ** (exponent - 10), fraction * 2.0**-9)
    values[127] = np.nan
    return np.concatenate((values, -values)).astype(np.float32)


E4M3 = _e4m3()


def read_mxfp4(_: HFConfig) -> Packing:
    """Return gpt-oss's packing, which nothing is said of."""
    return Packing("MXFP4", ("blocks", "scales"), _mxfp4, separator="_", whole="")


def _mxfp4(name: str, parts: Parts) -> Weight:
    packed = parts.array("blocks", ("U8",), (None, None, None, 16))
    shape = (*packed.shape[:2], packed.shape[2] * 32)
    scales = parts.array("scales", ("U8",), packed.shape[:3])
    blocks, exponents = packed.reshape(-1, *packed.shape[2:]), scales.reshape(-1, scales.shape[2])

    def rows(start: int, stop: int) -> Blocks:
        exponent, pairs = (part[start:stop].astype(np.uint8) for part in (exponents, blocks))
        parts.release_rows("blocks", start * shape[2] // 32, stop * shape[2] // 32)
        return ggml_blocks.mxfp4_in_order(exponent, pairs)

    return Weight(name, shape, ggml_blocks.EIGHT_BITS, rows)


def read_fp8(group: HFConfig) -> Packing:
    """Read the keys of DeepSeek's packing.

    Raises:
        CheckpointError: a key has a value of another kind.
        UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
    """
    group.expect("fmt", "e4m3")
    group.ignore("activation_scheme", "scale_fmt")  # of activations
    block = None
    if "weight_block_size" in group:
        sizes = group.array("weight_block_size", int)
        if len(sizes) != 2 or min(sizes) < 1:
            raise group.unsupported("`weight_block_size` is not how many rows and columns")
        block = (sizes[0], sizes[1])
    names = ("weight_scale_inv", "weight", "activation_scale", "input_scale")
    return Packing("FP8", names, partial(_widened, scale="weight_scale_inv", block=block))


def read_float_quantized(group: HFConfig) -> Packing:
    """Read the keys of compressed-tensors' packing of 8-bit floats; errors as `read_fp8`."""
    group.expect("quantization_status", "compressed", "frozen")
    group.expect("kv_cache_scheme")
    for scheme in group.groups("config_groups"):
        _check_scheme(scheme)
    names = ("weight_scale", "weight", "input_scale")
    return Packing("FP8", names, partial(_widened, scale="weight_scale", block=None))


def _check_scheme(scheme: HFConfig) -> None:
    """Refuse a scheme that rounds weights to something else than floats of 8 bits."""
    scheme.ignore("targets", "input_activations")
    scheme.expect("output_activations")
    scheme.expect("format", "float-quantized")
    weights = scheme.group("weights")
    if weights is not None:
        weights.ignore("observer", "observer_kwargs", "scale_dtype", "zp_dtype")
        weights.expect("num_bits", 8)
        weights.expect("type", "float")
        weights.expect("strategy", "tensor", "channel")
        weights.expect("symmetric", True)
        weights.expect("dynamic", False)
        weights.finish()
    scheme.finish()


def _widened(name: str, parts: Parts, scale: str, block: Block | None) -> Weight:
    raw = parts.array("weight", ("F8_E4M3",), (None, None))
    n_rows, width = raw.shape
    scales, (height, length) = _scales(parts, scale, block, (n_rows, width))

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        first = start // height
        some = scales.float32(slice(first, -(-stop // height)), slice(None))
        some = some[np.arange(start, stop) // height - first]
        values: NDArray[np.float32] = E4M3[raw[start:stop]]
        values *= some if some.shape[1] == 1 else some.repeat(length, axis=1)[:, :width]
        parts.release_rows("weight", start, stop)
        return values

    return Weight(name, (n_rows, width), DenseLayout("float32"), rows)


def _scales(parts: Parts, name: str, block: Block | None, shape: Block) -> tuple[Floats, Block]:
    """Return scales as a matrix, and for how many rows and columns each of them is.

    Raises:
        TensorMismatchError: there are not as many as the matrix needs.
    """
    if block is not None:
        counts = (math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1]))
        return parts.floats(name, counts), block
    found = parts.tensor(name).shape
    if math.prod(found) == 1:
        return parts.floats(name, found).reshaped((1, 1)), shape
    return parts.floats(name, (shape[0], 1)), (1, shape[1])
