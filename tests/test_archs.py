"""Every architecture: tiny random models against transformers' logits, and against themselves."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import onnx
import onnxruntime_genai as genai
import pytest

from decoder import Decoder
from factories import GGUFValue, TensorBytes, TinyModel, edit_gguf
from weightpkg.convert import ARCHITECTURES, GGUF_ENCODERS, rope
from weightpkg.convert.archs import gemma2
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import (
    GGUFError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    WeightpkgError,
)
from weightpkg.formats.gguf import GGUFFile
from weightpkg.progress import Silence
from weightpkg.run import loading, tuning
from weightpkg.run.model import Model

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST = Digest("sha256", 64 * "0")
PAGES = sorted((Path(__file__).parent / "archs").glob("*.toml"))

# Of the largest logit: both sides compute in float32, in another order.
TOLERANCE = 2e-5


@cache
def tiny(name: str) -> TinyModel:
    """The page of a model, read once."""
    return TinyModel.read(Path(__file__).parent / "archs" / f"{name}.toml")


NAMES = [page.stem for page in PAGES if tiny(page.stem).architecture not in GGUF_ENCODERS]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each model converts to, weights in float32; the GGUF is beside it."""
    folder = tmp_path_factory.mktemp("archs")
    return {name: converted(folder / name, tiny(name)) for name in NAMES}


def converted(directory: Path, model: TinyModel, **types: str) -> Path:
    source = directory.with_suffix(".gguf")
    model.write(source, model.weights(), types)
    directory.mkdir()
    convert(source, DIGEST, directory, Silence())
    return directory


def close(found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    bar = TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=bar)


def tokens_of(name: str) -> NDArray[np.int64]:
    return np.array([tiny(name).golden["tokens"]])


