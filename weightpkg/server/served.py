"""What is served: text models that answer together, and models that make vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpkg.errors import RunError, TemplateError
from weightpkg.memory import KvCache
from weightpkg.run.batch import Batch
from weightpkg.run.calibration import calibrated
from weightpkg.run.constraint import Constraint, Grammars, Matcher
from weightpkg.run.loading import load_graph
from weightpkg.run.model import read_template
from weightpkg.run.session import ModelConfig
from weightpkg.run.tokenizing import read_tokenizer
from weightpkg.server.completion import Completion, Event, Options
from weightpkg.server.engine import Engine

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Threads wait for each other in a loop, by onnxruntime's own settings for longer than a step takes, and so
# keep the event loop, and clients of this machine, from the cores. With these, on two cores, one client
# has 1.7 times as many tokens a second as without loops, and eight 1.35 times; with a core taken by other
# work both have 0.8 times as many. https://onnxruntime.ai/docs/performance/tune-performance/threading.html
_SHORT_LOOPS = {
    "session.intra_op.spin_duration_us": "100",
    "session.force_spinning_stop": "1",
}


class PromptError(RunError):
    """A prompt that cannot be answered: it is empty, or no text."""


class PromptTooLongError(PromptError):
    """A prompt that leaves no room for an answer."""


class ConstraintError(RunError):
    """A form of answers that is not valid."""


class TextModel:
    """A decoder with its tokenizer, its template and the thread that continues its answers."""

    def __init__(
        self,
        directory: Path,
        *,
        threads: int,
        n_rows: int,
        n_waiting: int,
        cache: Path | None = None,
        kv_cache: KvCache = "float",
    ) -> None:
        """Load a model directory.

        Args:
            directory: as a conversion made it.
            threads: how many to compute with; 0 is one for each physical core.
            n_rows: how many answers at once.
            n_waiting: how many requests may wait.
            cache: where graphs are kept that were made for this machine.
            kv_cache: what keys and values are kept as.

        Raises:
            RunError: a file is missing or broken, or there is not enough memory.
        """
        self.n_most = n_rows + n_waiting
        self.config = ModelConfig.read(directory)
        self.tokenizer = read_tokenizer(directory)
        ends = self.config.eos_token_ids
        self._grammars = Grammars(self.tokenizer, self.config.vocab_size, ends)
        scales = None
        if kv_cache == "int8":
            scales = calibrated(directory, self.config, threads=threads, device="cpu", cache=cache)
        session = load_graph(
            directory,
            device="cpu",
            threads=threads,
            cache=cache,
            scales=scales,
            entries=_SHORT_LOOPS,
        ).session
        self._template = read_template(directory)
        self._template_lock = threading.Lock()
        with ExitStack() as undo:
            if self._template is not None:
                undo.callback(self._template.close)
            self.engine = Engine(Batch(session, self.config, n_rows), n_waiting=n_waiting)
            undo.pop_all()
        self.held = ExitStack()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self.engine.is_idle

    @property
    def is_alive(self) -> bool:
        """Whether it can answer."""
        return self.engine.is_alive

    def close(self) -> None:
        """Free what it holds."""
        self.engine.close()
        if self._template is not None:
            self._template.close()
        self.held.close()

    def encode_chat(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]] | None
    ) -> list[int]:
        """Return the tokens of messages, as the model's template writes them.

        Raises:
            TemplateError: it fails, or the model has none.
            PromptError: the messages are no text.
        """
        if self._template is None:
            raise TemplateError("the model has no chat template: it only continues text")
        with self._template_lock:  # one process, one question after the other
            text = self._template.render(messages, tools=tools)
        return self._tokens(text, has_special=True)

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text that is to be continued; PromptError if it is none."""
        return self._tokens(text, has_special=False)

    def _tokens(self, text: str, *, has_special: bool) -> list[int]:
        try:
            text.encode()  # JSON can say half of a character, and tokenizers cannot read it
        except UnicodeEncodeError as error:
            raise PromptError("the prompt has half of a character (a lone surrogate)") from error
        return list(self.tokenizer.encode(text, add_special_tokens=not has_special).ids)

    def room(self, prompt: Sequence[int]) -> int:
        """How many tokens an answer can have.

        Raises:
            PromptError: none: the prompt is empty.
            PromptTooLongError: it fills the context.
        """
        if not prompt:
            raise PromptError("the prompt is empty")
        room = self.config.context_length - len(prompt)
        if room < 1:
            raise PromptTooLongError(
                f"the prompt has {len(prompt):,} tokens, and the model's context "
                f"{self.config.context_length:,}"
            )
        return room

    def completion(
        self,
        prompt: Sequence[int],
        options: Options,
        tell: Callable[[Event], None],
        constraint: Constraint | None = None,
    ) -> Completion:
        """Prepare an answer, for the engine.

        Raises:
            ConstraintError: the form that it must have is not valid.
        """
        ends = self.config.eos_token_ids
        return Completion(prompt, self.tokenizer, ends, options, tell, self._matcher(constraint))

    def _matcher(self, constraint: Constraint | None) -> Matcher | None:
        if constraint is None:
            return None
        try:
            with self._template_lock:
                return self._grammars.start(constraint)
        except RunError as error:
            raise ConstraintError(error.message) from error


class EmbeddingModel:
    """A model that makes vectors; one request after the other."""

    def __init__(self, directory: Path, *, threads: int) -> None:
        """Load a model directory; errors as `Embedder`."""
        from weightpkg.run.tasks.embedding import Embedder  # noqa: PLC0415  only these models need it

        self._embedder = Embedder(directory, threads=threads)
        self.dimensions = self._embedder.dimensions
        self._lock = threading.Lock()
        self.held = ExitStack()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being computed."""
        return not self._lock.locked()

    @property
    def is_alive(self) -> bool:
        """Whether it can answer: always."""
        return True

    def close(self) -> None:
        """Free what it holds."""
        self.held.close()

    def embed(self, texts: Sequence[str]) -> tuple[NDArray[Any], int]:
        """Return a vector for each text, (N, dimensions) float32, and how many tokens they have."""
        with self._lock:
            return self._embedder.embed(texts), self._embedder.count_tokens(texts)
