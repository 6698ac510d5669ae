"""Where bytes can come from: one module a kind of source.

A source is never trusted. It gives `Content`; whoever reads it counts and hashes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

SourceT_contra = TypeVar("SourceT_contra", contravariant=True)

PIECE_SIZE = 1024 * 1024


Pieces = Generator[bytes, None, None]
"""Bytes in order; close it to let go of the connection."""


class Content(Protocol):
    """Bytes at a source that was opened.

    name: what messages call it.
    size: how many it claims to have, None where it says nothing.
    validator: a text that changes when the bytes do, None where it gives none.
    has_ranges: whether any range can be streamed, and several at once; else only all of it.
    """

    name: str
    size: int | None
    validator: str | None
    has_ranges: bool

    @property
    def n_busy(self) -> int:
        """How often it has asked for patience so far."""

    def stream(self, start: int, end: int | None = None) -> Pieces:
        """Yield the bytes from `start` up to but not including `end`, in order.

        Raises `FetchError` when the source fails for good, after whatever could be tried again.
        """


class Opener(Protocol, Generic[SourceT_contra]):
    """Opens sources of one kind."""

    def open(
        self, source: SourceT_contra, start: int = 0, end: int | None = None
    ) -> AbstractContextManager[Content]:
        """Open a source of which `start` up to `end` will be read first.

        Raises `FetchError` if it cannot be had.
        """
