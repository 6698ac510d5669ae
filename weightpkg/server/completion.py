"""One answer in the making: each step's logits become a token, and tokens become text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from tokenizers.decoders import DecodeStream

from weightpkg.errors import RunError
from weightpkg.run.generate import Held
from weightpkg.run.sampling import Sampler, Sampling, log_probabilities

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from weightpkg.run.constraint import Matcher


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
        matcher: Matcher | None = None,
    ) -> None:
        """Begin.

        Args:
            prompt: token ids.
            tokenizer: the model's.
            ends: tokens that end an answer.
            options: how to answer.
            tell: told of each event; the last one is an `End` or an error.
            matcher: the form that the answer must have.
        """
        self.prompt = prompt
        self.is_cancelled = False
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        self._options = options
        self._tell = tell
        self._sampler = Sampler(options.sampling)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = Held(options.stop)
        self._matcher = matcher
        self._counts: dict[int, int] = {}
        self._choices: list[Choice] = []
        self._n_tokens = 0

    def take(self, logits: NDArray[np.float32], tokens: Sequence[int], /) -> int | None:
        """Choose the next token and tell of its text; None at the end."""
        try:
            token = self._choose(logits, tokens)
        except RunError as error:  # no token can go on with the form
            self.fail(error)
            return None
        if token in self._ends:
            self._end("stop", self._held.rest())
            return None
        self._n_tokens += 1
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._options.n_likely is not None:
            self._choices.append(self._choice(logits, token, self._options.n_likely))
        text = self._held.add(self._stream.step(self._tokenizer, token) or "")
        if self._held.is_stopped or (self._matcher is not None and self._matcher.is_done):
            self._end("stop", text + self._held.rest())
        elif self._n_tokens >= self._options.max_tokens:
            self._end("length", text + self._held.rest())
        else:
            self._say(text)
            return token
        return None

    def _choose(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> int:
        if self._options.changes_logits:
            logits = self._changed(logits)
        if self._matcher is None:
            return self._sampler.pick(logits, tokens)
        token = self._sampler.pick(self._matcher.mask(logits), tokens)
        if token not in self._ends:
            self._matcher.take(token)
        return token

    def fail(self, error: RunError, /) -> None:
        """Tell of an error, which is the end."""
        self._tell(error)

    def _end(self, reason: Literal["stop", "length"], text: str) -> None:
        self._say(text, is_last=True)
        self._tell(End(reason, self._n_tokens))

    def _say(self, text: str, *, is_last: bool = False) -> None:
        if text or (is_last and self._choices):  # the last tokens may be a part of a character
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
        taken, likely = log_probabilities(logits, token, n_likely)
        return Choice(self._chance(token, taken), tuple(self._chance(*each) for each in likely))

    def _chance(self, token: int, log_probability: float) -> Chance:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return Chance(text, log_probability)
