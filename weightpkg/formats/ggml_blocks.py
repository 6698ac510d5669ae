"""What the bytes of ggml's blocks mean: one function a type, from raw rows to `Blocks`.

Each takes raw rows (N, n_blocks, type_size) uint8. A block of 256 weights becomes eight blocks of 32
or sixteen of 16, one for each scale. Nothing is rounded but an offset, once: where a type has a
minimum, w = s * q - m is written s * (q - c) + (s * c - m) with c in the middle of q's range, so that
what the product makes of rounded activations is as small as it can be.
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/src/ggml-common.h (bytes)
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/src/ggml-quants.c (meaning)

Letters in shapes: N rows, B blocks as the file has them, S = B * 256 / block_size sub-blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from weightpkg.formats import ggml_grids as grids
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)

FOUR_BITS = BlockLayout(4, 32, has_offset=False)
FOUR_BITS_OFFSET = BlockLayout(4, 32, has_offset=True)
FOUR_BITS_16 = BlockLayout(4, 16, has_offset=False)
FOUR_BITS_16_OFFSET = BlockLayout(4, 16, has_offset=True)
EIGHT_BITS = BlockLayout(8, 32, has_offset=False)
EIGHT_BITS_OFFSET = BlockLayout(8, 32, has_offset=True)
EIGHT_BITS_16 = BlockLayout(8, 16, has_offset=False)

_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)
_EACH_BYTE = np.uint32(0x01010101)
_EIGHT_BYTES = np.uint64(0x0101_0101_0101_0101)
# twice the values of a 4-bit float (E2M1), so that they are integers
_MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)


def q4_0(raw: NDArray[np.uint8]) -> Blocks:
    """Q4_0, 18 bytes for 32 weights: d f16, qs 16 x u8. w = d * (q - 8)."""
    return Blocks(FOUR_BITS, _in_order(raw[..., 2:]), _float16(raw, 0), None)


def q4_1(raw: NDArray[np.uint8]) -> Blocks:
    """Q4_1, 20 bytes for 32 weights: d f16, m f16, qs 16 x u8. w = d * q + m.

    d * q + m is d * (q - 8) + (8 * d + m), of which only the last sum is rounded.
    """
    d, m = _float16(raw, 0), _float16(raw, 2)
    return Blocks(FOUR_BITS_OFFSET, _in_order(raw[..., 4:]), d, 8 * d + m)


def q8_0(raw: NDArray[np.uint8]) -> Blocks:
    """Q8_0, 34 bytes for 32 weights: d f16, qs 32 x i8. w = d * q."""
    q = _packed(raw[..., 2:])
    q ^= 0x80  # i8 -> u8 with 128 added
    return Blocks(EIGHT_BITS, q, _float16(raw, 0), None)


def q5_0(raw: NDArray[np.uint8]) -> Blocks:
    """Q5_0, 22 bytes for 32 weights: d f16, qh 32 bits, qs 16 x u8. w = d * (q - 16)."""
    q = _halves(raw[..., 6:]) | _bits(raw[..., 2:6]) << np.uint8(4)
    return Blocks(EIGHT_BITS, _centred(q, 16), _float16(raw, 0), None)


def q5_1(raw: NDArray[np.uint8]) -> Blocks:
    """Q5_1, 24 bytes for 32 weights: d f16, m f16, qh 32 bits, qs 16 x u8. w = d * q + m."""
    d, m = _float16(raw, 0), _float16(raw, 2)
    q = _halves(raw[..., 8:]) | _bits(raw[..., 4:8]) << np.uint8(4)
    return Blocks(EIGHT_BITS_OFFSET, _centred(q, 16), d, 16 * d + m)


def q2_k(raw: NDArray[np.uint8]) -> Blocks:
    """Q2_K, 84 bytes for 256 weights: scales 16 x u8, qs 64 x u8, d f16, dmin f16.

    A byte of scales is a 4-bit scale and, above it, a 4-bit minimum, of 16 weights:
    w = d * scale * q - dmin * minimum.
    """
    scales = raw[..., :16]
    scale = _sub_blocks(_float16(raw, 80)[..., None] * (scales & 0x0F).astype(np.float32))
    minimum = _sub_blocks(_float16(raw, 82)[..., None] * (scales >> 4).astype(np.float32))
    q = _sub_blocks(_two_bits(raw[..., 16:80]), 16)
    return Blocks(FOUR_BITS_16_OFFSET, _nibbles(q + np.uint8(6)), scale, 2 * scale - minimum)


def q3_k(raw: NDArray[np.uint8]) -> Blocks:
    """Q3_K, 110 bytes for 256 weights: hmask 256 bits, qs 64 x u8, scales 12 x u8, d f16.

    16 scales of 6 bits, less 32; the third bit of q is in hmask. w = d * scale * (q - 4).
    """
    packed = raw[..., 96:108]
    low = np.concatenate((packed[..., :8] & 0x0F, packed[..., :8] >> 4), axis=-1)
    shifts = np.repeat(np.array([0, 2, 4, 6], np.uint8), 4)
    high = np.tile(packed[..., 8:], 4) >> shifts & 3
    scale = (low | high << 4).astype(np.int8) - np.int8(32)
    masks = raw[..., None, :32] >> np.arange(8, dtype=np.uint8)[:, None] & np.uint8(1)
    q = _two_bits(raw[..., 32:96]) | masks.reshape(*raw.shape[:2], 256) << np.uint8(2)
    d = _float16(raw, 108)[..., None] * scale.astype(np.float32)
    return Blocks(FOUR_BITS_16, _nibbles(_sub_blocks(q, 16) + np.uint8(4)), _sub_blocks(d), None)


def q4_k(raw: NDArray[np.uint8]) -> Blocks:
    """Q4_K, 144 bytes for 256 weights: d f16, dmin f16, scales 12 x u8 (6-bit), qs 128 x u8.

    w = d * scale * q - dmin * minimum, one scale and one minimum for 32 weights.
    """
    scale, minimum = _k_scales(raw)
    # 64 weights a step: the low halves of 32 bytes, then the high ones
    steps = _packed(raw[..., 16:]).reshape(*raw.shape[:2], 4, 32)
    return Blocks(FOUR_BITS_OFFSET, _sub_blocks(_in_order(steps), 16), scale, 8 * scale - minimum)


def q5_k(raw: NDArray[np.uint8]) -> Blocks:
    """Q5_K, 176 bytes for 256 weights: as Q4_K, with qh 256 bits, the fifth of each q, before qs."""
    scale, minimum = _k_scales(raw)
    nibbles = _halves(_packed(raw[..., 48:]).reshape(*raw.shape[:2], 4, 32))
    q = _sub_blocks(_upper_bits(_packed(raw[..., 16:48]), range(8), 0x10, 128 - 16), 32)
    q |= _sub_blocks(nibbles, 32)
    return Blocks(EIGHT_BITS_OFFSET, q, scale, 16 * scale - minimum)


def q6_k(raw: NDArray[np.uint8]) -> Blocks:
    """Q6_K, 210 bytes for 256 weights: ql 128 x u8, qh 64 x u8, scales 16 x i8, d f16.

    w = d * scale * (q - 32), one scale for 16 weights; two halves of 128, four times 32 in each.
    """
    nibbles = _halves(_packed(raw[..., :128]).reshape(*raw.shape[:2], 2, 64))
    qh = _packed(raw[..., 128:192]).reshape(*raw.shape[:2], 2, 32)
    q = _upper_bits(qh, range(0, 8, 2), 0x30, 128 - 32)
    q |= nibbles
    scale = _packed(raw[..., 192:208]).view(np.int8).astype(np.float32)
    return Blocks(EIGHT_BITS_16, _sub_blocks(q, 16), _times(_float16(raw, 208), scale), None)


def iq4_nl(raw: NDArray[np.uint8]) -> Blocks:
    """IQ4_NL, 18 bytes for 32 weights: d f16, qs 16 x u8. w = d * VALUES[q]."""
    return Blocks(
        EIGHT_BITS, _looked_up(_IQ4_VALUES, _halves(raw[..., 2:])), _float16(raw, 0), None
    )


def iq4_xs(raw: NDArray[np.uint8]) -> Blocks:
    """IQ4_XS, 136 bytes for 256 weights: d f16, scales_h u16, scales_l 4 x u8, qs 128 x u8.

    w = d * (scale - 32) * VALUES[q], a scale of 6 bits for 32 weights, each half byte a q.
    """
    eight = np.arange(8, dtype=np.uint16)
    high = raw[..., 2:4].view("<u2") >> 2 * eight & np.uint16(3)
    scale = (_pairs(raw[..., 4:8]) | high.astype(np.uint8) << 4).astype(np.int8) - np.int8(32)
    q = _halves(raw[..., 8:].reshape(*raw.shape[:2], 8, 16))
    d = _float16(raw, 0)[..., None] * scale.astype(np.float32)
    return Blocks(EIGHT_BITS, _sub_blocks(_looked_up(_IQ4_VALUES, q), 32), _sub_blocks(d), None)


def mxfp4(raw: NDArray[np.uint8]) -> Blocks:
    """MXFP4, 17 bytes for 32 weights: e u8, qs 16 x u8. w = 2 ** (e - 128) * VALUES[q].

    https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf
    """
    return _mxfp4(raw[..., 0], _halves(raw[..., 1:]))


def mxfp4_in_order(e: NDArray[np.uint8], qs: NDArray[np.uint8]) -> Blocks:
    """The same of exponents (N, B) and bytes (N, B, 16) that each have two weights in their order."""
    return _mxfp4(e, _pairs(qs))


def _mxfp4(e: NDArray[np.uint8], q: NDArray[np.uint8]) -> Blocks:
    scale = np.ldexp(np.float32(1), e.astype(np.int32) - 128).astype(np.float32)
    return Blocks(EIGHT_BITS, _looked_up(_MXFP4_VALUES, q), scale, None)


def tq1_0(raw: NDArray[np.uint8]) -> Blocks:
    """TQ1_0, 54 bytes for 256 weights: qs 48 x u8, qh 4 x u8, d f16. w = d * (q - 1).

    A byte is a fraction of 256 in base 3, with five digits, those of qh with four: times 3 its first
    digit is carried out. All first digits come first: of 32 bytes, then of 16, then of qh.
    """
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:, None]  # each drops the digits before its own
    parts = (raw[..., :32], powers), (raw[..., 32:48], powers), (raw[..., 48:52], powers[:4])
    shifted = (part[..., None, :] * power for part, power in parts)  # (N, B, digits, bytes)
    rows = [part.reshape(*raw.shape[:2], math.prod(part.shape[2:])) for part in shifted]
    digits = np.concatenate(rows, axis=-1).astype(np.uint16) * np.uint16(3) >> np.uint16(8)
    return _ternary(digits.astype(np.uint8), _float16(raw, 52))


def tq2_0(raw: NDArray[np.uint8]) -> Blocks:
    """TQ2_0, 66 bytes for 256 weights: qs 64 x u8, d f16. w = d * (q - 1)."""
    return _ternary(_two_bits(raw[..., :64]), _float16(raw, 64))


def iq2_xxs(raw: NDArray[np.uint8]) -> Blocks:
    """IQ2_XXS, 66 bytes for 256 weights: d f16 and, for 32 weights, q 4 x u8, word u32.

    A word has all signs and a scale. w = d / 8 * (2 * scale + 1) * sign * GRID[q], 8 weights a q.
    """
    groups = _packed(raw[..., 2:]).reshape(*raw.shape[:2], 8, 8)
    q = groups[..., :4].reshape(*raw.shape[:2], 32)
    signs, scale = _signs_and_scales(groups[..., 4:].view("<u4")[..., 0])
    weights = _negated(_points(grids.IQ2_XXS, q), signs)
    d = _float16(raw, 0) * np.float32(1 / 8)
    return _scaled(EIGHT_BITS, weights, d, scale)


def iq2_xs(raw: NDArray[np.uint8]) -> Blocks:
    """IQ2_XS, 74 bytes for 256 weights: d f16, qs 32 x u16, scales 8 x u8 (4-bit, for 16 weights).

    A u16 is a q of 9 bits and, above it, signs in 7 bits. w as that of IQ2_XXS.
    """
    qs = raw[..., 2:66].view("<u2")
    signs = _eight_signs((qs >> np.uint16(9)).astype(np.uint8))
    weights = _negated(_points(grids.IQ2_XS, qs & np.uint16(0x1FF)), signs)
    d = _float16(raw, 0) * np.float32(1 / 8)
    return _scaled(EIGHT_BITS_16, weights, d, _pairs(raw[..., 66:]))


def iq2_s(raw: NDArray[np.uint8]) -> Blocks:
    """IQ2_S, 82 bytes for 256 weights: d f16, qs 32 x u8, signs 256 bits, qh 8 x u8, scales 8 x u8.

    As IQ2_XS, but with a sign for every weight and q of 10 bits, the upper two in qh.
    """
    high = raw[..., 66:74, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    q = _joined_bytes(raw[..., 2:34], high.reshape(*raw.shape[:2], 32))
    weights = _negated(_points(grids.IQ2_S, q), raw[..., 34:66])
    d = _float16(raw, 0) * np.float32(1 / 8)
    return _scaled(EIGHT_BITS_16, weights, d, _pairs(raw[..., 74:]))


def iq3_xxs(raw: NDArray[np.uint8]) -> Blocks:
    """IQ3_XXS, 98 bytes for 256 weights: d f16, qs 64 x u8, words 8 x u32, each for 32 weights.

    A word has all signs and a scale. w = d / 4 * (2 * scale + 1) * sign * GRID[q], 4 weights a q.
    """
    signs, scale = _signs_and_scales(raw[..., 66:].view("<u4"))
    weights = _negated(_points(grids.IQ3_XXS, raw[..., 2:66]), signs)
    d = _float16(raw, 0) * np.float32(1 / 4)
    return _scaled(EIGHT_BITS, weights, d, scale)


def iq3_s(raw: NDArray[np.uint8]) -> Blocks:
    """IQ3_S, 110 bytes for 256 weights: d f16, qs 64 x u8, qh 64 bits, signs 256 bits, scales 4 x u8.

    q has 9 bits, the ninth in qh, and a scale of 4 bits is that of 32 weights:
    w = d * (2 * scale + 1) * sign * GRID[q], 4 weights a q.
    """
    high = np.unpackbits(raw[..., 66:74], axis=-1, bitorder="little")
    q = _joined_bytes(raw[..., 2:66], high)
    weights = _negated(_points(grids.IQ3_S, q), raw[..., 74:106])
    return _scaled(EIGHT_BITS, weights, _float16(raw, 0), _pairs(raw[..., 106:]))


def iq1_s(raw: NDArray[np.uint8]) -> Blocks:
    """IQ1_S, 50 bytes for 256 weights: d f16, qs 32 x u8, qh 8 x u16, each for 32 weights.

    The lowest 12 bits of a qh are the upper 3 of four q, then come 3 of scale and the sign of delta:
    w = d / 8 * (2 * scale + 1) * (GRID[q] + delta), delta 1 or -1, 8 weights a q.
    """
    qh = raw[..., 34:].view("<u2")  # (N, B, 8)
    high = (qh[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)).astype(np.uint8)
    q = _joined_bytes(raw[..., 2:34], high.reshape(*raw.shape[:2], 32))
    weights = _points(grids.IQ1, q) + _deltas(qh & np.uint16(0x8000), 32)
    d = _float16(raw, 0) * np.float32(1 / 8)
    return _scaled(EIGHT_BITS, weights, d, qh >> np.uint16(12) & np.uint16(7))


def iq1_m(raw: NDArray[np.uint8]) -> Blocks:
    """IQ1_M, 56 bytes for 256 weights: qs 32 x u8, qh 16 x u8, scales 4 x u16.

    Half a byte of qh is the upper 3 bits of q and the sign of delta; a u16 is four scales of 3 bits,
    each of 16 weights, and 4 bits of d, an f16, the lowest first. w as that of IQ1_S.
    """
    qh = _pairs(raw[..., 32:48])  # (N, B, 32)
    q = _joined_bytes(raw[..., :32], qh & np.uint8(7))
    weights = _points(grids.IQ1, q) + _deltas(qh & np.uint8(8), 8)
    words = raw[..., 48:].view("<u2")  # (N, B, 4)
    parts = words >> np.uint16(12) << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(parts, axis=-1).view(np.float16).astype(np.float32)
    scale = words[..., None] >> np.array([0, 3, 6, 9], np.uint16) & np.uint16(7)
    return _scaled(EIGHT_BITS_16, weights, d * np.float32(1 / 8), scale.reshape(*raw.shape[:2], 16))


def _k_scales(raw: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scales and minimums of Q4_K and Q5_K, times d and dmin: two of (N, S).

    Twelve bytes hold eight of each in 6 bits: the first four of each have a byte of their own, whose
    upper two bits belong to the last four, whose lower four bits share the last four bytes.
    """
    head = _packed(raw[..., :16])
    words = head.view("<u4")  # four bytes at a time
    first, second, third = (words[..., i] for i in (1, 2, 3))
    # eight scales and, behind them, eight minimums
    fields = np.empty_like(words)
    fields[..., 0] = first & _EACH_BYTE * 0x3F
    fields[..., 1] = third & _EACH_BYTE * 0x0F | first >> np.uint32(2) & _EACH_BYTE * 0x30
    fields[..., 2] = second & _EACH_BYTE * 0x3F
    fields[..., 3] = third >> np.uint32(4) & _EACH_BYTE * 0x0F
    fields[..., 3] |= second >> np.uint32(2) & _EACH_BYTE * 0x30
    scale, minimum = fields.view("<u8")[..., 0], fields.view("<u8")[..., 1]
    d, dmin = _float16(head, 0), _float16(head, 2)
    return _times(d, _floats(scale)), _times(dmin, _floats(minimum))


