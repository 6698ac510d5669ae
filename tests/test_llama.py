"""Converted Llamas against NumPy's arithmetic on the same weights, and against another runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai as genai
import pytest

from decoder import Decoder
from factories import HEAD_SIZE, HIDDEN_SIZE, LAYERS, TensorBytes, edit_gguf, tiny_llama
from float32_llama import Llama
from test_ggml import BLOCK_TYPES, TYPES, random_rows, write_scale
from weightpkg.convert import CONVERTER_VERSION, conversion_key, rope
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import (
    GGUFError,
    TensorMismatchError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.formats.ggml import GGML_TYPES
from weightpkg.progress import Silence
from weightpkg.run.model import Model
from weightpkg.store import tree_digest

Convert = Callable[..., Path]
DIGEST = Digest("sha256", 64 * "0")
TOKENS = np.random.default_rng(1).integers(3, 302, 24).tolist()

# The digest of what tiny_llama(seed=0) converts to. If this fails, either a change was not meant to
# change the bytes, or CONVERTER_VERSION must go up, and both numbers here.
GOLDEN_TREE = (3, "sha256:87710a9234f5c394eba0b05558bf6d06c35feddd475d4be4c32b3f1015f18414")


@pytest.fixture
def convert_tiny(tmp_path: Path) -> Convert:
    """Write a tiny Llama and convert it; the GGUF is beside the directory that is returned."""

    def make(name: str = "tiny", **settings: object) -> Path:
        source = tiny_llama(tmp_path / f"{name}.gguf", **settings)  # type: ignore[arg-type]
        directory = tmp_path / name
        directory.mkdir()
        convert(source, DIGEST, directory, Silence())
        return directory

    return make


VARIATIONS: dict[str, dict[str, Any]] = {
    "F32": {"weights": "F32", "embedding": "F32"},
    "F16": {"weights": "F16", "embedding": "F16"},
    "BF16": {"weights": "BF16", "embedding": "BF16"},
    "Q4_0": {"weights": "Q4_0", "embedding": "Q8_0"},
    "Q4_1": {"weights": "Q4_1", "embedding": "Q8_0"},
    "Q8_0": {"weights": "Q8_0", "embedding": "Q8_0"},
    "embedding in Q4_0": {"weights": "Q8_0", "embedding": "Q4_0"},
    "embedding in Q4_1": {"weights": "Q8_0", "embedding": "Q4_1"},
    "Q5_0": {"weights": "Q5_0"},
    "Q5_1": {"weights": "Q5_1", "embedding": "Q5_1"},
    "MXFP4": {"weights": "MXFP4"},
    "v of another type": {"weights": "Q4_1", "overrides": {"attn_v": "Q8_0"}},
    "k dense": {"weights": "Q4_0", "overrides": {"attn_k": "F16"}},
    "up of another type": {"weights": "Q4_1", "overrides": {"ffn_up": "Q5_1"}},
    "head of its own": {"weights": "Q4_1", "embedding": "Q8_0", "tied": False, "output": "Q4_1"},
    "dense embedding, block head": {"embedding": "F16", "tied": False, "output": "Q8_0"},
}


@pytest.mark.parametrize("variation", VARIATIONS)
def test_logits_equal_exact_arithmetic(convert_tiny: Convert, variation: str) -> None:
    directory = convert_tiny(**VARIATIONS[variation])
    expected = Llama.read(directory.with_suffix(".gguf")).logits(TOKENS)
    logits = Decoder.exact(directory).run(np.array([TOKENS]))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", [name for name in BLOCK_TYPES if TYPES[name].block_size == 256])
def test_logits_of_random_wide_blocks_equal_exact_arithmetic(tmp_path: Path, name: str) -> None:
    source = widen(tiny_llama(tmp_path / "tiny.gguf", weights="F32"), name)
    directory = tmp_path / "out"
    directory.mkdir()
    convert(source, DIGEST, directory, Silence())
    expected = Llama.read(source).logits(TOKENS)
    logits = Decoder.exact(directory).run(np.array([TOKENS]))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def widen(path: Path, name: str) -> Path:
    """Make a tiny Llama's feed-forward 256 wide, and its last matrices of random blocks."""
    type_ids = {kind.name: number for number, kind in GGML_TYPES.items()}
    random = np.random.default_rng(0)
    for i in range(LAYERS):
        blocks = random_rows(name, HIDDEN_SIZE, 1, seed=i)
        write_scale(name, blocks.reshape(HIDDEN_SIZE, 1, -1), 0x1400)  # 2 ** -10
        for part in ("gate", "up"):
            rows = random.normal(0, HIDDEN_SIZE**-0.5, (256, HIDDEN_SIZE)).astype(np.float32)
            replace(path, f"blk.{i}.ffn_{part}.weight", (HIDDEN_SIZE, 256), 0, rows.tobytes())
        down = f"blk.{i}.ffn_down.weight"
        replace(path, down, (256, HIDDEN_SIZE), type_ids[name], blocks.tobytes())
    return edit_gguf(path, {"llama.feed_forward_length": 256})


