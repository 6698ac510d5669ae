"""Keys and values in 8 bits, on tiny real models: scales, what they cost, where they are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from factories import tiny_gemma3, tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.footprint import directory_need
from weightpkg.memory import cache_size
from weightpkg.progress import Silence
from weightpkg.run import calibration, loading
from weightpkg.run.batch import Batch
from weightpkg.run.model import Model
from weightpkg.run.providers import BY_NAME, TABLE, require_int8_cache
from weightpkg.run.scales import Scales
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.tasks.opening import open_model
from weightpkg.shapes import nearest_shape

DIGEST = Digest("sha256", 64 * "0")
KINDS: dict[str, Callable[[Path], Path]] = {"llama": tiny_llama, "gemma3": tiny_gemma3}


@pytest.fixture(scope="module", params=sorted(KINDS))
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    source = KINDS[request.param](path / "tiny.gguf")
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


def tokens_of(config: ModelConfig, count: int) -> list[int]:
    return [int(each) for each in np.random.default_rng(0).integers(3, config.vocab_size, count)]


def test_int8_is_near_to_float_and_takes_a_quarter(directory: Path) -> None:
    config = ModelConfig.read(directory)
    tokens = tokens_of(config, 60)
    whole = Session(directory, config, threads=1)
    scales = calibration.calibrated(directory, config, threads=1)
    small = Session(directory, config, threads=1, scales=scales)
    expected, found = whole.forward(tokens).copy(), small.forward(tokens).copy()
    # weights are drawn at random, so small steps grow; what is unrelated differs by 1.1 on average
    assert np.abs(found - expected).mean() < 0.25 * expected.std()
    assert not np.array_equal(found, expected)  # or nothing was kept in 8 bits
    sizes = [sum(part.nbytes for part in session.cached()) for session in (whole, small)]
    assert sizes[0] == 4 * sizes[1]
    assert sizes[1] == cache_size_of(config, 60)


def cache_size_of(config: ModelConfig, count: int) -> int:
    return 2 * config.n_layers * config.n_kv_heads * config.head_size * count


def test_values_are_kept_as_steps_of_their_scale_and_cut_beyond(directory: Path) -> None:
    config = ModelConfig.read(directory)
    tokens = tokens_of(config, 20)
    whole = Session(directory, config, threads=1)
    whole.forward(tokens)
    exact = list(whole.cached())
    largest = np.stack([np.abs(part).max(axis=1) for part in exact]).astype(np.float32)
    largest = largest.reshape(config.n_layers, 2, config.n_kv_heads, config.head_size)
    scales = Scales.for_largest(largest / np.float32(2))
    small = Session(directory, config, threads=1, scales=scales)
    small.forward(tokens)
    # the first layer's keys and values do not depend on what attention made of others
    for part, kept, steps in zip(exact[:2], small.cached(), scales.steps[0], strict=False):
        wanted = np.clip(np.rint(part / steps[:, None, :]), -128, 127)
        assert np.abs(kept.astype(int) - wanted).max() <= 1
        assert np.abs(wanted).max() >= 127  # some were cut


def test_rewinding_and_going_on_is_the_same_as_at_once(directory: Path) -> None:
    config = ModelConfig.read(directory)
    tokens = tokens_of(config, 40)
    scales = calibration.calibrated(directory, config, threads=1)
    session = Session(directory, config, threads=1, scales=scales)
    for token in tokens:
        expected = session.forward([token])
    expected = expected.copy()
    session.rewind(30)
    session.forward(tokens[:5])
    session.rewind(30)
    for token in tokens[30:]:
        found = session.forward([token])
    np.testing.assert_array_equal(found, expected)


def test_scales_are_measured_once_and_kept(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig.read(directory)
    first = calibration.calibrated(directory, config, threads=1, cache=tmp_path)
    assert len(list(tmp_path.glob("*.scales"))) == 1
    monkeypatch.setattr(calibration, "Session", None)  # whoever makes one fails
    again = calibration.calibrated(directory, config, threads=1, cache=tmp_path)
    np.testing.assert_array_equal(first.steps, again.steps)
    monkeypatch.setattr(calibration, "VERSION", calibration.VERSION + 1)
    with pytest.raises(TypeError):
        calibration.calibrated(directory, config, threads=1, cache=tmp_path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "sealed nonsense", "sealed zeros"])
def test_damaged_scales_are_measured_again(directory: Path, tmp_path: Path, damage: str) -> None:
    config = ModelConfig.read(directory)
    first = calibration.calibrated(directory, config, threads=1, cache=tmp_path)
    (kept,) = tmp_path.glob("*.scales")
    content = kept.read_bytes()
    kept.unlink()
    if damage == "sealed nonsense":
        loading.keep(b"\xff" * 99, kept)
    elif damage == "sealed zeros":
        loading.keep(bytes(first.steps.nbytes), kept)
    else:
        damaged = {
            "cut": content[:-4],
            "flipped": content[:40] + b"~~~~" + content[44:],
            "empty": b"",
        }
        kept.write_bytes(damaged[damage])
    again = calibration.calibrated(directory, config, threads=1, cache=tmp_path)
    np.testing.assert_array_equal(first.steps, again.steps)
    assert kept.read_bytes() == content


def test_scales_depend_on_the_weights(directory: Path, tmp_path: Path) -> None:
    before = calibration._key(directory)
    other = tmp_path / "other"
    other.mkdir()
    for path in directory.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    assert calibration._key(other) != before  # the weights may be others
    for name in ("model.onnx.data", "tokenizer.json"):
        (other / name).unlink()
        (other / name).symlink_to(directory / name)
    assert calibration._key(other) == before


def test_a_graph_in_int8_is_kept_beside_that_in_float(directory: Path, tmp_path: Path) -> None:
    config = ModelConfig.read(directory)
    tokens = tokens_of(config, 30)
    with Model(directory, threads=1, cache=tmp_path) as model:
        expected = model.session.forward(tokens).copy()
    found = []
    for _ in range(2):
        with Model(directory, threads=1, cache=tmp_path, kv_cache="int8") as model:
            found.append(model.session.forward(tokens).copy())
    assert len(list(tmp_path.glob("*.onnx"))) == 2
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], expected)


class Greedy:
    """A request that takes the most likely tokens."""

    def __init__(self, prompt: list[int], count: int) -> None:
        self.prompt: Sequence[int] = prompt
        self.is_cancelled = False
        self.count = count
        self.answer: list[int] = []

    def take(self, logits: np.ndarray[tuple[int], np.dtype[np.float32]], _: object) -> int | None:
        self.answer.append(int(logits.argmax()))
        return self.answer[-1] if len(self.answer) < self.count else None

    def fail(self, error: RunError) -> None:
        raise error


def test_a_batch_keeps_int8_as_well(directory: Path) -> None:
    config = ModelConfig.read(directory)
    scales = calibration.calibrated(directory, config, threads=1)
    session = loading.load_graph(directory, threads=1, scales=scales).session
    batch = Batch(session, config, 2)
    requests = [Greedy(tokens_of(config, 9), 8), Greedy(tokens_of(config, 14), 8)]
    for request in requests:
        batch.add(request)
    while not batch.is_idle:
        batch.step()
    single = Session(directory, config, threads=1, scales=scales)
    for request in requests:
        single.rewind(0)
        tokens, logits = list(request.prompt), single.forward(request.prompt)
        for token in request.answer:
            assert np.max(logits) - logits[token] < 1e-3
            tokens.append(token)
            logits = single.forward([token])


def test_a_provider_that_is_not_known_to_take_it_is_named() -> None:
    for provider in TABLE:
        if provider.int8_cache:
            require_int8_cache(provider)
            continue
        with pytest.raises(RunError, match=provider.name) as caught:
            require_int8_cache(provider)
        assert "--device cpu" in str(caught.value.hint)


def test_such_a_provider_fails_before_anything_is_measured(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig.read(directory)

    class Chosen:
        chosen = BY_NAME["CUDAExecutionProvider"]

    monkeypatch.setattr(calibration, "choose", lambda *_: Chosen)
    monkeypatch.setattr(loading, "choose", lambda *_: Chosen)
    with pytest.raises(RunError, match="CUDAExecutionProvider"):
        calibration.calibrated(directory, config, device="cuda")
    shape = (config.n_layers, 2, config.n_kv_heads, config.head_size)
    with pytest.raises(RunError, match="CUDAExecutionProvider"):
        loading.load_graph(directory, scales=Scales(np.ones(shape, np.float32)))


def test_only_text_models_have_a_cache(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="keep no keys and values"):
        open_model(tmp_path, task="tensors", kv_cache="int8")


def test_memory_is_counted_by_what_is_kept(directory: Path) -> None:
    whole, small = directory_need(directory, 32), directory_need(directory, 32, "int8")
    assert whole.kv_cache == 4 * small.kv_cache
    assert small.kv_cache == cache_size_of(ModelConfig.read(directory), 32)
    shape = nearest_shape("llama", 8_030_261_248)
    assert shape is not None
    assert cache_size(shape, 100) == 4 * cache_size(shape, 100, "int8")


def test_channels_that_rotate_together_have_one_scale(directory: Path) -> None:
    config = ModelConfig.read(directory)
    content = (directory / "model.onnx").read_bytes()
    scales = calibration.calibrated(directory, config, threads=1)
    for (keys, _), partner in zip(
        scales.steps, calibration.rotating_partners(content, config), strict=True
    ):
        np.testing.assert_array_equal(keys, keys[:, partner])
        assert sorted(partner.tolist()) == list(range(config.head_size))
