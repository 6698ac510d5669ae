"""Tokenizers of encoders against transformers' own, token by token, and beside llama.cpp's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from factories import (
    REPLACEMENTS,
    bert_vocabulary,
    charsmap,
    edit_gguf,
    tiny_llama,
    vocabulary_only,
)
from weightpkg.convert import unigram
from weightpkg.convert.tokenizer import read_gguf
from weightpkg.errors import GGUFError
from weightpkg.formats.gguf import GGUFFile

DATA = Path(__file__).parent / "data"
Golden = dict[str, list[tuple[str, list[int]]]]
TRANSFORMERS: Golden = json.loads((DATA / "encoder_tokens.json").read_text(encoding="utf-8"))
LLAMA_CPP: Golden = json.loads((DATA / "llama_cpp_encoder_tokens.json").read_text(encoding="utf-8"))

NO_IDS = dict.fromkeys(
    f"{name}_token_id" for name in ("bos", "eos", "unknown", "padding", "seperator", "mask")
)
ROBERTA = {"pre": "roberta-bpe", "add_bos_token": None}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", {}),
    "bert, cased": ("bert", {"normalizer.lowercase": False}),
    "roberta": ("gpt2", ROBERTA),
    "t5": ("t5", {}),
    "t5, plain": ("t5", {"precompiled_charsmap": None, "remove_extra_whitespaces": False}),
}


def read(path: Path, model: str, **changes: Any) -> Any:
    """The converted tokenizer of a file, with other keys under `tokenizer.ggml`."""
    made = tiny_llama(path) if model == "gpt2" else vocabulary_only(path, model)
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with GGUFFile.open(edit_gguf(made, keys)) as file:
        return read_gguf(file, 1000)


def converted(path: Path, model: str, **changes: Any) -> Tokenizer:
    return Tokenizer.from_buffer(read(path, model, **changes).tokenizer_json())


def replaced(text: str) -> str:
    """A text as it is read where bytes are not UTF-8."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_equal_those_of_transformers(tmp_path: Path, kind: str) -> None:
    model, changes = KINDS[kind]
    tokenizer = converted(tmp_path / "tiny.gguf", model, **changes)
    for text, tokens in TRANSFORMERS[kind]:
        assert tokenizer.encode(replaced(text)).ids == tokens, text
    assert TRANSFORMERS.keys() == KINDS.keys()


def test_llama_cpp_differs_in_unknown_words_of_over_100_characters_only() -> None:
    for kind, pairs in LLAMA_CPP.items():
        for original, other in zip(TRANSFORMERS[kind], pairs, strict=True):
            assert (original != other) == (kind == "bert" and original[0] == 101 * "x")


def test_two_texts_are_put_together_as_each_kind_does(tmp_path: Path) -> None:
    def pair(kind: str) -> tuple[list[str], list[int]]:
        model, changes = KINDS[kind]
        found = converted(tmp_path / "tiny.gguf", model, **changes).encode("the", "the")
        return found.tokens, found.type_ids

    assert pair("bert") == (["[CLS]", "the", "[SEP]", "the", "[SEP]"], [0, 0, 0, 1, 1])
    assert pair("t5") == (["<s>", "▁the", "</s>", "</s>", "▁the", "</s>"], [0] * 6)
    start, end = "<|im_start|>", "<|im_end|>"
    assert pair("roberta") == ([start, "t", "he", end, end, "t", "he", end], [0] * 8)


def test_a_file_may_say_that_nothing_stands_around_a_text(tmp_path: Path) -> None:
    none = {"add_bos_token": False, "add_eos_token": False}
    for model in ("gpt2", "t5"):
        tokenizer = converted(tmp_path / "tiny.gguf", model, **none)
        assert tokenizer.encode("is").ids == tokenizer.encode("is", add_special_tokens=False).ids
    tokenizer = converted(tmp_path / "tiny.gguf", "t5", add_bos_token=None, add_eos_token=None)
    assert tokenizer.encode("the", "the").tokens == ["▁the", "</s>", "▁the", "</s>"]


def test_texts_come_back(tmp_path: Path) -> None:
    for kind in ("bert", "t5", "roberta"):
        model, changes = KINDS[kind]
        tokenizer = converted(tmp_path / "tiny.gguf", model, **changes)
        text = "the sky is blue and not world"
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_have_the_names_that_transformers_knows(tmp_path: Path) -> None:
    words = json.loads(read(tmp_path / "tiny.gguf", "bert").tokenizer_config_json())
    assert words["tokenizer_class"] == "BertTokenizer"
    names = [words[f"{name}_token"] for name in ("cls", "sep", "mask", "pad", "unk")]
    assert names == ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]"]
    words = json.loads(read(tmp_path / "tiny.gguf", "t5").tokenizer_config_json())
    assert (words["bos_token"], words["eos_token"], words["mask_token"]) == (
        "<s>",
        "</s>",
        "<mask>",
    )