def replace(path: Path, name: str, shape: tuple[int, ...], type_id: int, content: bytes) -> None:
    edit_gguf(path, {}, drop=name, add=[TensorBytes(name, shape, type_id, content)])


@pytest.mark.parametrize("weights", ["F32", "Q4_1"])
def test_one_token_at_a_time_equals_all_at_once(convert_tiny: Convert, weights: str) -> None:
    decoder = Decoder.load(convert_tiny(weights=weights))
    at_once = decoder.run(np.array([TOKENS]))[0][0]
    past = None
    for i, token in enumerate(TOKENS):
        logits, past = decoder.run(np.array([[token]]), past)
        np.testing.assert_allclose(logits[0, 0], at_once[i], atol=2e-3)


def test_rows_of_a_batch_equal_single_ones(convert_tiny: Convert) -> None:
    decoder = Decoder.load(convert_tiny())
    batch = np.array([TOKENS, TOKENS[::-1]])
    both = decoder.run(batch)[0]
    for row, logits in zip(batch, both, strict=True):
        np.testing.assert_allclose(decoder.run(row[None])[0][0], logits, atol=1e-4)


def test_logits_to_keep_gives_the_last_positions(convert_tiny: Convert) -> None:
    decoder = Decoder.load(convert_tiny())
    every = decoder.run(np.array([TOKENS]))[0]
    for count in (1, 3):
        kept = decoder.run(np.array([TOKENS]), logits_to_keep=np.array([count]))[0]
        np.testing.assert_array_equal(kept, every[:, -count:])


def test_a_tied_head_shares_the_embeddings_bytes(convert_tiny: Convert) -> None:
    model = onnx.load(convert_tiny() / "model.onnx", load_external_data=False)
    places = {
        proto.name: {entry.key: entry.value for entry in proto.external_data}["offset"]
        for proto in model.graph.initializer
        if proto.external_data
    }
    (gather,) = [n for n in model.graph.node if n.op_type == "GatherBlockQuantized"]
    head = [n for n in model.graph.node if n.op_type == "MatMulNBits"][-1]
    assert places[gather.input[0]] == places[head.input[1]]
    assert gather.input[2] == head.input[2]


def test_q_k_v_and_gate_up_are_one_product_each(convert_tiny: Convert) -> None:
    model = onnx.load(convert_tiny() / "model.onnx", load_external_data=False)
    products = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == 4 * LAYERS + 1


def test_two_conversions_are_the_same_to_the_bit(convert_tiny: Convert) -> None:
    first, again = convert_tiny("first"), convert_tiny("again")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert tree_digest(first) == tree_digest(again)


def test_bytes_change_only_with_the_converters_version(convert_tiny: Convert) -> None:
    assert (CONVERTER_VERSION, str(tree_digest(convert_tiny()))) == GOLDEN_TREE


def test_the_key_depends_on_source_and_version() -> None:
    other = Digest("sha256", 64 * "1")
    assert conversion_key({"a": DIGEST}) != conversion_key({"a": other})
    assert conversion_key({"a": DIGEST}) == conversion_key({"b": DIGEST})


