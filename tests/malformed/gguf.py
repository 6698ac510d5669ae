"""GGUF files that must be refused: one function an attack, named after it.

The kinds that llama.cpp tests with crafted files are all here (tests/test-gguf.cpp: header, kv,
tensors and data), and what else has harmed readers: lengths that lie, overlaps, paths as names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from factories import (
    ARRAY,
    F32,
    FLOAT32,
    I8,
    INT32,
    Q4_0,
    STRING,
    UINT8,
    UINT32,
    TensorBytes,
    gguf_array,
    gguf_bytes,
    gguf_header,
    gguf_pair,
    gguf_string,
    gguf_tensor,
    padded,
)

_HUGE = 2**64 - 1


class Attack(NamedTuple):
    """A file, and what the refusal says of it: place and reason, as they stand in the message."""

    content: bytes
    refusal: str


def attacks() -> list[Callable[[], Attack]]:
    """Every attack of this module."""
    return [
        function
        for name, function in globals().items()
        if getattr(function, "__annotations__", {}).get("return") == "Attack"
        and not name.startswith("_")
    ]


def _pairs(*pairs: bytes) -> bytes:
    return gguf_header(0, len(pairs)) + b"".join(pairs)


def _tensors(*tensors: bytes, data: bytes = bytes(256)) -> bytes:
    return padded(gguf_header(len(tensors), 0) + b"".join(tensors)) + data


def header_bad_magic() -> Attack:
    return Attack(b"FUGG" + gguf_header(0, 0)[4:], "header: does not begin with `GGUF` but with")


def header_version_0() -> Attack:
    return Attack(gguf_header(0, 0, version=0), "header: version 0 is not known")


def header_version_1() -> Attack:
    return Attack(gguf_header(0, 0, version=1), "header: version 1 is not known")


def header_version_future() -> Attack:
    return Attack(gguf_header(0, 0, version=4), "header: version 4 is not known")


def header_big_endian() -> Attack:
    return Attack(b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "header: the numbers are big-endian")


def header_too_many_tensors() -> Attack:
    return Attack(gguf_header(_HUGE, 0), "header: 18,446,744,073,709,551,615 tensors, more than")


def header_too_many_keys() -> Attack:
    return Attack(gguf_header(0, _HUGE), "header: 18,446,744,073,709,551,615 metadata keys, more")


def header_one_key_too_many() -> Attack:
    return Attack(gguf_header(0, 65_537), "header: 65,537 metadata keys, more than 65,536")


def header_counts_what_is_not_there() -> Attack:
    return Attack(gguf_header(0, 65_536), "metadata key 0: a number of 8 bytes, but the file ends")


def key_longer_than_the_file() -> Attack:
    pair = struct.pack("<Q", 1000) + b"key"
    return Attack(_pairs(pair), "metadata key 0: a key of 1,000 bytes, but the file ends after 3")


def key_of_the_largest_size() -> Attack:
    return Attack(_pairs(struct.pack("<Q", _HUGE) + b"key"), "metadata key 0: a key of 18,446,744")


def key_too_long() -> Attack:
    pair = gguf_pair("k" * 65_537, UINT32, bytes(4))
    return Attack(_pairs(pair), "metadata key 0: a key of 65,537 bytes, more than 65,536")


def key_empty() -> Attack:
    return Attack(
        _pairs(gguf_pair("", UINT32, bytes(4))), "metadata key 0: the key '' is not print"
    )


def key_with_control_character() -> Attack:
    pair = gguf_pair("a\x1b[2Jb", UINT32, bytes(4))
    return Attack(_pairs(pair), r"metadata key 0: the key 'a\x1b[2Jb' is not printable ASCII")


def key_not_ascii() -> Attack:
    pair = gguf_pair("größe", UINT32, bytes(4))
    return Attack(_pairs(pair), "metadata key 0: the key 'größe' is not printable ASCII")


def key_not_utf8() -> Attack:
    return Attack(_pairs(gguf_pair(b"a\xff", UINT32, bytes(4))), "a key is not UTF-8 at byte 1")


def key_twice() -> Attack:
    pair = gguf_pair("a.b", UINT32, bytes(4))
    return Attack(_pairs(pair, pair), "metadata key 1 `a.b`: the key is there twice")


def value_of_unknown_type() -> Attack:
    return Attack(
        _pairs(gguf_pair("a", 13, bytes(8))), "metadata key 0 `a`: there is no value type 13"
    )


def value_not_utf8() -> Attack:
    pair = gguf_pair("a", STRING, gguf_string(b"ab\xc3("))
    return Attack(_pairs(pair), "metadata key 0 `a`: a string is not UTF-8 at byte 2")


def string_longer_than_the_file() -> Attack:
    pair = gguf_pair("a", STRING, struct.pack("<Q", 2**20) + b"short")
    return Attack(_pairs(pair), "a string of 1,048,576 bytes, but the file ends after 5")


def array_of_2_to_the_60() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(UINT8, 2**60, bytes(8)))
    return Attack(_pairs(pair), "an array of 1,152,921,504,606,846,976 bytes, but the file ends")


def array_of_2_to_the_31_strings() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(STRING, 2**31, bytes(64)))
    return Attack(_pairs(pair), "an array of 17,179,869,184 bytes, but the file ends after 64")


def array_whose_size_overflows() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(INT32, 2**62, bytes(8)))  # 2**64 bytes
    return Attack(_pairs(pair), "an array of 18,446,744,073,709,551,616 bytes, but the file ends")


def array_with_too_many_elements() -> Attack:
    count = 4 * 1024 * 1024 + 1
    pair = gguf_pair("a", ARRAY, gguf_array(UINT8, count, bytes(count)))
    return Attack(_pairs(pair), "metadata key 0 `a`: more than 4,194,304 array elements in all")


def array_string_longer_than_the_file() -> Attack:
    elements = gguf_string("one") + struct.pack("<Q", _HUGE)
    pair = gguf_pair("a", ARRAY, gguf_array(STRING, 2, elements))
    return Attack(_pairs(pair), "metadata key 0 `a`: element 1 goes past the end")


def array_string_cut_off() -> Attack:
    elements = gguf_string("a string so long that") + gguf_string("")[:7]
    pair = gguf_pair("a", ARRAY, gguf_array(STRING, 2, elements))
    return Attack(_pairs(pair), "metadata key 0 `a`: element 1 goes past the end")


def array_string_not_utf8() -> Attack:
    elements = gguf_string("one") + gguf_string(b"\xed\xa0\x80")  # a surrogate
    pair = gguf_pair("a", ARRAY, gguf_array(STRING, 2, elements))
    return Attack(_pairs(pair), "metadata key 0 `a`: element 1 is not UTF-8")


def array_of_arrays() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(ARRAY, 1, gguf_array(UINT8, 0, b"")))
    return Attack(_pairs(pair), "metadata key 0 `a`: an array of arrays")


def array_of_no_arrays() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(ARRAY, 0, b""))
    return Attack(_pairs(pair), "metadata key 0 `a`: an array of arrays")


def array_of_unknown_type() -> Attack:
    pair = gguf_pair("a", ARRAY, gguf_array(77, 0, b""))
    return Attack(_pairs(pair), "metadata key 0 `a`: there is no value type 77")


def _alignment(value: int, type_id: int = UINT32) -> Attack:
    pair = gguf_pair("general.alignment", type_id, struct.pack("<I", value))
    tensor = gguf_tensor("t", (4,))
    content = padded(gguf_header(1, 1) + pair + tensor, 64) + bytes(16)
    return Attack(content, "metadata key 0 `general.alignment`: must be a ")


def alignment_13() -> Attack:
    return _alignment(13)


def alignment_0() -> Attack:
    return _alignment(0)


def alignment_too_large() -> Attack:
    return _alignment(131_072)


def alignment_of_another_type() -> Attack:
    return _alignment(32, INT32)


def alignment_as_float() -> Attack:
    return _alignment(32, FLOAT32)


def alignment_not_the_one_used() -> Attack:
    tensors = gguf_tensor("a", (1,)) + gguf_tensor("b", (1,), offset=4)
    content = padded(gguf_header(2, 0) + tensors) + bytes(64)
    return Attack(content, "tensor 1 `b`: offset 4 where 32 must be")


def part_of_a_split_model() -> Attack:
    return Attack(gguf_bytes({"split.count": 3}), "`split.count`: the file is one part of 3")


def tensor_name_too_long() -> Attack:
    return Attack(
        _tensors(gguf_tensor("n" * 64, (4,))), "tensor 0: a name of 64 bytes, more than 63"
    )


def tensor_name_empty() -> Attack:
    return Attack(_tensors(gguf_tensor("", (4,))), "tensor 0: the name '' is not printable")


def tensor_name_with_nul() -> Attack:
    return Attack(
        _tensors(gguf_tensor("a\0b", (4,))), r"tensor 0: the name 'a\x00b' is not printable"
    )


def tensor_name_not_utf8() -> Attack:
    return Attack(_tensors(gguf_tensor(b"\x80", (4,))), "tensor 0: a name is not UTF-8 at byte 0")


def tensor_name_climbs_up() -> Attack:
    tensor = gguf_tensor("../../etc/passwd", (4,))
    return Attack(
        _tensors(tensor), "tensor 0: the name '../../etc/passwd' is not printable, or a path"
    )


def tensor_name_climbs_up_on_windows() -> Attack:
    tensor = gguf_tensor("a\\..\\b", (4,))
    return Attack(_tensors(tensor), r"tensor 0: the name 'a\\..\\b' is not printable, or a path")


def tensor_name_twice() -> Attack:
    tensors = gguf_tensor("a", (8,)), gguf_tensor("a", (8,), offset=32)
    return Attack(_tensors(*tensors), "tensor 1 `a`: the name is there twice")


def tensor_without_dimensions() -> Attack:
    return Attack(_tensors(gguf_tensor("a", ())), "tensor 0 `a`: 0 dimensions, not 1 to 4")


def tensor_with_5_dimensions() -> Attack:
    return Attack(_tensors(gguf_tensor("a", (1,) * 5)), "tensor 0 `a`: 5 dimensions, not 1 to 4")


def tensor_with_negative_dimension() -> Attack:
    return Attack(_tensors(gguf_tensor("a", (4, -1))), "tensor 0 `a`: shape (-1, 4) has a negative")


def tensor_with_too_many_weights() -> Attack:
    side = 4 * (2**31 - 1)
    return Attack(_tensors(gguf_tensor("a", (side, side), I8)), "is too large to count")


def tensor_with_too_many_bytes() -> Attack:
    tensor = gguf_tensor("a", (2**31, 2**31), F32)  # 2**62 weights, 2**64 bytes
    return Attack(_tensors(tensor), "tensor 0 `a`: shape (2147483648, 2147483648) is too large")


def tensor_that_overflows_though_empty() -> Attack:
    return Attack(_tensors(gguf_tensor("a", (2**62, 0, 2**62))), "is too large to count")


def tensor_of_unknown_type() -> Attack:
    return Attack(_tensors(gguf_tensor("a", (4,), 42)), "tensor 0 `a`: there is no tensor type 42")


def tensor_of_removed_type() -> Attack:
    return Attack(_tensors(gguf_tensor("a", (32,), 4)), "tensor 0 `a`: there is no tensor type 4")


def tensor_with_part_of_a_block() -> Attack:
    tensor = gguf_tensor("a", (48,), Q4_0)
    return Attack(
        _tensors(tensor), "tensor 0 `a`: rows of 48 cannot be made of blocks of 32 (Q4_0)"
    )


def tensor_at_the_largest_offset() -> Attack:
    tensor = gguf_tensor("a", (4,), offset=_HUGE)
    return Attack(
        _tensors(tensor), "tensor 0 `a`: offset 18,446,744,073,709,551,615 where 0 must be"
    )


def tensor_at_unaligned_offset() -> Attack:
    return Attack(
        _tensors(gguf_tensor("a", (4,), offset=4)), "tensor 0 `a`: offset 4 where 0 must be"
    )


def tensors_that_overlap() -> Attack:
    tensors = gguf_tensor("a", (16,)), gguf_tensor("b", (16,), offset=32)
    return Attack(_tensors(*tensors), "tensor 1 `b`: offset 32 where 64 must be")


def tensors_with_a_hole() -> Attack:
    tensors = gguf_tensor("a", (8,)), gguf_tensor("b", (8,), offset=64)
    return Attack(_tensors(*tensors), "tensor 1 `b`: offset 64 where 32 must be")


def data_one_byte_short() -> Attack:
    content = gguf_bytes(tensors=[TensorBytes("a", (8,), F32, bytes(32))])
    return Attack(content[:-1], f"tensor 0 `a`: ends at byte {len(content)}, but the file after")


def data_missing() -> Attack:
    content = gguf_header(1, 0) + gguf_tensor("a", (8,))
    return Attack(content, "tensor 0 `a`: ends at byte 96, but the file after 57")


def data_beyond_the_file() -> Attack:
    tensor = gguf_tensor("a", (2**40,), I8)
    return Attack(_tensors(tensor), "tensor 0 `a`: ends at byte 1,099,511,627,840, but the file")


def data_whose_sizes_overflow_together() -> Attack:
    size = 0x7FFF_FFFF_FFFF_FFC0
    tensors = [gguf_tensor(name, (size,), I8, offset=i * size) for i, name in enumerate("ab")]
    return Attack(_tensors(*tensors), "tensor 0 `a`: ends at byte 9,223,372,036,854,775,")
