"""Several sequences in one batch: each gets what it would get alone, whoever joins, leaves or fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import tiny_gemma3, tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.progress import Silence
from weightpkg.run import buffers, windows
from weightpkg.run.batch import Batch
from weightpkg.run.loading import load_graph
from weightpkg.run.session import ModelConfig, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIGEST = Digest("sha256", 64 * "0")
CONTEXT = 1024
_NEAR = 1e-4

NewBatch = Callable[[int], Batch]
Alone = Callable[[Sequence[int], int], "Greedy"]


class Greedy:
    """Takes the most likely tokens, and keeps them and their logits."""

    def __init__(self, prompt: Sequence[int], count: int) -> None:
        self.prompt = prompt
        self.is_cancelled = False
        self.count = count
        self.tokens: list[int] = []
        self.logits: list[NDArray[np.float32]] = []
        self.before: list[int] = []
        self.error: RunError | None = None

    def take(self, logits: NDArray[np.float32], tokens: Sequence[int], /) -> int | None:
        self.logits.append(logits.copy())
        self.before = list(tokens)
        self.tokens.append(int(logits.argmax()))
        return self.tokens[-1] if len(self.tokens) < self.count else None

    def fail(self, error: RunError, /) -> None:
        self.error = error


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Few places behind windows, so that a short text fills them many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "RESERVE", 12)
        patch.setattr(windows, "second_level_cache", lambda: 8 * 32 * 16)
        patch.setattr(buffers, "LATER_PIECE", 16)
        patch.setattr(buffers, "LEAST_LOCAL", 64)
        yield


@pytest.fixture(scope="module", params=[tiny_llama, tiny_gemma3], ids=["whole", "windows"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that does not round activations: else the last bits of a sum decide a step of 8 bits."""
    path = tmp_path_factory.mktemp("model")
    source = request.param(path / "tiny.gguf", context_length=CONTEXT)
    (path / "onnx").mkdir()
    convert(source, DIGEST, path / "onnx", Silence())
    model = onnx.load(path / "onnx" / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    (path / "onnx" / "model.onnx").write_bytes(model.SerializeToString())
    return path / "onnx"


@pytest.fixture(scope="module")
def config(directory: Path) -> ModelConfig:
    return ModelConfig.read(directory)


@pytest.fixture(scope="module")
def new_batch(directory: Path, config: ModelConfig) -> NewBatch:
    session = load_graph(directory, threads=1).session
    return lambda n_rows: Batch(session, config, n_rows)


@pytest.fixture(scope="module")
def alone(directory: Path, config: ModelConfig) -> Alone:
    """Answer one request by a session of its own."""

    def answer(prompt: Sequence[int], count: int) -> Greedy:
        session = Session(directory, config, threads=1)
        reference = Greedy(prompt, count)
        token = reference.take(session.forward(list(prompt)), [])
        while token is not None:
            token = reference.take(session.forward([token]), [])
        return reference

    return answer


def prompt_of(length: int, seed: int) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(10, 250, length)]


def finish(batch: Batch, limit: int = 3000) -> None:
    for _ in range(limit):
        if batch.is_idle:
            return
        batch.step()
    raise AssertionError("it does not end")


def assert_same(found: Greedy, expected: Greedy) -> None:
    """The same logits, as far as the same tokens were chosen; others only between two equal ones.

    Sums over a prompt are in another order where it came in other pieces.
    """
    assert found.error is None
    for i, (one, other) in enumerate(zip(found.logits, expected.logits, strict=False)):
        np.testing.assert_allclose(one, other, atol=_NEAR)
        if found.tokens[i] != expected.tokens[i]:
            assert other.max() - other[found.tokens[i]] < 2 * _NEAR
            return


def test_one_row_is_equal_to_a_session_bit_by_bit(new_batch: NewBatch, alone: Alone) -> None:
    request = Greedy(prompt_of(40, 1), 30)
    batch = new_batch(1)
    assert batch.add(request) == 0
    finish(batch)
    expected = alone(request.prompt, 30)
    assert request.tokens == expected.tokens
    assert all(map(np.array_equal, request.logits, expected.logits))


