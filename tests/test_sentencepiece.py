"""SentencePiece tokenizers against llama.cpp's, token by token, and against the plain algorithm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from tokenizers.models import BPE

from factories import GEMMA_SPECIAL, GEMMA_USER_DEFINED, edit_gguf, gemma_vocabulary, tiny_gemma3
from weightpkg.convert import sentencepiece, tokenizer
from weightpkg.errors import GGUFError, UnsupportedFormatError, WeightpkgError
from weightpkg.formats.gguf import GGUFFile

GOLDEN: dict[str, list[tuple[str, list[int]]]] = json.loads(
    (Path(__file__).parent / "data" / "sentencepiece.json").read_text(encoding="utf-8")
)
TOKENS, SCORES, _ = gemma_vocabulary()
IDS = {token: i for i, token in enumerate(TOKENS)}
FOUND_FIRST = {*GEMMA_SPECIAL, *GEMMA_USER_DEFINED}


def read(path: Path, **changes: Any) -> tokenizer.Tokenizer:
    """The tokenizer of a tiny Gemma 3 with other metadata."""
    keys = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with GGUFFile.open(edit_gguf(tiny_gemma3(path), keys)) as file:
        return tokenizer.read_gguf(file, 1000)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Loaded tokenizers, by the golden file's names."""
    path = tmp_path_factory.mktemp("sentencepiece") / "tiny.gguf"
    return {
        name: Tokenizer.from_buffer(
            read(path, add_space_prefix=name == "space prefix").tokenizer_json()
        )
        for name in GOLDEN
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_tokens_equal_llama_cpps(loaded: dict[str, Tokenizer], name: str) -> None:
    for text, tokens in GOLDEN[name]:
        assert loaded[name].encode(text, add_special_tokens=False).ids == tokens, text


def test_decoding_gives_the_text_back(loaded: dict[str, Tokenizer]) -> None:
    for text, tokens in GOLDEN["no prefix"]:
        decoded = loaded["no prefix"].decode(tokens, skip_special_tokens=False)
        assert decoded == text.replace("▁", " ")  # which is what it stands for


def test_decoding_takes_the_space_prefix_away(loaded: dict[str, Tokenizer]) -> None:
    for text, tokens in GOLDEN["space prefix"]:
        if not any(token in text for token in FOUND_FIRST):  # after each of them there is one
            assert loaded["space prefix"].decode(tokens) == text.replace("▁", " ")


def joined(
    text: str, tokens: Sequence[str] = TOKENS, scores: Sequence[float] = SCORES
) -> list[int]:
    """The plain algorithm: join the best neighbours until there are none; the rest becomes bytes."""
    places = {token: i for i, token in enumerate(tokens)}
    symbols = list(text.replace(" ", "▁"))
    while True:
        pairs = [left + right for left, right in pairwise(symbols)]
        scored = [(scores[places[p]], -i) for i, p in enumerate(pairs) if p in places]
        if not scored:
            break
        at = -max(scored)[1]
        symbols[at : at + 2] = [pairs[at]]
    ids: list[int] = []
    for symbol in symbols:
        spelled = [symbol] if symbol in places else [f"<0x{b:02X}>" for b in symbol.encode()]
        ids += [places[token] for token in spelled]
    return ids


PIECES = st.sampled_from([token for token in TOKENS if token not in FOUND_FIRST])


@given(text=st.lists(PIECES | st.characters(codec="utf-8"), max_size=20).map("".join))
def test_any_text_is_joined_as_the_plain_algorithm_does(
    loaded: dict[str, Tokenizer], text: str
) -> None:
    if not any(token in text for token in FOUND_FIRST):
        assert loaded["no prefix"].encode(text, add_special_tokens=False).ids == joined(text)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_stream_gives_characters_of_several_bytes_whole(
    loaded: dict[str, Tokenizer], name: str
) -> None:
    text = "in 🙂🙃 the 日本語ψ sky"
    stream = DecodeStream(skip_special_tokens=True)
    steps = (stream.step(loaded[name], i) for i in loaded[name].encode(text).ids)
    pieces = [piece for piece in steps if piece]
    assert "🙂" in pieces
    assert "".join(pieces) == text


def test_special_tokens_are_left_out_of_answers(loaded: dict[str, Tokenizer]) -> None:
    ids = loaded["no prefix"].encode("a<end_of_turn>\n<b>c").ids
    assert loaded["no prefix"].decode(ids) == "a\n<b>c"


@pytest.mark.parametrize("wanted", [True, False, None], ids=["with", "without", "not said"])
def test_the_first_token_is_added_unless_the_file_says_no(
    tmp_path: Path, *, wanted: bool | None
) -> None:
    words = read(tmp_path / "tiny.gguf", add_bos_token=wanted)
    ids = Tokenizer.from_buffer(words.tokenizer_json()).encode("in").ids
    assert ids == ([IDS["in"]] if wanted is False else [2, IDS["in"]])


def test_a_file_that_says_nothing_means_what_llama_cpp_takes(tmp_path: Path) -> None:
    keys = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
    words = read(tmp_path / "tiny.gguf", add_space_prefix=None, **dict.fromkeys(keys))
    assert (words.bos_token_id, words.unk_token_id, words.pad_token_id) == (1, 0, None)
    assert words.eos_token_ids == (2, IDS["<end_of_turn>"])
    assert Tokenizer.from_buffer(words.tokenizer_json()).encode("the").tokens == ["<eos>", "▁the"]


def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path) -> None:
    assert read(tmp_path / "tiny.gguf").eos_token_ids == (1, IDS["<end_of_turn>"])


