"""Answers whose bytes are not those of the file."""

from __future__ import annotations

import gzip
from collections.abc import Callable

from faults.exchange import Exchange
from faults.fault import Answer, Fault, answers_right, closes_first
from faults.lengths import EXTRA
from http_message import right, whole

_INVERTED = bytes(255 - value for value in range(256))


def inverted(content: bytes) -> bytes:
    """Return other bytes, each of them, of the same size."""
    return content.translate(_INVERTED)


def corrupted(content: bytes) -> bytes:
    """Return the content with one wrong byte, at a third of it."""
    k = len(content) // 3
    return content[:k] + inverted(content[k : k + 1]) + content[k + 1 :]


def serves(other: Callable[[bytes], bytes]) -> Answer:
    """An answer that has other bytes under the right ETag."""
    return lambda x: x.send(right(x.request, other(x.content), x.etag))


def corrupts_once(x: Exchange) -> None:
    x.send(right(x.request, corrupted(x.content) if x.nth == 0 else x.content, x.etag))


def has_been_replaced(x: Exchange) -> None:
    """Break off in an older file; `If-Range` tells that the rest is of a newer one."""
    if x.nth == 0:
        closes_first(x, whole(inverted(x.content), '"old"'))
    else:
        answers_right(x)


def differs_each_time(x: Exchange) -> None:
    """Break off in right bytes the first time, and have other ones for each request after it."""
    shift = x.nth % 255
    other = x.content.translate(bytes((value + shift) % 256 for value in range(256)))
    closes_first(x, right(x.request, other, x.etag))


def packs(x: Exchange) -> None:
    body = gzip.compress(x.content, compresslevel=1, mtime=0)
    x.send(whole(body, x.etag).but({"Content-Encoding": "gzip", "Accept-Ranges": None}))


def claims_to_pack(x: Exchange) -> None:
    x.send(x.right().but({"Content-Encoding": "gzip"}))


def asks_for_a_password(x: Exchange) -> None:
    page = b"<!doctype html><title>Wi-Fi</title><form>your room number?</form>"
    x.send(whole(page, None).but({"Content-Type": "text/html", "Accept-Ranges": None}))


CONTENTS = (
    Fault("corrupt-byte", "fails", serves(corrupted)),
    Fault("corrupt-byte-once", "either", corrupts_once),
    Fault("other-file", "fails", serves(inverted)),
    Fault("shorter-file", "fails", serves(lambda content: content[:-1])),
    # its beginning is the right file
    Fault("longer-file", "either", serves(lambda content: content + EXTRA)),
    Fault("empty-file", "fails", serves(lambda _: b"")),
    Fault("file-replaced", "succeeds", has_been_replaced),
    Fault("differs-each-time", "fails", differs_each_time),
    Fault("gzip", "either", packs),
    Fault("gzip-claimed", "either", claims_to_pack),
    Fault("login-page", "fails", asks_for_a_password),
)
