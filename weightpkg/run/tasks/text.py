"""Texts as models take them: tokens, cut at the model's length, in batches of about the same length.

A batch is a rectangle, and what pads it is computed like everything else. So texts are put together by
their length, and a batch has as many as fit a number of tokens. As many batches are computed at once
as there are threads, each by one: small models gain little from several threads a batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from weightpkg.errors import RunError
from weightpkg.progress import Progress
from weightpkg.run.documents import read_document
from weightpkg.run.tasks.tensors import Array, TensorModel
from weightpkg.run.tokenizing import read_tokenizer, tokenizing
from weightpkg.survey import usable_cores

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

MAX_CHARACTERS = 4 * 1024 * 1024
"""Of a text: more is a mistake, and takes the tokenizer long."""

# Measured by scripts/bench/embeddings.py; 4 rows of 128 tokens, say.
BATCH_TOKENS = 512

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"


Pair: TypeAlias = tuple[str, str]
"""A text and another one, of which a model says how they go together."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Texts of about the same length. rows: which they are; feeds: their tokens, each (B, T) int64."""

    rows: tuple[int, ...]
    feeds: dict[str, Array]


class TextEncoder:
    """The tokenizer of a model, and how many tokens of a text the model reads."""

    def __init__(self, directory: Path, inputs: Sequence[str]) -> None:
        """Read what a model directory has of it.

        Args:
            directory: of the model.
            inputs: the names of the model's inputs.

        Raises:
            RunError: there is no tokenizer, it is broken, or the model takes something else.
        """
        if not {_IDS} <= set(inputs) <= {_IDS, _MASK, _TYPES}:
            raise RunError(
                f"the model takes {', '.join(inputs)}, which are not the tokens of a text",
                hint="`weightpkg run NAME --input NAME=VALUE` feeds any input",
            )
        self._inputs = tuple(inputs)
        self._config = read_document(directory, "tokenizer_config.json")
        self.tokenizer = read_tokenizer(directory)
        self.tokenizer.no_padding()
        self.max_tokens = self._settle_length(directory)
        self._pad_id = self._padding(directory)

    def _settle_length(self, directory: Path) -> int | None:
        """How many tokens are read: what the tokenizer says, or else the configurations."""
        if truncation := self.tokenizer.truncation:
            return int(truncation["max_length"])
        lengths = [
            self._config.get("model_max_length"),
            read_document(directory, "config.json").get("max_position_embeddings"),
        ]
        known = [int(n) for n in lengths if isinstance(n, int | float) and 0 < n < 2**24]
        if not known:
            return None
        self.tokenizer.enable_truncation(min(known))
        return min(known)

    def _padding(self, directory: Path) -> int:
        token = self._config.get("pad_token")
        found = self.tokenizer.token_to_id(token) if isinstance(token, str) else None
        if found is None:
            found = read_document(directory, "config.json").get("pad_token_id")
        return found if isinstance(found, int) else 0

    def encode(
        self, texts: Sequence[str | Pair], progress: Progress, *, first: int = 1
    ) -> list[Encoding]:
        """Return the tokens of each text.

        Args:
            texts: any number of them, or pairs of them.
            progress: told which texts were cut.
            first: the number of the first text, in what is said of them.

        Raises:
            RunError: a text is too long to be looked at, is not Unicode, or has no tokens.
        """
        if isinstance(texts, str):
            raise TypeError("texts is one string, not a list of them")
        for number, text in enumerate(texts, first):
            for part in (text,) if isinstance(text, str) else text:
                _check_text(part, number)
        with tokenizing():
            encodings = self.tokenizer.encode_batch(list(texts))
        self._look_at(encodings, progress, first)
        return encodings

    def _look_at(self, encodings: Sequence[Encoding], progress: Progress, first: int) -> None:
        for number, encoding in enumerate(encodings, first):
            if not encoding.ids:
                raise RunError(f"text {number} has no tokens")
        cut = [number for number, each in enumerate(encodings, first) if each.overflowing]
        if cut:
            which = ", ".join(map(str, cut[:8])) + (", ..." if len(cut) > 8 else "")
            progress.note(
                f"{len(cut):,} of {len(encodings):,} texts have more than the "
                f"{self.max_tokens:,} tokens that the model reads, and were cut: {which}"
            )

    def batches(self, encodings: Sequence[Encoding], tokens: int = BATCH_TOKENS) -> Iterator[Batch]:
        """Put texts together, the longest first, so that what takes most memory comes at once."""
        ids = [np.array(encoding.ids, np.int64) for encoding in encodings]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        start = 0
        while start < len(order):
            width = len(ids[order[start]])
            end = start + max(1, tokens // width)
            rows = tuple(order[start:end])
            yield Batch(rows, self._feeds(rows, ids, encodings, width))
            start = end

    def _feeds(
        self,
        rows: Sequence[int],
        ids: Sequence[NDArray[np.int64]],
        encodings: Sequence[Encoding],
        width: int,
    ) -> dict[str, Array]:
        shape = (len(rows), width)
        feeds: dict[str, Array] = {
            _IDS: np.full(shape, self._pad_id, np.int64),
            _MASK: np.zeros(shape, np.int64),
            _TYPES: np.zeros(shape, np.int64),
        }
        for place, row in enumerate(rows):
            length = len(ids[row])
            feeds[_IDS][place, :length] = ids[row]
            feeds[_MASK][place, :length] = 1
            if _TYPES in self._inputs:
                feeds[_TYPES][place, :length] = encodings[row].type_ids
        return {name: feeds[name] for name in self._inputs}


class TextModel:
    """A model and its tokenizer, which answer many texts with some batches at once."""

    def __init__(self, directory: Path, output: str, *, rank: int, threads: int = 0) -> None:
        """Load both.

        Args:
            directory: of the model.
            output: the one that is wanted.
            rank: how many dimensions that has: 2 for something of texts, 3 of their tokens.
            threads: how many to compute with; 0 is one for each core that it may use.

        Raises:
            RunError: a file is missing or broken, or the model is not one for texts.
        """
        self.threads = threads or usable_cores()
        self.model = TensorModel(directory, threads=1)
        (self.output,) = self.model.output_names([output])
        required = [spec.name for spec in self.model.inputs if not spec.is_optional]
        self.encoder = TextEncoder(directory, required)
        (self.spec,) = (spec for spec in self.model.outputs if spec.name == output)
        self._rank = rank
        if len(self.spec.dims) != rank or self.spec.dtype is None or self.spec.dtype.kind != "f":
            what = "of texts" if rank == 2 else "of tokens"
            raise RunError(f"the model's output is not numbers {what}: {self.spec}")

    def compute(
        self,
        encodings: Sequence[Encoding],
        take: Callable[[Batch, Any], None],
        *,
        tokens: int = BATCH_TOKENS,
    ) -> None:
        """Run the model on texts.

        Args:
            encodings: their tokens.
            take: gets each batch with its output, one at a time.
            tokens: how many a batch may have.

        Raises:
            RunError: the model fails, or what it made is not a number.
        """
        lock = Lock()

        def compute(batch: Batch) -> None:
            found: Any = self.model.compute(batch.feeds, [self.output])[0]
            expected = batch.feeds[_IDS].shape[: self._rank - 1]
            if found.shape[:-1] != expected:
                shape = f"{list(found.shape)} for tokens {list(batch.feeds[_IDS].shape)}"
                raise RunError(f"the model's output has the shape {shape}")
            is_number = np.isfinite(found).reshape(len(found), -1).all(axis=1)
            if not is_number.all():
                text = batch.rows[int(np.argmin(is_number))] + 1
                raise RunError(f"the model's answer to text {text} is not a number")
            with lock:  # taken at once, as answers that wait take memory
                take(batch, found)

        with ThreadPoolExecutor(self.threads) as pool:
            deque(pool.map(compute, self.encoder.batches(encodings, tokens)), maxlen=0)


def _check_text(text: str, number: int) -> None:
    if len(text) > MAX_CHARACTERS:
        raise RunError(
            f"text {number} has {len(text):,} characters, more than {MAX_CHARACTERS:,}",
            hint="cut it into paragraphs",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RunError(f"text {number} has half of a character, and is not Unicode") from error
