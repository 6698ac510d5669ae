"""Spans against what they stand for: a set of whole numbers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from weightpkg.spans import Spans

LAST = 40
PLACES = st.integers(0, LAST)
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove"]), PLACES, PLACES), max_size=30)


def built(steps: list[tuple[str, int, int]]) -> tuple[Spans, set[int]]:
    """Return the spans of some steps, and the set that they should be."""
    spans, expected = Spans(), set[int]()
    for step, start, end in steps:
        if step == "add":
            spans.add(start, end)
            expected |= set(range(start, end))
        else:
            spans.remove(start, end)
            expected -= set(range(start, end))
    return spans, expected


@given(STEPS)
def test_have_what_was_added_and_not_removed(steps: list[tuple[str, int, int]]) -> None:
    spans, expected = built(steps)
    assert {place for start, end in spans for place in range(start, end)} == expected
    assert spans.size == len(expected)


@given(STEPS)
def test_are_as_few_as_can_be_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    spans, _ = built(steps)
    found = list(spans)
    assert len(spans) == len(found)
    assert all(start < end for start, end in found)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


@given(STEPS, PLACES, PLACES)
def test_gaps_are_what_is_missing(steps: list[tuple[str, int, int]], start: int, end: int) -> None:
    spans, expected = built(steps)
    gaps = list(spans.gaps(end, start))
    missing = [place for left, right in gaps for place in range(left, right)]
    assert missing == sorted(set(range(start, end)) - expected)
    assert all(left < right for left, right in gaps)


@given(STEPS, PLACES, PLACES)
def test_has_a_range_or_not(steps: list[tuple[str, int, int]], start: int, end: int) -> None:
    spans, expected = built(steps)
    assert spans.has(start, end) == (set(range(start, end)) <= expected)


@given(STEPS)
def test_reach_up_to_the_first_gap(steps: list[tuple[str, int, int]]) -> None:
    spans, expected = built(steps)
    assert spans.reach() == min(set(range(LAST + 1)) - expected)


@given(STEPS)
def test_filling_the_gaps_leaves_none(steps: list[tuple[str, int, int]]) -> None:
    spans, _ = built(steps)
    for start, end in list(spans.gaps(LAST)):
        spans.add(start, end)
    assert list(spans) == [(0, LAST)]
