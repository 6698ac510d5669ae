"""Texts to labels: one for all of a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from weightpkg.progress import Progress, Silence
from weightpkg.run.tasks.labels import Label, Labels, last_size
from weightpkg.run.tasks.tensors import Held
from weightpkg.run.tasks.text import Batch, Pair, TextModel


class Classifier(Held):
    """A model that says which label a text has.

    >>> model = weightpkg.load("NAME", task="text-classification")              # doctest: +SKIP
    >>> model.classify(["I like it"])[0][0].label                               # doctest: +SKIP
    """

    task: Literal["text-classification"] = "text-classification"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory; arguments and errors as `TextModel` has them."""
        super().__init__()
        self._texts = TextModel(directory, "logits", rank=2, threads=threads)
        self.labels = Labels.read(directory, last_size(self._texts.spec.dims))
        self.max_tokens = self._texts.encoder.max_tokens

    def classify(
        self,
        texts: Sequence[str | Pair],
        *,
        top: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[Label]]:
        """Return the labels of each text, the best first.

        Args:
            texts: any number of them, or pairs of them, as a question and what may answer it; what is
                longer than `max_tokens` is cut.
            top: how many labels; all if not given.
            progress: told which texts were cut.

        Raises:
            RunError: a text is too long to be looked at or is not Unicode, or the model fails.
        """
        encodings = self._texts.encoder.encode(texts, progress or Silence())
        answers: list[list[Label]] = [[] for _ in encodings]

        def take(batch: Batch, found: Any) -> None:
            for row, scores in zip(batch.rows, self.labels.scores(found), strict=True):
                answers[row] = self.labels.ranked(scores, top)

        self._texts.compute(encodings, take)
        return answers
