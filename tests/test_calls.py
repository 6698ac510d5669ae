"""Calls of tools in the text of answers, streamed in any pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpkg.server.calls import Divided, calling_schema, read_calls

NAMES = {"weather", "time"}
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
TAGGED = f"<tool_call>\n{CALL}\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "plain", "names"),
    [
        (CALL, "", ["weather"]),
        (f" \n{CALL} ", "", ["weather"]),
        (f"[{CALL}, {CALL}]", "", ["weather", "weather"]),
        (f"[TOOL_CALLS][{CALL}]", "", ["weather"]),
        (f"<|python_tag|>{CALL}", "", ["weather"]),
        (f"I look.\n{TAGGED}\n{TAGGED}", "I look.\n", ["weather", "weather"]),
        (TAGGED.removesuffix("</tool_call>"), "", ["weather"]),
        ('{"name": "time", "parameters": {}}', "", ["time"]),
        ('{"name": "Bob", "age": 3}', "", []),
        ('{"name": "weather"', "", []),
        ("[1] says so", "", []),
        ("[]", "", []),
        ("2 < 3, and <tool> too", "2 < 3, and <tool> too", []),
        ("<tool_call>no</tool_call>", "", []),
        ("", "", []),
    ],
)
def test_what_is_a_call(text: str, plain: str, names: list[str]) -> None:
    divided = Divided(text)
    assert divided.plain == plain
    assert divided.plain + divided.rest == text
    calls = read_calls(divided.rest, NAMES)
    assert [call["function"]["name"] for call in calls] == names
    assert all(isinstance(json.loads(call["function"]["arguments"]), dict) for call in calls)


@given(
    pieces=st.lists(
        st.sampled_from(["<", "<tool", "_call>", CALL, "{", "[", " ", "a", "</tool_call>", "<|"])
    )
)
def test_pieces_are_told_as_the_whole_is(pieces: list[str]) -> None:
    divided, whole = Divided(), Divided("".join(pieces))
    told = "".join(divided.add(piece) for piece in pieces)
    assert (told, divided.rest) == (whole.plain, whole.rest)
    assert told + divided.rest == "".join(pieces)


def test_the_schema_of_a_call_keeps_definitions_at_its_root() -> None:
    city = {"$defs": {"City": {"type": "string"}}, "type": "object", "properties": {"at": {"$ref": "#/$defs/City"}}}  # fmt: skip
    schema = calling_schema([{"name": "weather", "parameters": city}, {"name": "time"}])
    assert schema["$defs"] == {"City": {"type": "string"}}
    assert "$defs" not in schema["anyOf"][0]["properties"]["arguments"]
    other = {"$defs": {"City": {"type": "integer"}}}
    with pytest.raises(ValueError, match="`City`"):
        calling_schema([{"name": "weather", "parameters": city}, {"name": "time", "parameters": other}])  # fmt: skip
