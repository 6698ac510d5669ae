"""Where bytes can come from: one module a kind of source.

A source is never trusted. It gives a `Stream`; whoever reads it counts and hashes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

SourceT_contra = TypeVar("SourceT_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes in order. `size` is what the source claims, None where it says nothing.

    Iterating raises `FetchError` when the source fails in the middle.
    """

    size: int | None
    pieces: Iterator[bytes]


class Opener(Protocol, Generic[SourceT_contra]):
    """Opens sources of one kind."""

    def open(self, source: SourceT_contra) -> AbstractContextManager[Stream]:
        """Open a source for reading; `FetchError` where it cannot be had."""
