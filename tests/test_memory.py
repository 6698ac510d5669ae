"""Memory that models need: the arithmetic, what it rests on, and real models' figures."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from weightpkg.footprint import directory_need
from weightpkg.formats.ggml import GGML_TYPES, GGMLType
from weightpkg.memory import (
    BITS,
    DEFAULT_CONTEXT,
    cache_size,
    converted_size,
    estimate,
    need_of,
    need_of_config,
)
from weightpkg.package import File, Model, RelativePath, Release, Variant
from weightpkg.requirement import NormalizedName
from weightpkg.shapes import Shape, nearest_shape
from weightpkg.tensor import BlockLayout, Layout

SHAPE = Shape(
    parameters=0,
    n_layers=2,
    hidden_size=100,
    n_heads=4,
    n_kv_heads=2,
    head_size=25,
    vocab_size=1000,
)


def variant(size: int | None, quantization: str | None, *, form: str = "gguf") -> Variant:
    file = File(path=RelativePath("m"), sha256=None, size=size, sources=())
    return Variant(name=NormalizedName("x"), format=form, quantization=quantization, files=(file,))


def model(
    of: Variant,
    *,
    parameters: int | None,
    architecture: str = "llama",
    task: str = "text-generation",
) -> Model:
    release = Release(version=Version("1"), date=date.min, changes="x", variants=(of,))
    return Model(
        name="m",
        summary="x",
        task=task,
        architecture=architecture,
        parameters=parameters,
        context_length=8192,
        license="MIT",
        default_variant=of.name,
        releases=(release,),
    )


def test_the_arithmetic() -> None:
    need = need_of(1_000_000, SHAPE, 600, basis="index")
    assert need.process == 65_000_000 + 1000 * 640
    assert need.weights == 1_300_000
    assert need.loading == int(1000 * 100 * 9 // 8 * 0.9)
    assert (
        need.kv_cache == 2 * 2 * 2 * 25 * 4 * 600
    )  # keys and values, layers, heads, size, float32
    assert need.workspace == 4 * (512 * 100 * 22 + 512 * 600 * 4 + 3 * 100**2)
    assert need.total == need.process + need.weights + need.kv_cache + need.workspace


def test_what_loading_takes_is_free_afterwards() -> None:
    need = need_of(10**9, nearest_shape("gemma3", 268_000_000), 1, basis="index")
    assert need.loading > need.kv_cache + need.workspace
    assert need.total == need.process + need.weights + need.loading


@pytest.mark.parametrize(
    ("size", "parameters", "quantization", "form", "converted"),
    [
        (1000, None, "F32", "safetensors", 1000),
        (1000, None, "BF16", "safetensors", 2000),
        (1000, None, None, "onnx", 1000),
        (1000, None, "Q4_1", "gguf", 1200),
        (1000, None, "q4-1", "gguf", 1200),
        (4850, None, "UD-Q4_K_XL", "gguf", 6596),
        (None, 8000, "Q8_0", "gguf", 9000),
        (None, 8000, "F16", "gguf", 32_000),
        (8500, 8000, None, "gguf", 9000),  # 8.5 bits a weight: Q8_0
        (16_000, 8000, None, "safetensors", 32_000),
        (None, None, "Q8_0", "gguf", None),
        (None, 8000, None, "gguf", 6700),
        (None, 8000, "what", "gguf", None),
    ],
)
def test_converted_sizes(
    size: int | None, parameters: int | None, quantization: str | None, form: str, converted: int | None
) -> None:  # fmt: skip
    found = converted_size(parameters, variant(size, quantization, form=form))
    assert found == (None if converted is None else pytest.approx(converted, rel=1e-3))


def test_the_context_is_within_the_models_limit() -> None:
    m = model(variant(10**9, "Q4_0"), parameters=8_000_000_000)
    contexts = {
        asked: estimate(m, m.releases[0].variants[0], asked) for asked in (None, 100, 10**6)
    }
    found = {asked: need.context for asked, need in contexts.items() if need}
    assert found == {None: DEFAULT_CONTEXT, 100: 100, 10**6: 8192}


def test_what_is_no_decoder_has_no_cache() -> None:
    m = model(variant(10**8, "F32", form="safetensors"), parameters=None, architecture="bert", task="sentence-similarity")  # fmt: skip
    need = estimate(m, m.releases[0].variants[0])
    assert need is not None
    assert (need.kv_cache, need.context) == (0, 0)
    assert need.total == 65_000_000 + 130_000_000


def test_what_nobody_knows_is_not_guessed() -> None:
    m = model(variant(None, None), parameters=None)
    assert estimate(m, m.releases[0].variants[0]) is None


# peaks of `weightpkg run`, measured by scripts/bench/memory.py with onnxruntime 1.31.1 on two cores
# (AMD EPYC, AVX2): name, parameters, architecture, quantisation, size of the file, of the converted
# weights, then tokens: peak
MEASURED = [
    ("SmolLM2", 134_515_008, "llama", "Q4_1", 98_362_432, 114_827_264, {16: 276.3e6, 900: 345.6e6, 3900: 483.4e6}),
    ("Gemma 3", 268_098_176, "gemma3", "Q4_K_M", 253_113_024, 300_990_464, {16: 782.9e6, 900: 782.9e6, 3900: 782.8e6}),
]  # fmt: skip


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row[0])
def test_real_models_need_what_was_measured_to_15_percent(
    row: tuple[str, int, str, str, int, int, dict[int, float]],
) -> None:
    _, parameters, architecture, quantization, size, weights, peaks = row
    m = model(variant(size, quantization), parameters=parameters, architecture=architecture)
    for context, measured in peaks.items():
        before = estimate(m, m.releases[0].variants[0], context)
        shape = nearest_shape(architecture, parameters)
        after = need_of(weights, shape, context, basis="installed")
        assert before is not None
        assert before.total == pytest.approx(measured, rel=0.15)
        assert after.total == pytest.approx(measured, rel=0.15)


CONFIG = {
    "model": {
        "vocab_size": 1000,
        "context_length": 300,
        "decoder": {
            "hidden_size": 100,
            "head_size": 25,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
        },
    }
}


def test_an_installed_model_is_known_exactly(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.onnx.data").write_bytes(b"0" * 5000)
    (tmp_path / "model.onnx").write_bytes(b"0" * 100)
    need = directory_need(tmp_path)
    assert need == need_of(5100, SHAPE, 300, basis="installed")
    assert need == need_of_config(CONFIG, 5100, None)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model": 1}', '{"model": {"decoder": {}}}', '{"model": {"vocab_size": -1, "context_length": 1, "decoder": {}}}'])  # fmt: skip
def test_an_installed_model_without_such_a_configuration_is_its_weights(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "genai_config.json").write_text(content)
    (tmp_path / "model.onnx").write_bytes(b"0" * 100)
    assert directory_need(tmp_path) == need_of(100, None, 0, basis="installed")


def test_shapes_are_those_of_their_models() -> None:
    assert nearest_shape("llama", 8_030_261_248) == Shape(
        parameters=8_030_000_000,
        n_layers=32,
        hidden_size=4096,
        n_heads=32,
        n_kv_heads=8,
        head_size=128,
        vocab_size=128_256,
    )
    assert cache_size(nearest_shape("llama", 8_030_261_248), 8192) == 2**31


@pytest.mark.parametrize(
    ("architecture", "parameters", "layers"),
    [
        ("gpt-oss", 20e9, 24), ("gpt_oss", 20e9, 24), ("qwen3_moe", 30e9, 48), ("qwen3vl", 8e9, 36),
        ("gemma3_text", 1e9, 26), ("unheard-of", 8e9, 32), ("mixtral", 47e9, 32), ("gpt2", 1, 12),
    ],
)  # fmt: skip
def test_a_shape_is_that_of_the_nearest_relative(
    architecture: str, parameters: float, layers: int
) -> None:
    assert nearest_shape(architecture, int(parameters)).n_layers == layers


def layout_bits(layout: Layout) -> float:
    """Bits of a weight as it is converted: dense in float32, blocks with float32 scales and offsets."""
    if not isinstance(layout, BlockLayout):
        return 32
    return layout.bits + 32 * (1 + layout.has_offset) / layout.block_size


@pytest.mark.parametrize("kind", [k for k in GGML_TYPES.values() if k.layout], ids=lambda k: k.name)
def test_bits_are_those_of_the_format(kind: GGMLType) -> None:
    if kind.name in {"Q2_K", "Q3_K", "Q4_K"}:
        return  # files that are called so are mixtures
    assert kind.layout is not None
    published, converted = BITS[kind.name]
    assert published == pytest.approx(kind.type_size * 8 / kind.block_size, rel=0.05)
    assert converted == pytest.approx(layout_bits(kind.layout), rel=0.05)


@given(
    st.none() | st.integers(0, 10**13),
    st.none() | st.integers(1, 10**13),
    st.sampled_from([None, "Q4_K_M", "F32", "odd"]),
    st.sampled_from(["gguf", "safetensors", "onnx"]),
    st.none() | st.integers(1, 10**7),
    st.sampled_from(["llama", "gemma3", "bert", "odd"]),
)
def test_more_context_never_needs_less(
    size: int | None,
    parameters: int | None,
    quantization: str | None,
    form: str,
    context: int | None,
    architecture: str,
) -> None:
    m = model(
        variant(size, quantization, form=form), parameters=parameters, architecture=architecture
    )
    (build,) = m.releases[0].variants
    need = estimate(m, build, context)
    if need is None:
        assert size is None
        return
    more = estimate(m, build, need.context + 1000)
    assert more is not None
    assert 0 < need.total <= more.total
