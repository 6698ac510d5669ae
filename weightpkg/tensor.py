"""What a tensor's numbers are, whatever file they came from.

A tensor is dense (a number per weight) or made of blocks: `block_size` consecutive weights along
the input dimension share a scale and, some, an offset:

    w = scale * (q - 2**(bits - 1)) + offset

with `q` an unsigned integer of `bits` bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DenseType = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class DenseLayout:
    """A number of this type per weight."""

    dtype: DenseType

    def __str__(self) -> str:
        """What a graph has of it: every graph computes with this type."""
        return "float32"


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Integers of `bits` bits, a scale per `block_size` weights, and perhaps an offset."""

    bits: Literal[4, 8]
    block_size: int
    has_offset: bool

    def __str__(self) -> str:
        """What a graph has of it."""
        offset = " and offset" if self.has_offset else ""
        return f"{self.bits} bits, a scale{offset} for {self.block_size}"


Layout = DenseLayout | BlockLayout


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows of blocks, exactly as the file has them.

    q: (N, k_blocks, block_size * bits / 8) uint8; two 4-bit integers a byte, the first one low
    scale: (N, k_blocks) float32
    offset: (N, k_blocks) float32, or None where the layout has none
    """

    layout: BlockLayout
    q: NDArray[np.uint8]
    scale: NDArray[np.float32]
    offset: NDArray[np.float32] | None
