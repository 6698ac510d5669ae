"""Caches of only the window: the same logits as whole ones, to the bit, however the text goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from factories import tiny_gemma3, tiny_llama
from test_checkpoints import convert as convert_checkpoint
from tiny_checkpoint import TinyCheckpoint
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.footprint import _windows, directory_need
from weightpkg.memory import cache_size
from weightpkg.progress import Silence
from weightpkg.run import attention, buffers, loading, windows
from weightpkg.run import session as sessions
from weightpkg.run.buffers import Buffers
from weightpkg.run.calibration import calibrated
from weightpkg.run.generate import Options, Statistics, generate
from weightpkg.run.session import ModelConfig, Session
from weightpkg.run.tokenizing import read_tokenizer
from weightpkg.run.windows import Windows, block_rows, second_level_cache
from weightpkg.shapes import nearest_shape

DIGEST = Digest("sha256", 64 * "0")
CONTEXT = 600


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma")
    source = tiny_gemma3(path / "tiny.gguf", context_length=CONTEXT)
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    return path / "onnx"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows, so that a short text fills them many times."""
    monkeypatch.setattr(windows, "RESERVE", 12)
    monkeypatch.setattr(windows, "second_level_cache", lambda: 8 * 32 * 16)
    monkeypatch.setattr(sessions, "_CHUNK", 16)
    monkeypatch.setattr(buffers, "LATER_PIECE", 16)
    monkeypatch.setattr(buffers, "LEAST_LOCAL", 16)
    monkeypatch.setattr(buffers, "FIRST_CAPACITY", 16)


def tokens_of(config: ModelConfig, count: int, seed: int = 0) -> list[int]:
    return [int(each) for each in np.random.default_rng(seed).integers(3, config.vocab_size, count)]


