"""A text model that is ready to answer: session, tokenizer and chat template together."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from tokenizers import Tokenizer

from weightpkg.errors import RunError, TemplateError
from weightpkg.run.generate import FinishReason, Statistics, generate
from weightpkg.run.sampling import Sampling
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.template import ChatTemplate, Message

DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; `str()` of it is its text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    statistics: Statistics

    def __str__(self) -> str:
        return self.text


class Stream(Iterator[str]):
    """An answer in the making: iterate for its pieces; `statistics` is complete at the end."""

    def __init__(self, pieces: Iterator[str], statistics: Statistics) -> None:
        self._pieces = pieces
        self.statistics = statistics

    def __next__(self) -> str:
        return next(self._pieces)

    def finish(self) -> Answer:
        """Run to the end and return the answer, less what was already taken."""
        text = "".join(self._pieces)
        statistics = self.statistics
        return Answer(text, tuple(statistics.tokens), statistics.finish_reason, statistics)


class Model:
    """A loaded model. Answers one request at a time; a context manager that frees it at the end.

    >>> model = weightpkg.load("smollm2-135m-q4")                        # doctest: +SKIP
    >>> print(model.chat([{"role": "user", "content": "Hello!"}]))       # doctest: +SKIP
    """

    task: Literal["text-generation"] = "text-generation"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory.

        Args:
            directory: as a conversion made it.
            threads: how many to compute with; 0 is one for each physical core.

        Raises:
            RunError: a file is missing or broken, or there is not enough memory.
        """
        start = time.perf_counter()
        self._held = ExitStack()
        config = ModelConfig.read(directory)
        self._template = read_template(directory)
        try:
            with ThreadPoolExecutor(1) as pool:  # onnxruntime loads without Python's lock
                session = pool.submit(Session, directory, config, threads=threads)
                self._tokenizer = read_tokenizer(directory)
                self.session = session.result()
        except BaseException:
            self.close()
            raise
        self.load_s = time.perf_counter() - start

    def hold(self, stack: ExitStack) -> None:
        """Close a stack when the model is closed: what keeps its directory there."""
        self._held = stack

    def close(self) -> None:
        """Free what the model holds."""
        if self._template is not None:
            self._template.close()
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
    ) -> Stream:
        """Answer piece by piece.

        Args:
            prompt: text to be continued as it is, or messages for the chat template.
            max_tokens: how many tokens at most.
            sampling: how to choose them; the most likely ones if not given.

        Raises:
            TemplateError: the chat template fails, or there is none.
            RunError: here or while iterating: the prompt is too long, or the model fails.
        """
        if isinstance(prompt, str):
            ids = self._tokenizer.encode(prompt).ids
        else:
            text = self.render(prompt)  # has its own special tokens
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        statistics = Statistics()
        pieces = generate(
            self.session,
            self._tokenizer,
            ids,
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            statistics=statistics,
        )
        return Stream(pieces, statistics)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
    ) -> Answer:
        """Continue a text, without a chat template; errors as `stream`."""
        return self.stream(prompt, max_tokens=max_tokens, sampling=sampling).finish()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
    ) -> Answer:
        """Answer messages, each with a `role` and a `content`; errors as `stream`."""
        return self.stream(messages, max_tokens=max_tokens, sampling=sampling).finish()

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that the chat template makes of messages.

        Raises:
            TemplateError: it fails, or the model has none.
        """
        if self._template is None:
            raise TemplateError(
                "the model has no chat template: it continues text and does not chat",
                hint="`--raw` (in Python `generate`) gives it the prompt as it is",
            )
        return self._template.render(messages)


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a model directory; RunError if it cannot be."""
    path = directory / "tokenizer.json"
    try:
        return Tokenizer.from_buffer(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"`{path}` cannot be read: {error}") from error


def read_template(directory: Path) -> ChatTemplate | None:
    """Return the chat template of a model directory, None if it has none; RunError if it is broken."""
    path = directory / "tokenizer_config.json"
    try:
        config: Mapping[str, object] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"`{path}` cannot be read: {error}") from error
    source = config.get("chat_template")
    tokens = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
    return ChatTemplate(source, tokens) if isinstance(source, str) else None
