"""How long work tells of itself: a seam that the command line fills with bars and lines.

The core says what it begins, how much there is of it and how far it is; it never prints.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

Advance = Callable[[int], None]


class Progress(Protocol):
    """Told of work as it happens."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:
        """Begin work of `total` bytes (None: not known); what is entered is called with each step."""

    def note(self, message: str) -> None:
        """Say one line about what was decided or done."""


class Noting:
    """Passes notes on, and nothing else."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:  # noqa: ARG002
        """Say what begins."""
        self.note(description)
        return nullcontext(lambda _: None)


class Silence:
    """Tells nobody."""

    def task(self, description: str, total: int | None) -> AbstractContextManager[Advance]:  # noqa: ARG002
        """Begin work that nobody watches."""
        return nullcontext(lambda _: None)

    def note(self, message: str) -> None:
        """Say nothing."""
