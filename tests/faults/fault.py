"""What a fault is, and the simplest ways to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from faults.exchange import Exchange
from http_message import Reply

Outcome = Literal["succeeds", "fails", "either"]
Answer = Callable[[Exchange], None]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and what a good client ends with."""

    name: str
    outcome: Outcome
    answer: Answer


def answers_right(x: Exchange) -> None:
    x.send(x.right())


def tells(status: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer that has no file."""
    reply = Reply(f"HTTP/1.1 {status}", {**(headers or {}), "Content-Length": "0"})
    return lambda x: x.send(reply)


def closes(x: Exchange, reply: Reply, kept: bytes) -> None:
    x.send(replace(reply, body=kept))
    x.hang_up()


def closes_first(x: Exchange, reply: Reply) -> None:
    """Break off in the middle of the first answer, and give later ones whole."""
    closes(x, reply, half(reply)) if x.nth == 0 else x.send(reply)


def half(reply: Reply) -> bytes:
    return reply.body[: len(reply.body) // 2]
