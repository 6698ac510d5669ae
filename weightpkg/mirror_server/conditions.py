"""Ranges and validators: which bytes of a file a request is for, if any.

Clauses are those of RFC 9110 (https://www.rfc-editor.org/rfc/rfc9110). Only single ranges of bytes
are served: several in one request are answered with the whole, as clause 14.2 allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,40})-(\d{0,40})[ \t]*\Z", re.IGNORECASE | re.ASCII)
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"', re.ASCII)


@dataclass(frozen=True, slots=True)
class Selection:
    """What to answer: the status, and the bytes `[start, end)` to send with it."""

    status: int
    start: int
    end: int


def select(method: str, headers: Mapping[str, str], *, etag: str, size: int) -> Selection:
    """Return what a request for a file is to be answered with.

    Args:
        method: `GET` or `HEAD`.
        headers: the request's, by lower-case name.
        etag: the file's strong validator, in quotes.
        size: bytes of the file.
    """
    if "if-match" in headers and not _matches(headers["if-match"], etag, is_weak_enough=False):
        return Selection(412, 0, 0)
    if "if-none-match" in headers and _matches(headers["if-none-match"], etag, is_weak_enough=True):
        return Selection(304, 0, 0)
    # 14.2: a server ignores Range in a request whose method is not GET
    told = headers.get("range") if method == "GET" else None
    # 13.1.5: a weak validator never matches here, nor does a date, as no `Last-Modified` was sent
    if told is None or headers.get("if-range", etag).strip() != etag:
        return Selection(200, 0, size)
    return _of_range(told, size)


def _of_range(told: str, size: int) -> Selection:
    match = _RANGE.match(told)
    if match is None or not any(match.groups()):
        return Selection(200, 0, size)  # 14.2: what is no valid range is ignored
    first, last = match.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        if last and int(last) < int(first):
            return Selection(200, 0, size)  # 14.1.1: invalid, so ignored
        start, end = int(first), min(int(last) + 1, size) if last else size
    return Selection(206, start, end) if start < end else Selection(416, 0, 0)


def _matches(told: str, etag: str, *, is_weak_enough: bool) -> bool:
    if told.strip() == "*":
        return True
    tags = _ETAG.findall(told)
    return etag in ([tag.removeprefix("W/") for tag in tags] if is_weak_enough else tags)
