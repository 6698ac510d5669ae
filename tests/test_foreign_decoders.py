"""Directories that say they are a text model, and are something else: refused before anything is fed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.footprint import directory_need
from weightpkg.progress import Silence
from weightpkg.run.batch import Batch
from weightpkg.run.loading import load_graph
from weightpkg.run.model import Model
from weightpkg.run.session import ModelConfig, Session

DIGEST = Digest("sha256", 64 * "0")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    source = tiny_llama(path / "tiny.gguf")
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


@pytest.fixture
def directory(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def rewrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def say(directory: Path, name: str, value: object) -> None:
    """Let the configuration say something else."""
    path = directory / "genai_config.json"
    config = json.loads(path.read_bytes())
    fields = config["model"] if name in config["model"] else config["model"]["decoder"]
    assert name in fields
    fields[name] = value
    rewrite(path, json.dumps(config).encode())


def edit(directory: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    path = directory / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model.graph)
    rewrite(path, model.SerializeToString())


def refuse(directory: Path, reason: str) -> None:
    """A session and a batch refuse it, and say what is wrong."""
    with pytest.raises(RunError, match=reason) as caught:
        Session(directory, ModelConfig.read(directory), threads=1)
    assert caught.value.hint
    session = load_graph(directory, threads=1).session
    with pytest.raises(RunError, match=reason):
        Batch(session, ModelConfig.read(directory), 2)


def test_what_is_not_changed_is_taken(directory: Path) -> None:
    config = ModelConfig.read(directory)
    Session(directory, config, threads=1).forward([5])
    Batch(load_graph(directory, threads=1).session, config, 2)


@pytest.mark.parametrize("value", [0, -1, 10**9, 10**30, None, "many", [3], float("inf"), {}])
@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "num_key_value_heads", "head_size", "vocab_size"]
)
def test_refuses_sizes_that_no_model_has(directory: Path, name: str, value: Any) -> None:
    say(directory, name, value)
    with pytest.raises(RunError, match="is not a text model's configuration") as caught:
        ModelConfig.read(directory)
    assert caught.value.hint


@pytest.mark.parametrize("value", [0, -5, 2**31, 10**400])
def test_refuses_contexts_that_no_model_has(directory: Path, value: int) -> None:
    say(directory, "context_length", value)
    with pytest.raises(RunError, match="`context_length` is"):
        ModelConfig.read(directory)


@pytest.mark.parametrize("value", ["x", ["x"], [None], [[2]], {"a": 1}])
def test_refuses_ends_that_are_no_tokens(directory: Path, value: object) -> None:
    say(directory, "eos_token_id", value)
    with pytest.raises(RunError, match="is not a text model's configuration"):
        ModelConfig.read(directory)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("num_hidden_layers", 1, "keys and values of 2 layers, not 1"),
        ("num_hidden_layers", 10**7, "keys and values of 2 layers, not 10000000"),
        ("num_key_value_heads", 7, r"`past_key_values\.0\.key` of the shape"),
        ("head_size", 10**7, r"`past_key_values\.0\.key` of the shape"),
        ("vocab_size", 5, "`logits` of the shape"),
    ],
)
def test_refuses_another_models_configuration(
    directory: Path, name: str, value: int, reason: str
) -> None:
    say(directory, name, value)
    refuse(directory, reason)


def test_refuses_a_graph_that_takes_other_names(directory: Path) -> None:
    def rename(graph: onnx.GraphProto) -> None:
        (ids,) = [value for value in graph.input if value.name == "input_ids"]
        ids.name = "tokens"
        for node in graph.node:
            for i, name in enumerate(node.input):
                if name == "input_ids":
                    node.input[i] = "tokens"

    edit(directory, rename)
    refuse(directory, "has no `input_ids`")


def test_refuses_a_graph_that_gives_logits_of_all_tokens(directory: Path) -> None:
    """As other converters make them."""

    def drop(graph: onnx.GraphProto) -> None:
        (keep,) = [value for value in graph.input if value.name == "logits_to_keep"]
        graph.input.remove(keep)  # what stays is a constant

    edit(directory, drop)
    refuse(directory, "has no `logits_to_keep`")


@pytest.mark.parametrize("content", [b'{"a": ' + b"[" * 200_000, b"[]", b"\xff", b"", b'"model"'])
def test_refuses_documents_that_are_none(directory: Path, content: bytes) -> None:
    rewrite(directory / "tokenizer_config.json", content)
    with pytest.raises(RunError, match=r"tokenizer_config\.json"):
        Model(directory)
    rewrite(directory / "genai_config.json", content)
    with pytest.raises(RunError, match=r"genai_config\.json"):
        ModelConfig.read(directory)
    assert directory_need(directory).kv_cache == 0
