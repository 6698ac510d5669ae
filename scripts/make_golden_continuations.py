"""Make tests/data/continuations.json: how llama.cpp continues ten texts with Gemma 3 270M, greedily.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_continuations.py MODEL.gguf

The texts leave little choice. Where two tokens are about equally likely, chance decides which is the
first: llama.cpp rounds the inputs of each matrix to 8 bits, and we do not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama_cpp

PAGE = Path(__file__).resolve().parents[1] / "tests" / "data" / "continuations.json"
N_TOKENS = 20
PROMPTS = (
    "The capital of France is Paris. The capital of Germany is Berlin. The capital of Italy is",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
    "Monday, Tuesday, Wednesday, Thursday,",
    "January, February, March, April, May,",
    "a b c d e f g h i j",
    "2 4 6 8 10 12 14 16 18 20",
    "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer",
    "We hold these truths to be self-evident, that all men are created equal, that they are",
    "Our Father, which art in heaven, hallowed be thy name. Thy kingdom come.",
    "Four score and seven years ago our fathers brought forth on this continent, a new nation,",
)


def main() -> None:
    """Write the file."""
    model = llama_cpp.Llama(sys.argv[1], n_ctx=256, verbose=False)
    found = [{"prompt": prompt, "tokens": continued(model, prompt)} for prompt in PROMPTS]
    PAGE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{PAGE.name}: {PAGE.stat().st_size:,} bytes")


def continued(model: llama_cpp.Llama, prompt: str) -> list[int]:
    """Return the most likely token after a text, the one after both, and so on."""
    tokens = model.tokenize(prompt.encode(), add_bos=True, special=False)
    found: list[int] = []
    for token in model.generate(tokens, temp=0.0, reset=True):
        found.append(token)
        if len(found) == N_TOKENS:
            break
    return found


if __name__ == "__main__":
    main()
