"""Logits of llama.cpp in a small file: the most likely tokens of each position, and the rest.

A position is kept as the ids of its `TOP` most likely tokens and their log-probabilities; all other
tokens are one bucket. KL divergence over these buckets is a lower bound of the full one; how much
probability the named tokens have is printed beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent / "bench" / "golden"
TEXT = FOLDER / "text.txt"
GOLDEN = FOLDER / "smollm2-135m-q4.npz"
TOP = 48
WINDOW = 500
N_TOKENS = 2000


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """logits: (T, V) -> log-probabilities (T, V) float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return result


def kl_divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """p, q: log-probabilities (T, V) -> KL(p || q) of each position (T,)."""
    result: NDArray[np.float64] = (np.exp(p) * (p - q)).sum(axis=-1)
    return result


@dataclass(frozen=True)
class Buckets:
    """ids: (T, TOP); log_p: (T, TOP + 1) log-probabilities, the last of all other tokens."""

    ids: NDArray[np.int64]
    log_p: NDArray[np.float64]

    @classmethod
    def most_likely(cls, log_p: NDArray[np.float64]) -> Buckets:
        """Keep the most likely tokens of full log-probabilities (T, V)."""
        return cls.of(np.argsort(-log_p, axis=-1, kind="stable")[:, :TOP], log_p)

    @classmethod
    def of(cls, ids: NDArray[np.int64], log_p: NDArray[np.float64]) -> Buckets:
        """Put full log-probabilities (T, V) into the buckets of given tokens."""
        named = np.take_along_axis(log_p, ids, axis=-1)
        rest = np.log(np.maximum(1e-12, 1 - np.exp(named).sum(axis=-1, keepdims=True)))
        return cls(ids, np.concatenate((named, rest), axis=-1))

    @property
    def mass(self) -> float:
        """The mean probability of the named tokens."""
        return float(1 - np.exp(self.log_p[:, -1]).mean())


def load() -> tuple[list[int], Buckets]:
    """Read the golden file: the tokens of the text, and what llama.cpp makes of them."""
    with np.load(GOLDEN) as golden:
        ids = golden["ids"].astype(np.int64)
        return golden["tokens"].tolist(), Buckets(ids, golden["log_p"].astype(np.float64))


def save(tokens: list[int], buckets: Buckets) -> None:
    """Write the golden file."""
    np.savez_compressed(
        GOLDEN,
        tokens=np.array(tokens, np.uint16),
        ids=buckets.ids.astype(np.uint16),
        log_p=buckets.log_p.astype(np.float16),
    )