def test_every_architecture_has_a_page() -> None:
    assert {tiny(page.stem).architecture for page in PAGES} == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(directories: dict[str, Path], name: str) -> None:
    golden = tiny(name).golden
    logits, _ = Decoder.load(directories[name]).run(tokens_of(name))
    close(logits[0][:, golden["columns"]], np.array(golden["logits"], np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_one_token_at_a_time_equals_all_at_once(directories: dict[str, Path], name: str) -> None:
    decoder, tokens = Decoder.load(directories[name]), tokens_of(name)
    expected, _ = decoder.run(tokens)
    past = None
    for i in range(tokens.shape[1]):
        logits, past = decoder.run(tokens[:, i : i + 1], past)
        close(logits[:, 0], expected[:, i])


@pytest.mark.parametrize("name", NAMES)
def test_pieces_of_a_prompt_equal_all_at_once(directories: dict[str, Path], name: str) -> None:
    decoder, tokens = Decoder.load(directories[name]), tokens_of(name)
    expected, _ = decoder.run(tokens)
    first, past = decoder.run(tokens[:, :7])
    second, _ = decoder.run(tokens[:, 7:], past)
    close(np.concatenate((first, second), axis=1), expected)


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_nobody_asked_for_are_left_out_of_the_last_layer(
    directories: dict[str, Path], tmp_path: Path, name: str
) -> None:
    directory, tokens = directories[name], tokens_of(name)
    expected, past = Decoder.load(directory).run(tokens)
    path = Path(shutil.copytree(directory, tmp_path / "short")) / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    has_experts = any(node.op_type == "TopK" for node in model.graph.node)
    assert tuning.with_short_end(model) or has_experts  # whose rows are not where they were
    path.chmod(0o644)
    path.write_bytes(model.SerializeToString())
    short = Decoder.load(path.parent)
    for keep in (1, 3, tokens.shape[1]):
        logits, kept = short.run(tokens, logits_to_keep=np.array([keep]))
        assert logits.shape[1] == keep
        close(logits, expected[:, -keep:])
        assert kept.keys() == past.keys()
        for part, values in past.items():
            np.testing.assert_array_equal(kept[part], values)


@pytest.mark.parametrize("name", ["gpt2", "falcon", "starcoder2"])
def test_sums_stay_apart_from_norms_on_the_processor(
    directories: dict[str, Path], tmp_path: Path, name: str
) -> None:
    loading.load_graph(directories[name], threads=1, cache=tmp_path)
    (kept,) = tmp_path.iterdir()
    content = loading.read_kept(kept)
    assert content is not None
    operators = Counter(node.op_type for node in loading.parse(content).graph.node)
    assert operators["LayerNormalization"]
    assert not operators["SkipLayerNormalization"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_different_lengths_equal_single_ones(
    directories: dict[str, Path], name: str
) -> None:
    decoder, tokens = Decoder.load(directories[name]), tokens_of(name)[0]
    rows = [tokens[:12], tokens[12:]]
    padded = np.zeros((2, 12), np.int64)
    for row, content in zip(padded, rows, strict=True):
        row[: len(content)] = content
    lengths = [len(row) for row in rows]
    prompts, past = decoder.run(padded, lengths=lengths)
    following, _ = decoder.run(np.array([[5], [5]]), past, [length + 1 for length in lengths])
    for i, row in enumerate(rows):
        expected, _ = decoder.run(np.append(row, 5)[None])
        close(prompts[i, : len(row)], expected[0, :-1])
        close(following[i, 0], expected[0, -1])


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_quantised_weights_are_those_of_the_same_weights_in_float32(
    tmp_path: Path, name: str
) -> None:
    model = tiny(name)
    types = {"": "Q8_0", "attn_v": "Q4_1", "ffn_down": "Q5_1", "token_embd": "Q4_0"}
    directory = converted(tmp_path / "quantised", model, **types)
    plain = replace(model, name="plain")
    reader = gguf.GGUFReader(directory.with_suffix(".gguf"))
    weights = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        for t in reader.tensors
    }
    plain.write(tmp_path / "plain.gguf", weights, {})
    (tmp_path / "plain").mkdir()
    convert(tmp_path / "plain.gguf", DIGEST, tmp_path / "plain", Silence())
    expected, _ = Decoder.load(tmp_path / "plain").run(tokens_of(name))
    logits, _ = Decoder.exact(directory).run(tokens_of(name))
    bar = 2 * TOLERANCE * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bar)


@pytest.mark.parametrize("name", NAMES)
def test_its_text_is_what_the_graph_says(directories: dict[str, Path], name: str) -> None:
    with Model(directories[name], threads=1) as model:
        answer = model.generate("the sky is blue and the sea", max_tokens=8).tokens
        ids = model._tokenizer.encode("the sky is blue and the sea").ids
    decoder = Decoder.load(directories[name])
    for token in answer:
        logits, _ = decoder.run(np.array([ids]))
        assert token == logits[0, -1].argmax()
        ids.append(token)


@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_genai_says_the_same(directories: dict[str, Path], name: str) -> None:
    prompt = "the sky is blue and the sea"
    with Model(directories[name], threads=1) as model:
        ours = list(model.generate(prompt, max_tokens=8).tokens)
        ids = model._tokenizer.encode(prompt).ids
    other = genai.Model(str(directories[name]))
    parameters = genai.GeneratorParams(other)
    parameters.set_search_options(max_length=len(ids) + len(ours), do_sample=False)
    generator = genai.Generator(other, parameters)
    generator.append_tokens(np.array([ids], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    assert generator.get_sequence(0).tolist()[len(ids) :] == ours


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_key_that_it_does_not_know(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    key = f"{model.architecture}.attention.max_alibi_bias"
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    with pytest.raises(UnsupportedArchitectureError, match=r"odd\.gguf.*max_alibi_bias"):
        convert(edit_gguf(path, {key: 8.0}), DIGEST, tmp_path, Silence())


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("block_count", 2**31 - 1, "num_hidden_layers"),
        ("block_count", 0, "num_hidden_layers"),
        ("attention.head_count", 0, "num_attention_heads|num_key_value_heads"),
        ("attention.key_length", 0, "head_dim"),
        ("attention.key_length", 2**31, "head_dim"),
        ("attention.key_length", 24, "size of a head|not evenly"),
        ("attention.value_length", 8, "size of a head"),
        ("rope.dimension_count", 7, "size of a head|rotate|not handled"),
        ("embedding_length", 0, "head_dim|hidden_size"),
        ("rope.freq_base", 1.0, "rope_theta|freq_base"),
        ("context_length", 2**31, "max_position_embeddings"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_refuses_numbers_that_no_model_has(
    tmp_path: Path, name: str, key: str, value: float, reason: str
) -> None:
    model = tiny(name)
    path = model.write(tmp_path / "odd.gguf", {"token_embd.weight": np.zeros((302, 8), "f4")}, {})
    with pytest.raises(UnsupportedArchitectureError, match=rf"odd\.gguf.*({reason})"):
        convert(
            edit_gguf(path, {f"{model.architecture}.{key}": value}), DIGEST, tmp_path, Silence()
        )


@pytest.mark.parametrize("name", NAMES)
def test_refuses_rope_scaling_that_it_does_not_know(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    key = f"{model.architecture}.rope.scaling.type"
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    with pytest.raises(UnsupportedArchitectureError, match=r"odd\.gguf.*rope.scaling|`other`"):
        convert(edit_gguf(path, {key: "other"}), DIGEST, tmp_path, Silence())


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_tensor_that_it_has_no_use_for(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    edit_gguf(path, {}, add=[TensorBytes("blk.1.more_attn_sinks.weight", (4,), 0, bytes(16))])
    with pytest.raises(TensorMismatchError, match=r"no use for .*attn_sinks"):
        convert(path, DIGEST, tmp_path, Silence())


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_file_without_one_of_its_tensors(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    weights = model.weights()
    for missing in optional_last(weights):
        kept = {key: values for key, values in weights.items() if key != missing}
        path = model.write(tmp_path / "odd.gguf", kept, {})
        with pytest.raises((TensorMismatchError, UnsupportedArchitectureError)):
            convert(path, DIGEST, tmp_path, Silence())


def optional_last(weights: dict[str, NDArray[np.float32]]) -> list[str]:
    """The tensors of the last layer, and those that a model has once, but for a head of its own."""
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("blk."))
    once = [name for name in weights if not name.startswith("blk.")]
    names = once + [name for name in weights if name.startswith(f"blk.{last}.")]
    return [name for name in names if name != "output.weight"]


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_tensor_of_another_shape(tmp_path: Path, name: str) -> None:
    model = tiny(name)
    weights = model.weights()
    down = next(key for key in weights if key.startswith("blk.0.ffn_down"))
    weights[down] = weights[down][..., :-1]
    path = model.write(tmp_path / "odd.gguf", weights, {})
    with pytest.raises(TensorMismatchError, match="has shape"):
        convert(path, DIGEST, tmp_path, Silence())


def test_the_largest_gemma_2_scales_its_queries_otherwise(tmp_path: Path) -> None:
    model = tiny("gemma2")
    for n_layers, scalar in ((3, 32), (46, 16)):
        larger = replace(model, metadata={**model.metadata, "block_count": n_layers})
        path = larger.write(tmp_path / "tiny.gguf", model.weights(), {})
        with GGUFFile.open(path) as file:
            assert gemma2.Config.from_gguf(file).query_pre_attn_scalar == scalar


def test_yarn_divides_slow_frequencies_and_leaves_fast_ones() -> None:
    scaling = rope.Scaling(
        factor=4.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.25
    )
    frequencies = rope.scaled_frequencies(100.0, 16, scaling)
    shares = frequencies / rope.inverse_frequencies(100.0, 16)
    np.testing.assert_allclose(shares, [1, 0.85, 0.7, 0.55, 0.4, 0.25, 0.25, 0.25], rtol=1e-12)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("original_context_length", None, GGUFError),
        ("original_context_length", 0, UnsupportedArchitectureError),
        ("factor", float("inf"), UnsupportedArchitectureError),
        ("yarn_beta_fast", 0.0, UnsupportedArchitectureError),
        ("yarn_beta_slow", -1.0, UnsupportedArchitectureError),
        ("yarn_attn_factor", float("nan"), UnsupportedArchitectureError),
        ("yarn_ext_factor", 0.5, UnsupportedArchitectureError),
    ],
)
def test_refuses_absurd_yarn(
    tmp_path: Path, key: str, value: float | None, error: type[WeightpkgError]
) -> None:
    model = tiny("qwen2-yarn")
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    with pytest.raises(error, match=r"odd\.gguf"):
        convert(edit_gguf(path, {f"qwen2.rope.scaling.{key}": value}), DIGEST, tmp_path, Silence())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("falcon", {"tensor_data_layout": "other"}, "layout `other`"),
        ("granite", {"rope.scaling.finetuned": False}, "not encoded"),
        ("olmo3", {"attention.sliding_window_pattern": [True, False]}, "2 layers"),
        ("phi3", {"rope.scaling.type": "linear"}, "`linear`"),
        ("stablelm", {"rope.dimension_count": 48}, "48 of a head's 32"),
    ],
)
def test_refuses_what_an_architecture_does_not_do(
    tmp_path: Path, name: str, changes: dict[str, GGUFValue], reason: str
) -> None:
    model = tiny(name)
    path = model.write(tmp_path / "odd.gguf", model.weights(), {})
    edit_gguf(path, {f"{model.architecture}.{key}": value for key, value in changes.items()})
    with pytest.raises(UnsupportedArchitectureError, match=rf"odd\.gguf.*{reason}"):
        convert(path, DIGEST, tmp_path, Silence())


def test_refuses_a_long_context_without_factors(tmp_path: Path) -> None:
    model = tiny("phi3-long")
    weights = {k: values for k, values in model.weights().items() if not k.startswith("rope_")}
    path = model.write(tmp_path / "odd.gguf", weights, {})
    with pytest.raises(TensorMismatchError, match="long_factor"):
        convert(path, DIGEST, tmp_path, Silence())


def test_granites_frequencies_are_divided_by_their_factors(tmp_path: Path) -> None:
    model, ids = tiny("granite"), tokens_of("granite")
    halved = {**model.weights(), "rope_freqs.weight": np.full(8, 2, np.float32)}
    linear = replace(model, metadata={**model.metadata, "rope.scaling.factor": 2.0})
    logits = []
    for name, one, weights in (("a", model, halved), ("b", linear, model.weights())):
        path = one.write(tmp_path / f"{name}.gguf", weights, {})
        (tmp_path / name).mkdir()
        convert(path, DIGEST, tmp_path / name, Silence())
        logits.append(Decoder.load(tmp_path / name).run(ids)[0])
    close(logits[0], logits[1])
    plain = np.array(model.golden["logits"], np.float32)
    assert np.abs(logits[0][0][:, model.golden["columns"]] - plain).max() > 0.01
