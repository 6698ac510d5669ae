"""Converted tokenizers against llama.cpp's, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from factories import edit_gguf, tiny_llama
from weightpkg.convert.tokenizer import PRE_TOKENIZERS, read_gguf
from weightpkg.formats.gguf import GGUFFile

GOLDEN: dict[str, list[tuple[str, list[int]]]] = json.loads(
    (Path(__file__).parent / "data" / "tokens.json").read_text(encoding="utf-8")
)


def converted(path: Path, **changes: object) -> Tokenizer:
    """The tokenizer of a tiny Llama with other metadata."""
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with GGUFFile.open(edit_gguf(tiny_llama(path), keys)) as file:  # type: ignore[arg-type]
        return Tokenizer.from_buffer(read_gguf(file, 1000).tokenizer_json())


def test_the_golden_tokens_are_of_known_pre_tokenizers() -> None:
    assert GOLDEN.keys() <= PRE_TOKENIZERS.keys()


@pytest.mark.parametrize("pre", GOLDEN)
def test_tokens_equal_llama_cpps(tmp_path: Path, pre: str) -> None:
    tokenizer = converted(tmp_path / "tiny.gguf", pre=pre)
    for text, tokens in GOLDEN[pre]:
        assert tokenizer.encode(text, add_special_tokens=False).ids == tokens, text


@pytest.mark.parametrize("pre", GOLDEN)
def test_decoding_gives_the_text_back(tmp_path: Path, pre: str) -> None:
    tokenizer = converted(tmp_path / "tiny.gguf", pre=pre)
    for text, tokens in GOLDEN[pre]:
        assert tokenizer.decode(tokens, skip_special_tokens=False) == text


def test_special_tokens_are_left_out_of_answers(tmp_path: Path) -> None:
    tokenizer = converted(tmp_path / "tiny.gguf")
    ids = tokenizer.encode("a<|im_end|>b").ids
    assert tokenizer.decode(ids) == "ab"


@pytest.mark.parametrize("wanted", [True, False], ids=["with", "without"])
def test_the_first_token_is_added_if_the_file_says_so(tmp_path: Path, *, wanted: bool) -> None:
    tokenizer = converted(tmp_path / "tiny.gguf", add_bos_token=wanted)
    assert (tokenizer.encode("hi").ids[0] == 1) is wanted


def test_all_stop_tokens_are_kept(tmp_path: Path) -> None:
    path = edit_gguf(tiny_llama(tmp_path / "tiny.gguf"), {"tokenizer.ggml.eot_token_id": 0})
    with GGUFFile.open(path) as file:
        assert read_gguf(file, 1000).eos_token_ids == (2, 0)
