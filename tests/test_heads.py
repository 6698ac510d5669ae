"""Encoders with a head: converted, against transformers' numbers, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import safetensors.numpy

from test_checkpoints import convert, encode, load
from tiny_checkpoint import TinyCheckpoint
from tiny_heads import GOLDEN, HEADS, LABELS, E, V, some, two_texts
from weightpkg.errors import (
    CheckpointError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    WeightpkgError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 2e-5
MASKED = [name for name, head in HEADS.items() if head.architecture.endswith("MaskedLM")]
LABELLED = [name for name in HEADS if name not in MASKED]


def golden(name: str) -> NDArray[np.float32]:
    return np.array(json.loads(GOLDEN.read_text())[name], np.float32)


def logits(directory: Path, name: str) -> NDArray[np.float32]:
    ids, mask = two_texts(HEADS[name].page)
    (found,) = encode(directory, ["logits"], ids, mask)
    return found


@pytest.mark.parametrize("name", HEADS)
def test_logits_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    convert(HEADS[name].write(tmp_path / "source"), tmp_path / "out")
    found = some(logits(tmp_path / "out", name)).reshape(-1)
    expected = golden(name)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", HEADS)
def test_labels_come_along(tmp_path: Path, name: str) -> None:
    convert(HEADS[name].write(tmp_path / "source"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert config["architectures"] == [HEADS[name].architecture]
    assert config.get("id2label") == (None if name in MASKED else LABELS)
    outputs = [(value.name, value.shape[-1]) for value in load(tmp_path / "out").get_outputs()]
    assert outputs == [("last_hidden_state", E), ("logits", V if name in MASKED else 3)]


@pytest.mark.parametrize("name", ["bert-masked", "roberta-masked", "bert-token"])
@pytest.mark.parametrize("quantization", ["q4", "q8"])
def test_quantised_heads_are_near(tmp_path: Path, name: str, quantization: Any) -> None:
    source = HEADS[name].write(tmp_path / "source")
    convert(source, tmp_path / "out", quantization=quantization)
    found, expected = some(logits(tmp_path / "out", name)).reshape(-1), golden(name)
    cosine = found @ expected / np.linalg.norm(found) / np.linalg.norm(expected)
    assert cosine > (0.9 if quantization == "q4" else 0.99)


def test_words_are_stored_once(tmp_path: Path) -> None:
    """In half precision nothing stays in place, so what is there twice is in the data file twice."""
    for name, count in (("bert-masked", 1), ("bert-untied", 2)):
        source = HEADS[name].write(tmp_path / name)
        drawn = HEADS[name].drawn()
        half = {key: values.astype(np.float16) for key, values in drawn.items()}
        safetensors.numpy.save_file(half, source / "model.safetensors")
        convert(source, tmp_path / f"{name}-out")
        data = (tmp_path / f"{name}-out" / "model.onnx.data").read_bytes()
        words = half["bert.embeddings.word_embeddings.weight"].astype(np.float32)
        matrices = sum(values.size * 4 for values in half.values() if values.ndim == 2)
        assert data.count(words.tobytes()) == 1
        assert len(data) < matrices + 4096 * 40
        assert (len(data) > V * E * 4 * count) is True


def test_a_head_of_words_that_is_not_there_is_left_out(tmp_path: Path) -> None:
    source = HEADS["bert-masked"].write(tmp_path / "source")
    kept = {k: v for k, v in HEADS["bert-masked"].drawn().items() if not k.startswith("cls.")}
    safetensors.numpy.save_file(kept, source / "model.safetensors")
    convert(source, tmp_path / "out")
    assert [value.name for value in load(tmp_path / "out").get_outputs()] == ["last_hidden_state"]


def test_a_sentence_model_has_no_head_of_words(tmp_path: Path) -> None:
    source = HEADS["bert-masked"].write(tmp_path / "source")
    modules = TinyCheckpoint.read("bert").documents["modules.json"]
    (source / "modules.json").write_text(json.dumps(modules))
    convert(source, tmp_path / "out")
    names = [value.name for value in load(tmp_path / "out").get_outputs()]
    assert names == ["last_hidden_state", "sentence_embedding"]


@pytest.mark.parametrize("name", HEADS)
def test_refuses_heads_that_are_incomplete(tmp_path: Path, name: str) -> None:
    drawn = HEADS[name].drawn()
    source = HEADS[name].write(tmp_path / "source")
    for i, missing in enumerate(HEADS[name].tensors):
        kept = {key: values for key, values in drawn.items() if key != missing}
        safetensors.numpy.save_file(kept, source / "model.safetensors")
        with pytest.raises(TensorMismatchError):
            convert(source, tmp_path / str(i))


@pytest.mark.parametrize(
    ("config", "error", "reason"),
    [
        ({"id2label": {"0": "a", "2": "b"}}, UnsupportedArchitectureError, "from 0"),
        ({"id2label": {"0": "a", "1": 7, "2": "c"}}, CheckpointError, "not a string"),
        ({"id2label": ["a"]}, CheckpointError, "an object"),
        ({"id2label": {"0": "a"}}, TensorMismatchError, r"not \(1, 64\)"),
        ({"id2label": None}, TensorMismatchError, r"not \(2, 64\)"),
        ({"problem_type": 3}, CheckpointError, "problem_type"),
        ({"architectures": ["BertForQuestionAnswering"]}, UnsupportedArchitectureError, "QuestionAnswering"),
        ({"architectures": ["BertForNextSentencePrediction"]}, UnsupportedArchitectureError, "architectures"),
    ],
)  # fmt: skip
def test_refuses_a_configuration(
    tmp_path: Path, config: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    source = HEADS["bert-sequence"].write(tmp_path / "source", **config)
    with pytest.raises(error, match=reason):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("modernbert-cls", {"classifier_activation": "swish"}),
        ("modernbert-cls", {"classifier_pooling": "max"}),
    ],
)
def test_refuses_a_head_that_is_not_known(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    source = HEADS[name].write(tmp_path / "source", **config)
    with pytest.raises(UnsupportedArchitectureError):
        convert(source, tmp_path / "out")


def test_a_head_that_is_said_to_be_tied_and_differs_is_refused(tmp_path: Path) -> None:
    source = HEADS["bert-untied"].write(tmp_path / "source", tie_word_embeddings=True)
    with pytest.raises(TensorMismatchError, match="differ"):
        convert(source, tmp_path / "out")
