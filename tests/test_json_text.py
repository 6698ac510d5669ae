from __future__ import annotations

import json
import math

import pytest

from weightpkg.formats.json_text import read_json


def test_reads_what_the_standard_has() -> None:
    text = ' {"a": [1, -2, 0.5, 1e3, true, null], "b": {"": "\\ud83d\\ude00\\n\\\\u"}}\r\n\t'
    assert read_json(text.encode()) == json.loads(text)
    assert read_json('"größe"'.encode()) == "größe"
    assert read_json(b"18446744073709551615") == 2**64 - 1
    assert read_json(b"1e999") == math.inf  # as large as it is


def test_takes_negative_zero_for_no_whole_number() -> None:
    assert repr(read_json(b"[-0, 0, -0.0]")) == "[-0.0, 0, -0.0]"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        (b"", "is not JSON at character 0: Expecting value"),
        (b"[1] 2", "is not JSON at character 4: Extra data"),
        (b'"\xff"', "is not UTF-8 at byte 1"),
        (b"[[NaN]]", "NaN is not a number of JSON"),
        (b'{"a": {"b": 1, "b": 1}}', "the key 'b' is there twice"),
        (b'{"\\u001b": 1, "\\u001b": 1}', r"the key '\x1b' is there twice"),
        (b'["a\\ud83d", 1]', r"has half of a character, '\ud83d'"),
        (b'["\\ude00\\ud83d"]', r"has half of a character, '\ude00'"),
        (b"-" + 41 * b"1", "a number of 42 digits"),
        (41 * b"1" + b"e1", "a number of 43 digits"),
        (100_000 * b"[", "is nested too deep"),
        (b"[" + 1_048_576 * b"1,", "more than 1,048,576 commas and brackets"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_refuses(text: bytes, refusal: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_json(text)
    assert str(caught.value) == refusal
