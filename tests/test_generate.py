"""Answering: sessions, streams, stop tokens, the cache, on a tiny real model."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError, TemplateError
from weightpkg.progress import Silence
from weightpkg.run.benchmark import benchmark
from weightpkg.run.constraint import Constraint
from weightpkg.run.generate import Held
from weightpkg.run.model import Model
from weightpkg.run.sampling import Sampling
from weightpkg.run.session import ModelConfig, Session

DIGEST = Digest("sha256", 64 * "0")
CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted tiny model with a context of 2,048 tokens."""
    path = tmp_path_factory.mktemp("model")
    source = tiny_llama(path / "tiny.gguf", context_length=2048)
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


@pytest.fixture(scope="module")
def model(directory: Path) -> Iterator[Model]:
    with Model(directory, threads=1) as loaded:
        yield loaded


def test_streams_the_text_that_generate_returns(model: Model) -> None:
    pieces = list(model.stream("Hello", max_tokens=12))
    answer = model.generate("Hello", max_tokens=12)
    assert "".join(pieces) == answer.text == str(answer)
    assert len(answer.tokens) == 12
    assert answer.finish_reason == "length"


def test_never_splits_a_character(model: Model) -> None:
    sampling = Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3)
    stream = model.stream("Hello", max_tokens=200, sampling=sampling)
    pieces = list(stream)
    whole = model._tokenizer.decode(stream.statistics.tokens)
    assert whole.startswith("".join(pieces))
    assert all(piece.encode().decode() == piece for piece in pieces)


def test_the_same_seed_gives_the_same_answer(model: Model) -> None:
    sampling = Sampling(temperature=1.5, seed=7)
    first = model.chat(CHAT, max_tokens=20, sampling=sampling)
    again = model.chat(CHAT, max_tokens=20, sampling=sampling)
    other = model.chat(CHAT, max_tokens=20, sampling=Sampling(temperature=1.5, seed=8))
    assert first.tokens == again.tokens != other.tokens


def test_stops_at_a_stop_token(directory: Path, model: Model) -> None:
    greedy = model.generate("Hello", max_tokens=6).tokens
    stop = greedy[3]
    config = ModelConfig.read(directory)
    with Model(directory, threads=1) as stopping:
        stopping.session.config = replace(config, eos_token_ids=(stop,))
        answer = stopping.generate("Hello", max_tokens=6)
    assert answer.tokens == greedy[: greedy.index(stop)]
    assert answer.finish_reason == "stop"


def test_a_common_prefix_is_not_computed_again(model: Model) -> None:
    model.generate("A long common beginning, and then this", max_tokens=4)
    stream = model.stream("A long common beginning, and then that", max_tokens=4)
    text = stream.finish().text
    assert stream.statistics.n_cached > 10
    model.session.rewind(0)
    assert model.generate("A long common beginning, and then that", max_tokens=4).text == text


def test_a_long_prompt_grows_the_cache_and_equals_one_step_at_a_time(directory: Path) -> None:
    config = ModelConfig.read(directory)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, 700).tolist()
    chunked = Session(directory, config, threads=1)
    at_once = chunked.forward(tokens).copy()
    stepped = Session(directory, config, threads=1)
    for token in tokens:
        one_by_one = stepped.forward([token])
    assert chunked._capacity == stepped._capacity == 1024
    np.testing.assert_allclose(at_once, one_by_one, atol=0.05)
    assert at_once.argmax() == one_by_one.argmax()


def test_refuses_a_prompt_longer_than_the_context(model: Model) -> None:
    with pytest.raises(RunError, match=r"2,048"):
        model.generate("x" * 3000)


def test_refuses_an_empty_prompt(model: Model) -> None:
    with pytest.raises(RunError, match="empty"):
        model.generate("")


def test_the_answer_ends_where_the_context_does(model: Model) -> None:
    prompt = "x" * 2040  # a token each
    answer = model.generate(prompt, max_tokens=100)
    assert answer.statistics.n_prompt == 2040
    assert 0 < len(answer.tokens) <= 8


def test_a_base_model_does_not_chat(directory: Path, tmp_path: Path) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with Model(tmp_path) as base, pytest.raises(TemplateError, match="no chat template"):
        base.chat(CHAT)


