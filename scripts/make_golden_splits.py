"""Make tests/data/splits.json: where llama.cpp splits texts, with each pre-tokenizer.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_splits.py

The vocabulary is one in which any two neighbouring bytes merge if they are in the same piece; what
is kept of each text are the lengths of its tokens, 1 or 2 bytes, one digit a token.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import GGUFValue, edit_gguf, pair_vocabulary, tiny_llama  # noqa: E402  found by the line above

PRE_TOKENIZERS = (
    "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "falcon",
    "falcon3", "gpt-2", "gpt-4o", "llama-bpe", "llama-v3", "llama3", "megrez", "mpt", "olmo",
    "phi-2", "qwen2", "refact", "roberta-bpe", "smaug-bpe", "smollm",
    "stablelm2", "starcoder",
)  # fmt: skip
TEXTS = (
    "The sky is blue, and the other one isn't.",
    "it's IT'S they'Re we'll I'D we'Ve 'tis x'yz",
    "1 12 123 1234 12345.67 1,000,000 -5 +3 0x1F",
    "  two spaces\n\n\nthree lines\t\ttabs   \r\n \n  end  ",
    "def f(x):\n    return x ** 2  # comment\n\n\tif a[i]>=b&&c||!d: {}\n",
    "na\u00efve caf\u00e9 stra\u00dfe camelCase HTTPServer XMLHttp aB",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4f60\u597d,\u4e16\u754c\u3002 \uc548\ub155\ud558\uc138\uc694",
    "emoji \U0001f600\U0001f469\u200d\U0001f469\u200d\U0001f467 \u2705\ufe0f ok",
    "\u00a0non-breaking\u2003em space\u200bzero\u3000\u3000wide",
    "!?...---***()[]{}\n//\\n ~`^|$<=>+ \u00ab\u00bb\u2026 \u20ac5",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0663\u0664\u0665 \u096b\u096c \u00bd\u00b2\u2167",
    "https://example.org/a_b?c=d&e=%20#f me@x.io",
)


def lengths(path: Path, pre: str) -> list[str]:
    """Return the lengths of each text's tokens."""
    tokens, merges = pair_vocabulary(TEXTS)
    changes: dict[str, GGUFValue | None] = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": merges,
    }
    model = llama_cpp.Llama(
        str(edit_gguf(tiny_llama(path), changes)), vocab_only=True, verbose=False
    )
    found = [model.tokenize(text.encode(), add_bos=False, special=False) for text in TEXTS]
    model.close()
    return ["".join(str(len(tokens[token])) for token in ids) for ids in found]


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        golden = {pre: lengths(Path(folder) / "tiny.gguf", pre) for pre in PRE_TOKENIZERS}
    page = {"texts": TEXTS, "lengths": golden}
    content = json.dumps(page, ensure_ascii=True, separators=(",", ":"))
    (ROOT / "tests" / "data" / "splits.json").write_text(content + "\n", encoding="utf-8")
    print(f"splits.json: {len(content):,} bytes")


if __name__ == "__main__":
    main()
