"""Sampling on logits small enough to see through."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from weightpkg.run.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.05, 0.5, 0.3, 0.1, 0.05], np.float32))
OPEN = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def drawn(sampling: Sampling, count: int = 2000, tokens: tuple[int, ...] = ()) -> Counter[int]:
    sampler = Sampler(sampling)
    return Counter(sampler.pick(LOGITS, tokens) for _ in range(count))


def test_temperature_zero_takes_the_most_likely() -> None:
    assert drawn(Sampling(), 10) == {1: 10}


def test_draws_as_often_as_likely() -> None:
    counts = drawn(replace(OPEN, seed=1))
    for token, expected in enumerate([0.05, 0.5, 0.3, 0.1, 0.05]):
        assert abs(counts[token] / 2000 - expected) < 0.03


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        pytest.param({"top_k": 2}, {1, 2}, id="top-k"),
        pytest.param({"top_p": 0.75}, {1, 2}, id="top-p"),
        pytest.param({"top_p": 0.0}, {1}, id="top-p keeps one"),
        pytest.param({"min_p": 0.15}, {1, 2, 3}, id="min-p"),
        pytest.param({"min_p": 1.0}, {1}, id="min-p keeps one"),
        pytest.param({"top_k": 3, "min_p": 0.5}, {1, 2}, id="both"),
    ],
)
def test_draws_only_what_the_limits_allow(limits: dict[str, float], allowed: set[int]) -> None:
    assert set(drawn(replace(OPEN, **limits, seed=2))) == allowed  # type: ignore[arg-type]


def test_a_higher_temperature_evens_out() -> None:
    cold = drawn(replace(OPEN, temperature=0.5, seed=3))
    hot = drawn(replace(OPEN, temperature=5.0, seed=3))
    assert cold[1] > 1300
    assert hot[1] < 700


def test_the_penalty_makes_what_was_said_less_likely() -> None:
    assert drawn(Sampling(repeat_penalty=4.0), 5, tokens=(1, 1, 3)) == {2: 5}


def test_the_penalty_forgets() -> None:
    long_ago = (1, *[4] * 100)
    assert drawn(Sampling(repeat_penalty=4.0), 5, tokens=long_ago) == {1: 5}


def test_the_logits_stay_as_they_are() -> None:
    before = LOGITS.copy()
    Sampler(Sampling(temperature=1.0, repeat_penalty=2.0, seed=0)).pick(LOGITS, [1, 2])
    np.testing.assert_array_equal(LOGITS, before)


def test_seeds_decide() -> None:
    def twenty(seed: int) -> list[int]:
        sampler = Sampler(replace(OPEN, seed=seed))
        return [sampler.pick(LOGITS, ()) for _ in range(20)]

    assert twenty(5) == twenty(5) != twenty(6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": float("inf")},
        {"repeat_penalty": 0.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_refuses_values_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be between"):
        Sampling(**wrong)  # type: ignore[arg-type]
