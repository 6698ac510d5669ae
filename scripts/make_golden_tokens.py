"""Make the files of tests/data that say what llama.cpp makes of texts.

`tokens.json` has each pre-tokenizer of a byte-level vocabulary, `sentencepiece.json` a SentencePiece
vocabulary without and with a space before the text.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/make_golden_tokens.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import GGUFValue, edit_gguf, tiny_gemma3, tiny_llama  # noqa: E402  it is found by the line above

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


SENTENCEPIECE_TEXTS = (
    *TEXTS,
    "The sky is blue and the other one is not",
    "aaaaaaaaaaa abcabca abababab",
    "12312 3123",
    "日本語日本 日本",
    "  two, <b>bold</b>   three,\t tab,     five\n\n\n\n\nend  ",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\n",
    "the<bos> sky <eos>is",
    " a space, a ▁ character, <0x41> and <unk>",
    "the",
    " ",
    "   ",
)


def tokenize(path: Path, texts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Return each text with what llama.cpp makes of it."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    pairs = [(text, model.tokenize(text.encode(), add_bos=False, special=True)) for text in texts]
    model.close()
    return pairs


def write(name: str, golden: Mapping[str, object]) -> None:
    """Write one of the files."""
    content = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (ROOT / "tests" / "data" / name).write_text(content + "\n", encoding="utf-8")


def main() -> None:
    """Write the files."""
    byte_level, sentencepiece = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        for pre in PRE_TOKENIZERS:
            changes: dict[str, GGUFValue | None] = {"tokenizer.ggml.pre": pre}
            byte_level[pre] = tokenize(edit_gguf(tiny_llama(path), changes), TEXTS)
        for prefix in (False, True):
            changes = {"tokenizer.ggml.add_space_prefix": prefix}
            edit_gguf(tiny_gemma3(path), changes)
            name = "space prefix" if prefix else "no prefix"
            sentencepiece[name] = tokenize(path, SENTENCEPIECE_TEXTS)
    write("tokens.json", byte_level)
    write("sentencepiece.json", sentencepiece)


if __name__ == "__main__":
    main()
