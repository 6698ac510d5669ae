"""The number formats of ggml: how many bytes a row takes, and what the bytes of a block mean.

Every type that a GGUF file may name is in `GGML_TYPES`, so that any valid file can be laid out;
those with a `layout` can be converted. To add one, write its block's bytes down in a function of
`ggml_blocks` and name it in the table.
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/src/ggml-common.h (blocks)
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/include/ggml.h `ggml_type` (numbers)

Letters in shapes: N rows, K weights in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.formats import ggml_blocks as blocks
from weightpkg.tensor import Blocks, DenseLayout, DenseType, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def dequantize(values: Blocks) -> NDArray[np.float32]:
    """Return the weights that blocks stand for: (N, K) float32."""
    q, layout = values.q, values.layout
    n_rows, k_blocks, _ = q.shape
    if layout.bits == 4:
        q = np.stack((q & 0x0F, q >> 4), axis=-1).reshape(n_rows, k_blocks, layout.block_size)
    middle = np.float32(1 << (layout.bits - 1))
    weights = values.scale[..., None] * (q.astype(np.float32) - middle)
    if values.offset is not None:
        weights += values.offset[..., None]
    return weights.reshape(n_rows, k_blocks * layout.block_size)


GGML_TYPES: dict[int, GGMLType] = {
    0: GGMLType("F32", 1, 4, DenseLayout("float32")),
    1: GGMLType("F16", 1, 2, DenseLayout("float16")),
    2: GGMLType("Q4_0", 32, 18, blocks.FOUR_BITS, blocks.q4_0),
    3: GGMLType("Q4_1", 32, 20, blocks.FOUR_BITS_OFFSET, blocks.q4_1),
    6: GGMLType("Q5_0", 32, 22, blocks.EIGHT_BITS, blocks.q5_0),
    7: GGMLType("Q5_1", 32, 24, blocks.EIGHT_BITS_OFFSET, blocks.q5_1),
    8: GGMLType("Q8_0", 32, 34, blocks.EIGHT_BITS, blocks.q8_0),
    9: GGMLType("Q8_1", 32, 40),
    10: GGMLType("Q2_K", 256, 84, blocks.FOUR_BITS_16_OFFSET, blocks.q2_k),
    11: GGMLType("Q3_K", 256, 110, blocks.FOUR_BITS_16, blocks.q3_k),
    12: GGMLType("Q4_K", 256, 144, blocks.FOUR_BITS_OFFSET, blocks.q4_k),
    13: GGMLType("Q5_K", 256, 176, blocks.EIGHT_BITS_OFFSET, blocks.q5_k),
    14: GGMLType("Q6_K", 256, 210, blocks.EIGHT_BITS_16, blocks.q6_k),
    15: GGMLType("Q8_K", 256, 292),
    16: GGMLType("IQ2_XXS", 256, 66, blocks.EIGHT_BITS, blocks.iq2_xxs),
    17: GGMLType("IQ2_XS", 256, 74, blocks.EIGHT_BITS_16, blocks.iq2_xs),
    18: GGMLType("IQ3_XXS", 256, 98, blocks.EIGHT_BITS, blocks.iq3_xxs),
    19: GGMLType("IQ1_S", 256, 50, blocks.EIGHT_BITS, blocks.iq1_s),
    20: GGMLType("IQ4_NL", 32, 18, blocks.EIGHT_BITS, blocks.iq4_nl),
    21: GGMLType("IQ3_S", 256, 110, blocks.EIGHT_BITS, blocks.iq3_s),
    22: GGMLType("IQ2_S", 256, 82, blocks.EIGHT_BITS_16, blocks.iq2_s),
    23: GGMLType("IQ4_XS", 256, 136, blocks.EIGHT_BITS, blocks.iq4_xs),
    24: GGMLType("I8", 1, 1),
    25: GGMLType("I16", 1, 2),
    26: GGMLType("I32", 1, 4),
    27: GGMLType("I64", 1, 8),
    28: GGMLType("F64", 1, 8),
    29: GGMLType("IQ1_M", 256, 56, blocks.EIGHT_BITS_16, blocks.iq1_m),
    30: GGMLType("BF16", 1, 2, DenseLayout("bfloat16")),
    34: GGMLType("TQ1_0", 256, 54, blocks.FOUR_BITS, blocks.tq1_0),
    35: GGMLType("TQ2_0", 256, 66, blocks.FOUR_BITS, blocks.tq2_0),
    39: GGMLType("MXFP4", 32, 17, blocks.EIGHT_BITS, blocks.mxfp4),
    40: GGMLType("NVFP4", 64, 36),
    41: GGMLType("Q1_0", 128, 18),
}
