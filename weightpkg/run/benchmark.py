"""How fast a model is on this machine: prompt, answer, first token, memory.

Rounds of the same work, of which the medians count: a machine does other things as well, and the first
round is there to warm up. Tokens are drawn at random, the same ones everywhere.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from dataclasses import dataclass

from weightpkg.errors import RunError
from weightpkg.run.session import Session

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """What was measured.

    prefill_rate, decode_rate: tokens a second; first_token_s: of a prompt of `n_prompt` tokens.
    peak_memory: of the whole process so far, in bytes, where the system tells.
    """

    provider: str
    load_s: float
    n_prompt: int
    n_answer: int
    rounds: int
    prefill_rate: float
    first_token_s: float
    decode_rate: float
    peak_memory: int | None

    def as_json(self) -> dict[str, object]:
        """For programs."""
        return {
            "provider": self.provider,
            "load-s": round(self.load_s, 4),
            "prompt-tokens": self.n_prompt,
            "answer-tokens": self.n_answer,
            "rounds": self.rounds,
            "prefill-tokens-per-s": round(self.prefill_rate, 2),
            "first-token-s": round(self.first_token_s, 4),
            "decode-tokens-per-s": round(self.decode_rate, 2),
            "peak-memory": self.peak_memory,
        }


def benchmark(
    session: Session, *, load_s: float, n_prompt: int = 512, n_answer: int = 64, rounds: int = 5
) -> Benchmark:
    """Measure a session; what it held of earlier texts is forgotten.

    Args:
        session: the model.
        load_s: how long it took to load.
        n_prompt: tokens of the prompt.
        n_answer: tokens of the answer, two at least.
        rounds: how many, beside one to warm up.

    Raises:
        RunError: the model's context is too short for it, or the model fails.
    """
    context = session.config.context_length
    if n_prompt + n_answer > context:
        raise RunError(
            f"{n_prompt:,} and {n_answer:,} tokens are more than the model's context of {context:,}",
            hint="`--prompt` and `--answer` set how many",
        )
    draw = random.Random(_SEED)  # noqa: S311  nothing secret
    prompt, answer = (
        [draw.randrange(session.config.vocab_size) for _ in range(n)] for n in (n_prompt, n_answer)
    )
    _round(session, prompt, answer[:2])
    seen = [_round(session, prompt, answer) for _ in range(rounds)]
    first_token_s, decode_s = (statistics.median(times) for times in zip(*seen, strict=True))
    return Benchmark(
        provider=session.provider,
        load_s=load_s,
        n_prompt=n_prompt,
        n_answer=n_answer,
        rounds=rounds,
        prefill_rate=n_prompt / first_token_s,
        first_token_s=first_token_s,
        decode_rate=n_answer / decode_s,
        peak_memory=peak_memory(),
    )


def _round(session: Session, prompt: list[int], answer: list[int]) -> tuple[float, float]:
    """Seconds of the prompt, and of the answer."""
    session.rewind(0)
    start = time.perf_counter()
    session.forward(prompt)
    middle = time.perf_counter()
    for token in answer:
        session.forward([token])
    return middle - start, time.perf_counter() - middle


def peak_memory() -> int | None:
    """Return the most bytes of memory that this process had at a time; None where nobody counts."""
    if sys.platform == "win32":
        return None
    import resource  # noqa: PLC0415  not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024
