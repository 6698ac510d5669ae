"""Scales of keys and values that are kept in 8 bits: for each layer, head and channel one step.

onnxruntime's kernel takes scales that are constants of the graph. A value x is kept as x / scale,
rounded to the nearest of -128 to 127: what is larger than 127 steps is cut.

Kernel: https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/docs/ContribOperators.md#com.microsoft.GroupQueryAttention
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STEPS = 127
_LEAST = 1e-8  # a channel that is always zero has a scale all the same


@dataclass(frozen=True, slots=True)
class Scales:
    """steps: (L, 2, G, D) float32, of the keys and of the values of L layers."""

    steps: NDArray[np.float32]

    @classmethod
    def for_largest(cls, largest: NDArray[np.float32]) -> Scales:
        """Return those with which magnitudes up to the largest are not cut; the same shape."""
        return cls(np.maximum(largest / _STEPS, _LEAST).astype(np.float32))

    @classmethod
    def parse(cls, content: bytes, shape: tuple[int, ...]) -> Scales:
        """Read what `to_bytes` wrote; ValueError where it is not of a model of that shape."""
        steps = np.frombuffer(content, "<f4").reshape(shape)
        if not (np.isfinite(steps).all() and (steps > 0).all()):
            raise ValueError("a scale is not a positive number")
        return cls(steps.astype(np.float32))

    def to_bytes(self) -> bytes:
        """All of them, in order, as little-endian float32."""
        return self.steps.astype("<f4").tobytes()

    @property
    def digest(self) -> str:
        """SHA-256 of them."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
