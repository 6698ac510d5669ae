"""Texts are split where llama.cpp splits them, by a vocabulary that shows every place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from factories import GGUFValue, edit_gguf, pair_vocabulary, tiny_llama
from weightpkg.convert.tokenizer import PRE_TOKENIZERS, read_gguf
from weightpkg.formats.gguf import GGUFFile

PAGE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "splits.json").read_text(encoding="utf-8")
)
# llama.cpp leaves an ideographic space with the letters that follow, where the models' expressions,
# one applied to the pieces of the other, part them.
OTHERWISE = {
    (pre, "\u00a0non-breaking\u2003em space\u200bzero\u3000\u3000wide")
    for pre in ("deepseek-coder", "deepseek-llm")
}


def test_every_pre_tokenizer_is_compared() -> None:
    assert PAGE["lengths"].keys() == PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("pre", PAGE["lengths"])
def test_texts_are_split_as_by_llama_cpp(tmp_path: Path, pre: str) -> None:
    tokens, merges = pair_vocabulary(PAGE["texts"])
    changes: dict[str, GGUFValue | None] = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": merges,
    }
    with GGUFFile.open(edit_gguf(tiny_llama(tmp_path / "tiny.gguf"), changes)) as file:
        tokenizer = Tokenizer.from_buffer(read_gguf(file, 10_000).tokenizer_json())
    for text, lengths in zip(PAGE["texts"], PAGE["lengths"][pre], strict=True):
        encoded = tokenizer.encode(text, add_special_tokens=False)
        same = "".join(str(len(token)) for token in encoded.tokens) == lengths
        assert same != ((pre, text) in OTHERWISE), text
        assert tokenizer.decode(encoded.ids) == text
