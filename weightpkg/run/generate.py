"""The generation loop: tokens in, text out, one piece at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tokenizers.decoders import DecodeStream

from weightpkg.errors import RunError
from weightpkg.run.constraint import Matcher
from weightpkg.run.lookup import Lookup
from weightpkg.run.sampling import Sampler, Sampling, log_probabilities
from weightpkg.run.session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length"]
MOST_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, its log-probability, and the most likely ones at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Statistics:
    """What one generation took; complete when the last piece was yielded.

    n_guessed, n_right: tokens that were guessed from the text, and those of them that stayed.
    logprobs: of each token, where they were asked for.
    """

    n_prompt: int = 0
    n_cached: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"
    n_guessed: int = 0
    n_right: int = 0
    logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, without those that were in the cache."""
        return (self.n_prompt - self.n_cached) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_rate(self) -> float:
        """Answer tokens a second; the first one belongs to the prompt's time."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is asked of an answer.

    sampling: how to choose tokens; max_tokens: how many at most.
    stop: texts that end it, and are not part of it.
    logprobs: of how many tokens at each place, with that of the chosen one; None for no log-probabilities.
    lookup: whether to guess tokens from the text: the same answer, sooner where it repeats.

    ValueError where a value is out of its range.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    lookup: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS:
            raise ValueError(f"logprobs must be between 0 and {MOST_LOGPROBS}, not {self.logprobs}")
        if not all(self.stop):
            raise ValueError("an empty text stops nothing")


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    options: Options,
    statistics: Statistics,
    matcher: Matcher | None = None,
) -> Iterator[str]:
    """Yield the answer's text as it is made, whole characters at a time.

    What the session already holds of the prompt is not computed again.

    Args:
        session: the model.
        tokenizer: its tokenizer.
        prompt: token ids, at least one.
        options: what is asked for.
        statistics: filled on the way.
        matcher: the form that the answer must have.

    Raises:
        RunError: the prompt is empty, longer than the context, or the model fails.
    """
    chosen = _tokens(session, prompt, options, statistics, matcher)
    stream = DecodeStream(skip_special_tokens=True)
    held = Held(options.stop)
    for token in chosen:
        piece = stream.step(tokenizer, token)
        text = held.add(piece) if piece else ""
        if text:
            yield text
        if held.is_stopped:
            statistics.finish_reason = "stop"
            return
    if rest := held.rest():
        yield rest


def _tokens(
    session: Session,
    prompt: Sequence[int],
    options: Options,
    statistics: Statistics,
    matcher: Matcher | None,
) -> Iterator[int]:
    """Yield the answer's tokens, without the one that ends it."""
    logits = _prefill(session, prompt, statistics)
    sampler, lookup = Sampler(options.sampling), Lookup()
    most = min(options.max_tokens, session.config.context_length - len(prompt))
    text = list(prompt)
    guess: list[int] = []
    start = time.perf_counter()
    while most:
        n_right = 0
        # the first row follows the last token, each other one a token of the guess
        for row, guessed in zip(logits, [*guess, None], strict=True):
            token = sampler.pick(matcher.mask(row) if matcher else row, text)
            if token in session.config.eos_token_ids:
                statistics.finish_reason = "stop"
                return
            if matcher:
                matcher.take(token)
            if options.logprobs is not None:
                statistics.logprobs.append(_logprob(row, token, options.logprobs))
            text.append(token)
            statistics.tokens.append(token)
            if token == guessed:
                n_right += 1
                statistics.n_right += 1
            statistics.decode_s = time.perf_counter() - start
            yield token
            if matcher and matcher.is_done:
                statistics.finish_reason = "stop"
                return
            if len(statistics.tokens) == most:
                return
            if token != guessed:
                break
        n_kept = session.rewind(len(text) - 1)
        lookup.learn_from(len(guess), n_right)
        guess = lookup.guess(text, most - len(statistics.tokens) - 1) if options.lookup else []
        statistics.n_guessed += len(guess)
        logits = session.forward_all([*text[n_kept:], *guess], keep=len(guess) + 1)


def _prefill(
    session: Session, prompt: Sequence[int], statistics: Statistics
) -> NDArray[np.float32]:
    """Read the prompt; return the logits that follow it, (1, V)."""
    if not prompt:
        raise RunError("the prompt is empty")
    start = time.perf_counter()
    statistics.n_prompt = len(prompt)
    statistics.n_cached = session.rewind(common_prefix(session.tokens, prompt))
    logits = session.forward_all(prompt[statistics.n_cached :], keep=1)
    statistics.prefill_s = time.perf_counter() - start
    return logits


def _logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    logprob, top = log_probabilities(logits, token, n_top)
    return TokenLogprob(token, logprob, tuple(top))


def common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens need no computing; the last one always does, for its logits."""
    count = 0
    for old, new in zip(cached, prompt[:-1], strict=False):
        if old != new:
            break
        count += 1
    return count


class Held:
    """Text of which the end is held back while it may be the beginning of a stop."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._text = ""
        self.is_stopped = False

    def add(self, piece: str) -> str:
        """Add to the text; return what of it is sure to be shown."""
        self._text += piece
        found = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._text[: min(found)]
        n_held = max((_overlap(self._text, stop) for stop in self._stops), default=0)
        shown = self._text[: len(self._text) - n_held]
        self._text = self._text[len(shown) :]
        return shown

    def rest(self) -> str:
        """What was held back for a stop that did not come."""
        return "" if self.is_stopped else self._text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
