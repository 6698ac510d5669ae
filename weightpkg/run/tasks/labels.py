"""What the numbers of a classifier stand for, by `config.json` as transformers writes it.

https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/pipelines/text_classification.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weightpkg.errors import RunError
from weightpkg.run.documents import read_document

if TYPE_CHECKING:
    from numpy.typing import NDArray

Scoring = Literal["softmax", "sigmoid", "none"]

_MOST = 1 << 20  # labels that are made up where a model has no names for them


@dataclass(frozen=True, slots=True)
class Label:
    """A label and how sure the model is of it: 0 to 1, or any number of a regression."""

    label: str
    score: float

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        return {"label": self.label, "score": self.score}


@dataclass(frozen=True, slots=True)
class Labels:
    """The names of a classifier's outputs, and what makes scores of them.

    scoring: `softmax` where one of them is meant, `sigmoid` where each is a question of its own,
        `none` for a number that is an answer itself.
    """

    names: tuple[str, ...]
    scoring: Scoring

    @classmethod
    def read(cls, directory: Path, count: int | None) -> Labels:
        """Read a model's labels.

        Args:
            directory: of the model.
            count: how many outputs its graph has, if it says.

        Raises:
            RunError: there are none, or not so many.
        """
        path = directory / "config.json"
        fields = read_document(directory, path.name)
        table = fields.get("id2label")
        if table is None and count and count <= _MOST:
            table = {str(i): f"LABEL_{i}" for i in range(count)}
        names = _names(table)
        if names is None or (count is not None and len(names) != count):
            wanted = f"{count} labels" if count else "labels"
            raise RunError(f"`{path}` does not have {wanted} in `id2label`")
        return cls(names, _scoring(fields.get("problem_type"), len(names)))

    def scores(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits: (..., L) -> (..., L).

        Raises:
            RunError: there are more or fewer of them than labels.
        """
        if self.names and logits.shape[-1] != len(self.names):
            count = f"{logits.shape[-1]:,} numbers for {len(self.names):,} labels"
            raise RunError(f"the model gives {count}")
        wide = logits.astype(np.float32, copy=False)
        if self.scoring == "none":
            return wide
        if self.scoring == "sigmoid":
            # of a large negative number, e to the power of it is 0 and not too large
            small = np.exp(-np.abs(wide))
            both: NDArray[np.float32] = np.where(wide >= 0, 1 / (1 + small), small / (1 + small))
            return both
        exponentials = np.exp(wide - wide.max(axis=-1, keepdims=True))
        result: NDArray[np.float32] = exponentials / exponentials.sum(axis=-1, keepdims=True)
        return result

    def ranked(self, scores: NDArray[np.float32], top: int | None) -> list[Label]:
        """scores: (L,) -> the best labels first, ties in the order of the model."""
        order = np.argsort(-scores, kind="stable")[:top]
        return [Label(self.names[i], float(scores[i])) for i in order]


def _names(table: Any) -> tuple[str, ...] | None:
    """The labels by their numbers, which JSON has as strings."""
    if isinstance(table, list):
        table = {str(i): name for i, name in enumerate(table)}
    if not isinstance(table, dict) or not table:
        return None
    names = [table.get(str(i)) for i in range(len(table))]
    return None if any(not isinstance(name, str) for name in names) else tuple(map(str, names))


def _scoring(problem: object, count: int) -> Scoring:
    if problem == "regression":
        return "none"
    return "sigmoid" if problem == "multi_label_classification" or count == 1 else "softmax"


def last_size(dims: Sequence[int | str | None]) -> int | None:
    """Return the size of the last dimension, if it is fixed."""
    return dims[-1] if dims and isinstance(dims[-1], int) else None
