"""Answers whose status, redirect or head is the trouble, and those that take for ever."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from email.utils import formatdate
from itertools import chain, repeat

from faults.breaks import once
from faults.exchange import Exchange
from faults.fault import Answer, Fault, Outcome, answers_right, closes, tells
from http_message import Reply


def first(answer: Answer) -> Answer:
    """Something else once, and the right answer after it."""
    return lambda x: (answer if x.nth == 0 else answers_right)(x)


def waits(status: str, retry_after: Callable[[], str]) -> Answer:
    """A request to come again later, twice, and the right answer after it."""

    def answer(x: Exchange) -> None:
        if x.nth < 2:
            tells(status, {"Retry-After": retry_after()})(x)
        else:
            answers_right(x)

    return answer


RETRY_AFTER: Mapping[str, tuple[Outcome, Callable[[], str]]] = {
    "seconds": ("succeeds", lambda: "1"),
    "date": ("succeeds", lambda: formatdate(time.time() + 1, usegmt=True)),
    "past-date": ("succeeds", lambda: formatdate(0, usegmt=True)),
    "negative": ("succeeds", lambda: "-5"),
    "garbage": ("succeeds", lambda: "soon"),
    # 31 years: come again earlier, or give up
    "huge": ("either", lambda: str(10**9)),
}


def _waiting() -> Iterator[Fault]:
    for status in ("429 Too Many Requests", "503 Service Unavailable"):
        code = status[:3]
        yield Fault(f"{code}-always", "fails", tells(status))
        for name, (outcome, retry_after) in RETRY_AFTER.items():
            yield Fault(f"{code}-{name}", outcome, waits(status, retry_after))


WAITING = tuple(_waiting())


def redirects(*, hops: int = 1, end: Answer = answers_right) -> Answer:
    """So many redirects one after the other, each of them relative, and then the end."""

    def answer(x: Exchange) -> None:
        tail = x.request.path.rpartition("/hop")[2]
        n_done = int(tail) if tail.isdigit() else 0
        if n_done == hops:
            end(x)
        else:
            tells("302 Found", {"Location": f"hop{n_done + 1}"})(x)

    return answer


_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def continues_a_little(x: Exchange) -> None:
    x.write(_CONTINUE * 3)
    answers_right(x)


def continues_for_ever(x: Exchange) -> None:
    while True:
        x.write(_CONTINUE)
        x.wait(0.001)  # leaves the processor to the others


def has_no_end_of_head(x: Exchange) -> None:
    x.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        x.write(b"X-Padding: " + b"a" * 1000 + b"\r\n")
        x.wait(0.001)


def has_many_headers(x: Exchange) -> None:
    x.send(x.right().but({f"X-{n}": "a" * 100 for n in range(10_000)}))


def has_a_long_header(x: Exchange) -> None:
    x.send(x.right().but({"X-Padding": "a" * 1_000_000}))


def drips_head(x: Exchange) -> None:
    for value in chain(b"HTTP/1.1 200 OK\r\nX-Padding: ", repeat(ord("a"))):
        x.write(bytes([value]))
        x.wait(x.drip_s)


def drips_body(x: Exchange) -> None:
    reply = x.right()
    x.write(reply.head())
    for value in reply.body if x.request.method != "HEAD" else b"":
        x.body(bytes([value]))
        x.wait(x.drip_s)


def answers_without_head(x: Exchange) -> None:
    x.body(x.content)
    x.hang_up()


def answers_as_http_1_0(x: Exchange) -> None:
    """No length, no ranges, no validator: the body ends with the connection."""
    closes(x, Reply("HTTP/1.0 200 OK", {}), x.content)


def breaks_off_as_http_1_0(x: Exchange) -> None:
    closes(x, Reply("HTTP/1.0 200 OK", {}), x.content[: len(x.content) // 2])


def begins_with(status_line: str) -> Answer:
    """The right answer under another first line."""
    return lambda x: closes(x, replace(x.right(), status_line=status_line), x.right().body)


def closes_unsaid(x: Exchange) -> None:
    closes(x, x.right(), x.right().body)


def lies_to_head(x: Exchange) -> None:
    reply = x.right()
    if x.request.method == "HEAD":
        reply = reply.but({"Content-Length": "7", "ETag": '"other"'})
    x.send(reply)


def refuses_head(x: Exchange) -> None:
    if x.request.method == "HEAD":
        tells("405 Method Not Allowed", {"Allow": "GET"})(x)
    else:
        answers_right(x)


HEADS = (
    Fault("500-once", "succeeds", first(tells("500 Internal Server Error"))),
    Fault("500-always", "fails", tells("500 Internal Server Error")),
    Fault("502-once", "succeeds", first(tells("502 Bad Gateway"))),
    Fault("204", "fails", tells("204 No Content")),
    Fault("304-unasked", "fails", tells("304 Not Modified")),
    Fault("401", "fails", tells("401 Unauthorized", {"WWW-Authenticate": 'Bearer realm="x"'})),
    Fault("403", "fails", tells("403 Forbidden")),
    Fault("404", "fails", tells("404 Not Found")),
    Fault("410", "fails", tells("410 Gone")),
    Fault("redirect", "succeeds", redirects()),
    Fault("redirect-truncated-once", "succeeds", redirects(end=once(closes))),
    Fault("redirect-20-hops", "either", redirects(hops=20)),
    Fault("redirect-loop", "fails", tells("302 Found", {"Location": "model.gguf"})),
    Fault("redirect-to-ftp", "fails", tells("302 Found", {"Location": "ftp://127.0.0.1/m"})),
    Fault("redirect-to-file", "fails", tells("302 Found", {"Location": "file:///etc/hostname"})),
    Fault("redirect-nowhere", "fails", tells("302 Found")),
    Fault("100-continue", "succeeds", continues_a_little),
    Fault("100-continue-endless", "fails", continues_for_ever),
    Fault("head-endless", "fails", has_no_end_of_head),
    Fault("head-of-many-lines", "either", has_many_headers),
    Fault("head-with-long-line", "either", has_a_long_header),
    Fault("drip-head", "fails", drips_head),
    Fault("drip-body", "fails", drips_body),
    Fault("http-0.9", "either", answers_without_head),
    Fault("http-1.0", "succeeds", answers_as_http_1_0),
    Fault("http-1.0-truncated", "fails", breaks_off_as_http_1_0),
    Fault("status-garbage", "fails", begins_with("200 HTTP")),
    Fault("status-unknown", "fails", begins_with("HTTP/1.1 999 Fine")),
    Fault("closes-unsaid", "succeeds", closes_unsaid),
    Fault("head-request-lied-to", "succeeds", lies_to_head),
    Fault("head-request-refused", "succeeds", refuses_head),
)
