"""Answering: sessions, streams, stop tokens, the cache, on a tiny real model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError, TemplateError
from weightpkg.progress import Silence
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