@pytest.mark.parametrize(
    "name", ["genai_config.json", "tokenizer.json", "tokenizer_config.json", "model.onnx"]
)
@pytest.mark.parametrize("content", [None, b"{", b'{"model": 1}'], ids=["gone", "cut", "other"])
def test_a_broken_model_directory_is_one_clear_error(
    directory: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    if name == "tokenizer_config.json" and content == b'{"model": 1}':
        Model(tmp_path).close()  # valid: a model without a template
        return
    with pytest.raises(RunError, match=name):
        Model(tmp_path)


def test_guessing_changes_nothing_but_the_time(model: Model) -> None:
    prompt = "abcabcabcabc" * 4
    for sampling in (Sampling(), Sampling(temperature=0.8, seed=5), Sampling(repeat_penalty=1.2)):
        plain = model.generate(prompt, max_tokens=60, sampling=sampling)
        guessed = model.generate(prompt, max_tokens=60, sampling=sampling, lookup=True)
        assert guessed.tokens == plain.tokens
        assert guessed.text == plain.text
    repeated = model.generate(prompt, max_tokens=60, lookup=True).statistics
    assert repeated.n_guessed >= repeated.n_right


def test_right_guesses_save_steps(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = model.generate("Hello", max_tokens=40)
    steps: list[int] = []
    forward = Session.forward_all

    def count(self: Session, tokens: list[int], *, keep: int) -> object:
        steps.append(len(tokens))
        return forward(self, tokens, keep=keep)

    def know(self: object, tokens: list[int], most: int) -> list[int]:
        place = len(tokens) - n_prompt
        return list(answer.tokens[place : place + min(4, most)])

    n_prompt = answer.statistics.n_prompt
    monkeypatch.setattr(Session, "forward_all", count)
    monkeypatch.setattr("weightpkg.run.generate.Lookup.guess", know)
    again = model.generate("Hello", max_tokens=40, lookup=True)
    assert again.tokens == answer.tokens
    assert again.statistics.n_right == again.statistics.n_guessed > 20
    assert len(steps) < 15


def test_guessing_stops_where_the_context_does(model: Model) -> None:
    prompt = "xy" * 1020  # a token each: 8 are left
    plain = model.generate(prompt, max_tokens=100)
    guessed = model.generate(prompt, max_tokens=100, lookup=True)
    assert guessed.tokens == plain.tokens
    assert len(guessed.tokens) <= 8


def test_a_stop_ends_the_answer_before_it_and_is_not_shown(model: Model) -> None:
    sampling = Sampling(temperature=2.0, seed=3)
    whole = model.generate("Hello", max_tokens=40, sampling=sampling).text
    stop = whole[10:13]
    stream = model.stream("Hello", max_tokens=40, sampling=sampling, stop=["never there", stop])
    pieces = list(stream)
    assert "".join(pieces) == whole[: whole.index(stop)]
    assert stream.statistics.finish_reason == "stop"
    assert len(stream.statistics.tokens) < 40
    unstopped = model.generate("Hello", max_tokens=40, sampling=sampling, stop=["never there"])
    assert unstopped.text == whole


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd", "ef"], ["cd"], "ab"),
        (["ab", "cd", "ef"], ["bcde"], "a"),
        (["ab", "cd", "ef"], ["efg"], "abcdef"),
        (["aab", "aac"], ["aac"], "aab"),
        (["abc"], ["c", "b"], "a"),
        (["a", "a", "a", "b"], ["aab"], "a"),
    ],
)
def test_text_that_may_become_a_stop_is_held_back(
    pieces: list[str], stops: list[str], shown: str
) -> None:
    held = Held(stops)
    text = ""
    for piece in pieces:
        text += held.add(piece)
        assert not any(stop in text for stop in stops)
        if held.is_stopped:
            break
    assert text + held.rest() == shown


def test_logprobs_are_the_models_own(model: Model) -> None:
    answer = model.generate("Hello", max_tokens=5, logprobs=3)
    rows = answer.statistics.logprobs
    assert [row.token for row in rows] == list(answer.tokens)
    for row in rows:
        assert row.top[0] == (row.token, row.logprob)  # the most likely was taken
        assert [value for _, value in row.top] == sorted((v for _, v in row.top), reverse=True)
        assert len(row.top) == 3
        assert sum(np.exp(value) for _, value in row.top) <= 1.0 + 1e-6
    assert model.generate("Hello", max_tokens=5).statistics.logprobs == []
    (row,) = model.generate("Hello", max_tokens=1, logprobs=0).statistics.logprobs
    assert row.top == ()


