"""Guessing the next tokens from the text so far: prompt-lookup decoding; pure.

Where the last few tokens stood in the text before, what followed them then is the guess. The model
reads token and guess in one step, and what it would have chosen decides how much of the guess stays,
so that the answer is the same as without. One step with a few more tokens costs little more than one
with one, since the weights are read once.

https://github.com/apoorvumang/prompt-lookup-decoding/blob/main/demo-pld.ipynb (the idea)
"""

from __future__ import annotations

from collections.abc import Sequence

_SIZES = (4, 3, 2)  # tokens that must agree, the most first
_FIRST, _MOST = 3, 7  # tokens of a guess; eight rows cost about twice what one does
_PATIENCE = 3  # guesses that may be wrong from the first token on, before there is a pause
_PAUSE = 16  # steps


class Lookup:
    """Guesses along a growing text; longer where it was right, and not at all where it keeps being wrong."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._n_seen = 0
        self._length = _FIRST
        self._n_wrong = 0
        self._pause = 0

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Return what may follow.

        Args:
            tokens: all of the text, of which the beginning is as it was in the last call.
            most: how many tokens at most.
        """
        self._learn(tokens)
        if self._pause:
            self._pause -= 1
            return []
        for size in _SIZES:
            place = self._places.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if place is not None:
                return list(tokens[place : place + min(self._length, most)])
        return []

    def learn_from(self, n_guessed: int, n_right: int) -> None:
        """Take note of how a guess did."""
        if not n_guessed:
            return
        self._length = min(_MOST, self._length + 2) if n_right == n_guessed else max(2, n_right)
        self._n_wrong = 0 if n_right else self._n_wrong + 1
        if self._n_wrong >= _PATIENCE:
            self._n_wrong, self._pause = 0, _PAUSE

    def _learn(self, tokens: Sequence[int]) -> None:
        """Note where groups of tokens end; the last ones have no next token yet."""
        for end in range(self._n_seen + 1, len(tokens)):
            for size in _SIZES:
                if end >= size:
                    self._places[tuple(tokens[end - size : end])] = end
        self._n_seen = max(self._n_seen, len(tokens) - 1)
