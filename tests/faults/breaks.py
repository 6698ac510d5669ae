"""Answers that break off: each breaks off once and is right after it, or never comes to its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from faults.exchange import Exchange
from faults.fault import Answer, Fault, answers_right, closes, half
from faults.lengths import UNTIL_CLOSED, chunk, chunked
from http_message import Reply

Break = Callable[[Exchange, Reply, bytes], None]
"""Sends an answer of which only these bytes arrive."""


def closes_without_length(x: Exchange, reply: Reply, kept: bytes) -> None:
    closes(x, reply.but(UNTIL_CLOSED), kept)


def resets(x: Exchange, reply: Reply, kept: bytes) -> None:
    x.send(replace(reply, body=kept))
    x.reset()


def stalls(x: Exchange, reply: Reply, kept: bytes) -> None:
    x.send(replace(reply, body=kept))
    x.wait()


def stalls_after_head(x: Exchange, reply: Reply, _: bytes) -> None:
    stalls(x, reply, b"")


def stalls_before_answer(x: Exchange, _: Reply, __: bytes) -> None:
    x.wait()


def says_nothing(x: Exchange, _: Reply, __: bytes) -> None:
    x.hang_up()


def breaks_off_in_head(x: Exchange, reply: Reply, _: bytes) -> None:
    x.write(reply.head()[:-2])
    x.hang_up()


def has_a_bad_chunk_size(x: Exchange, reply: Reply, kept: bytes) -> None:
    broken = reply.body[len(kept) :]
    closes(x, chunked(reply), chunk(kept) + b"zz\r\n" + broken + b"\r\n0\r\n\r\n")


def breaks_off_in_chunk(x: Exchange, reply: Reply, kept: bytes) -> None:
    closes(x, chunked(reply), b"%x\r\n" % (len(kept) + 1000) + kept)


BREAKS: Mapping[str, Break] = {
    "truncated": closes,
    "truncated-without-length": closes_without_length,
    "truncated-chunk": breaks_off_in_chunk,
    "bad-chunk-size": has_a_bad_chunk_size,
    "reset": resets,
    "stall": stalls,
    "stall-after-head": stalls_after_head,
    "stall-before-answer": stalls_before_answer,
    "empty-reply": says_nothing,
    "truncated-head": breaks_off_in_head,
}


def once(breaks: Break) -> Answer:
    """An answer that breaks off in the middle the first time."""

    def answer(x: Exchange) -> None:
        if x.nth == 0:
            breaks(x, x.right(), half(x.right()))
        else:
            answers_right(x)

    return answer


def always(breaks: Break) -> Answer:
    """An answer that never comes beyond the middle of the file."""

    def answer(x: Exchange) -> None:
        reply = x.right()
        breaks(x, reply, reply.body[: max(0, len(x.content) // 2 - reply.start)])

    return answer


BREAKING = (
    *(Fault(name, "fails", always(breaks)) for name, breaks in BREAKS.items()),
    *(Fault(f"{name}-once", "succeeds", once(breaks)) for name, breaks in BREAKS.items()),
)
