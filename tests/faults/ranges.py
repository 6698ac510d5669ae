"""Answers to ranges that are not what was asked for, and validators that help little.

These break the first answer that carries the whole, so that a client has a reason to ask for a
range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from faults.exchange import Exchange
from faults.fault import Answer, Fault, closes, closes_first
from http_message import OK, Reply, part, right, whole

PIECE_SIZE = 64 * 1024
Change = Callable[[Exchange, Reply], Reply]


def in_ranges(change: Change) -> Answer:
    """An answer that is changed where it answers a range."""

    def answer(x: Exchange) -> None:
        reply = x.right()
        if reply.is_part:
            x.send(change(x, reply))
        else:
            closes_first(x, reply)

    return answer


def told_range(template: str) -> Change:
    """Tell another range than the one that is sent; it is written with start, last and total."""

    def change(x: Exchange, reply: Reply) -> Reply:
        last = reply.start + len(reply.body) - 1
        told = template.format(start=reply.start, last=last, total=len(x.content))
        return reply.but({"Content-Range": told or None})

    return change


def other_range(move: Callable[[range], range]) -> Change:
    """Send another range than was asked for, and say so."""

    def change(x: Exchange, reply: Reply) -> Reply:
        moved = move(range(reply.start, reply.start + len(reply.body)))
        start = min(max(moved.start, 0), len(x.content) - 1)
        return part(x.content, range(start, max(moved.stop, start + 1)), x.etag)

    return change


def sends_another_range_unsaid(x: Exchange, reply: Reply) -> Reply:
    shifted = x.content[reply.start + 1 :] + x.content[:1]
    return replace(reply, body=shifted[: len(reply.body)])


def in_several_parts(_: Exchange, reply: Reply) -> Reply:
    told = f"Content-Range: {reply.headers['Content-Range']}".encode()
    body = b"--edge\r\n" + told + b"\r\n\r\n" + reply.body + b"\r\n--edge--\r\n"
    changes = {
        "Content-Type": "multipart/byteranges; boundary=edge",
        "Content-Range": None,
        "Content-Length": str(len(body)),
    }
    return replace(reply.but(changes), body=body)


def as_the_whole(_: Exchange, reply: Reply) -> Reply:
    return replace(reply.but({"Content-Range": None}), status_line=OK)


def not_satisfiable(x: Exchange, _: Reply) -> Reply:
    told = {"Content-Range": f"bytes */{len(x.content)}", "Content-Length": "0"}
    return Reply("HTTP/1.1 416 Range Not Satisfiable", told)


def ignores_ranges(x: Exchange) -> None:
    closes_first(x, whole(x.content, x.etag).but({"Accept-Ranges": None}))


def ignores_ranges_and_breaks(x: Exchange) -> None:
    closes(x, whole(x.content, x.etag), x.content[: len(x.content) // 2])


def always_in_part(x: Exchange) -> None:
    x.send(part(x.content, range(len(x.content)), x.etag))


def breaks_after_each_piece(x: Exchange) -> None:
    closes(x, x.right(), x.right().body[:PIECE_SIZE])


def validators(etag: Callable[[Exchange], str | None]) -> Answer:
    """An answer with another ETag, which breaks off the first time."""

    def answer(x: Exchange) -> None:
        closes_first(x, right(x.request, x.content, etag(x)))

    return answer


RANGES = (
    Fault("range-ignored", "succeeds", ignores_ranges),
    Fault("range-ignored-and-truncated", "fails", ignores_ranges_and_breaks),
    Fault("range-refused", "succeeds", in_ranges(not_satisfiable)),
    Fault("range-wrong-start", "either", in_ranges(other_range(lambda r: range(r.start + 1, r.stop)))),
    Fault("range-overlapping", "either", in_ranges(other_range(lambda r: range(r.start - 1000, r.stop)))),
    Fault("range-too-short", "either", in_ranges(other_range(lambda r: r[: len(r) // 2]))),
    Fault("range-mislabelled", "either", in_ranges(sends_another_range_unsaid)),
    Fault("range-wrong-total", "either", in_ranges(told_range("bytes {start}-{last}/{total}0"))),
    Fault("range-wrong-unit", "either", in_ranges(told_range("lines {start}-{last}/{total}"))),
    Fault("range-without-total", "either", in_ranges(told_range("bytes {start}-{last}/*"))),
    Fault("range-unnamed", "either", in_ranges(told_range(""))),
    Fault("range-multipart", "either", in_ranges(in_several_parts)),
    Fault("range-as-whole", "either", in_ranges(as_the_whole)),
    Fault("part-unasked", "either", always_in_part),
    Fault("pieces", "succeeds", breaks_after_each_piece),
    Fault("etag-changes", "succeeds", validators(lambda x: f'"{x.nth}"')),
    Fault("etag-weak", "succeeds", validators(lambda x: f"W/{x.etag}")),
    Fault("etag-none", "succeeds", validators(lambda _: None)),
)  # fmt: skip
