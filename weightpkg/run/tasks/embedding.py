"""Texts to vectors, which lie near each other where texts mean the same.

How the vectors of tokens become that of a text, and whether its length is 1, is part of the model's
graph: its output `sentence_embedding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weightpkg.errors import RunError
from weightpkg.progress import Progress, Silence
from weightpkg.run.tasks.tensors import Held
from weightpkg.run.tasks.text import Batch, TextModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

OUTPUT = "sentence_embedding"


class Embedder(Held):
    """A model that makes vectors of texts.

    >>> model = weightpkg.load("minilm-l6")                                     # doctest: +SKIP
    >>> a, b = model.embed(["a small dog", "a puppy"])                          # doctest: +SKIP
    """

    task: Literal["feature-extraction"] = "feature-extraction"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory; arguments and errors as `TextModel` has them."""
        super().__init__()
        self._texts = TextModel(directory, OUTPUT, rank=2, threads=threads)
        width = self._texts.spec.dims[-1]
        if not isinstance(width, int):
            raise RunError(f"output `{OUTPUT}` is of no fixed size: {self._texts.spec}")
        self.dimensions = width
        self.max_tokens = self._texts.encoder.max_tokens

    def embed(
        self, texts: Sequence[str], *, progress: Progress | None = None, first: int = 1
    ) -> NDArray[np.float32]:
        """Return a vector for each text: (N, dimensions) float32.

        Args:
            texts: any number of them; what is longer than `max_tokens` is cut.
            progress: told which were.
            first: the number of the first text, in what is said of them.

        Raises:
            RunError: a text is too long to be looked at or is not Unicode, or the model fails.
        """
        encodings = self._texts.encoder.encode(texts, progress or Silence(), first=first)
        vectors = np.empty((len(encodings), self.dimensions), np.float32)

        def take(batch: Batch, found: Any) -> None:
            vectors[list(batch.rows)] = found

        self._texts.compute(encodings, take)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return how many tokens are read of all texts together; errors as `embed`."""
        return sum(len(each.ids) for each in self._texts.encoder.encode(texts, Silence()))
