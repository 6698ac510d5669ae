"""Texts with a gap to words that may stand there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weightpkg.errors import RunError
from weightpkg.progress import Progress, Silence
from weightpkg.run.documents import read_document
from weightpkg.run.tasks.labels import Labels, last_size
from weightpkg.run.tasks.tensors import Held
from weightpkg.run.tasks.text import BATCH_TOKENS, Batch, TextModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Of a batch: every token has one for each word, which is what takes the memory.
_LOGITS = 2**24


@dataclass(frozen=True, slots=True)
class Filling:
    """A token that may stand in the gap, how likely it is, and the text with it."""

    token: str
    score: float
    text: str

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        return {"token": self.token, "score": self.score, "text": self.text}


class Filler(Held):
    """A model that fills a gap, written as its `mask` token.

    >>> model = weightpkg.load("NAME", task="fill-mask")                        # doctest: +SKIP
    >>> model.fill([f"The sky is {model.mask}."])[0][0].token                   # doctest: +SKIP
    """

    task: Literal["fill-mask"] = "fill-mask"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory.

        Raises:
            RunError: as `TextModel` has it, or the model has no token for a gap.
        """
        super().__init__()
        self._texts = TextModel(directory, "logits", rank=3, threads=threads)
        self._tokenizer = self._texts.encoder.tokenizer
        self.max_tokens = self._texts.encoder.max_tokens
        mask = read_document(directory, "tokenizer_config.json").get("mask_token")
        found = self._tokenizer.token_to_id(mask) if isinstance(mask, str) else None
        if not isinstance(mask, str) or found is None:
            raise RunError("the model's tokenizer has no `mask_token`, so that it fills no gaps")
        self.mask = mask
        self._mask_id = found
        vocab_size = last_size(self._texts.spec.dims) or self._tokenizer.get_vocab_size()
        self._batch_tokens = max(1, min(BATCH_TOKENS, _LOGITS // vocab_size))

    def fill(
        self, texts: Sequence[str], *, top: int = 5, progress: Progress | None = None
    ) -> list[list[Filling]]:
        """Return what may stand in the gap of each text, the most likely first.

        Args:
            texts: any number of them, each with one gap.
            top: how many fillings.
            progress: told which texts were cut.

        Raises:
            RunError: a text has no gap or several, is too long to be looked at or is not Unicode, or
                the model fails.
        """
        encodings = self._texts.encoder.encode(texts, progress or Silence())
        for i, encoding in enumerate(encodings):
            count = encoding.ids.count(self._mask_id)
            if count != 1:
                found = "is cut before its gap" if self.mask in texts[i] and not count else None
                raise RunError(
                    f"text {i + 1} {found or f'has {count} gaps and not one'}",
                    hint=f"a gap is written as {self.mask}",
                )
        answers: list[list[Filling]] = [[] for _ in encodings]

        def take(batch: Batch, found: Any) -> None:
            for row, logits in zip(batch.rows, found, strict=True):
                place = encodings[row].ids.index(self._mask_id)
                answers[row] = self._best(texts[row], logits[place], top)

        self._texts.compute(encodings, take, tokens=self._batch_tokens)
        return answers

    def _best(self, text: str, logits: NDArray[np.float32], top: int) -> list[Filling]:
        """logits: (V,)."""
        scores = Labels((), "softmax").scores(logits)
        order = np.argsort(-scores, kind="stable")[:top]
        return [self._filling(text, int(i), float(scores[i])) for i in order]

    def _filling(self, text: str, token: int, score: float) -> Filling:
        word = self._tokenizer.decode([token]).strip()
        return Filling(word, score, text.replace(self.mask, word, 1))
