"""Encoders from GGUF files: tiny random models against transformers' numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer

from factories import GGUFValue, TensorBytes, TinyModel, edit_gguf
from weightpkg.convert import GGUF_ENCODERS
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError, TensorMismatchError, UnsupportedArchitectureError
from weightpkg.progress import Silence
from weightpkg.run.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST = Digest("sha256", 64 * "0")
PAGES = [TinyModel.read(path) for path in sorted((Path(__file__).parent / "archs").glob("*.toml"))]
MODELS = {page.name: page for page in PAGES if page.architecture in GGUF_ENCODERS}

# Of states around 1, as norms leave them, and of vectors of length 1.
STATES, VECTORS = 1e-5, 2e-6


def converted(directory: Path, model: TinyModel, **types: str) -> Path:
    """Write a model, convert it into a new directory, and return that."""
    source = model.write(directory.with_suffix(".gguf"), model.weights(), types)
    return convert_to(directory, source)


def convert_to(directory: Path, source: Path) -> Path:
    directory.mkdir()
    convert(source, DIGEST, directory, Silence())
    return directory


def run(
    directory: Path, ids: NDArray[np.int64], mask: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """ids, mask: (B, T) -> each output; every second token id is of the second segment, if there is one."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(directory / "model.onnx", options)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    inputs = {value.name for value in session.get_inputs()}
    outputs = [value.name for value in session.get_outputs()]
    values = session.run(outputs, {key: values for key, values in feed.items() if key in inputs})
    return dict(zip(outputs, values, strict=True))


def two_texts(model: TinyModel) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens (2, 20), of which the second text has 7, and their mask."""
    ids = np.array(model.golden["tokens"]).reshape(2, -1)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    return ids, mask


@pytest.mark.parametrize("name", MODELS)
def test_states_and_vectors_equal_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    found = run(converted(tmp_path / "out", model), *two_texts(model))
    hidden = found["last_hidden_state"][:, :7:3, ::4].reshape(-1, 16)
    np.testing.assert_allclose(hidden, model.golden["hidden"], rtol=0, atol=STATES)
    vectors = found["sentence_embedding"]
    np.testing.assert_allclose(vectors, model.golden["embedding"], rtol=0, atol=VECTORS)


@pytest.mark.parametrize("name", MODELS)
def test_vectors_of_quantised_weights_are_near(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    types = {"": "Q8_0", "attn_v": "Q4_1", "position_embd": "F32", "token_types": "F32"}
    found = run(converted(tmp_path / "out", model, **types), *two_texts(model))
    cosines = (found["sentence_embedding"] * model.golden["embedding"]).sum(axis=1)
    assert (cosines > 0.98).all()


@pytest.mark.parametrize("name", MODELS)
def test_texts_are_cut_at_the_last_position(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    directory = converted(tmp_path / "out", model)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    count = model.metadata["context_length"]
    assert len(tokenizer.encode("the sky is blue " * 50).ids) == count
    names = {path.name for path in directory.iterdir()}
    assert names == {"model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "weightpkg.toml"}  # fmt: skip
    ids = np.array([tokenizer.encode("the sky is blue " * 50).ids])
    assert np.isfinite(run(directory, ids, np.ones_like(ids))["sentence_embedding"]).all()


@pytest.mark.parametrize("pooling", [0, None])
def test_without_a_pooling_there_are_hidden_states_only(
    tmp_path: Path, pooling: int | None
) -> None:
    model = MODELS["bert"]
    path = model.write(tmp_path / "tiny.gguf", model.weights(), {})
    edit_gguf(path, {"bert.pooling_type": pooling})
    found = run(convert_to(tmp_path / "out", path), *two_texts(model))
    assert list(found) == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("pooling_type", 4, "pooling of type 4"),
        ("attention.causal", True, "attention.causal` is true"),
        ("attention.max_alibi_bias", 8.0, "max_alibi_bias"),
        ("attention.head_count", 5, "not evenly divided"),
        ("attention.head_count", 0, "num_attention_heads"),
        ("block_count", 0, "num_hidden_layers"),
        ("attention.layer_norm_epsilon", -1.0, "layer_norm_eps"),
        ("context_length", 2**31, "max_position_embeddings"),
        ("rope.scaling.type", "other", "rope.scaling|`other`"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_refuses_what_it_does_not_know(
    tmp_path: Path, name: str, key: str, value: GGUFValue, reason: str
) -> None:
    model = MODELS[name]
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    edit_gguf(path, {f"{model.architecture}.{key}": value})
    with pytest.raises(UnsupportedArchitectureError, match=rf"odd\.gguf.*{reason}"):
        convert_to(tmp_path / "out", path)


@pytest.mark.parametrize("name", MODELS)
def test_refuses_tensors_that_are_missing_or_left_over(tmp_path: Path, name: str) -> None:
    model = MODELS[name]
    for i, missing in enumerate(model.weights()):
        if missing.startswith(("blk.0", "token_types")):
            continue
        weights = {key: values for key, values in model.weights().items() if key != missing}
        path = model.write(tmp_path / "odd.gguf", weights, {})
        with pytest.raises(TensorMismatchError, match="is missing"):
            convert_to(tmp_path / str(i), path)
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    edit_gguf(path, {}, add=[TensorBytes("cls.weight", (4,), 0, bytes(16))])
    with pytest.raises(TensorMismatchError, match=r"no use for `cls\.weight`"):
        convert_to(tmp_path / "out", path)


def test_a_roberta_with_byte_level_tokens_has_one_before_and_one_behind(tmp_path: Path) -> None:
    model = replace(MODELS["bert-roberta"], tokenizer="gpt2")
    path = model.write(tmp_path / "tiny.gguf", model.weights(), {})
    keys: dict[str, GGUFValue | None] = {
        "tokenizer.ggml.pre": "roberta-bpe",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
    }
    edit_gguf(path, keys)
    directory = convert_to(tmp_path / "out", path)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    found = tokenizer.encode("the sky " * 50).tokens
    assert (len(found), found[0], found[-1]) == (48, "<|im_start|>", "<|im_end|>")


def test_the_runner_says_what_an_encoder_is_for(tmp_path: Path) -> None:
    directory = converted(tmp_path / "out", MODELS["bert"])
    with pytest.raises(RunError, match="writes no text") as caught:
        Model(directory)
    assert "sentence_embedding" in str(caught.value.hint)


def test_a_text_model_without_its_configuration_is_damaged(tmp_path: Path) -> None:
    manifest = {"files": [{"path": "genai_config.json"}]}
    lines = [f"[[files]]\npath = {json.dumps(row['path'])}\n" for row in manifest["files"]]
    (tmp_path / "weightpkg.toml").write_text("".join(lines))
    with pytest.raises(RunError, match=r"genai_config\.json` cannot be read: No such file"):
        Model(tmp_path)


def test_the_type_of_the_segments_is_no_input_where_there_is_one(tmp_path: Path) -> None:
    def inputs(name: str) -> list[Any]:
        directory = converted(tmp_path / name, MODELS[name])
        session = ort.InferenceSession(directory / "model.onnx")
        return [value.name for value in session.get_inputs()]

    assert inputs("bert") == ["input_ids", "attention_mask", "token_type_ids"]
    assert inputs("bert-roberta") == inputs("bert-distilbert") == ["input_ids", "attention_mask"]