def changed(values: list[Any], token: str, value: object) -> list[Any]:
    """The values of all tokens, with another one for a token."""
    return [value if other == token else old for other, old in zip(TOKENS, values, strict=True)]


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        pytest.param({"scores": None}, GGUFError, "scores.* missing", id="no scores"),
        pytest.param({"scores": SCORES[1:]}, GGUFError, "399 scores, 400 tokens", id="too few"),
        pytest.param({"scores": changed(SCORES, "in", float("nan"))}, UnsupportedFormatError, "not a number", id="no number"),
        pytest.param({"scores": changed(SCORES, "in", SCORES[IDS["he"]])}, UnsupportedFormatError, "'he' and 'in' have the same score", id="same score"),
        pytest.param({"tokens": changed(TOKENS, "<0x41>", "<0x4l>")}, GGUFError, "no <0x41>", id="no byte"),
        pytest.param({"tokens": changed(TOKENS, "k", "K")}, UnsupportedFormatError, "'k', which is none", id="no character"),
        pytest.param({"add_eos_token": True}, UnsupportedFormatError, "after each text", id="last token"),
        pytest.param({"bos_token_id": 400}, GGUFError, "400 is not one", id="id out of range"),
    ],
)  # fmt: skip
def test_refuses_a_vocabulary_that_pairs_cannot_express(
    tmp_path: Path, changes: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        read(tmp_path / "odd.gguf", **changes)
    assert "odd.gguf" in str(caught.value)


RUN = ("aa", "aaa", "aaaa")


@pytest.mark.parametrize("missing", ["", "aaa"])
def test_runs_of_a_character_may_have_one_score(tmp_path: Path, missing: str) -> None:
    """As Llama's runs of spaces do: they grow from the left."""
    equal = dict.fromkeys(RUN, -1e9)
    scores = [equal.get(token, score) for token, score in zip(TOKENS, SCORES, strict=True)]
    tokens = [token if token != missing else "bbb" for token in TOKENS]
    words = read(tmp_path / "tiny.gguf", scores=scores, tokens=tokens)
    made = Tokenizer.from_buffer(words.tokenizer_json())
    for before in ("", "i", "▁", "b", "ab", "h"):
        for count in range(1, 20):
            for after in ("", "b", "bc", "n", "l", "▁", "aba" * count):
                text = f"{before}{'a' * count}{after}"
                ids = made.encode(text, add_special_tokens=False).ids
                assert ids == joined(text, tokens, scores), text


def test_one_score_is_no_matter_for_tokens_that_are_never_joined(tmp_path: Path) -> None:
    """Such as characters, and those that no two others make."""
    characters = {token: -500.0 for token in TOKENS if len(token) == 1}
    scores = [characters.get(token, score) for token, score in zip(TOKENS, SCORES, strict=True)]
    read(tmp_path / "tiny.gguf", scores=scores)


def test_of_two_splits_the_one_stays_that_is_left_before_the_last_step() -> None:
    characters = dict.fromkeys("abc", 0.0)
    scores = characters | {"ab": -1.0, "bc": -2.0, "abc": -3.0}
    assert sentencepiece.merges("f", scores) == ["a b", "b c", "ab c"]
    scores = characters | {"bc": -1.0, "ab": -2.0, "abc": -3.0}
    assert sentencepiece.merges("f", scores) == ["b c", "a b", "a bc"]


VOCABULARIES = st.lists(
    st.text("abc", min_size=2, max_size=5), min_size=1, max_size=30, unique=True
).flatmap(st.permutations)


@given(made=VOCABULARIES, text=st.text("abc", max_size=30))
def test_pairs_that_are_left_out_are_never_joined(made: list[str], text: str) -> None:
    """Any vocabulary in any order joins as the plain algorithm does."""
    tokens = [*"abc", *made]
    scores = [-float(i) for i in range(len(tokens))]
    merges = sentencepiece.merges("f", dict(zip(tokens, scores, strict=True)))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    loaded = Tokenizer(
        BPE(
            vocabulary,
            [(left, right) for left, _, right in (pair.partition(" ") for pair in merges)],
        )
    )
    assert loaded.encode(text).ids == joined(text, tokens, scores)
    assert len({pair.replace(" ", "") for pair in merges}) == len(merges)
