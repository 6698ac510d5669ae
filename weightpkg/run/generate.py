"""The generation loop: tokens in, text out, one piece at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tokenizers.decoders import DecodeStream

from weightpkg.errors import RunError
from weightpkg.run.sampling import Sampler, Sampling
from weightpkg.run.session import Session

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(slots=True)
class Statistics:
    """What one generation took; complete when the last piece was yielded."""

    n_prompt: int = 0
    n_cached: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason = "length"

    @property
    def prefill_rate(self) -> float:
        """Prompt tokens a second, without those that were in the cache."""
        return (self.n_prompt - self.n_cached) / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_rate(self) -> float:
        """Answer tokens a second; the first one belongs to the prompt's time."""
        return (len(self.tokens) - 1) / self.decode_s if self.decode_s else 0.0


def generate(
    session: Session,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    sampling: Sampling,
    max_tokens: int,
    statistics: Statistics,
) -> Iterator[str]:
    """Yield the answer's text as it is made, whole characters at a time.

    What the session already holds of the prompt is not computed again.

    Args:
        session: the model.
        tokenizer: its tokenizer.
        prompt: token ids, at least one.
        sampling: how to choose tokens.
        max_tokens: how many at most.
        statistics: filled on the way.

    Raises:
        RunError: the prompt is empty, longer than the context, or the model fails.
    """
    if not prompt:
        raise RunError("the prompt is empty")
    start = time.perf_counter()
    statistics.n_prompt = len(prompt)
    statistics.n_cached = _common_prefix(session.tokens, prompt)
    session.rewind(statistics.n_cached)
    logits = session.forward(prompt[statistics.n_cached :])
    statistics.prefill_s = time.perf_counter() - start

    sampler = Sampler(sampling)
    stream = DecodeStream(skip_special_tokens=True)
    room = session.config.context_length - len(prompt)
    start = time.perf_counter()
    for left in range(min(max_tokens, room), 0, -1):
        token = sampler.pick(logits, session.tokens)
        if token in session.config.eos_token_ids:
            statistics.finish_reason = "stop"
            break
        statistics.tokens.append(token)
        piece = stream.step(tokenizer, token)
        statistics.decode_s = time.perf_counter() - start
        if piece:
            yield piece
        if left > 1:
            logits = session.forward([token])


def _common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens need no computing; the last one always does, for its logits."""
    count = 0
    for old, new in zip(cached, prompt[:-1], strict=False):
        if old != new:
            break
        count += 1
    return count
