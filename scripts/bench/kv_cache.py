"""What keys and values in 8 bits cost and save, against floats, on one machine.

1. On bench/golden/text.txt, which is not the text that scales are measured on: KL divergence to the logits
   of a float cache, and agreement of the most likely token.
2. Tokens a second while a prompt enters and while an answer is made behind it, the two caches in turn;
   medians, of processor time, as other processes do not count there.
3. Bytes of both caches at 2,048 and 8,192 tokens.

Usage: python scripts/bench/kv_cache.py DIRECTORY ... [--tokens 1000] [--prompt 2048] [--rounds 5]
       (DIRECTORY: as `weightpkg convert` makes it)
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from golden_logits import TEXT, log_softmax
from weightpkg.footprint import directory_need
from weightpkg.memory import KvCache
from weightpkg.run.calibration import calibrated
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.tokenizing import read_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIECE, _ANSWER = 100, 24
_CONTEXTS = (2048, 8192)


def logits(session: Session, tokens: list[int]) -> NDArray[np.float64]:
    """Log-probabilities behind each token: (T, V)."""
    session.rewind(0)
    pieces = [tokens[i : i + _PIECE] for i in range(0, len(tokens), _PIECE)]
    found = [session.forward_all(piece, keep=len(piece)).copy() for piece in pieces]
    return np.asarray(log_softmax(np.concatenate(found).astype(np.float64)))


def speeds(session: Session, tokens: list[int]) -> tuple[float, float]:
    """Tokens a second of a prompt, and of the answer behind it."""
    session.rewind(0)
    start = time.process_time()
    session.forward(tokens)
    middle = time.process_time()
    for token in tokens[:_ANSWER]:
        session.forward([token])
    return len(tokens) / (middle - start), _ANSWER / (time.process_time() - middle)


def measure(directory: Path, options: argparse.Namespace) -> None:
    """Print all of it for one model."""
    config = ModelConfig.read(directory)
    tokens = list(read_tokenizer(directory).encode(TEXT.read_text(encoding="utf-8")).ids)
    start = time.process_time()
    scales = calibrated(directory, config, threads=options.threads)
    print(f"{directory.name}: scales measured in {time.process_time() - start:.1f} s")
    sessions: dict[KvCache, Session] = {
        "float": Session(directory, config, threads=options.threads),
        "int8": Session(directory, config, threads=options.threads, scales=scales),
    }
    exact, near = (logits(each, tokens[: options.tokens]) for each in sessions.values())
    kl = (np.exp(exact) * (exact - near)).sum(-1)
    same = (exact.argmax(-1) == near.argmax(-1)).mean()
    print(f"  KL mean {kl.mean():.5f}, 99 % {np.quantile(kl, 0.99):.4f}, most {kl.max():.3f}")
    print(f"  the same most likely token: {same:.1%} of {len(kl)}")
    prompt = (tokens * (options.prompt // len(tokens) + 1))[: options.prompt]
    seen: dict[KvCache, list[tuple[float, float]]] = {"float": [], "int8": []}
    for _ in range(options.rounds):
        for kind, session in sessions.items():
            seen[kind].append(speeds(session, prompt))
    for kind, rates in seen.items():
        prefill, decode = (statistics.median(each) for each in zip(*rates, strict=True))
        print(f"  {kind}: prefill {prefill:.0f}, decode {decode:.1f} tokens/s at {len(prompt)}")
    for context in _CONTEXTS:
        whole, small = (directory_need(directory, context, kind).kv_cache for kind in sessions)
        print(f"  {context} tokens: {whole / 2**20:.1f} MiB in float, {small / 2**20:.1f} in int8")


def main() -> None:
    """Measure the models that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    for directory in options.directories:
        measure(directory, options)


if __name__ == "__main__":
    main()
