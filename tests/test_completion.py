"""From logits to text: stop texts, limits, penalties, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.progress import Silence
from weightpkg.run.generate import Held
from weightpkg.run.sampling import Sampling
from weightpkg.run.tokenizing import read_tokenizer
from weightpkg.server.completion import Completion, End, Event, Options, Piece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("model")
    (path / "onnx").mkdir()
    convert(tiny_llama(path / "tiny.gguf"), Digest("sha256", 64 * "0"), path / "onnx", Silence())
    return read_tokenizer(path / "onnx")


def logits_of(token: int, size: int = 302) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    logits = np.zeros(size, np.float32)
    logits[token] = 10
    return logits


def play(tokenizer: Tokenizer, tokens: Sequence[int], **options: object) -> list[Event]:
    """Have tokens chosen one after the other; return what is told."""
    events: list[Event] = []
    settings = Options(**{"sampling": Sampling(), "max_tokens": 100, **options})  # type: ignore[arg-type]
    completion = Completion([1], tokenizer, [END], settings, events.append)
    for token in tokens:
        if completion.take(logits_of(token), [1]) is None:
            break
    return events


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


def test_an_end_token_ends_it_and_is_not_counted(tokenizer: Tokenizer) -> None:
    tokens = ids_of(tokenizer, "hello")
    events = play(tokenizer, [*tokens, END, *tokens])
    assert text_of(events) == "hello"
    assert events[-1] == End("stop", len(tokens))


def test_the_limit_ends_it(tokenizer: Tokenizer) -> None:
    tokens = ids_of(tokenizer, "hello world")
    events = play(tokenizer, tokens, max_tokens=3)
    assert text_of(events) == tokenizer.decode(tokens[:3])
    assert events[-1] == End("length", 3)


def test_a_stop_text_is_not_told_nor_what_began_like_one(tokenizer: Tokenizer) -> None:
    events = play(tokenizer, ids_of(tokenizer, "one END two ENDE"), stop=("ENDE",))
    assert text_of(events) == "one END two "
    assert isinstance(events[-1], End)
    assert events[-1].reason == "stop"


def test_what_is_held_back_is_told_at_the_end(tokenizer: Tokenizer) -> None:
    tokens = ids_of(tokenizer, "one EN")
    assert text_of(play(tokenizer, [*tokens, END], stop=("END",))) == "one EN"
    assert text_of(play(tokenizer, tokens, stop=("END",), max_tokens=len(tokens))) == "one EN"


@given(
    text=st.text("abc", max_size=40),
    stops=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(1, 6), min_size=40),
)
def test_stops_do_not_depend_on_how_text_comes(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    told, held, start = "", Held(stops), 0
    for cut in cuts:
        told += held.add(text[start : start + cut])
        start += cut
        if held.is_stopped or start >= len(text):
            break
    # of several stops, one that is whole ends the text before one that begins earlier
    if not held.is_stopped:
        assert not found
        told += held.rest()
        assert told == text
    else:
        assert found
        assert text.startswith(told)
        assert any(text[len(told) :].startswith(stop) for stop in stops)


def test_probabilities_are_those_of_the_logits(tokenizer: Tokenizer) -> None:
    (token, *_) = ids_of(tokenizer, "hello")
    events = play(tokenizer, [token], n_likely=2, max_tokens=1)
    (choice,) = [c for e in events if isinstance(e, Piece) for c in e.choices]
    expected = 10 - np.log(np.exp(10) + 301)
    assert choice.taken.log_probability == pytest.approx(expected, abs=1e-5)
    assert [each.log_probability for each in choice.likely] == pytest.approx([expected, expected - 10], abs=1e-4)  # fmt: skip
    assert choice.likely[0] == choice.taken


def test_penalties_and_biases_change_what_is_chosen(tokenizer: Tokenizer) -> None:
    events: list[Event] = []
    options = Options(
        sampling=Sampling(),
        max_tokens=10,
        frequency_penalty=2.0,
        presence_penalty=2.0,
        bias={7: 7.5},
    )
    completion = Completion([1], tokenizer, [END], options, events.append)
    taken = [completion.take(logits_of(9), [1]) for _ in range(4)]
    assert taken == [9, 7, 9, 9]  # 10; 6 against 7.5; 6 against 3.5; 4 against 3.5
    assert logits_of(9)[9] == 10


def test_an_error_is_told(tokenizer: Tokenizer) -> None:
    events: list[Event] = []
    options = Options(sampling=Sampling(), max_tokens=1)
    Completion([1], tokenizer, [END], options, events.append).fail(RunError("no"))
    assert isinstance(events[0], RunError)
