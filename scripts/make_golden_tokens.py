"""Make tests/data/tokens.json: what llama.cpp makes of texts, with each pre-tokenizer.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_tokens.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import edit_gguf, tiny_llama  # noqa: E402  it is found by the line above

PRE_TOKENIZERS = ("gpt-2", "llama-bpe", "smollm")
TEXTS = (
    "The sky is blue, and the other one isn't.",
    "it's IT'S they'Re we'll",
    "1 12 123 1234 12345.67",
    "  two spaces\n\n\nthree lines\t\ttabs   \r\n",
    "def f(x):\n    return x ** 2  # comment\n",
    "naïve café Ünïcödé straße",
    "日本語のテキスト 你好,世界 안녕하세요",
    "emoji 😀👩‍👩‍👧 and é combining",
    "\u00a0non-breaking\u2003em space\u200bzero",
    "<|im_start|>user\nhi<|im_end|>",
    "!?...---***()[]{}",
    "Привет мир ٣٤٥ ५६",
    "",
)


def main() -> None:
    """Write the file."""
    golden = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        for pre in PRE_TOKENIZERS:
            changes = {"tokenizer.ggml.pre": pre}
            edit_gguf(tiny_llama(path), changes)
            model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
            golden[pre] = [
                [text, model.tokenize(text.encode(), add_bos=False, special=True)] for text in TEXTS
            ]
            model.close()
    content = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (ROOT / "tests" / "data" / "tokens.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
