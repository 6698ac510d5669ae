"""Make bench/golden/smollm2-135m-q4.npz with llama.cpp.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_logits.py MODEL.gguf
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import golden_logits
from golden_logits import N_TOKENS, TEXT, WINDOW, Buckets

if TYPE_CHECKING:
    from numpy.typing import NDArray


class LlamaCpp:
    """A model in llama.cpp, reading windows of tokens."""

    def __init__(self, path: Path) -> None:
        import llama_cpp  # noqa: PLC0415  is not needed to read the golden file

        size = WINDOW + 1  # a first token may come before a window
        self._model = llama_cpp.Llama(
            str(path), n_ctx=size, n_batch=size, logits_all=True, verbose=False
        )

    def tokens(self, text: bytes) -> list[int]:
        """Return a text's tokens, without what the model puts before it."""
        found: list[int] = self._model.tokenize(text, add_bos=False, special=False)
        return found

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Return the logits that follow each token: (T, V)."""
        self._model.reset()
        self._model.eval(tokens)
        return np.array(self._model.scores[: len(tokens)], np.float32)


def llama_cpp_logits(path: Path) -> tuple[list[int], NDArray[np.float32]]:
    """Return the text's first tokens, and the logits that follow each, window by window."""
    model = LlamaCpp(path)
    tokens = model.tokens(TEXT.read_bytes())[:N_TOKENS]
    rows = [model.logits(tokens[start : start + WINDOW]) for start in range(0, N_TOKENS, WINDOW)]
    return tokens, np.concatenate(rows)


def main() -> None:
    """Write the file."""
    tokens, logits = llama_cpp_logits(Path(sys.argv[1]))
    buckets = Buckets.most_likely(golden_logits.log_softmax(logits))
    golden_logits.save(tokens, buckets)
    print(f"{golden_logits.GOLDEN.name}: {golden_logits.GOLDEN.stat().st_size:,} bytes")
    print(f"the {golden_logits.TOP} named tokens have {buckets.mass:.2%} of the probability")


if __name__ == "__main__":
    main()
