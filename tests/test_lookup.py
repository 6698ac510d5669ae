"""Guesses from the text so far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightpkg.run.lookup import Lookup


def test_guesses_what_followed_the_same_tokens() -> None:
    assert Lookup().guess([1, 2, 3, 4, 5, 6, 1, 2], 10) == [3, 4, 5]


def test_prefers_the_longest_agreement_and_then_the_last_place() -> None:
    text = [7, 1, 2, 10, 8, 1, 2, 20, 9, 1, 2, 30, 5, 5, 8, 1, 2]
    assert Lookup().guess(text, 1) == [20]  # 8 1 2 agrees in three
    assert Lookup().guess([7, 1, 2, 10, 9, 1, 2, 30, 5, 1, 2], 1) == [30]


def test_says_nothing_of_a_text_without_repetition() -> None:
    assert Lookup().guess(list(range(50)), 5) == []


def test_never_guesses_more_than_is_wanted() -> None:
    assert Lookup().guess([1, 2, 3, 1, 2], 0) == []
    assert len(Lookup().guess([1, 2, 3, 4, 5, 1, 2], 2)) == 2


def test_rests_after_guesses_that_were_wrong() -> None:
    lookup, text = Lookup(), [1, 2, 3, 4, 1, 2]
    for _ in range(3):
        guess = lookup.guess(text, 5)
        assert guess
        lookup.learn_from(len(guess), 0)
    assert lookup.guess(text, 5) == []
    waited = [bool(lookup.guess(text, 5)) for _ in range(20)]
    assert any(waited)


def test_guesses_more_after_it_was_right() -> None:
    lookup, text = Lookup(), [*range(20), 0, 1]
    first = lookup.guess(text, 50)
    lookup.learn_from(len(first), len(first))
    assert len(lookup.guess(text, 50)) > len(first)


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 8))
def test_a_guess_is_a_part_of_the_text(text: list[int], most: int) -> None:
    guess = Lookup().guess(text, most)
    assert len(guess) <= most
    assert not guess or any(text[i : i + len(guess)] == guess for i in range(len(text)))
