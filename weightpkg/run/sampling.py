"""Choosing the next token from logits.

The order is llama.cpp's: repetition penalty, top-k, top-p, min-p, temperature, then one draw.
Top-p is nucleus sampling (https://arxiv.org/abs/1904.09751), min-p https://arxiv.org/abs/2407.01082,
the penalty CTRL's (https://arxiv.org/abs/1909.05858, section 4.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PENALTY_WINDOW = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How to choose. Temperature 0 takes the most likely token, whatever the rest says.

    ValueError where a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0.0, 100.0),
            "top_k": (0, 2**31),
            "top_p": (0.0, 1.0),
            "min_p": (0.0, 1.0),
            "repeat_penalty": (0.01, 100.0),
            "seed": (0, 2**64),
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")

    def shifted(self, count: int) -> Sampling:
        """Return the same for another sample: of seed + count, where there is a seed."""
        return self if self.seed is None else replace(self, seed=(self.seed + count) % 2**64)


class Sampler:
    """Draws tokens; two with the same seed draw the same."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> int:
        """Return the next token.

        Args:
            logits: (V,) float32, left as they are.
            tokens: what came before, for the repetition penalty.

        Raises:
            RunError: a logit is not a number, or none is finite.
        """
        sampling = self._sampling
        if sampling.repeat_penalty != 1.0:
            logits = _penalize(logits, tokens[-_PENALTY_WINDOW:], sampling.repeat_penalty)
        best = int(logits.argmax())  # that of a NaN, where there is one
        if not math.isfinite(logits[best]):
            raise RunError(
                f"the model computed {logits[best]} where a number belongs",
                hint="`weightpkg verify` tells whether the model is damaged",
            )
        if sampling.temperature == 0.0:
            return best
        candidates = _top_k(logits, sampling.top_k)
        probabilities = _softmax(logits[candidates])
        keep = _nucleus(probabilities, sampling.top_p)
        keep = min(keep, int((probabilities >= sampling.min_p * probabilities[0]).sum()))
        candidates = candidates[:keep]
        probabilities = _softmax(logits[candidates] / np.float32(sampling.temperature))
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        draw = self._random.random() * cumulative[-1]
        return int(candidates[np.searchsorted(cumulative, draw, side="right")])


def log_probabilities(
    logits: NDArray[np.float32], token: int, n_top: int
) -> tuple[float, list[tuple[int, float]]]:
    """Return a token's log-probability and the `n_top` most likely tokens with theirs.

    They are the model's own: before penalties, temperature and constraints.

    Args:
        logits: (V,) float32.
        token: the one that was chosen.
        n_top: how many.
    """
    largest = logits.max()
    total = largest + np.log(np.exp(logits - largest).sum(dtype=np.float64))
    top = [int(i) for i in _top_k(logits, n_top)] if n_top else []
    return float(logits[token] - total), [(i, float(logits[i] - total)) for i in top]


def _penalize(
    logits: NDArray[np.float32], tokens: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    recent = np.unique(np.array(tokens, np.int64))
    penalized = logits.copy()
    values = logits[recent]
    penalized[recent] = np.where(values > 0, values / penalty, values * penalty)
    return penalized


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The ids of the k largest logits (0: of all), largest first, ties by id."""
    every = not 0 < k < len(logits)
    ids = np.arange(len(logits)) if every else np.argpartition(logits, -k)[-k:]
    return ids[np.lexsort((ids, -logits[ids]))]


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponentials = np.exp(logits - logits.max())
    result: NDArray[np.float32] = exponentials / exponentials.sum()
    return result


def _nucleus(probabilities: NDArray[np.float32], top_p: float) -> int:
    """How many of the most likely tokens have at least `top_p` together; at least one."""
    return 1 + int((np.cumsum(probabilities)[:-1] < top_p).sum())