@pytest.mark.parametrize(
    "change", [{"logprobs": -1}, {"logprobs": 21}, {"max_tokens": 0}, {"stop": [""]}]
)
def test_refuses_options_out_of_their_range(model: Model, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must be|stops nothing"):
        model.stream("Hello", **change)


def test_samples_differ_and_the_first_is_that_of_the_seed(model: Model) -> None:
    sampling = Sampling(temperature=1.5, seed=7)
    samples = model.samples("Hello", 3, sampling=sampling, max_tokens=12)
    assert len({answer.tokens for answer in samples}) == 3
    assert samples[0].tokens == model.generate("Hello", max_tokens=12, sampling=sampling).tokens
    assert samples[1].statistics.n_cached == samples[1].statistics.n_prompt - 1
    with pytest.raises(ValueError, match="at least 1"):
        model.samples("Hello", 0, sampling=sampling)


@pytest.mark.parametrize("lookup", [False, True])
def test_a_json_schema_holds_whatever_the_model_wants(model: Model, lookup: bool) -> None:  # noqa: FBT001
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }  # fmt: skip
    constraint = Constraint.json_schema(schema)
    for seed in range(3):
        sampling = Sampling(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
        answer = model.generate(
            "Hello", max_tokens=200, sampling=sampling, constraint=constraint, lookup=lookup
        )
        assert answer.finish_reason == "stop"
        found = json.loads(answer.text)
        assert 0 <= found["a"] <= 99
        assert found["b"] in {"x", "y"}


def test_a_regular_expression_holds(model: Model) -> None:
    pattern = r"[0-9]{4}-(0[1-9]|1[0-2])"
    answer = model.generate("Hello", max_tokens=50, constraint=Constraint.regex(pattern))
    assert re.fullmatch(pattern, answer.text)
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(
    "text", ["{", "[]", "null", '{"type": "no such type"}', '{"minimum": "x", "type": "integer"}'],
)  # fmt: skip
def test_refuses_a_schema_that_is_not_valid(model: Model, text: str) -> None:
    with pytest.raises(RunError, match=r"schema"):
        model.generate("Hello", constraint=Constraint.json_schema(text))


@pytest.mark.parametrize("pattern", ["(", "[", "a{2,1}", "x" * (1 << 21)])
def test_refuses_an_expression_that_is_not_valid(model: Model, pattern: str) -> None:
    with pytest.raises(RunError, match="regex"):
        model.generate("Hello", constraint=Constraint.regex(pattern))


def test_says_which_package_forms_need(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RunError, match="llguidance"):
        model.generate("Hello", constraint=Constraint.regex("a"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_one_clear_error(
    model: Model, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    forward = Session.forward_all

    def broken(self: Session, tokens: list[int], *, keep: int) -> object:
        logits = forward(self, tokens, keep=keep)
        logits[-1, 7] = value
        return logits

    monkeypatch.setattr(Session, "forward_all", broken)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(RunError, match="where a number belongs"):
            model.generate("Hello", sampling=sampling)


def test_running_out_of_memory_for_the_context_is_an_error_and_the_model_goes_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(directory, ModelConfig.read(directory), threads=1)
    expected = session.forward([5, 6, 7]).copy()
    zeros = np.zeros

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("weightpkg.run.session.np.zeros", full)
    with pytest.raises(RunError, match="not enough memory"):
        session.forward(list(range(3, 253)) * 3)
    monkeypatch.setattr("weightpkg.run.session.np.zeros", zeros)
    assert session.tokens == []
    np.testing.assert_array_equal(session.forward([5, 6, 7]), expected)


def test_several_rows_are_those_of_single_steps(directory: Path) -> None:
    config = ModelConfig.read(directory)
    session = Session(directory, config, threads=1)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, 520).tolist()
    rows = session.forward_all(tokens, keep=6).copy()
    assert rows.shape == (6, config.vocab_size)
    session.rewind(0)
    session.forward(tokens[:514])
    for token, row in zip(tokens[514:], rows, strict=True):
        np.testing.assert_allclose(session.forward([token]), row, atol=0.05)


def test_says_which_provider_runs_and_why(model: Model) -> None:
    lines = model.session.explain()
    assert lines[0].startswith("CPUExecutionProvider: ")
    assert "threads: 1" in lines


def test_benchmark_measures_and_refuses_what_does_not_fit(model: Model) -> None:
    figures = benchmark(model.session, load_s=model.load_s, n_prompt=20, n_answer=4, rounds=2)
    assert figures.prefill_rate > 0
    assert figures.decode_rate > 0
    assert figures.first_token_s == pytest.approx(20 / figures.prefill_rate)
    assert figures.as_json()["prompt-tokens"] == 20
    with pytest.raises(RunError, match="more than the model's context"):
        benchmark(model.session, load_s=0.0, n_prompt=2048, n_answer=1)
