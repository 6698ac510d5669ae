"""Make the files of tests/data that say what becomes of texts with the tokenizers of encoders.

`encoder_tokens.json` has what transformers makes of them, by its own tokenizers from the vocabularies
that the tests put into GGUF files, `llama_cpp_encoder_tokens.json` what llama.cpp makes of such a file.

Usage: pip install transformers==5.23.0 gguf==0.19.0, or llama-cpp-python==0.3.36, then
python scripts/make_golden_encoder_tokens.py (transformers | llama.cpp)
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import (  # noqa: E402  found by the line above
    MERGES,
    REPLACEMENTS,
    bert_vocabulary,
    charsmap,
    tiny_vocabulary,
    unigram_vocabulary,
    vocabulary_only,
)

TEXTS = (
    "The sky is blue, and the other one isn't.",
    "1 12 123 12345.67 1,000",
    "  two spaces\n\n\nthree lines\t\ttabs   \r\n  end  ",
    "def f(x):\n    return x ** 2  # comment\n",
    "if a[i]>=b&&c||!d: {} // ~`^|$<=>+",
    "na\u00efve caf\u00e9 \u00dcn\u00efc\u00f6d\u00e9 stra\u00dfe STRASSE \u0130stanbul \u01c5",
    "cafe\u0301 \u03b1\u0345 \u1e9b\u0323 \ufb01sh \uff21\u2460 \u00bd \u212b",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4f60\u597d,\u4e16\u754c\u3002 \uc548\ub155\ud558\uc138\uc694",
    "emoji \U0001f600\U0001f600 \U0001f469\u200d\U0001f469\u200d\U0001f467 ok \u2705\ufe0f",
    "\u00a0non-breaking\u2003em space\u200bzero\u3000wide soft\u00adhyphen",
    "control \x00\x01\x7f\x85 \ufeff\ufffd\ue000 end",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u0663\u0664\u0665 \u096b\u096c \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u00ab\u2026\u00bb \u20ac5 \u2013 \u00a7 \u00d7 \u2200 \u00b0C # @user",
    "[CLS] the [MASK] sky [SEP] [unused0] <s>the</s> <mask>",
    "x" * 101,
    "aaaaaaaa abcabca   aaa",
    "",
    " ",
    "bad \udcff\udcfe bytes \udce2\udc82 end",
)
"""Halves of surrogates stand for bytes that are not UTF-8."""

START, END, NONE = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
ROBERTA = {
    "bos": START,
    "cls": START,
    "eos": END,
    "sep": END,
    "unk": NONE,
    "pad": NONE,
    "mask": NONE,
}

Encode = Callable[[str], list[int]]


def by_transformers() -> dict[str, Encode]:
    """Return what encodes a text, special tokens included, for each kind."""
    import transformers  # noqa: PLC0415  one of the two is enough

    places = {token: i for i, token in enumerate(bert_vocabulary())}
    cased = transformers.BertTokenizer(vocab=places, do_lower_case=False)
    tokenizers = {
        "bert": transformers.BertTokenizer(vocab=places),
        "bert, cased": cased,
        "t5": transformers.XLMRobertaTokenizer(
            vocab=unigram_vocabulary(), _spm_precompiled_charsmap=charsmap(REPLACEMENTS)
        ),
        "t5, plain": transformers.XLMRobertaTokenizer(vocab=unigram_vocabulary()),
        "roberta": transformers.RobertaTokenizer(
            vocab={token: i for i, token in enumerate(tiny_vocabulary())},
            merges=[tuple(merge.split(" ")) for merge in MERGES],
            **{f"{name}_token": token for name, token in ROBERTA.items()},
        ),
    }

    def encoder(kind: str) -> Encode:
        return lambda text: list(tokenizers[kind](replaced(text))["input_ids"])

    return {kind: encoder(kind) for kind in tokenizers}


def replaced(text: str) -> str:
    """Return a text as it is read where bytes are not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


def by_llama_cpp(folder: Path) -> dict[str, Encode]:
    """Return the same of llama.cpp, which is given the bytes."""
    import llama_cpp  # noqa: PLC0415

    def encoder(kind: str) -> Encode:
        path = vocabulary_only(folder / f"{kind}.gguf", kind)
        model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        return lambda text: model.tokenize(
            text.encode(errors="surrogateescape"), add_bos=True, special=True
        )

    return {kind: encoder(kind) for kind in ("bert", "t5")}


def main() -> None:
    """Write one of the files."""
    with tempfile.TemporaryDirectory() as folder:
        is_original = sys.argv[1] == "transformers"
        encoders = by_transformers() if is_original else by_llama_cpp(Path(folder))
        golden = {kind: [[t, encode(t)] for t in TEXTS] for kind, encode in encoders.items()}
    name = "encoder_tokens.json" if is_original else "llama_cpp_encoder_tokens.json"
    content = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (ROOT / "tests" / "data" / name).write_text(content + "\n", encoding="utf-8")
    print(f"{name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
