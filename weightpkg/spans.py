"""Which bytes of a file are there: disjoint ranges `[start, end)`, in order."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

Span = tuple[int, int]


class Spans:
    """A set of bytes of a file.

    >>> spans = Spans()
    >>> spans.add(0, 10); spans.add(20, 30); spans.add(10, 12)
    >>> list(spans), list(spans.gaps(40))
    ([(0, 12), (20, 30)], [(12, 20), (30, 40)])
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[Span]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return sum(self._ends) - sum(self._starts)

    def add(self, start: int, end: int) -> None:
        """Have the bytes of a range, too."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Have the bytes of a range no more."""
        kept = list(self)
        self._starts.clear()
        self._ends.clear()
        for left, right in kept:
            self.add(left, min(right, start))
            self.add(max(left, end), right)

    def gaps(self, end: int, start: int = 0) -> Iterator[Span]:
        """Yield the ranges that are missing between `start` and `end`."""
        i = bisect_right(self._ends, start)
        for left, right in zip(self._starts[i:], self._ends[i:], strict=True):
            if left >= end:
                break
            if start < left:
                yield start, left
            start = right
        if start < end:
            yield start, end

    def reach(self) -> int:
        """How many bytes are there without a gap from the beginning on."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    def has(self, start: int, end: int) -> bool:
        """Whether all bytes of a range are there."""
        i = bisect_right(self._starts, start) - 1
        return start >= end or (i >= 0 and self._ends[i] >= end)