def test_onnxruntime_genai_loads_it_unchanged_and_says_the_same(convert_tiny: Convert) -> None:
    directory = convert_tiny()
    prompt = "the sky is "
    with Model(directory, threads=1) as model:
        ours = model.generate(prompt, max_tokens=24)
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


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("llama.expert_shared_count", 8, "expert_shared_count"),
        ("llama.rope.scaling.type", "longrope", "longrope"),
        ("llama.block_count", 100_000, "num_hidden_layers"),
        ("llama.context_length", 2**31 - 1, "max_position_embeddings"),
        ("llama.attention.head_count_kv", 3, "not evenly divided"),
        ("llama.attention.layer_norm_rms_epsilon", float("nan"), "rms_norm_eps"),
        ("llama.rope.freq_base", 0.0, "rope_theta"),
        ("llama.rope.dimension_count", 8, "size of a head"),
        ("llama.attention.value_length", 32, "size of a head"),
    ],
)
def test_refuses_a_configuration_that_it_does_not_know(
    tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    path = edit_gguf(tiny_llama(tmp_path / "odd.gguf"), {key: value})
    with pytest.raises(UnsupportedArchitectureError, match=reason):
        convert(path, DIGEST, tmp_path, Silence())


BIAS = TensorBytes("blk.0.attn_q.bias", (64,), 0, bytes(4 * 64))


@pytest.mark.parametrize(
    ("edit", "error", "reason"),
    [
        pytest.param({"drop": "blk.1.ffn_up.weight"}, TensorMismatchError, r"up_proj.* missing", id="missing"),
        pytest.param({"drop": "token_embd.weight"}, TensorMismatchError, "missing", id="no embedding"),
        pytest.param({"add": [BIAS]}, TensorMismatchError, r"no use for .*attn_q\.bias", id="left over"),
        pytest.param({"changes": {"llama.feed_forward_length": 128}}, TensorMismatchError, "has shape", id="shape"),
        pytest.param({"changes": {"general.architecture": "gptx"}}, UnsupportedArchitectureError, "`gptx`", id="architecture"),
        pytest.param({"changes": {"llama.block_count": None}}, GGUFError, "block_count", id="no key"),
        pytest.param({"changes": {"llama.block_count": "2"}}, GGUFError, "whole number", id="type of a key"),
        pytest.param({"changes": {"tokenizer.ggml.model": "rwkv"}}, UnsupportedFormatError, "`rwkv`", id="tokenizer"),
        pytest.param({"changes": {"tokenizer.ggml.pre": "newest"}}, UnsupportedFormatError, "`newest`", id="pre-tokenizer"),
        pytest.param({"changes": {"tokenizer.ggml.merges": ["a zz"]}}, GGUFError, "join", id="merge"),
        pytest.param({"changes": {"tokenizer.ggml.tokens": ["a", "a"]}}, GGUFError, "twice", id="token twice"),
        pytest.param({"changes": {"tokenizer.ggml.tokens": [str(i) for i in range(999)]}}, GGUFError, "999 tokens", id="too many tokens"),
        pytest.param({"changes": {"tokenizer.ggml.token_type": [9] * 302}}, GGUFError, "1 to 6", id="type of a token"),
        pytest.param({"changes": {"tokenizer.ggml.eos_token_id": 302}}, GGUFError, "302 is not", id="id out of range"),
    ],
)  # fmt: skip
def test_refuses_a_file_that_does_not_fit(
    tmp_path: Path, edit: dict[str, Any], error: type[WeightpkgError], reason: str
) -> None:
    path = edit_gguf(tiny_llama(tmp_path / "odd.gguf"), **{"changes": {}, **edit})
    with pytest.raises(error, match=reason) as caught:
        convert(path, DIGEST, tmp_path, Silence())
    assert "odd.gguf" in str(caught.value)


def test_refuses_a_block_type_that_is_not_converted(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "odd.gguf", weights="F32")
    odd = TensorBytes("blk.0.attn_q.weight", (256, 64), 15, bytes(64 * 292))
    edit_gguf(path, {}, drop="blk.0.attn_q.weight", add=[odd])
    with pytest.raises(UnsupportedQuantizationError, match=r"blk\.0.*Q8_K"):
        convert(path, DIGEST, tmp_path, Silence())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"llama.rope.freq_base": 500_000.0}, id="another base"),
        pytest.param({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, id="linear scaling"),
        pytest.param({"llama.rope.scaling.factor": 4.0}, id="a factor without a type"),
    ],
)  # fmt: skip
def test_rope_variations_equal_exact_arithmetic(tmp_path: Path, changes: dict[str, Any]) -> None:
    check_rope(edit_gguf(tiny_llama(tmp_path / "tiny.gguf", weights="F32"), changes))


def test_llama3_rope_factors_equal_exact_arithmetic(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_SIZE // 2, dtype=np.float32)
    tensor = TensorBytes("rope_freqs.weight", (HEAD_SIZE // 2,), 0, factors.tobytes())
    check_rope(edit_gguf(tiny_llama(tmp_path / "tiny.gguf", weights="F32"), {}, add=[tensor]))


def test_refuses_rope_factors_that_are_not_positive(tmp_path: Path) -> None:
    tensor = TensorBytes("rope_freqs.weight", (HEAD_SIZE // 2,), 0, bytes(2 * HEAD_SIZE))
    source = edit_gguf(tiny_llama(tmp_path / "tiny.gguf"), {}, add=[tensor])
    with pytest.raises(UnsupportedArchitectureError, match="rotary frequencies"):
        convert(source, DIGEST, tmp_path, Silence())


def check_rope(source: Path) -> None:
    plain = tiny_llama(source.with_name("plain.gguf"), weights="F32")
    directory = source.with_name("out")
    directory.mkdir()
    convert(source, DIGEST, directory, Silence())
    expected = Llama.read(source).logits(TOKENS)
    assert np.abs(expected - Llama.read(plain).logits(TOKENS)).max() > 0.01
    logits = Decoder.exact(directory).run(np.array([TOKENS]))[0][0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-4 * np.abs(expected).max())


def test_rope_tables_are_within_half_a_float32_step_of_the_truth() -> None:
    frequencies = rope.inverse_frequencies(100_000.0, 64)
    start = 131_000
    cos, sin = rope.cos_sin(frequencies, start, start + 64)
    angle = np.arange(start, start + 64)[:, None] * frequencies
    np.testing.assert_allclose(cos, np.cos(angle), rtol=0, atol=6.1e-8)
    np.testing.assert_allclose(sin, np.sin(angle), rtol=0, atol=6.1e-8)
