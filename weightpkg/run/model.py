"""A text model that is ready to answer: session, tokenizer and chat template together."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Self

from weightpkg.errors import TemplateError
from weightpkg.memory import KvCache
from weightpkg.run.calibration import calibrated
from weightpkg.run.constraint import Constraint, Grammars
from weightpkg.run.documents import read_document
from weightpkg.run.generate import FinishReason, Options, Statistics, generate
from weightpkg.run.sampling import Sampling
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.template import ChatTemplate, Message
from weightpkg.run.tokenizing import read_tokenizer

DEFAULT_MAX_TOKENS = 1024
_HEAD_START_S = 0.03


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

    def __init__(
        self,
        directory: Path,
        *,
        threads: int = 0,
        device: str = "auto",
        cache: Path | None = None,
        kv_cache: KvCache = "float",
    ) -> None:
        """Load a model directory.

        Args:
            directory: as a conversion made it.
            threads: how many to compute with; 0 is one for each core that this process may use.
            device: `auto`, `cpu`, `gpu`, `npu`, or a provider's name.
            cache: where graphs are kept that were made for this machine; None keeps nothing.
            kv_cache: `int8` keeps keys and values in a quarter of the memory, a little less exactly.

        Raises:
            RunError: a file is missing or broken, the device cannot run it, or there is not enough memory.
        """
        start = time.perf_counter()
        self._held = ExitStack()
        config = ModelConfig.read(directory)
        self._template = read_template(directory)

        def load() -> Session:
            open_ = partial(Session, directory, config, threads=threads, device=device, cache=cache)
            if kv_cache == "float":
                return open_()
            return open_(
                scales=calibrated(directory, config, threads=threads, device=device, cache=cache)
            )

        try:
            with ThreadPoolExecutor(1) as pool:
                session = pool.submit(load)
                # onnxruntime loads without Python's lock once it has begun; the tokenizer keeps it
                wait([session], _HEAD_START_S)
                self._tokenizer = read_tokenizer(directory)
                self.session = session.result()
        except BaseException:
            self.close()
            raise
        self._grammars = Grammars(self._tokenizer, config.vocab_size, config.eos_token_ids)
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
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        lookup: bool = False,
        constraint: Constraint | None = None,
    ) -> Stream:
        """Answer piece by piece.

        Args:
            prompt: text to be continued as it is, or messages for the chat template.
            max_tokens: how many tokens at most.
            sampling: how to choose them; the most likely ones if not given.
            stop: texts that end the answer, and are not part of it.
            logprobs: have the log-probability of each token in the statistics, and those of so many others.
            lookup: guess tokens from the text so far: the same answer, sooner where it repeats the prompt.
            constraint: the form that the answer must have.

        Raises:
            TemplateError: the chat template fails, or there is none.
            RunError: here or while iterating: the prompt is too long, the constraint is not valid, or the
                model fails.
        """
        options = Options(
            sampling=sampling or Sampling(),
            max_tokens=max_tokens,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            logprobs=logprobs,
            lookup=lookup,
        )
        matcher = None if constraint is None else self._grammars.start(constraint)
        ids = self.tokens_of(prompt)
        statistics = Statistics()
        pieces = generate(
            self.session,
            self._tokenizer,
            ids,
            options=options,
            statistics=statistics,
            matcher=matcher,
        )
        return Stream(pieces, statistics)

    def tokens_of(self, prompt: str | Sequence[Message]) -> list[int]:
        """Return the token ids of a prompt.

        Raises:
            TemplateError: it is messages, and the chat template fails, or there is none.
        """
        if isinstance(prompt, str):
            return list(self._tokenizer.encode(prompt).ids)
        text = self.render(prompt)  # has its own special tokens
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def token_text(self, token: int) -> str:
        """Return the text of one token by itself, special ones as they are written."""
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return text

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        lookup: bool = False,
        constraint: Constraint | None = None,
    ) -> Answer:
        """Continue a text, without a chat template; arguments and errors as of `stream`."""
        return self.stream(
            prompt,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            lookup=lookup,
            constraint=constraint,
        ).finish()

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        logprobs: int | None = None,
        lookup: bool = False,
        constraint: Constraint | None = None,
    ) -> Answer:
        """Answer messages, each with a `role` and a `content`; arguments and errors as of `stream`."""
        return self.stream(
            messages,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stop,
            logprobs=logprobs,
            lookup=lookup,
            constraint=constraint,
        ).finish()

    def samples(
        self,
        prompt: str | Sequence[Message],
        n: int,
        *,
        sampling: Sampling,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: Sequence[str] = (),
        constraint: Constraint | None = None,
    ) -> list[Answer]:
        """Answer `n` times; the prompt is read once. With a seed, the answers are those of seed, seed + 1, ...

        Errors as of `stream`; ValueError if `n` is not positive.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, not {n}")
        return [
            self.stream(
                prompt,
                max_tokens=max_tokens,
                sampling=sampling.shifted(i),
                stop=stop,
                constraint=constraint,
            ).finish()
            for i in range(n)
        ]

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


def read_template(directory: Path) -> ChatTemplate | None:
    """Return the chat template of a model directory, None if it has none; RunError if it is broken."""
    config = read_document(directory, "tokenizer_config.json", is_needed=True)
    source = config.get("chat_template")
    tokens = {k: v for k, v in config.items() if k.endswith("_token") and isinstance(v, str)}
    return ChatTemplate(source, tokens) if isinstance(source, str) else None
