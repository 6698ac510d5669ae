"""One answer in the making: each step's logits become a token, and tokens become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from tokenizers.decoders import DecodeStream

from weightpkg.errors import RunError
from weightpkg.run.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Chance:
    """A token and the logarithm of its probability; `text` may be part of a character."""

    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class Choice:
    """The token that was taken, and the most likely ones."""

    taken: Chance
    likely: tuple[Chance, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that will not change any more, and the tokens whose time has come with it."""

    text: str
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class End:
    """Nothing more comes. tokens: how many the answer has, the one that ended it not among them."""

    reason: Literal["stop", "length"]
    n_tokens: int


Event = Piece | End | RunError


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How to answer.

    max_tokens: how many at most.
    stop: texts that end the answer, and are not part of it.
    presence_penalty, frequency_penalty: taken from the logits of tokens that the answer has: once,
        and for each time.
    bias: added to the logits of tokens.
    n_likely: of how many of the most likely tokens to tell; None of none, not even of those taken.
    """

    sampling: Sampling
    max_tokens: int
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    n_likely: int | None = None

    @property
    def changes_logits(self) -> bool:
        """Whether anything is to be added to logits before a token is chosen."""
        return bool(self.bias or self.presence_penalty or self.frequency_penalty)


class Completion:
    """What a batch continues (`batch.Request`); tells of each step from the batch's thread."""

    def __init__(
        self,
        prompt: Sequence[int],
        tokenizer: Tokenizer,
        ends: Sequence[int],
        options: Options,
        tell: Callable[[Event], None],
    ) -> None:
        """Begin.

        Args:
            prompt: token ids.
            tokenizer: the model's.
            ends: tokens that end an answer.
            options: how to answer.
            tell: told of each event; the last one is an `End` or an error.
        """
        self.prompt = prompt
        self.is_cancelled = False
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._options = options
        self._tell = tell
        self._sampler = Sampler(options.sampling)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stops = Stops(options.stop)
        self._counts: dict[int, int] = {}
        self._choices: list[Choice] = []
        self._n_tokens = 0

    def take(self, logits: NDArray[np.float32], tokens: Sequence[int], /) -> int | None:
        """Choose the next token and tell of its text; None at the end."""
        changed = self._changed(logits) if self._options.changes_logits else logits
        token = self._sampler.pick(changed, tokens)
        if token in self._ends:
            self._end("stop", self._stops.rest())
            return None
        self._n_tokens += 1
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._options.n_likely is not None:
            self._choices.append(self._choice(logits, token, self._options.n_likely))
        text, is_over = self._stops.add(self._stream.step(self._tokenizer, token) or "")
        if is_over:
            self._end("stop", text)
        elif self._n_tokens >= self._options.max_tokens:
            self._end("length", text + self._stops.rest())
        else:
            self._say(text)
            return token
        return None

    def fail(self, error: RunError, /) -> None:
        """Tell of an error, which is the end."""
        self._tell(error)

    def _end(self, reason: Literal["stop", "length"], text: str) -> None:
        self._say(text)
        self._tell(End(reason, self._n_tokens))

    def _say(self, text: str) -> None:
        if text:
            self._tell(Piece(text, tuple(self._choices)))
            self._choices.clear()

    def _changed(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """(V,) logits -> a copy of them with penalties and biases.

        https://platform.openai.com/docs/api-reference/chat/create `frequency_penalty`
        """
        changed = logits.copy()
        if self._counts:
            ids = np.fromiter(self._counts, np.int64)
            counts = np.fromiter(self._counts.values(), np.float32)
            changed[ids] -= self._options.presence_penalty
            changed[ids] -= self._options.frequency_penalty * counts
        for token, bias in self._options.bias.items():
            changed[token] += bias
        return changed

    def _choice(self, logits: NDArray[np.float32], token: int, n_likely: int) -> Choice:
        highest = logits.max()
        total = highest + np.log(np.exp(logits - highest).sum())
        ids = np.argpartition(logits, -n_likely)[-n_likely:] if n_likely else np.empty(0, np.int64)
        ids = ids[np.lexsort((ids, -logits[ids]))]
        taken, *likely = [self._chance(int(i), float(logits[i] - total)) for i in (token, *ids)]
        return Choice(taken, tuple(likely))

    def _chance(self, token: int, log_probability: float) -> Chance:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return Chance(text, log_probability)


class Stops:
    """Holds text back while it may be the beginning of one that ends the answer."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Add text; return what can be told, and whether it is the last."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        kept = max((self._overlap(stop) for stop in self._stops), default=0)
        told, self._held = self._held[: len(self._held) - kept], self._held[-kept:] if kept else ""
        return told, False

    def rest(self) -> str:
        """What is held back, when nothing follows it."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """How many characters at the end of what is held are the beginning of `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
