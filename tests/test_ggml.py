from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from weightpkg.formats import ggml, ggml_blocks, ggml_grids
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

TYPES = {kind.name: kind for kind in ggml.GGML_TYPES.values()}
BLOCK_TYPES = [kind.name for kind in TYPES.values() if isinstance(kind.layout, BlockLayout)]
# those that the reference can make
QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
# where in a block its float16 numbers begin: the scale first
FLOATS = {
    "Q4_1": (0, 2), "Q5_1": (0, 2), "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "TQ1_0": (52,), "TQ2_0": (64,), "MXFP4": (),
    "IQ1_M": (54,),  # its upper byte at least: `write_scale`
}  # fmt: skip
SCALES = {
    "zero": 0x0000,
    "negative zero": 0x8000,
    "smallest denormal": 0x0001,
    "negative denormal": 0x83FF,
    "smallest normal": 0x0400,
    "one": 0x3C00,
    "negative": 0xBE21,
    "largest": 0x7BFF,
    "largest negative": 0xFBFF,
}


def decoded(name: str, raw: NDArray[np.uint8]) -> Blocks:
    blocks = ggml.decode_rows(TYPES[name], raw)
    assert isinstance(blocks, Blocks)
    return blocks


def weights(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = ggml.decode_rows(TYPES[name], raw)
    return ggml.dequantize(values) if isinstance(values, Blocks) else values


def reference(name: str, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    return values


def assert_equal_to_reference(name: str, raw: NDArray[np.uint8]) -> None:
    """Bit for bit; with an offset, within 4e-7 of the block's largest magnitude."""
    ours, theirs = weights(name, raw), reference(name, raw)
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    layout = TYPES[name].layout
    if isinstance(layout, BlockLayout) and layout.has_offset:
        blocks = theirs.reshape(-1, layout.block_size)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        assert (np.abs(ours.reshape(blocks.shape) - blocks) <= 4e-7 * largest).all()
    else:
        np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def random_rows(name: str, rows: int, k_blocks: int, seed: int = 0) -> NDArray[np.uint8]:
    """Rows of random bytes whose float16 numbers are finite."""
    kind = TYPES[name]
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, (rows, k_blocks, kind.type_size), np.uint8)
    for place in FLOATS.get(name, (0,)):
        raw[..., place + 1] &= 0xBF  # magnitudes below 2
    if name == "MXFP4":
        raw[..., 0] &= 0x7F  # scales below 1
    return raw.reshape(rows, -1)


def write_scale(name: str, raw: NDArray[np.uint8], scale: int) -> None:
    """Write a float16, given as 16 bits, into every block. raw: (N, k_blocks, type_size)."""
    if name == "IQ1_M":  # which has it in the upper four bits of four u16
        for place, part in zip(range(49, 57, 2), (0, 4, 8, 12), strict=True):
            raw[..., place] = raw[..., place] & 0x0F | (scale >> part & 0x0F) << 4
        return
    for place in FLOATS.get(name, (0,))[:1]:
        raw[..., place : place + 2] = np.array([scale], "<u2").view(np.uint8)


def test_knows_every_type_of_the_reference_with_its_sizes() -> None:
    ours = {i: (kind.name, kind.block_size, kind.type_size) for i, kind in ggml.GGML_TYPES.items()}
    theirs = {kind.value: (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # what a newer reference adds is not ours to know yet
    assert {i: theirs[i] for i in theirs if i in ours} == ours


def test_every_layout_can_be_decoded() -> None:
    for kind in ggml.GGML_TYPES.values():
        assert (kind.decode is not None) == isinstance(kind.layout, BlockLayout), kind.name


def test_names_the_types_that_are_converted() -> None:
    assert ggml.convertible_types() == [
        "F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
        "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "IQ1_M", "BF16",
        "TQ1_0", "TQ2_0", "MXFP4",
    ]  # fmt: skip


def test_refuses_to_decode_a_type_without_a_layout() -> None:
    with pytest.raises(ValueError, match="Q8_K cannot be decoded"):
        ggml.decode_rows(TYPES["Q8_K"], np.zeros((1, 292), np.uint8))


# One block each, written by hand: bytes 0x10, 0x32 ... hold 0, 2 ... in their low halves.
NIBBLES = bytes.fromhex("10 32 54 76 98 ba dc fe 10 32 54 76 98 ba dc fe".replace(" ", ""))
LOW = [0, 2, 4, 6, 8, 10, 12, 14] * 2
HIGH = [1, 3, 5, 7, 9, 11, 13, 15] * 2


def test_reads_a_block_of_q4_0() -> None:
    raw = np.frombuffer(b"\x00\x38" + NIBBLES, np.uint8)[None]  # d = 0.5
    blocks = decoded("Q4_0", raw)
    assert blocks.layout == BlockLayout(4, 32, has_offset=False)
    # weights 0 to 15 are the low halves, so the first byte has 0 and 2
    assert blocks.q.tobytes() == bytes.fromhex("2064a8ec2064a8ec3175b9fd3175b9fd")
    assert blocks.q.shape == (1, 1, 16)
    assert blocks.scale.tolist() == [[0.5]]
    assert blocks.offset is None
    assert ggml.dequantize(blocks).tolist() == [[(q - 8) * 0.5 for q in LOW + HIGH]]


def test_reads_a_block_of_q4_1() -> None:
    raw = np.frombuffer(b"\x00\x38\x00\xc2" + NIBBLES, np.uint8)[None]  # d = 0.5, m = -3
    blocks = decoded("Q4_1", raw)
    assert blocks.layout == BlockLayout(4, 32, has_offset=True)
    assert blocks.scale.tolist() == [[0.5]]
    assert blocks.offset is not None
    assert blocks.offset.tolist() == [[1.0]]  # 8 * 0.5 - 3
    assert ggml.dequantize(blocks).tolist() == [[q * 0.5 - 3 for q in LOW + HIGH]]


def test_reads_a_block_of_q8_0() -> None:
    q = [0, 1, -1, 127, -128, *range(27)]
    raw = np.frombuffer(b"\x00\x34" + np.array(q, np.int8).tobytes(), np.uint8)[None]  # d = 0.25
    blocks = decoded("Q8_0", raw)
    assert blocks.layout == BlockLayout(8, 32, has_offset=False)
    assert blocks.q[0, 0, :5].tolist() == [128, 129, 127, 255, 0]
    assert ggml.dequantize(blocks).tolist() == [[value * 0.25 for value in q]]


def test_reads_a_block_of_tq1_0() -> None:
    first = (2 * 81 + 0 * 27 + 1 * 9 + 2 * 3 + 1) * 256 // 243 + 1  # 0.20121 in base 3, rounded up
    raw = np.array([[first] + 51 * [0] + [0x00, 0x38]], np.uint8)  # d = 0.5
    blocks = decoded("TQ1_0", raw)
    assert blocks.layout == BlockLayout(4, 32, has_offset=False)
    assert blocks.scale.tolist() == [8 * [0.5]]
    found = ggml.dequantize(blocks)[0]
    # the digits of the first byte are 32 weights apart, and the digit 0 is the weight -1
    assert found[:160:32].tolist() == [0.5, -0.5, 0, 0.5, 0]
    assert (np.delete(found, range(0, 160, 32)) == -0.5).all()


def test_reads_a_block_of_tq2_0() -> None:
    raw = np.array([[0b01_00_10_01] + 63 * [0x55] + [0x00, 0x38]], np.uint8)  # d = 0.5
    found = ggml.dequantize(decoded("TQ2_0", raw))[0]
    assert found[:128:32].tolist() == [0, 0.5, -0.5, 0]  # from the lowest bits upwards
    assert (np.delete(found, range(0, 128, 32)) == 0).all()


def test_reads_a_block_of_iq2_xxs() -> None:
    raw = np.zeros((1, 66), np.uint8)
    raw[0, :2] = 0x00, 0x48  # d = 8
    raw[0, 2:6] = 1, 0, 0, 0  # point 1 of the grid: 2, and 0 seven times
    raw[0, 6:10] = (
        0b0000001,
        0,
        0,
        0x30,
    )  # the first of seven signs, so the eighth too; a scale of 3
    blocks = decoded("IQ2_XXS", raw)
    assert blocks.layout == BlockLayout(8, 32, has_offset=False)
    assert blocks.q[0, 0, :9].tolist() == [128 - 43, *(6 * [128 + 8]), 128 - 8, 128 + 8]
    assert blocks.scale.tolist() == [[7.0, *(7 * [1.0])]]  # d / 8 * (2 * 3 + 1)


def test_reads_a_block_of_iq1_m() -> None:
    raw = np.zeros((1, 56), np.uint8)
    raw[0, :2] = 2, 0  # point 2 of the grid: 1, 1, and 0 six times, which are 0, 0, -1 ...
    raw[0, 32] = 0x08  # the first delta is negative, the second is not
    raw[0, 48:] = 0x02, 0, 0, 0, 0, 0xC0, 0, 0x30  # a scale of 2; d = 0x3c00, which is 1
    blocks = decoded("IQ1_M", raw)
    assert blocks.layout == BlockLayout(8, 16, has_offset=False)
    eighths = [-1, -1, *(6 * [-9]), *(8 * [-7])]
    assert blocks.q[0, 0].tolist() == [128 + value for value in eighths]
    assert blocks.scale.tolist() == [[5 / 8, *(15 * [1 / 8])]]
    assert ggml.dequantize(blocks)[0, :16].tolist() == [value * 5 / 8 for value in eighths]


def test_reads_dense_rows() -> None:
    raw = np.array([[0x80, 0x3F, 0x20, 0xC0]], np.uint8)
    assert ggml.dense_rows(raw, "bfloat16").tolist() == [[1.0, -2.5]]
    assert ggml.dense_rows(np.array([[0x00, 0x3C, 0x00, 0xC1]], np.uint8), "float16").tolist() == [
        [1.0, -2.5]
    ]
    assert ggml.dense_rows(np.array([[0, 0, 0x20, 0xC0]], np.uint8), "float32").tolist() == [[-2.5]]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *QUANTIZED])
def test_equals_the_reference_on_quantised_weights(name: str) -> None:
    values = np.random.default_rng(1).standard_normal((24, 768), np.float32)
    raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    assert_equal_to_reference(name, np.ascontiguousarray(raw).view(np.uint8))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_equals_the_reference_on_random_bytes(name: str) -> None:
    assert_equal_to_reference(name, random_rows(name, 40, 25))


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_equals_the_reference_on_extreme_scales(name: str, scale: int) -> None:
    raw = random_rows(name, 4, 3).reshape(4, 3, -1)
    write_scale(name, raw, scale)
    assert_equal_to_reference(name, raw.reshape(4, -1))


@pytest.mark.parametrize("byte", [0x00, 0x0F, 0x55, 0x80, 0xFF])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_equals_the_reference_on_blocks_of_one_byte(name: str, byte: int) -> None:
    raw = np.full((2, 3, TYPES[name].type_size), byte, np.uint8)
    for place in FLOATS.get(name, (0,)):
        raw[..., place : place + 2] = 0x3C  # 1.06
    if name == "MXFP4":
        raw[..., 0] &= 0x7F
    assert_equal_to_reference(name, raw.reshape(2, -1))


@pytest.mark.parametrize("name", ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"])
def test_equals_the_reference_in_every_point_of_a_grid(name: str) -> None:
    theirs = getattr(gguf.quants, name)
    theirs.init_grid()
    grid = ggml_grids.IQ1 if name == "IQ1_S" else getattr(ggml_grids, name)
    points = ggml_blocks._values(grid)[:, None].view(np.int8)
    assert points.shape == theirs.grid_shape
    np.testing.assert_array_equal(points, theirs.grid[0, 0] * (8 if name == "IQ1_S" else 1))


@pytest.mark.parametrize("minimum", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
def test_equals_the_reference_on_extreme_minimums(scale: int, minimum: int) -> None:
    raw = random_rows("Q4_1", 4, 3).reshape(4, 3, -1)
    raw[..., :4] = np.array([scale, minimum], "<u2").view(np.uint8)
    assert_equal_to_reference("Q4_1", raw.reshape(4, -1))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_decodes_rows_that_cannot_be_written_to(name: str) -> None:
    raw = random_rows(name, 2, 2)
    expected = weights(name, raw)
    raw.setflags(write=False)
    np.testing.assert_array_equal(weights(name, raw), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", *BLOCK_TYPES])
def test_decodes_no_rows(name: str) -> None:
    kind = TYPES[name]
    row_bytes = 512 // kind.block_size * kind.type_size
    assert weights(name, np.empty((0, row_bytes), np.uint8)).shape == (0, 512)