class Pair:
    """A session with windows' buffers, and one without, which do the same."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
        config = ModelConfig.read(directory)
        self.config = config
        self.small = Session(directory, config, threads=1, **options)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(attention, "with_window_caches", lambda _: False)
            self.whole = Session(directory, config, threads=1, **options)  # type: ignore[arg-type]
        assert self.small._windows is not None
        assert self.whole._windows is None

    def add(self, tokens: Sequence[int], keep: int = 1) -> None:
        found = self.small.forward_all(tokens, keep=keep)
        np.testing.assert_array_equal(found, self.whole.forward_all(tokens, keep=keep))
        assert self.small.tokens == self.whole.tokens
        assert self.n_rows <= self.small._local.capacity

    def rewind(self, length: int) -> int:
        """Go back; what the smaller one has lost, both compute again."""
        text = list(self.whole.tokens[:length])
        assert self.whole.rewind(length) == length
        kept = self.small.rewind(length)
        self.whole.rewind(kept)
        assert self.small.tokens == self.whole.tokens == text[:kept]
        return kept

    @property
    def n_rows(self) -> int:
        return len(self.small.tokens) - self.small._local.first


@pytest.fixture
def pair(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(directory, monkeypatch)


def test_one_token_at_a_time_is_the_same_as_in_a_whole_cache(pair: Pair) -> None:
    seen = set()
    for token in tokens_of(pair.config, 400):
        pair.add([token])
        seen.add(pair.small._local.first)
    assert len(seen) > 8  # rows went many times
    assert pair.small._local.capacity < 64
    assert (
        "keys and values: float32, in 5 of 6 layers of a window of 5 tokens" in pair.small.explain()
    )
    assert "keys and values: float32" in pair.whole.explain()
    assert pair.whole._whole.capacity == 512


def test_long_prompts_in_pieces_are_the_same(pair: Pair) -> None:
    tokens = tokens_of(pair.config, 500)
    for start, end in [(0, 200), (200, 207), (207, 420), (420, 421), (421, 500)]:
        pair.add(tokens[start:end])
    assert pair.small._local.first > 400


def test_a_step_of_more_tokens_than_the_buffers_have_makes_them_grow(pair: Pair) -> None:
    tokens = tokens_of(pair.config, 500)
    pair.add(tokens[:100])
    before = pair.small._local.capacity
    pair.add(tokens[100:300], keep=150)
    assert pair.small._local.capacity > before
    pair.add(tokens[300:])


def test_going_back_within_the_reserve_needs_no_computing(pair: Pair) -> None:
    tokens = tokens_of(pair.config, 400)
    for i, token in enumerate(tokens):
        pair.add([token])
        back = i % 13  # up to the reserve
        length = max(0, i + 1 - back)
        assert pair.rewind(length) == length
        pair.add(tokens[length : i + 1] or tokens[:1])
        pair.rewind(i + 1)


def test_going_back_further_computes_again_and_is_never_wrong(pair: Pair) -> None:
    tokens = tokens_of(pair.config, 300)
    pair.add(tokens)
    kept = pair.rewind(40)
    assert kept == 0
    pair.add([*tokens[:40], *tokens_of(pair.config, 60, seed=1)])
    assert pair.rewind(0) == 0
    pair.add(tokens[:20])


def test_every_way_back_is_right(pair: Pair) -> None:
    draw = np.random.default_rng(3)
    tokens: list[int] = []
    n_lost = 0
    for i in range(120):
        length = int(draw.integers(max(0, len(tokens) - 40), len(tokens) + 1))
        kept = pair.rewind(length)
        n_lost += kept < length
        tokens = tokens[:length] + tokens_of(pair.config, int(draw.integers(1, 30)), seed=i)
        tokens = tokens[: CONTEXT - 1]
        if kept < len(tokens):
            pair.add(tokens[kept:])
    assert 0 < n_lost < 100


def test_the_end_of_the_context_is_reached(pair: Pair) -> None:
    tokens = tokens_of(pair.config, CONTEXT)
    pair.add(tokens[:-3])
    for token in tokens[-3:]:
        pair.add([token])


def test_int8_and_windows_go_together(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig.read(directory)
    pair = Pair(directory, monkeypatch, scales=calibrated(directory, config, threads=1))
    tokens = tokens_of(config, 300)
    pair.add(tokens[:200])
    for token in tokens[200:]:
        pair.add([token])
    assert pair.small._local.first > 100


def test_kept_graphs_say_which_layers_have_windows(directory: Path, tmp_path: Path) -> None:
    config = ModelConfig.read(directory)
    found = []
    for _ in range(2):  # made, and kept
        session = Session(directory, config, threads=1, cache=tmp_path)
        session.forward(tokens_of(config, 300))
        assert session._local.first > 0
        found.append((session._windows, session.forward([5]).copy()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    loaded = loading.load_graph(directory, threads=1, cache=tmp_path)  # as a batch does
    assert Windows.parse(loaded.session.get_modelmeta().custom_metadata_map) == found[0][0]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["gemma2", "gemma3", "gpt-oss", "mistral-window", "olmo3", "phi3", "qwen2-window"]
)
def test_every_architecture_with_windows_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(windows, "RESERVE", 4)
    monkeypatch.setattr(windows.Windows, "block", 8)
    monkeypatch.setattr(sessions, "_CHUNK", 5)
    monkeypatch.setattr(buffers, "LATER_PIECE", 5)
    TinyCheckpoint.read(name).write(tmp_path / "source", "F32")
    convert_checkpoint(tmp_path / "source", tmp_path / "onnx")
    pair = Pair(tmp_path / "onnx", monkeypatch)
    tokens = tokens_of(pair.config, pair.config.context_length)
    pair.add(tokens[:3])
    pair.add(tokens[3:31])
    for i, token in enumerate(tokens[31:-8]):
        pair.add([token])
        if i % 7 == 0:
            assert pair.rewind(29 + i) == 29 + i
            pair.add(tokens[29 + i : 32 + i], keep=3)
    assert pair.small._local.first > 24
    assert pair.small._local.capacity < 32
    pair.add(tokens[-8:])


def test_a_model_without_windows_has_none(tmp_path: Path) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "onnx").mkdir()
    convert(source, DIGEST, tmp_path / "onnx", Silence())
    session = Session(tmp_path / "onnx", ModelConfig.read(tmp_path / "onnx"), threads=1)
    assert session._windows is None
    session.forward([5, 6, 7])
    assert session.rewind(2) == 2


@pytest.mark.parametrize("claim", ["", "{}", '{"size": -1, "layers": "all"}', "[" * 5000])
def test_what_a_file_says_of_windows_is_not_believed(tmp_path: Path, claim: str) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "onnx").mkdir()
    convert(source, DIGEST, tmp_path / "onnx", Silence())
    path = tmp_path / "onnx" / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.metadata_props.add(key=windows.METADATA, value=claim)
    path.chmod(0o644)
    path.write_bytes(model.SerializeToString())
    session = Session(tmp_path / "onnx", ModelConfig.read(tmp_path / "onnx"), threads=1)
    assert session._windows is None
    session.forward([5, 6, 7])


@pytest.mark.parametrize(
    ("head_size", "cache", "is_tiled", "rows"),
    [
        (256, 512 * 1024, True, 64),
        (96, 512 * 1024, True, 680),  # 170 rows fit, and sums are of 8 lanes
        (64, 2 * 1024**2, True, 1024),
        (64, 0, True, 8),
        (256, 0, False, 128),
        (64, 0, False, 256),
        (32, 0, False, 512),
        (16, 0, False, 1024),
    ],
)
def test_rows_go_in_blocks_of_the_kernel(
    head_size: int, cache: int, rows: int, *, is_tiled: bool
) -> None:
    assert block_rows(head_size, cache, is_tiled=is_tiled) == rows


def test_guesses_from_the_text_lead_to_the_same_answer(pair: Pair, directory: Path) -> None:
    tokenizer = read_tokenizer(directory)
    prompt = tokens_of(pair.config, 30) * 3
    found = []
    for session in (pair.small, pair.whole):
        statistics = Statistics()
        options = Options(max_tokens=200, lookup=True)
        "".join(generate(session, tokenizer, prompt, options=options, statistics=statistics))
        found.append(statistics)
    assert found[0].n_guessed > found[0].n_right > 0
    assert found[0].tokens == found[1].tokens
    # a chat's next turn, which has less of the answer than there was
    shorter = [*prompt, *found[0].tokens[:-40], 7]
    for session in (pair.small, pair.whole):
        statistics = Statistics()
        options = Options(max_tokens=20)
        "".join(generate(session, tokenizer, shorter, options=options, statistics=statistics))
        found.append(statistics)
    assert found[2].tokens == found[3].tokens
    assert (found[2].n_cached, found[3].n_cached) == (0, len(shorter) - 1)


@pytest.mark.parametrize("count", [20, 200, 590])
def test_memory_is_counted_with_windows(directory: Path, count: int) -> None:
    config = ModelConfig.read(directory)
    whole = 2 * 4 * config.n_layers * config.n_kv_heads * config.head_size * count
    assert directory_need(directory, count).kv_cache == whole  # the least there is room for
    assert _windows(directory) == [5] * 5
    shape = nearest_shape("gemma3", 270_000_000)
    assert shape is not None
    some = cache_size(shape, 32768, windows=[512] * (shape.n_layers - 1))
    assert some < cache_size(shape, 32768) / 10
    assert cache_size(shape, 500, windows=[512] * shape.n_layers) == cache_size(shape, 500)


def test_a_graph_without_windows_or_too_large_has_none(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    negative = b"\x0a\x11local_window_size\x18" + b"\xff" * 9 + b"\x01"
    (tmp_path / "model.onnx").write_bytes(negative)
    assert _windows(tmp_path) == []
    monkeypatch.setattr("weightpkg.footprint._LARGEST_GRAPH", 100)
    assert _windows(directory) == []


def test_the_second_level_cache_is_asked_for_where_the_system_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: int) -> int:
        raise OSError

    if sys.platform == "linux":
        assert second_level_cache() == max(os.sysconf(191), 0)
    monkeypatch.setattr("os.sysconf", refuse, raising=False)
    assert second_level_cache() == 1 << 20
    monkeypatch.setattr("sys.platform", "win32")
    assert second_level_cache() == 1 << 20


def test_too_little_memory_forgets_all_and_says_so(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(pair.config, 100)

    def fail(*_: object) -> None:
        raise MemoryError

    for name in ("drop", "resize"):
        pair.small.rewind(0)
        pair.small.forward(tokens[:20])
        with monkeypatch.context() as patch:
            patch.setattr(Buffers, name, fail)
            with pytest.raises(RunError, match="not enough memory"):
                pair.small.forward(tokens)
        assert pair.small.tokens == []
    pair.add(tokens)  # and what comes then is right


def test_what_is_kept_always_has_what_the_next_token_sees() -> None:
    for size in (1, 5, 128):
        each = Windows(size, (0,), 16, is_tiled=True)
        for n_tokens in range(700):
            first = each.first_kept(n_tokens)
            assert first % each.block == 0
            assert first <= each.first_needed(max(0, n_tokens - windows.RESERVE))
            assert n_tokens - first + 16 <= each.rows(16)