def test_a_vocabulary_with_capitals_is_not_of_small_letters(tmp_path: Path) -> None:
    tokens = ["▁The" if token == "the" else f"▁{token}" for token in bert_vocabulary()]
    tokenizer = converted(tmp_path / "tiny.gguf", "bert", tokens=tokens, token_type=None)
    assert tokenizer.encode("The the").tokens == ["[CLS]", "The", "t", "##h", "##e", "[SEP]"]


def test_older_files_leave_what_is_in_brackets_as_it_is(tmp_path: Path) -> None:
    tokens = [token if token[0] == "[" else f"▁{token}" for token in bert_vocabulary()]
    tokenizer = converted(tmp_path / "tiny.gguf", "bert", tokens=tokens, token_type=None)
    assert tokenizer.get_vocab()["[unused0]"] == bert_vocabulary().index("[unused0]")
    assert tokenizer.encode("the").tokens == ["[CLS]", "the", "[SEP]"]
    assert tokenizer.encode("[MASK]").tokens == ["[CLS]", "[MASK]", "[SEP]"]


def test_a_word_may_have_100_characters(tmp_path: Path) -> None:
    tokenizer = converted(tmp_path / "tiny.gguf", "bert")
    assert tokenizer.encode(100 * "x").tokens == ["[CLS]", "x", *["##x"] * 99, "[SEP]"]


@pytest.mark.parametrize(
    ("prefix", "merges", "expected"),
    [
        (True, False, ["▁▁", "▁a", "▁", "▁a"]),
        (False, False, ["▁", "▁a", "▁", "▁a"]),
        (True, True, ["▁a", "▁a"]),
        (False, True, ["a", "▁a"]),
    ],
)
def test_spaces_are_kept_if_there_is_a_token_for_several(
    tmp_path: Path, *, prefix: bool, merges: bool, expected: list[str]
) -> None:
    tokens = ["<unk>", "▁", "▁▁", "▁a", "a", "b"]
    settings: dict[str, Any] = {
        "tokens": tokens,
        "scores": [0.0, -3.0, -4.0, -2.0, -2.5, -5.0],
        "token_type": [2, 1, 1, 1, 1, 1],
        "unknown_token_id": 0,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_space_prefix": prefix,
        "remove_extra_whitespaces": merges,
    }
    tokenizer = converted(tmp_path / "tiny.gguf", "t5", **{**NO_IDS, **settings})
    found = tokenizer.encode("  a  a").tokens
    assert found == expected


@pytest.mark.parametrize(
    ("model", "changes", "reason"),
    [
        ("bert", {"unknown_token_id": 999}, "999 is not one"),
        ("bert", {"tokens": ["a"], "token_type": None, **NO_IDS}, "start, the end or the unknown"),
        ("bert", {"tokens": [*"012345", "▁##a", "a"], "token_type": None}, "the same token twice"),
        ("t5", {"scores": [1.0]}, "1 scores"),
        ("t5", {"scores": None}, "is missing"),
        ("t5", {"scores": [float("inf")] * 302}, "not a number"),
        ("t5", {"unknown_token_id": 134}, "is of no token"),
        ("t5", {"precompiled_charsmap": [1, 2, 3]}, "leads out"),
        ("t5", {"precompiled_charsmap": [1000, 2, 3, 4]}, "not of bytes"),
    ],
)
def test_refuses_a_vocabulary(
    tmp_path: Path, model: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(GGUFError, match=reason) as caught:
        read(tmp_path / "odd.gguf", model, **changes)
    assert "odd.gguf" in str(caught.value)


def test_a_table_of_characters_is_walked_within_its_bounds() -> None:
    table = charsmap(REPLACEMENTS)
    assert unigram.is_sound(table)
    for broken in (
        table[:-1],
        table[:999],
        b"",
        table[:4] + b"\xff" * 4 + table[8:],
        table + b"\xff\0",
    ):
        assert not unigram.is_sound(broken)
    units = int.from_bytes(table[:4], "little") // 4
    for i in range(0, units, 97):  # anywhere, to a place far away
        place = 4 + 4 * i
        broken = table[:place] + (0x7FFFFC00).to_bytes(4, "little") + table[place + 4 :]
        assert not unigram.is_sound(broken)
    inside = charsmap({"a": "é", "b": "x"})
    at = inside.index((1 << 31).to_bytes(4, "little"))
    assert not unigram.is_sound(
        inside[:at] + (1 << 31 | 1).to_bytes(4, "little") + inside[at + 4 :]
    )