def test_rows_of_different_lengths_do_not_disturb_each_other(
    new_batch: NewBatch, alone: Alone
) -> None:
    requests = [Greedy(prompt_of(n, n), 20 + n % 7) for n in (3, 90, 17, 41)]
    batch = new_batch(4)
    for request in requests:
        batch.add(request)
    finish(batch)
    for request in requests:
        assert_same(request, alone(request.prompt, request.count))


def test_the_cache_grows_while_rows_are_continued(new_batch: NewBatch, alone: Alone) -> None:
    first = Greedy(prompt_of(30, 1), 60)
    batch = new_batch(2)
    batch.add(first)
    for _ in range(10):
        batch.step()
    second = Greedy(prompt_of(700, 2), 12)
    batch.add(second)
    finish(batch)
    assert_same(first, alone(first.prompt, 60))
    assert_same(second, alone(second.prompt, 12))


@settings(max_examples=25)
@given(
    plan=st.lists(
        st.tuples(st.integers(1, 120), st.integers(1, 25), st.integers(0, 12), st.booleans()),
        min_size=1,
        max_size=9,
    )
)
def test_whoever_joins_and_leaves(
    new_batch: NewBatch, alone: Alone, plan: list[tuple[int, int, int, bool]]
) -> None:
    """plan: of each request its prompt's length, tokens, steps before the next, and whether it is cancelled."""
    batch = new_batch(3)
    requests = []
    for i, (length, count, steps, _) in enumerate(plan):
        while not batch.n_free:
            batch.step()
        requests.append(Greedy(prompt_of(length, i), count))
        batch.add(requests[-1])
        for _ in range(steps):
            batch.step()
        for request, (*_, is_cancelled) in zip(requests, plan, strict=False):
            request.is_cancelled = is_cancelled and len(request.tokens) < request.count
    finish(batch)
    for request in requests:
        assert request.is_cancelled or len(request.tokens) == request.count
        assert_same(request, alone(request.prompt, request.count))


def test_a_prompt_goes_on_from_a_row_that_ended(new_batch: NewBatch, alone: Alone) -> None:
    batch = new_batch(2)
    first = Greedy(prompt_of(50, 3), 10)
    batch.add(first)
    finish(batch)
    prompt = [*first.prompt, *first.tokens[:-1], 42, 43]
    second = Greedy(prompt, 10)
    assert batch.add(second) == 50 + 9
    finish(batch)
    assert_same(second, alone(prompt, 10))


def test_a_prompt_goes_on_from_a_row_that_is_being_answered(
    new_batch: NewBatch, alone: Alone
) -> None:
    batch = new_batch(2)
    first = Greedy(prompt_of(60, 13), 40)
    batch.add(first)
    for _ in range(6):
        batch.step()
    prompt = [*first.prompt, *first.tokens, 9, 8, 7]
    second = Greedy(prompt, 10)
    assert batch.add(second) == 60 + len(first.tokens) - 1  # the last one is not in the cache yet
    finish(batch)
    assert_same(first, alone(first.prompt, 40))
    assert_same(second, alone(prompt, 10))


def test_rows_of_windows_are_dropped_each_by_itself(new_batch: NewBatch, alone: Alone) -> None:
    batch = new_batch(3)
    requests = [Greedy(prompt_of(n, n), 300) for n in (5, 150, 60)]
    for request in requests:
        batch.add(request)
        for _ in range(20):
            batch.step()
    for _ in range(200):
        batch.step()
    has_windows = batch._windows is not None
    firsts = set(batch._cache.first)
    assert (len(firsts) > 1 and min(firsts) > 100) if has_windows else firsts == {0}
    later = Greedy([*requests[1].prompt, *requests[1].tokens[:100]], 40)
    finish(batch)
    batch.add(later)  # from a row of which the window's part is gone: all of it is read again
    finish(batch)
    for request in (*requests, later):
        assert_same(request, alone(request.prompt, request.count))
    sizes = {buffer.shape[2] for buffer in batch._cache.buffers}
    assert sizes == ({64, 512} if has_windows else {512})


