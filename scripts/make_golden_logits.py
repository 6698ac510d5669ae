"""Make bench/golden/smollm2-135m-q4.npz with llama.cpp.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_logits.py MODEL.gguf
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import golden_logits
from golden_logits import N_TOKENS, TEXT, WINDOW, Buckets

if TYPE_CHECKING:
    from numpy.typing import NDArray


def llama_cpp_logits(path: Path) -> tuple[list[int], NDArray[np.float32]]:
    """Return the text's first tokens, and the logits that follow each, window by window."""
    import llama_cpp  # noqa: PLC0415  is not needed to read the golden file

    model = llama_cpp.Llama(str(path), n_ctx=WINDOW, n_batch=WINDOW, logits_all=True, verbose=False)
    tokens: list[int] = model.tokenize(TEXT.read_bytes(), add_bos=False, special=False)[:N_TOKENS]
    rows = []
    for start in range(0, N_TOKENS, WINDOW):
        model.reset()
        model.eval(tokens[start : start + WINDOW])
        rows.append(np.array(model.scores[:WINDOW], np.float32))
    model.close()
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
