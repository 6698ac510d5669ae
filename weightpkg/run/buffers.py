"""Keys and values of a sequence, in buffers that are past and present of their layers at once.

A step copies nothing: the operator writes the new positions behind the old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.run.windows import Windows


FIRST_CAPACITY = 512
LATER_PIECE, LEAST_LOCAL = 256, 1024
"""Tokens of a piece of a prompt behind a window, and rows that there are in any case."""


def capacities(length: int, context: int, windows: Windows | None) -> tuple[int, int]:
    """Return how many rows buffers get for a text of so many tokens, and those of layers with a window.

    The next power of two, at most the whole context, so that buffers seldom grow.
    """
    capacity = min(max(FIRST_CAPACITY, 1 << (length - 1).bit_length()), context)
    if windows is None:
        return capacity, capacity
    return capacity, min(capacity, max(windows.rows(LATER_PIECE), LEAST_LOCAL))


class Buffers:
    """Those of some layers: for each layer and part (1, G, S, D), of which row 0 has position `first`."""

    def __init__(
        self,
        binding: ort.IOBinding,
        names: Sequence[str],
        sizes: tuple[int, int],
        kind: type[np.generic],
        place: str,
    ) -> None:
        """Have none yet.

        Args:
            binding: that the buffers are bound to, as past and as present.
            names: of the parts, such as `0.key`.
            sizes: G and D.
            kind: what they are kept as.
            place: `cpu`, or where else they are.
        """
        self._binding = binding
        self._names = names
        self._sizes = sizes
        self._kind = kind
        self._place = place
        self._values: list[ort.OrtValue] = []
        self._arrays: list[NDArray[np.generic]] = []
        self.capacity = self.first = 0

    def resize(self, capacity: int, n_rows: int) -> None:
        """Have another number of rows; the first `n_rows` are kept. What onnxruntime raises comes out."""
        if not self._names:
            return
        shape = (1, self._sizes[0], capacity, self._sizes[1])
        old, self._values, self._arrays = self._values, [], []
        for name in self._names:
            array = np.zeros(shape, self._kind)
            if n_rows:
                array[:, :, :n_rows] = old.pop(0).numpy()[:, :, :n_rows]
            value = wrap(array, self._place)
            self._arrays.append(array)
            self._values.append(value)
            self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            self._binding.bind_ortvalue_output(f"present.{name}", value)
        self.capacity = capacity

    def drop(self, first: int, n_rows: int) -> None:
        """Let row 0 have position `first`, where there were `n_rows` rows; those before it are gone."""
        shift = first - self.first
        for array in self._arrays:
            array[:, :, : n_rows - shift] = array[:, :, shift:n_rows].copy()
        self.first = first

    def clear(self) -> None:
        """Free all of them."""
        self._values, self._arrays = [], []
        self.capacity = self.first = 0

    def rows(self, n_rows: int) -> Iterator[tuple[str, NDArray[np.generic]]]:
        """Yield each part's name and its first rows: (G, T, D)."""
        for name, value in zip(self._names, self._values, strict=True):
            yield name, value.numpy()[0, :, :n_rows]


def wrap(array: NDArray[np.generic], place: str = "cpu") -> ort.OrtValue:
    """Wrap an array; on the processor without copying it, and then it lives as long as the value."""
    return ort.OrtValue.ortvalue_from_numpy(array, place, 0)
