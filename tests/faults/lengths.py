"""Answers that say in other ways, or wrongly, where they end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from faults.exchange import Exchange
from faults.fault import Answer, Fault, closes
from http_message import Reply

EXTRA = bytes(1000)
UNTIL_CLOSED = {"Content-Length": None, "Connection": "close"}


def chunked(reply: Reply) -> Reply:
    return reply.but({"Content-Length": None, "Transfer-Encoding": "chunked"})


def chunk(sent: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(sent), sent) if sent else b""


def answers_in_chunks(x: Exchange) -> None:
    """Chunks of growing sizes, an extension that means nothing, a trailer: all that is allowed."""
    reply = x.right()
    x.write(chunked(reply).but({"Trailer": "X-Done"}).head())
    start, size = 0, 1
    while start < len(reply.body):
        sized = chunk(reply.body[start : start + size])
        x.body(sized.replace(b"\r\n", b";weather=fair\r\n", 1) if start == 0 else sized)
        start, size = start + size, size * 3
    x.body(b"0\r\nX-Done: yes\r\n\r\n")


def lacks_its_last_chunk_once(x: Exchange) -> None:
    """All bytes come, and do not seem to; the rest of the file is then one that is not there."""
    reply = x.right()
    if x.nth == 0:
        closes(x, chunked(reply), chunk(reply.body))
    else:
        x.send(reply)


def chunks_and_length(x: Exchange) -> None:
    reply = x.right()
    told = {"Transfer-Encoding": "chunked", "Content-Length": str(len(reply.body) // 2)}
    closes(x, reply.but(told), chunk(reply.body) + b"0\r\n\r\n")


def two_lengths(x: Exchange) -> None:
    reply = x.right()
    # written in another way, or it would take the place of the right one
    closes(x, reply.but({"content-length": str(len(reply.body) // 2)}), reply.body)


def lengths(told: Callable[[int], str]) -> Answer:
    """An answer with all its bytes, and another length than theirs."""

    def answer(x: Exchange) -> None:
        reply = x.right()
        closes(x, reply.but({"Content-Length": told(len(reply.body))}), reply.body)

    return answer


def sends_more_than_it_says(x: Exchange) -> None:
    closes(x, x.right(), x.right().body + EXTRA)


def sends_more_without_length(x: Exchange) -> None:
    closes(x, x.right().but(UNTIL_CLOSED), x.right().body + EXTRA)


def never_ends(first: Callable[[Exchange], bytes]) -> Answer:
    """An answer without a length that goes on for ever."""

    def answer(x: Exchange) -> None:
        x.hang_up()
        x.send(replace(x.right().but(UNTIL_CLOSED), body=first(x)))
        while x.request.method != "HEAD":
            x.body(bytes(64 * 1024))

    return answer


LENGTHS = (
    Fault("chunked", "succeeds", answers_in_chunks),
    Fault("last-chunk-missing-once", "succeeds", lacks_its_last_chunk_once),
    Fault("chunks-and-length", "either", chunks_and_length),
    # half of what is left, each time: the last byte never comes
    Fault("length-too-small", "fails", lengths(lambda n_bytes: str(n_bytes // 2))),
    Fault("length-too-large", "either", lengths(lambda n_bytes: str(n_bytes + 1000))),
    Fault("length-negative", "either", lengths(lambda _: "-1")),
    Fault("length-garbage", "either", lengths(lambda n_bytes: f"{n_bytes} bytes")),
    Fault("two-lengths", "either", two_lengths),
    Fault("extra-bytes", "succeeds", sends_more_than_it_says),
    Fault("extra-bytes-without-length", "either", sends_more_without_length),
    Fault("endless", "fails", never_ends(lambda _: b"")),
    Fault("endless-after-content", "either", never_ends(lambda x: x.right().body)),
)