def test_what_a_window_has_lost_is_not_gone_on_from(new_batch: NewBatch) -> None:
    batch = new_batch(1)
    first = Greedy(prompt_of(30, 1), 200)
    batch.add(first)
    finish(batch)
    near = [*first.prompt, *first.tokens[:195], 7]
    far = [*first.prompt, *first.tokens[:100], 7]
    assert batch.add(Greedy(near, 1)) == 225
    finish(batch)
    assert batch.add(Greedy(far, 1)) == (0 if batch._windows is not None else 130)


def test_a_cancelled_row_leaves_only_what_is_in_the_cache(
    new_batch: NewBatch, alone: Alone
) -> None:
    batch = new_batch(1)
    first = Greedy(prompt_of(20, 4), 30)
    batch.add(first)
    for _ in range(5):
        batch.step()
    first.is_cancelled = True
    batch.step()
    assert batch.is_idle
    prompt = [*first.prompt, *first.tokens, 7]
    second = Greedy(prompt, 8)
    batch.add(second)
    finish(batch)
    assert_same(second, alone(prompt, 8))


def test_the_context_ends_a_row(new_batch: NewBatch) -> None:
    batch = new_batch(1)
    request = Greedy(prompt_of(CONTEXT - 3, 5), 100)
    batch.add(request)
    finish(batch)
    assert len(request.tokens) == 4  # the last of them enters no more
    assert len(request.before) == CONTEXT


def test_a_step_that_fails_is_told_to_all_and_the_next_requests_work(
    new_batch: NewBatch, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = new_batch(2)
    requests = [Greedy(prompt_of(8, i), 20) for i in (6, 7)]
    for request in requests:
        batch.add(request)
    for _ in range(4):
        batch.step()
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "_run_many", fail)
        batch.step()
    assert all("out of luck" in str(request.error) for request in requests)
    assert batch.is_idle
    again = Greedy(requests[0].prompt, 20)
    assert batch.add(again) == 0
    finish(batch)
    assert_same(again, alone(again.prompt, 20))


def fail(*_: object) -> NDArray[np.float32]:
    raise RunError("out of luck")


def test_a_prompt_that_memory_does_not_hold_leaves_the_others(
    new_batch: NewBatch, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = new_batch(2)
    first = Greedy(prompt_of(8, 8), 20)
    batch.add(first)
    batch.step()
    second = Greedy(prompt_of(800, 9), 5)
    with monkeypatch.context() as patch:
        patch.setattr(np, "zeros", no_memory)
        with pytest.raises(RunError, match="not enough memory for 2 rows of 1,024 tokens"):
            batch.add(second)
    finish(batch)
    assert_same(first, alone(first.prompt, 20))


def test_rows_that_memory_does_not_move_are_told_and_the_next_work(
    new_batch: NewBatch, alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(np.ndarray):
        def __setitem__(self, *_: object) -> None:
            raise MemoryError

    batch = new_batch(1)
    has_windows = batch._windows is not None  # else nothing is ever moved
    for length in (40, 200):  # while it is continued, and while its prompt is read
        request = Greedy(prompt_of(length, length), 100)
        batch.add(request)
        batch.step()
        with monkeypatch.context() as patch:
            patch.setattr(
                batch._cache, "buffers", [each.view(Stuck) for each in batch._cache.buffers]
            )
            finish(batch)
        assert ("not enough memory after" in str(request.error)) is has_windows
        assert len(request.tokens) < 100 or not has_windows
    again = Greedy(prompt_of(20, 3), 10)
    assert batch.add(again) == 0
    finish(batch)
    assert_same(again, alone(again.prompt, 10))


def no_memory(*_: object) -> NDArray[np.float32]:
    raise MemoryError


def test_pieces_of_prompts_take_turns(new_batch: NewBatch) -> None:
    """A long prompt does not hold up a short one that comes later."""
    batch = new_batch(3)
    continued = Greedy(prompt_of(5, 10), 200)
    batch.add(continued)
    batch.step()
    long, short = Greedy(prompt_of(900, 11), 2), Greedy(prompt_of(20, 12), 2)
    batch.add(long)
    batch.add(short)
    while not short.tokens:
        batch.step()
    assert not long.tokens
    finish(batch)
    assert len(continued.tokens) == 200
