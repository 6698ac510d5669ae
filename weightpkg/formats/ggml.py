"""The number formats of ggml: how many bytes a row takes, and what the bytes of a block mean.

Every type that a GGUF file may name is in `GGML_TYPES`, so that any valid file can be laid out;
those with a `layout` can be converted. To add one, write its block's bytes down in a function that
returns `Blocks` and name it in the table. Nothing is rounded but an offset, once.
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/src/ggml-common.h (blocks)
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/include/ggml.h `ggml_type` (numbers)

Letters in shapes: N rows, K weights in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.tensor import BlockLayout, Blocks, DenseLayout, DenseType, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOUR_BITS = BlockLayout(4, 32, has_offset=False)
_FOUR_BITS_OFFSET = BlockLayout(4, 32, has_offset=True)
_EIGHT_BITS = BlockLayout(8, 32, has_offset=False)


@dataclass(frozen=True, slots=True)
class GGMLType:
    """A number format: `block_size` weights take `type_size` bytes.

    layout: what its numbers become, None where they cannot be converted yet.
    decode: for a block layout, takes raw rows (N, k_blocks, type_size) uint8.
    """

    name: str
    block_size: int
    type_size: int
    layout: Layout | None = None
    decode: Callable[[NDArray[np.uint8]], Blocks] | None = None


def decode_rows(kind: GGMLType, raw: NDArray[np.uint8]) -> Blocks | NDArray[np.float32]:
    """Return rows of a type that has a layout: `Blocks`, or (N, K) float32 for a dense one.

    Args:
        kind: their type.
        raw: (N, row_bytes) uint8.
    """
    if isinstance(kind.layout, DenseLayout):
        return dense_rows(raw, kind.layout.dtype)
    if kind.decode is None:
        raise ValueError(f"{kind.name} cannot be decoded")
    n_rows, row_bytes = raw.shape
    return kind.decode(raw.reshape(n_rows, row_bytes // kind.type_size, kind.type_size))


def convertible_types() -> list[str]:
    """The names of the types that have a layout."""
    return [kind.name for kind in GGML_TYPES.values() if kind.layout is not None]


def dense_rows(raw: NDArray[np.uint8], dtype: DenseType) -> NDArray[np.float32]:
    """(N, row_bytes) uint8 -> (N, K) float32, without loss; float32 is not even copied."""
    if dtype == "float32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "float16":
        return raw.view("<f2").astype(np.float32)
    # a bfloat16 is the upper half of a float32
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def dequantize(blocks: Blocks) -> NDArray[np.float32]:
    """Return the weights that blocks stand for: (N, K) float32."""
    q, layout = blocks.q, blocks.layout
    n_rows, k_blocks, _ = q.shape
    if layout.bits == 4:
        q = np.stack((q & 0x0F, q >> 4), axis=-1).reshape(n_rows, k_blocks, layout.block_size)
    middle = np.float32(1 << (layout.bits - 1))
    values = blocks.scale[..., None] * (q.astype(np.float32) - middle)
    if blocks.offset is not None:
        values += blocks.offset[..., None]
    return values.reshape(n_rows, k_blocks * layout.block_size)


def _q4_0(raw: NDArray[np.uint8]) -> Blocks:
    """Q4_0, 18 bytes for 32 weights: d f16, qs 16 x u8. w = d * (q - 8)."""
    return Blocks(_FOUR_BITS, _in_order(raw[..., 2:]), _float16(raw, 0), None)


def _q4_1(raw: NDArray[np.uint8]) -> Blocks:
    """Q4_1, 20 bytes for 32 weights: d f16, m f16, qs 16 x u8. w = d * q + m.

    d * q + m is d * (q - 8) + (8 * d + m), of which only the last sum is rounded.
    """
    d, m = _float16(raw, 0), _float16(raw, 2)
    return Blocks(_FOUR_BITS_OFFSET, _in_order(raw[..., 4:]), d, 8 * d + m)


def _q8_0(raw: NDArray[np.uint8]) -> Blocks:
    """Q8_0, 34 bytes for 32 weights: d f16, qs 32 x i8. w = d * q."""
    q = _packed(raw[..., 2:])
    q ^= 0x80  # i8 -> u8 with 128 added
    return Blocks(_EIGHT_BITS, q, _float16(raw, 0), None)


def _float16(raw: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    """The float16 at a place of every block: (N, k_blocks, type_size) -> (N, k_blocks)."""
    return raw[..., start : start + 2].view("<f2")[..., 0].astype(np.float32)


def _packed(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy a part of every block, as one item: many times faster than byte by byte."""
    return qs.view(f"V{qs.shape[-1]}").copy().view(np.uint8)


def _in_order(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, k_blocks, 16) uint8: ggml's order of 4-bit numbers -> neighbours in one byte, first low.

    ggml has weights 0 to 15 in the low halves of the bytes and 16 to 31 in the high halves. Taken
    two bytes at a time, both halves need the same step: 0x0b0a -> 0xba. (2.6 GB/s on one core; byte
    by byte, with strides of two, 0.3.)
    """
    pairs = _packed(qs).view("<u2")  # (N, k_blocks, 8)
    low = pairs & np.uint16(0x0F0F)
    high = pairs >> np.uint16(4) & np.uint16(0x0F0F)
    return np.concatenate((_joined(low), _joined(high)), axis=-1).view(np.uint8)


def _joined(pairs: NDArray[np.uint16]) -> NDArray[np.uint64]:
    """0x0b0a -> 0xba; (N, k_blocks, 8) uint16 -> (N, k_blocks, 1) uint64 of eight bytes."""
    return (pairs | pairs >> np.uint16(4)).astype(np.uint8).view(np.uint64)


GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, 4, DenseLayout("float32")),
    1: GGMLType("F16", 1, 2, DenseLayout("float16")),
    2: GGMLType("Q4_0", 32, 18, _FOUR_BITS, _q4_0),
    3: GGMLType("Q4_1", 32, 20, _FOUR_BITS_OFFSET, _q4_1),
    6: GGMLType("Q5_0", 32, 22),
    7: GGMLType("Q5_1", 32, 24),
    8: GGMLType("Q8_0", 32, 34, _EIGHT_BITS, _q8_0),
    9: GGMLType("Q8_1", 32, 40),
    10: GGMLType("Q2_K", 256, 84),
    11: GGMLType("Q3_K", 256, 110),
    12: GGMLType("Q4_K", 256, 144),
    13: GGMLType("Q5_K", 256, 176),
    14: GGMLType("Q6_K", 256, 210),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66),
    17: GGMLType("IQ2_XS", 256, 74),
    18: GGMLType("IQ3_XXS", 256, 98),
    19: GGMLType("IQ1_S", 256, 50),
    20: GGMLType("IQ4_NL", 32, 18),
    21: GGMLType("IQ3_S", 256, 110),
    22: GGMLType("IQ2_S", 256, 82),
    23: GGMLType("IQ4_XS", 256, 136),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56),
    30: GGMLType("BF16", 1, 2, DenseLayout("bfloat16")),
    34: GGMLType("TQ1_0", 256, 54),
    35: GGMLType("TQ2_0", 256, 66),
    39: GGMLType("MXFP4", 32, 17),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
}
