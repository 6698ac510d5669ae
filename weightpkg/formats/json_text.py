"""JSON text from strangers (RFC 8259), read strictly and in bounds.

What Python's reader takes beyond the standard is refused: encodings other than UTF-8, NaN and
Infinity, halves of characters; and so are keys that are there twice, of which readers elsewhere
take the first or the last.
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

from weightpkg.errors import shown

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# A list or a dict of Python takes up to a hundred bytes where the text has three, so the marks
# that make elements are bounded: 100,000 tensors with all that is said of them have that many.
MAX_MARKS = 1024 * 1024
_MAX_DIGITS = 40

# An escape for the half of a character beyond U+FFFF; two such are one character.
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(content: bytes, *, max_marks: int = MAX_MARKS) -> JSON:
    """Return what a text says; ValueError says what is wrong with it.

    `-0` is a number with a fraction here, as to readers that know unsigned integers.

    Args:
        content: UTF-8.
        max_marks: how many commas and opening brackets it may have.
    """
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start:,}") from error
    if sum(map(text.count, ",[{")) > max_marks:
        raise ValueError(f"more than {max_marks:,} commas and brackets")
    try:
        value: JSON = json.loads(
            text,
            object_pairs_hook=_read_object,
            parse_int=_read_int,
            parse_float=_read_float,
            parse_constant=_refuse_constant,
        )
        if _HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON at character {error.pos:,}: {error.msg}") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"has half of a character, {error.object[error.start]!r}") from error
    except RecursionError as error:
        raise ValueError("is nested too deep") from error
    return value


def _read_object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {shown(key)!r} is there twice")
        found[key] = value
    return found


def _read_int(digits: str) -> int | float:
    _check_digits(digits)
    return -0.0 if digits == "-0" else int(digits)


def _read_float(digits: str) -> float:
    _check_digits(digits)
    return float(digits)


def _check_digits(digits: str) -> None:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
