"""Calls of tools: as models write them into text, and as OpenAI's API has them.

Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Llama 3 the object
alone with `parameters`, Mistral `[TOOL_CALLS][{...}]`.
https://huggingface.co/docs/transformers/v4.57.0/en/chat_extras
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

_TAG = "<tool_call>"
_PYTHON_TAG = "<|python_tag|>"
# what a text that is nothing but calls begins with
_OPENERS = ("{", "[", _TAG, _PYTHON_TAG)
# small models go on with spaces for ever, where they may
# https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md
_LITTLE_SPACE = {"x-guidance": {"whitespace_pattern": " ?"}}
_DEFINITIONS = ("$defs", "definitions")


class Divided:
    """A text that grows: plain text, which can be told as it comes, and what may be calls after it."""

    def __init__(self, text: str = "") -> None:
        self._text = ""
        self._n_plain = 0
        self.plain = self.add(text)

    def add(self, text: str) -> str:
        """Take a piece; return what is plain text for certain, and was not returned before."""
        self._text += text
        start, self._n_plain = self._n_plain, max(self._n_plain, _plain_length(self._text))
        return self._text[start : self._n_plain]

    @property
    def rest(self) -> str:
        """What is calls, or else plain text that looked like them."""
        return self._text[self._n_plain :]


def _plain_length(text: str) -> int:
    """How many characters at the beginning are no part of a call, whatever follows."""
    start = text.lstrip()
    if any(start.startswith(opener) or opener.startswith(start) for opener in _OPENERS):
        return 0
    if (place := text.find(_TAG)) >= 0:
        return place
    begun = (n for n in range(len(_TAG) - 1, 0, -1) if text.endswith(_TAG[:n]))
    return len(text) - next(begun, 0)


def read_calls(text: str, names: Collection[str]) -> list[dict[str, Any]]:
    """Return the calls that a text is, in OpenAI's form; none if it is anything else.

    Args:
        text: that the model wrote.
        names: of the tools that there are.
    """
    body = text.strip().removeprefix("[TOOL_CALLS]").removeprefix(_PYTHON_TAG).strip()
    parts = re.findall(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", body, re.DOTALL) or [body]
    calls: list[Any] = []
    for part in parts:
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            return []
        calls += found if isinstance(found, list) else [found]
    if not all(isinstance(call, dict) and call.get("name") in names for call in calls):
        return []
    return [_call(call) for call in calls]


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments", call.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["name"], "arguments": text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def calling_schema(functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON schema of a call of one of some functions.

    Args:
        functions: each with a `name`, and perhaps the schema of its `parameters`.

    Raises:
        ValueError: two functions define a name of their schemas in different ways.
    """
    shared: dict[str, dict[str, Any]] = {}
    choices = []
    for function in functions:
        arguments = dict(function.get("parameters") or {"type": "object"})
        for key in _DEFINITIONS:  # references to them start at the root
            for name, schema in arguments.pop(key, {}).items():
                if shared.setdefault(key, {}).setdefault(name, schema) != schema:
                    raise ValueError(f"two tools define `{name}` in different ways")
        choices.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return {"anyOf": choices, **shared, **_LITTLE_SPACE}
