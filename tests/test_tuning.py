"""What a machine changes in a graph, and where that is kept, on tiny real models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest

from factories import tiny_gemma3, tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.hardware import Cpu
from weightpkg.progress import Silence
from weightpkg.run import loading, tuning
from weightpkg.run.providers import BY_NAME
from weightpkg.run.session import ModelConfig, Session, cache_type

DIGEST = Digest("sha256", 64 * "0")
ZEN = Cpu(features=("avx2", "fma"))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    source = tiny_gemma3(path / "tiny.gguf", weights="Q5_0")
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    source = tiny_llama(path / "tiny.gguf", weights="Q5_1", context_length=2048)
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


def graph(directory: Path) -> onnx.ModelProto:
    return onnx.load(directory / "model.onnx", load_external_data=False)


def products(model: onnx.ModelProto) -> list[tuple[int, int]]:
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            found.append((sizes["bits"], sizes["block_size"]))
    return found


@pytest.mark.parametrize(
    ("features", "architecture", "wanted"),
    [
        (("avx2",), "x86_64", True),
        (("avx2",), "AMD64", True),
        (("avx2", "avx-vnni"), "x86_64", False),
        (("avx2", "avx512", "avx512-vnni"), "x86_64", False),
        (("neon", "dotprod"), "aarch64", False),
        ((), "x86_64", False),
    ],
)
def test_floats_are_for_x86_without_vnni(
    features: tuple[str, ...], architecture: str, *, wanted: bool
) -> None:
    assert tuning.wants_float_prefill(Cpu(features=features), architecture) is wanted


@pytest.mark.parametrize("name", ["gemma", "llama"])
def test_large_steps_agree_with_small_ones_and_with_the_graph_as_it_was(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = request.getfixturevalue(name)
    config = ModelConfig.read(directory)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, 120).tolist()
    monkeypatch.setattr(loading, "this_cpu", lambda: Cpu(features=("avx2", "avx-vnni")))
    plain = Session(directory, config, threads=1)
    expected = plain.forward(tokens).copy()
    monkeypatch.setattr(loading, "this_cpu", lambda: ZEN)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    tuned = Session(directory, config, threads=1)
    found = tuned.forward(tokens).copy()
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert not np.array_equal(found, expected)  # other kernels, or nothing was tested
    tuned.rewind(0)
    for start in range(0, 120, 40):  # below the limit: the same kernels as without
        small = tuned.forward(tokens[start : start + 40])
    plain.rewind(0)
    for start in range(0, 120, 40):
        same = plain.forward(tokens[start : start + 40])
    np.testing.assert_array_equal(small, same)


def test_only_products_that_are_slow_are_changed_and_never_the_head(gemma: Path) -> None:
    model = graph(gemma)
    before = products(model)
    slow = [sizes for sizes in before if sizes[0] == 8 or sizes[1] == 16]
    assert slow
    assert tuning.with_float_prefill(model)
    choices = [node for node in model.graph.node if node.op_type == "If"]
    assert len(choices) == len(slow) - 1  # without the head, which is of 8 bits as well
    assert len(products(model)) == len(before) - len(choices)


def test_a_graph_without_slow_products_stays_as_it_is(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf", weights="Q4_0")
    (tmp_path / "onnx").mkdir()
    convert(source, DIGEST, tmp_path / "onnx", Silence())
    model = graph(tmp_path / "onnx")
    content = model.SerializeToString(deterministic=True)
    assert not tuning.with_float_prefill(model)
    assert model.SerializeToString(deterministic=True) == content
    assert not tuning.with_half_attention(onnx.ModelProto())


def test_half_attention_keeps_keys_and_values_in_float16(llama: Path, tmp_path: Path) -> None:
    model = graph(llama)
    assert tuning.with_half_attention(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    (tmp_path / "model.onnx.data").write_bytes((llama / "model.onnx.data").read_bytes())
    (tmp_path / "genai_config.json").write_bytes((llama / "genai_config.json").read_bytes())
    config = ModelConfig.read(llama)
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, 600).tolist()
    half, whole = Session(tmp_path, config, threads=1), Session(llama, config, threads=1)
    assert cache_type(half._session) is np.float16
    expected = whole.forward(tokens)
    np.testing.assert_allclose(half.forward(tokens), expected, atol=0.1)


def load(directory: Path, cache: Path) -> None:
    loading.load_graph(directory, threads=1, cache=cache)


def test_a_graph_is_kept_once_and_used_again(
    gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "graphs"
    load(gemma, cache)
    (kept,) = cache.iterdir()
    content = kept.read_bytes()
    monkeypatch.setattr(tuning, "with_float_prefill", None)  # whoever calls it fails
    load(gemma, cache)
    assert [path.read_bytes() for path in cache.iterdir()] == [content]


def test_a_kept_graph_gives_the_same_logits(gemma: Path, tmp_path: Path) -> None:
    config = ModelConfig.read(gemma)
    tokens = np.random.default_rng(1).integers(3, config.vocab_size, 110).tolist()
    first = Session(gemma, config, threads=1, cache=tmp_path).forward(tokens).copy()
    again = Session(gemma, config, threads=1, cache=tmp_path).forward(tokens)
    without = Session(gemma, config, threads=1).forward(tokens)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, without)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "sealed nonsense"])
def test_a_damaged_kept_graph_is_made_again(gemma: Path, tmp_path: Path, damage: str) -> None:
    load(gemma, tmp_path)
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    nonsense = b"\xff" * 100
    damaged = {
        "cut": content[:-10],
        "flipped": content[:100] + bytes([content[100] ^ 1]) + content[101:],
        "empty": b"",
        "sealed nonsense": hashlib.sha256(nonsense).digest() + nonsense,
    }[damage]
    kept.chmod(0o644)
    kept.write_bytes(damaged)
    load(gemma, tmp_path)
    (again,) = tmp_path.iterdir()
    assert loading.read_kept(again) is not None
    assert again.read_bytes() != damaged


def test_a_cache_that_cannot_be_written_is_done_without(gemma: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    load(gemma, tmp_path / "file" / "graphs")


def test_the_key_depends_on_the_processor_and_the_version(
    gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = loading._Maker(gemma, BY_NAME["CPUExecutionProvider"], 1)
    keys = {make.key(b"a"), make.key(b"b")}
    monkeypatch.setattr(loading, "this_cpu", lambda: Cpu(features=("sve",)))
    keys.add(make.key(b"a"))
    monkeypatch.setattr("onnxruntime.__version__", "0.0")
    keys.add(make.key(b"a"))
    assert len(keys) == 4


def test_a_cache_stays_small(gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MOST_KEPT", 2)
    for i in range(4):
        (tmp_path / f"{i}.onnx").write_bytes(b"old")
    load(gemma, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc")], ids=["numpy", "ort"]
)
def test_too_little_memory_while_loading_is_said(
    gemma: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    with pytest.raises(RunError, match="not enough memory"):
        loading.load_graph(gemma)


def test_a_device_that_is_not_here_is_an_error(gemma: Path) -> None:
    with pytest.raises(RunError, match="cannot run this model here"):
        loading.load_graph(gemma, device="qnn")