def _floats(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """(N, B) words of eight bytes each -> (N, B, 8) float32."""
    return words[..., None].copy().view(np.uint8).astype(np.float32)


def _times(d: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """d: (N, B), scales: (N, B, n) -> (N, S), d * scale. Repeated first: n is a short loop."""
    each = np.repeat(d, scales.shape[-1], axis=-1)
    each *= _sub_blocks(scales)
    return each


@cache
def _values(grid: grids.Grid) -> NDArray[np.generic]:
    """Read a grid, once: (points,), the int8 values of each as one item, for the speed of look-ups."""
    bits = 16 // grid.size
    points = np.frombuffer(bytes.fromhex(grid.points), ">u2")[:, None]
    levels = points >> bits * np.arange(grid.size, dtype=np.uint16) & np.uint16((1 << bits) - 1)
    values: NDArray[np.generic] = np.array(grid.values, np.int8)[levels].view(f"u{grid.size}")
    return values[:, 0]


def _points(grid: grids.Grid, q: NDArray[np.uint8 | np.uint16]) -> NDArray[np.uint8]:
    """(N, B, 256 / size) numbers of points -> (N, B, 256), negative ones as two's complements."""
    return _values(grid)[q].view(np.uint8)


def _joined_bytes(low: NDArray[np.uint8], high: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Numbers of 16 bits from their halves."""
    return low | high.astype(np.uint16) << np.uint16(8)


def _negated(weights: NDArray[np.uint8], signs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, B, 256), negated where a bit of (N, B, 32) is set, as two's complements."""
    ones = -np.unpackbits(signs, axis=-1, bitorder="little")  # 0 or 0xff
    return (weights ^ ones) - ones


def _eight_signs(signs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Seven signs -> eight: the last makes the number of negative weights even."""
    return signs | np.bitwise_count(signs) << np.uint8(7)  # of the count, only its lowest bit stays


def _signs_and_scales(
    words: NDArray[np.uint32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint32]]:
    """Words of IQ2_XXS and IQ3_XXS, (N, B, 8): four times 7 bits of signs, and 4 bits of scale.

    Returns:
        signs: (N, B, 32), eight in a byte.
        scales: (N, B, 8).
    """
    seven = words[..., None] >> np.array([0, 7, 14, 21], np.uint32) & np.uint32(0x7F)
    signs = _eight_signs(seven.astype(np.uint8)).reshape(*words.shape[:2], 32)
    return signs, words >> np.uint32(28)


def _deltas(is_negative: NDArray[np.uint8 | np.uint16], size: int) -> NDArray[np.uint8]:
    """(N, B, 256 / size) -> (N, B, 256): 1, and -1 where it is not zero, for `size` weights each."""
    return np.repeat(np.where(is_negative, np.uint8(0xFF), np.uint8(1)), size, axis=-1)


def _scaled(
    layout: BlockLayout,
    weights: NDArray[np.uint8],
    d: NDArray[np.float32],
    scale: NDArray[T],
) -> Blocks:
    """Make blocks of w = d * (2 * scale + 1) * weight.

    Args:
        layout: of 8 bits without an offset.
        weights: (N, B, 256) two's complements.
        d: (N, B).
        scale: (N, B, 256 / block_size) integers.
    """
    q = _sub_blocks(_centred(weights, 0), layout.block_size)
    factors = 2 * scale.astype(np.float32) + 1
    return Blocks(layout, q, _sub_blocks(d[..., None] * factors), None)


def _ternary(q: NDArray[np.uint8], d: NDArray[np.float32]) -> Blocks:
    """Make blocks of w = d * (q - 1): q (N, B, 256), d (N, B), the same for eight sub-blocks."""
    packed = _nibbles(_sub_blocks(q + np.uint8(7), 32))
    return Blocks(FOUR_BITS, packed, np.repeat(d, 8, axis=-1), None)


def _sub_blocks(values: NDArray[T], size: int = 0) -> NDArray[T]:
    """(N, B, ...) -> (N, S), or (N, S, size)."""
    count = math.prod(values.shape[1:])
    shape = (len(values), count // size, size) if size else (len(values), count)
    return values.reshape(shape)


def _halves(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) bytes -> (..., 2 n): all low halves, then all high ones."""
    words = _packed(qs).view("<u8")
    high = words >> np.uint64(4)
    return _joined_items(_masked(words, 0x0F), _masked(high, 0x0F))


def _pairs(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, B, n) bytes -> (N, B, 2 n): each low half and then its high one."""
    both = np.stack((packed & np.uint8(0x0F), packed >> np.uint8(4)), axis=-1)
    return both.reshape(*packed.shape[:2], 2 * packed.shape[2])


def _bits(qh: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., 4) bytes -> (..., 32) bits, the lowest first."""
    bits = np.unpackbits(_packed(qh).reshape(-1), bitorder="little")
    return bits.reshape(*qh.shape[:-1], 8 * qh.shape[-1])


def _upper_bits(
    qh: NDArray[np.uint8], places: Iterable[int], mask: int, added: int
) -> NDArray[np.uint8]:
    """(..., n) bytes -> the bits at each place moved to the fifth and on: (..., len(places) * n).

    What is added to them does not touch the lower four, which can be put there.
    """
    words = qh.view("<u8")  # the masks keep what moves into a neighbour's byte out
    moved = (words << np.uint64(4 - i) if i < 4 else words >> np.uint64(i - 4) for i in places)
    return _joined_items(*(_masked(part, mask, added) for part in moved))


def _masked(words: NDArray[np.uint64], mask: int, added: int = 0) -> NDArray[np.uint8]:
    """Keep some bits of each byte, in place, and add to each byte what does not overflow it."""
    words &= _EIGHT_BYTES * np.uint64(mask)
    if added:
        words += _EIGHT_BYTES * np.uint64(added)
    return words.view(np.uint8)


def _two_bits(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, B, 64) bytes -> (N, B, 256): two halves of 32 bytes, each four times from low to high."""
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    return (qs.reshape(*qs.shape[:2], 2, 1, 32) >> shifts & np.uint8(3)).reshape(*qs.shape[:2], 256)


def _nibbles(q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) numbers of 4 bits -> (..., n / 2) bytes, neighbours in one byte, first low."""
    return q[..., ::2] | q[..., 1::2] << np.uint8(4)


def _centred(q: NDArray[np.uint8], middle: int) -> NDArray[np.uint8]:
    """Numbers whose middle is `middle` -> numbers whose middle is 128."""
    return q + np.uint8(128 - middle)


def _looked_up(values: NDArray[np.int16], q: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers of 4 bits -> the values that they stand for, with 128 added."""
    return (values + 128).astype(np.uint8)[q]


def _float16(raw: NDArray[np.uint8], start: int) -> NDArray[np.float32]:
    """The float16 at a place of every block: (N, k_blocks, type_size) -> (N, k_blocks)."""
    return raw[..., start : start + 2].view("<f2")[..., 0].astype(np.float32)


def _packed(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy a part of every block, as one item: many times faster than byte by byte."""
    return qs.view(f"V{qs.shape[-1]}").copy().view(np.uint8)


def _joined_items(*parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) bytes each -> (..., len(parts) * n): each n bytes are copied as one item."""
    size = parts[0].shape[-1]
    items = [part.view(f"V{size}") for part in parts]
    return np.concatenate(items, axis=-1).view(np.uint8)


def _in_order(qs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., n) uint8: ggml's order of 4-bit numbers -> neighbours in one byte, first low.

    ggml has the first n weights in the low halves of n bytes and the next n in the high halves. Two
    bytes hold 0xdbca where weights a, b of the first and c, d of the next are neighbours: with the
    middle two exchanged they are 0xdcba, both pairs as they should be. (2.9 GB/s on one core; byte by
    byte, with strides of two, 0.3.)
    """
    words = _packed(qs).view("<u8")
    middle = words >> np.uint64(4)
    middle ^= words
    middle &= np.uint64(0x00F0_00F0_00F0_00F0)  # where the two differ
    pairs, both = words.view("<u2"), middle.view("<u2")
    both *= np.uint16(0x11)
    pairs ^= both
    first = pairs.astype(np.uint8)
    pairs >>= np.uint16(8)
    return _joined_items(first, pairs.astype(np.uint8))
