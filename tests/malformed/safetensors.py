"""Safetensors files that must be refused: one function an attack, named after it.

Those of the reference's own `attacks/` are here, what it accepts though its specification forbids
it, and the ways in which Python's JSON reader takes more than others.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

from factories import safetensors_bytes, safetensors_entry, safetensors_file
from malformed.gguf import Attack

_HUGE = 2**64 - 1
_ENTRY = '{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'


def attacks() -> list[Callable[[], Attack]]:
    """Every attack of this module."""
    return [
        function
        for name, function in globals().items()
        if getattr(function, "__annotations__", {}).get("return") == "Attack"
        and not name.startswith("_")
    ]


def _text(text: str, data: bytes = bytes(8)) -> bytes:
    return safetensors_file(text.encode(), data)


def _one(data: bytes = bytes(8), **fields: object) -> bytes:
    """A file of tensor `a`, with some fields other than they should be."""
    return safetensors_file({"a": safetensors_entry("F32", (2,), 0, 8) | fields}, data)


def _shape(text: str) -> Attack:
    content = _text(f'{{"a": {{"dtype": "F32", "shape": {text}, "data_offsets": [0, 8]}}}}')
    return Attack(content, "tensor `a`: shape is not an array of whole numbers")


def _name(name: str, shown: str) -> Attack:
    content = safetensors_file({name: safetensors_entry("F32", (2,), 0, 8)}, bytes(8))
    return Attack(content, f"header: the tensor name {shown} is empty, not printable, a path")


def _two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    """A file of two tensors of bytes, where they are said to be."""
    entries = {
        name: safetensors_entry("U8", (stop - start,), start, stop)
        for name, (start, stop) in {"a": first, "b": second}.items()
    }
    return safetensors_file(entries, bytes(size))


# The header as a whole


def header_without_its_size() -> Attack:
    return Attack(bytes(7), "header: the file ends after 7 bytes")


def header_of_no_bytes() -> Attack:
    return Attack(bytes(8), "header: is not JSON at character 0")


def header_longer_than_the_file() -> Attack:
    return Attack(struct.pack("<Q", 1000) + b"{}", "header: 1,000 bytes, but the file ends after 2")


def header_of_the_largest_size() -> Attack:
    content = struct.pack("<Q", _HUGE) + b"{}"
    return Attack(content, "header: 18,446,744,073,709,551,615 bytes, more than 25,000,000")


def header_one_byte_too_large() -> Attack:
    return Attack(struct.pack("<Q", 25_000_001) + b"{", "header: 25,000,001 bytes, more than")


def header_of_another_byte_order() -> Attack:
    content = struct.pack(">Q", 2) + b"{}"
    return Attack(content, "header: 144,115,188,075,855,872 bytes, more than 25,000,000")


def header_that_begins_with_something_else() -> Attack:
    return Attack(_text("[]"), "header: does not begin with its size and `{`")


def header_that_is_an_array() -> Attack:
    return Attack(_text(" []"), "header: is not an object")


def header_that_is_null() -> Attack:
    return Attack(_text("\nnull"), "header: is not an object")


def header_not_utf8() -> Attack:
    return Attack(safetensors_file(b'{"a\xff": 1}'), "header: is not UTF-8 at byte 3")


def header_with_a_surrogate_as_bytes() -> Attack:
    return Attack(safetensors_file(b'{"\xed\xa0\x80": 1}'), "header: is not UTF-8 at byte 2")


def header_in_utf16() -> Attack:
    content = safetensors_file(f'{{"a": {_ENTRY}}}'.encode("utf-16-le"), bytes(8))
    return Attack(content, "header: is not JSON at character 1")


def header_with_byte_order_mark() -> Attack:
    return Attack(_text('\ufeff{"a": 1}'), "header: does not begin with its size and `{`")


def header_with_byte_order_mark_after_a_space() -> Attack:
    return Attack(_text(f' \ufeff{{"a": {_ENTRY}}}'), "header: is not JSON at character 1")


def header_cut_off() -> Attack:
    return Attack(_text(f'{{"a": {_ENTRY}'), "header: is not JSON at character ")


def header_of_two_objects() -> Attack:
    return Attack(_text(f'{{"a": {_ENTRY}}}{{}}'), "header: is not JSON at character ")


def header_with_trailing_comma() -> Attack:
    return Attack(_text(f'{{"a": {_ENTRY},}}'), "header: is not JSON at character ")


def header_with_a_comment() -> Attack:
    return Attack(_text(f'{{"a": {_ENTRY}}} // b'), "header: is not JSON at character ")


def header_with_a_raw_newline_in_a_name() -> Attack:
    return Attack(_text(f'{{"a\nb": {_ENTRY}}}'), "header: is not JSON at character ")


def header_padded_with_nul() -> Attack:
    content = safetensors_file(f'{{"a": {_ENTRY}}}\0\0'.encode(), bytes(8))
    return Attack(content, "header: is not JSON at character ")


def header_padded_with_another_space() -> Attack:
    return Attack(_text(f'{{"a": {_ENTRY}}}\f\v'), "header: is not JSON at character ")


def header_with_too_much_padding() -> Attack:
    content = _text("{}" + 65_537 * " ", b"")
    return Attack(content, "header: 65,537 bytes of whitespace, more than 65,536")


def header_with_too_much_padding_in_front() -> Attack:
    content = _text(30_000 * "\n" + "{}" + 40_000 * " ", b"")
    return Attack(content, "header: 70,000 bytes of whitespace, more than 65,536")


def header_of_nothing_but_padding() -> Attack:
    return Attack(_text(4096 * " ", b""), "header: is not JSON at character ")


def header_nested_deep() -> Attack:
    return Attack(_text('{"a": ' + 200_000 * "["), "header: is nested too deep")


def header_of_objects_nested_deep() -> Attack:
    return Attack(_text(200_000 * '{"a": '), "header: is nested too deep")


def header_of_too_many_elements() -> Attack:
    content = _text('{"a": [' + 2_000_000 * "[]," + "[]]}")
    return Attack(content, "header: more than 1,048,576 commas and brackets")


def header_with_a_number_of_many_digits() -> Attack:
    return Attack(_one(shape=[10**3000]), "header: a number of 3,001 digits")


def header_with_a_fraction_of_many_digits() -> Attack:
    content = _text(f'{{"a": 0.{5000 * "1"}}}')
    return Attack(content, "header: a number of 5,002 digits")


def header_with_nan() -> Attack:
    return Attack(_text('{"a": NaN}'), "header: NaN is not a number of JSON")


def header_with_infinity() -> Attack:
    return Attack(_text('{"a": -Infinity}'), "header: -Infinity is not a number of JSON")


# What is there twice, or should not be there


def tensor_twice() -> Attack:
    other = _ENTRY.replace("F32", "I16").replace("[2]", "[4]")
    return Attack(_text(f'{{"a": {_ENTRY}, "a": {other}}}'), "header: the key 'a' is there twice")


def tensor_twice_alike() -> Attack:
    content = _text(f'{{"a": {_ENTRY}, "a": {_ENTRY}}}')
    return Attack(content, "header: the key 'a' is there twice")


def tensor_twice_once_escaped() -> Attack:
    content = _text(f'{{"a": {_ENTRY}, "\\u0061": {_ENTRY}}}')
    return Attack(content, "header: the key 'a' is there twice")


def field_twice() -> Attack:
    entry = _ENTRY.replace("{", '{"dtype": "I32", ')
    return Attack(_text(f'{{"a": {entry}}}'), "header: the key 'dtype' is there twice")


def metadata_twice() -> Attack:
    content = _text('{"__metadata__": {}, "__metadata__": {"a": "b"}}', b"")
    return Attack(content, "header: the key '__metadata__' is there twice")


def metadata_key_twice() -> Attack:
    content = _text('{"__metadata__": {"format": "pt", "format": "np"}}', b"")
    return Attack(content, "header: the key 'format' is there twice")


def field_that_is_unknown() -> Attack:
    return Attack(_one(strides=[1]), "tensor `a`: is not an object of dtype, shape and data_off")


def field_missing() -> Attack:
    content = safetensors_file({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8))
    return Attack(content, "tensor `a`: is not an object of dtype, shape and data_offsets alone")


def field_with_another_case() -> Attack:
    content = _text(f'{{"a": {_ENTRY.replace("shape", "Shape")}}}')
    return Attack(content, "tensor `a`: is not an object of dtype, shape and data_offsets alone")


def tensor_that_is_an_array() -> Attack:
    content = safetensors_file({"a": ["F32", [2], [0, 8]]}, bytes(8))
    return Attack(content, "tensor `a`: is not an object of dtype, shape and data_offsets alone")


def tensor_that_is_null() -> Attack:
    content = safetensors_file({"a": None})
    return Attack(content, "tensor `a`: is not an object of dtype, shape and data_offsets alone")


# Metadata


def metadata_that_is_an_array() -> Attack:
    return Attack(safetensors_file({"__metadata__": []}), "`__metadata__`: is not an object")


def metadata_that_is_null() -> Attack:
    return Attack(safetensors_file({"__metadata__": None}), "`__metadata__`: is not an object")


def metadata_with_a_number() -> Attack:
    content = safetensors_file({"__metadata__": {"step": 1}})
    return Attack(content, "`__metadata__`: the value of 'step' is not a string")


def metadata_with_an_object() -> Attack:
    content = safetensors_file({"__metadata__": {"config": {}}})
    return Attack(content, "`__metadata__`: the value of 'config' is not a string")


def shape_with_half_a_character() -> Attack:
    content = _text('{"a": {"dtype": "F32", "shape": ["\\uDFFF"], "data_offsets": [0, 8]}}')
    return Attack(content, r"header: has half of a character, '\udfff'")


def metadata_with_half_a_character() -> Attack:
    content = _text('{"__metadata__": {"a": "b\\ud800"}}', b"")
    return Attack(content, r"header: has half of a character, '\ud800'")


# Names


def name_empty() -> Attack:
    return _name("", "''")


def name_with_nul() -> Attack:
    return _name("a\0b", r"'a\x00b'")


def name_with_control_characters() -> Attack:
    return _name("a\x1b[2Jb", r"'a\x1b[2Jb'")


def name_with_a_newline() -> Attack:
    return _name("a\nb", r"'a\nb'")


def name_with_reversed_writing() -> Attack:
    return _name("a\u202eb", r"'a\u202eb'")


def name_with_half_a_character() -> Attack:
    content = _text(f'{{"\\udc00": {_ENTRY}}}')
    return Attack(content, r"header: has half of a character, '\udc00'")


def name_climbs_up() -> Attack:
    return _name("../../etc/passwd", "'../../etc/passwd'")


def name_climbs_up_on_windows() -> Attack:
    return _name("a\\..\\b", r"'a\\..\\b'")


def name_too_long() -> Attack:
    return _name(513 * "n", f"'{61 * 'n'}...'")


# Types and shapes


def dtype_unknown() -> Attack:
    return Attack(_one(dtype="F31"), "tensor `a`: there is no dtype 'F31'")


def dtype_in_lower_case() -> Attack:
    return Attack(_one(dtype="f32"), "tensor `a`: there is no dtype 'f32'")


def dtype_of_many_characters() -> Attack:
    return Attack(_one(dtype=5000 * "\0"), r"tensor `a`: there is no dtype '\x00\x00\x00")


def dtype_that_is_a_number() -> Attack:
    return Attack(_one(dtype=32), "tensor `a`: dtype is not a string")


def dtype_that_is_an_object() -> Attack:
    return Attack(_one(dtype={"F32": None}), "tensor `a`: dtype is not a string")


def shape_with_a_fraction() -> Attack:
    return _shape("[2.0]")


def shape_with_an_exponent() -> Attack:
    return _shape("[2e0]")


def shape_with_true() -> Attack:
    return _shape("[true, 2]")


def shape_with_a_string() -> Attack:
    return _shape('["2"]')


def shape_with_negative_zero() -> Attack:
    return _shape("[-0, 2]")


def shape_within_a_shape() -> Attack:
    return _shape("[[2]]")


def shape_with_null() -> Attack:
    return _shape("[null]")


def shape_that_is_a_number() -> Attack:
    return _shape("2")


def shape_that_is_an_object() -> Attack:
    return _shape("{}")


def shape_with_leading_zero() -> Attack:
    content = _text(f'{{"a": {_ENTRY.replace("[2]", "[02]")}}}')
    return Attack(content, "header: is not JSON at character ")


def shape_negative() -> Attack:
    return Attack(_one(shape=[-1, -2]), "tensor `a`: shape [-1, -2] has a negative number")


def shape_of_too_many_weights() -> Attack:
    content = _one(shape=[2**32, 2**32, 2**32])  # 2**96
    return Attack(content, "tensor `a`: shape [4294967296, 4294967296, 4294967296] is too large")


def shape_that_overflows_to_what_is_there() -> Attack:
    content = _one(shape=[2**63 + 1, 2])  # 2 modulo 2**64
    return Attack(content, "tensor `a`: shape [9223372036854775809, 2] is too large to count")


def shape_of_too_many_bytes() -> Attack:
    content = _one(shape=[2**62])  # times 4: nothing modulo 2**64
    return Attack(content, "tensor `a`: shape [4611686018427387904] is too large to count")


def shape_that_overflows_though_empty() -> Attack:
    content = _one(b"", shape=[0, 2**62, 4], data_offsets=[0, 0])
    return Attack(content, "tensor `a`: shape [0, 4611686018427387904, 4] is too large to count")


def shape_larger_than_any_integer() -> Attack:
    return Attack(_one(shape=[2**64]), "tensor `a`: shape [18446744073709551616] is too large")


def shape_with_too_many_axes() -> Attack:
    return Attack(_one(shape=[*64 * [1], 2]), "tensor `a`: shape has 65 numbers, more than 64")


def shape_with_half_a_byte() -> Attack:
    content = _one(bytes(1), dtype="F4", shape=[3], data_offsets=[0, 1])
    return Attack(content, "tensor `a`: a row of shape [3] is not made of whole bytes (F4)")


def shape_with_rows_of_half_a_byte() -> Attack:
    content = _one(bytes(3), dtype="F4", shape=[2, 3], data_offsets=[0, 3])
    return Attack(content, "tensor `a`: a row of shape [2, 3] is not made of whole bytes (F4)")


def shape_of_a_quarter_of_the_bytes() -> Attack:
    content = _one(bytes(3), dtype="F6_E2M3", shape=[1], data_offsets=[0, 1])
    return Attack(content, "tensor `a`: a row of shape [1] is not made of whole bytes (F6_E2M3)")


# Offsets


def offsets_for_another_shape() -> Attack:
    content = _one(shape=[3])
    return Attack(content, "tensor `a`: data_offsets [0, 8] where dtype and shape take 12 bytes")


def offsets_for_another_type() -> Attack:
    content = _one(dtype="F64")
    return Attack(content, "tensor `a`: data_offsets [0, 8] where dtype and shape take 16 bytes")


def offsets_reversed() -> Attack:
    content = _one(data_offsets=[8, 0])
    return Attack(content, "tensor `a`: data_offsets [8, 0] where dtype and shape take 8 bytes")


def offsets_reversed_of_an_empty_tensor() -> Attack:
    content = _one(shape=[0], data_offsets=[8, 0])
    return Attack(content, "tensor `a`: data_offsets [8, 0] where dtype and shape take 0 bytes")


def offsets_of_one_number() -> Attack:
    return Attack(_one(data_offsets=[8]), "tensor `a`: data_offsets [8] where dtype and shape")


def offsets_of_three_numbers() -> Attack:
    return Attack(_one(data_offsets=[0, 8, 8]), "tensor `a`: data_offsets [0, 8, 8] where dtype")


def offsets_negative() -> Attack:
    content = _one(data_offsets=[-8, 0])
    return Attack(content, "tensor `a`: data_offsets [-8, 0] has a negative number")


def offsets_with_a_fraction() -> Attack:
    content = _one(data_offsets=[0, 8.0])
    return Attack(content, "tensor `a`: data_offsets is not an array of whole numbers")


def offsets_beyond_any_integer() -> Attack:
    content = _one(data_offsets=[2**64, 2**64 + 8])
    return Attack(content, "tensor `a`: begins at 18,446,744,073,709,551,616 where 0 must be")


def offsets_beyond_the_file() -> Attack:
    content = _one(dtype="U8", shape=[2**40], data_offsets=[0, 2**40])
    return Attack(content, "file: ends after 100 bytes, but its tensors after 1,099,511,627,868")


def offsets_that_add_up_to_more_than_any_integer() -> Attack:
    size = 2**60 - 1
    entries = {
        str(i): safetensors_entry("U8", (size,), i * size, (i + 1) * size) for i in range(20)
    }
    return Attack(safetensors_file(entries), "but its tensors after 23,058,430,092,136,941,803")


def tensors_that_overlap() -> Attack:
    return Attack(_two((0, 8), (4, 12), 12), "tensor `b`: begins at 4 where 8 must be: tensors lie")


def tensors_in_the_same_place() -> Attack:
    return Attack(_two((0, 8), (0, 8), 8), "tensor `b`: begins at 0 where 8 must be")


def tensors_with_a_hole() -> Attack:
    return Attack(_two((0, 8), (9, 17), 17), "tensor `b`: begins at 9 where 8 must be")


def tensor_after_a_hole() -> Attack:
    return Attack(_one(bytes(9), data_offsets=[1, 9]), "tensor `a`: begins at 1 where 0 must be")


def tensor_that_is_empty_in_a_hole() -> Attack:
    return Attack(_two((0, 8), (9, 9), 9), "tensor `b`: begins at 9 where 8 must be")


def tensor_that_is_empty_within_another() -> Attack:
    return Attack(_two((0, 8), (4, 4), 8), "tensor `b`: begins at 4 where 8 must be")


def data_one_byte_short() -> Attack:
    return Attack(_one(bytes(7)), "file: ends after 76 bytes, but its tensors after 77")


def data_missing() -> Attack:
    return Attack(_one(b""), "file: ends after 69 bytes, but its tensors after 77")


def data_followed_by_a_byte() -> Attack:
    return Attack(_one(bytes(9)), "file: 1 bytes that belong to no tensor")


def data_followed_by_a_zip_file() -> Attack:
    end = b"PK\x05\x06" + bytes(18)
    content = safetensors_bytes({"a": ("F32", (2,), bytes(8))}) + end
    return Attack(content, "file: 22 bytes that belong to no tensor")


def data_without_tensors() -> Attack:
    text = json.dumps({"__metadata__": {"format": "pt"}})
    return Attack(_text(text, bytes(8)), "file: 8 bytes that belong to no tensor")
