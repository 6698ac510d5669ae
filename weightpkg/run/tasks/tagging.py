"""Texts to spans with labels: names of people and places, say.

Tokens next to each other with the same label are one span; `B-` before a label begins a new one, `I-`
goes on with it, and `O` is no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from weightpkg.progress import Progress, Silence
from weightpkg.run.tasks.labels import Labels, last_size
from weightpkg.run.tasks.tensors import Held
from weightpkg.run.tasks.text import Batch, TextModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Encoding

_OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a text: `text[start:end]`, its label, and the mean score of its tokens."""

    label: str
    score: float
    start: int
    end: int
    text: str

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "label": self.label,
            "score": self.score,
            "start": self.start,
            "end": self.end,
            "text": self.text,
        }


class Tagger(Held):
    """A model that finds parts of a text.

    >>> model = weightpkg.load("NAME", task="token-classification")             # doctest: +SKIP
    >>> [(span.label, span.text) for span in model.tag(["Ada lives in Paris"])[0]] # doctest: +SKIP
    """

    task: Literal["token-classification"] = "token-classification"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory; arguments and errors as `TextModel` has them."""
        super().__init__()
        self._texts = TextModel(directory, "logits", rank=3, threads=threads)
        found = Labels.read(directory, last_size(self._texts.spec.dims))
        self.labels = Labels(found.names, "softmax")
        self.max_tokens = self._texts.encoder.max_tokens

    def tag(self, texts: Sequence[str], *, progress: Progress | None = None) -> list[list[Span]]:
        """Return the spans of each text, in their order; arguments and errors as `classify` has them."""
        encodings = self._texts.encoder.encode(texts, progress or Silence())
        answers: list[list[Span]] = [[] for _ in encodings]

        def take(batch: Batch, found: Any) -> None:
            for row, scores in zip(batch.rows, self.labels.scores(found), strict=True):
                tokens = self._tokens(encodings[row], scores)
                answers[row] = list(_spans(texts[row], tokens))

        self._texts.compute(encodings, take)
        return answers

    def _tokens(self, encoding: Encoding, scores: NDArray[np.float32]) -> Iterator[_Token]:
        """Yield each token that stands for something in the text, with its best label."""
        tokens = zip(encoding.offsets, encoding.special_tokens_mask, scores, strict=False)
        for (start, end), is_special, row in tokens:
            if end > start and not is_special:
                best = int(row.argmax())
                yield _Token(self.labels.names[best], float(row[best]), start, end)


@dataclass(frozen=True, slots=True)
class _Token:
    label: str
    score: float
    start: int
    end: int

    @property
    def kind(self) -> str:
        """The label without what says where in a span it is."""
        return self.label[2:] if self.label[:2] in {"B-", "I-"} else self.label


def _spans(text: str, tokens: Iterator[_Token]) -> Iterator[Span]:
    group: list[_Token] = []
    for token in tokens:
        begins = token.label.startswith("B-") or not group or token.kind != group[-1].kind
        if begins and group:
            yield _span(text, group)
            group = []
        if token.label != _OUTSIDE:
            group.append(token)
        elif group:
            yield _span(text, group)
            group = []
    if group:
        yield _span(text, group)


def _span(text: str, group: list[_Token]) -> Span:
    start, end = group[0].start, group[-1].end
    while start < end and text[start].isspace():  # byte-level tokens have the blank before a word
        start += 1
    score = sum(token.score for token in group) / len(group)
    return Span(group[0].kind, score, start, end, text[start:end])
