"""A blob on its way: what is believed of what a process has left that did not come to its end."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightpkg import partial as partial_module
from weightpkg.digest import Fingerprint, Hasher
from weightpkg.errors import StoreError
from weightpkg.partial import (
    Partial,
    Provenance,
    WrongChunkError,
    discard_partial,
    journal_path,
)

CHUNK = 64 * 1024
SIZE = 5 * CHUNK + 1000
CONTENT = random.Random(0).randbytes(SIZE)
SOURCE = Provenance("https://example.org/m", '"1"')


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpkg.digest.CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(partial_module, "CHUNK_SIZE", CHUNK)
    monkeypatch.setattr(partial_module, "_JOURNAL_STEP", 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partial" / ("0" * 64)


def fingerprint() -> Fingerprint:
    hasher = Hasher()
    hasher.update(CONTENT)
    return hasher.finish()


def begin(path: Path, *, size: int | None = SIZE, chunks: tuple[str, ...] = ()) -> Partial:
    partial = Partial(path, size=size, chunks=chunks)
    partial.resume(lambda _: None)
    partial.begin(SOURCE)
    return partial


def write(partial: Partial, start: int, end: int) -> int:
    return partial.write(start, CONTENT[start:end])


def leave(path: Path, *spans: tuple[int, int]) -> None:
    """Write these, and be killed: nothing is closed, nothing more is written."""
    partial = begin(path)
    for start, end in spans:
        write(partial, start, end)
    if partial._follower and partial.spans.reach():
        wait_for_chunks(partial)
    partial._stop_following()
    partial._journal.close()
    partial._file.close()


def wait_for_chunks(partial: Partial) -> None:
    follower = partial._follower
    assert follower is not None
    with follower._change:
        follower._change.wait_for(lambda: follower._hashed >= follower._reach // CHUNK * CHUNK, 5)
    partial._take_news(follower)


def complete(partial: Partial) -> Fingerprint:
    """Bring what is missing, from the beginning again where what was there is wrong."""
    for _ in range(2):
        for start, end in list(partial.spans.gaps(SIZE)):
            write(partial, start, end)
        found = partial.finish()
        if found == fingerprint():
            break
        partial.drop_others()
    return found


def test_bytes_come_in_any_order_and_once(path: Path) -> None:
    order = list(range(0, SIZE, 1000))
    random.Random(1).shuffle(order)
    with begin(path) as partial:
        assert sum(write(partial, k, k + 1000) for k in order) == SIZE
        assert [write(partial, k, k + 1000) for k in order[:5]] == [0] * 5
        assert partial.is_complete
        assert partial.finish() == fingerprint()
        partial.publish(path.parent / "blob")
    assert (path.parent / "blob").read_bytes() == CONTENT
    assert [entry.name for entry in path.parent.iterdir()] == ["blob"]


def test_an_empty_file_is_complete_at_once(path: Path) -> None:
    with begin(path, size=0) as partial:
        assert partial.is_complete
        assert partial.finish().size == 0


def test_a_file_of_unknown_size_ends_where_its_bytes_do(path: Path) -> None:
    with begin(path, size=None) as partial:
        write(partial, 0, SIZE)
        assert partial.finish() == fingerprint()


def test_is_not_finished_while_bytes_are_missing(path: Path) -> None:
    with begin(path) as partial:
        write(partial, 1, SIZE)
        with pytest.raises(ValueError, match="missing"):
            partial.finish()


def test_never_writes_over_bytes_that_are_there(path: Path) -> None:
    with begin(path) as partial:
        write(partial, 100, 200)
        assert partial.write(50, b"x" * 200) == 100
    content = path.read_bytes()
    assert content[50:250] == b"x" * 50 + CONTENT[100:200] + b"x" * 50


@pytest.mark.parametrize(
    "spans", [[(0, CHUNK)], [(5, 6)], [(0, SIZE)], [(7, CHUNK), (3 * CHUNK, SIZE)]]
)
def test_goes_on_after_a_process_that_was_killed(path: Path, spans: list[tuple[int, int]]) -> None:
    leave(path, *spans)
    told: list[int] = []
    with Partial(path, size=SIZE) as partial:
        partial.resume(told.append)
        assert list(partial.spans) == spans
        assert partial.origins == {SOURCE}
        assert sum(told) == sum(end - start for start, end in spans)
        partial.begin(SOURCE)
        assert partial.brought.size == 0
        assert complete(partial) == fingerprint()


def test_nothing_stays_of_what_has_no_byte(path: Path) -> None:
    begin(path).close()
    assert list(path.parent.iterdir()) == []


def test_forgets_and_begins_anew(path: Path) -> None:
    leave(path, (0, SIZE))
    with begin(path) as partial:
        partial.forget()
        assert (list(partial.spans), partial.origins) == ([], set())
        assert complete(partial) == fingerprint()
        partial.forget()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("is_own", [True, False])
def test_parts_what_this_source_brought_from_what_others_did(path: Path, *, is_own: bool) -> None:
    leave(path, (0, 2 * CHUNK), (3 * CHUNK, 4 * CHUNK))
    with begin(path) as partial:
        write(partial, 2 * CHUNK, 3 * CHUNK)
        if is_own:
            partial.drop_others()
        else:
            partial.drop_brought()
        expected = [(2 * CHUNK, 3 * CHUNK)] if is_own else [(0, 2 * CHUNK), (3 * CHUNK, 4 * CHUNK)]
        assert list(partial.spans) == expected
    with begin(path) as partial:
        assert list(partial.spans) == expected
        assert complete(partial) == fingerprint()


def other_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_module, "_boot_id", lambda: "another")


def test_after_a_restart_only_chunks_are_believed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(path, (0, 2 * CHUNK + 5), (4 * CHUNK, SIZE))
    other_boot(monkeypatch)
    with begin(path) as partial:
        assert list(partial.spans) == [(0, 2 * CHUNK)]
        assert complete(partial) == fingerprint()


def test_after_a_restart_a_chunk_that_the_disk_has_lost_comes_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(path, (0, SIZE))
    with path.open("r+b") as file:
        file.seek(CHUNK)
        file.write(bytes(CHUNK))
    other_boot(monkeypatch)
    with begin(path) as partial:
        # whether the last, short one had been hashed in time is left to chance
        assert list(partial.spans.gaps(5 * CHUNK)) == [(CHUNK, 2 * CHUNK)]
        assert complete(partial) == fingerprint()


def test_a_chunk_that_is_not_what_it_was_is_seen_without_a_restart(path: Path) -> None:
    leave(path, (0, SIZE))
    with path.open("r+b") as file:
        file.seek(2 * CHUNK + 77)
        file.write(b"\0\0\0")
    with begin(path) as partial:
        assert list(partial.spans.gaps(SIZE)) == [(2 * CHUNK, 3 * CHUNK)]
        assert complete(partial) == fingerprint()


@pytest.mark.parametrize("length", [0, 1, CHUNK, 2 * CHUNK + 5, SIZE + 5000])
def test_a_file_of_another_length_is_no_trouble(path: Path, length: int) -> None:
    leave(path, (0, SIZE))
    content = path.read_bytes() + bytes(5000)
    path.write_bytes(content[:length])
    with begin(path) as partial:
        assert partial.spans.size <= min(length, SIZE)
        assert complete(partial) == fingerprint()
        partial.publish(path.parent / "blob")
    assert (path.parent / "blob").read_bytes() == CONTENT


def test_a_file_or_a_journal_alone_is_no_trouble(path: Path) -> None:
    for lost in (path, journal_path(path)):
        leave(path, (0, SIZE))
        lost.unlink()
        with begin(path) as partial:
            assert partial.spans.size == 0
            assert complete(partial) == fingerprint()
        discard_partial(path)


@pytest.mark.parametrize("length", [0, CHUNK + 5])
def test_a_journal_of_another_file_is_not_believed_later(path: Path, length: int) -> None:
    leave(path, (5, 2 * CHUNK))
    with path.open("r+b") as file:
        file.truncate(length)
    # what lengthens the file must not make true what the old lines say
    leave(path, (4 * CHUNK, SIZE))
    with begin(path) as partial:
        assert list(partial.spans) == [(5, length), (4 * CHUNK, SIZE)][not length :]
        assert complete(partial) == fingerprint()


def test_a_torn_journal_says_less_and_nothing_wrong(path: Path) -> None:
    leave(path, (0, CHUNK + 9), (3 * CHUNK, 3 * CHUNK + 10), (CHUNK + 9, 2 * CHUNK))
    whole, file = journal_path(path).read_bytes(), path.read_bytes()
    sizes = []
    for n_kept in range(len(whole) + 1):
        path.write_bytes(file)
        journal_path(path).write_bytes(whole[:n_kept])
        with begin(path) as partial:
            sizes.append(partial.spans.size)
            for start, end in partial.spans:
                assert CONTENT[start:end] == file[start:end]
        if n_kept % 50 == 0:
            path.write_bytes(file)
            journal_path(path).write_bytes(whole[:n_kept])
            with begin(path) as partial:
                assert complete(partial) == fingerprint()
    assert sizes[-1] == 2 * CHUNK + 10


def test_lines_after_a_torn_one_are_read(path: Path) -> None:
    leave(path, (0, 100))
    with journal_path(path).open("ab") as journal:
        journal.write(b'{"span":[200,')
    leave(path, (300, 400))
    with begin(path) as partial:
        assert list(partial.spans) == [(0, 100), (300, 400)]


ROWS: list[object] = [
    {"span": [-5, 10]},
    {"span": [0, 1e400]},
    {"span": [0, float("nan")]},
    {"span": [0, 1e3]},
    {"span": [0, 10**30]},
    {"span": [9, 5]},
    {"span": [5]},
    {"span": None},
    {"span": "12"},
    {"span": [[], {}]},
    {"span": [True, False]},
    {"span": [0, SIZE]},
    {"span": [0, 2**63 - 1]},
    {"span": [SIZE - 5, SIZE + 5000]},
    {"lost": [-5, 10**25]},
    {"lost": [0, SIZE]},
    {"lost": 7},
    {"chunk": -1, "blake3": "0"},
    {"chunk": 10**12, "blake3": "0"},
    {"chunk": 2**62, "blake3": "0"},
    {"chunk": 10**30, "blake3": "0"},
    {"chunk": 1e400, "blake3": "0"},
    {"chunk": 5, "blake3": None},
    {"chunk": 0},
    {"chunk": None},
    {"source": "x"},
    {"source": ["x"], "validator": ["y"]},
    {"source": None, "validator": {}},
    {"boot": None},
    {"boot": []},
    [],
    5,
    None,
    "span",
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_line_that_means_nothing_is_no_trouble(path: Path, row: object) -> None:
    leave(path, (0, CHUNK), (2 * CHUNK, 3 * CHUNK))
    with journal_path(path).open("ab") as journal:
        journal.write(json.dumps(row).encode() + b"\n")
    with begin(path) as partial:
        assert all(0 <= start < end <= SIZE for start, end in partial.spans)
        assert complete(partial) == fingerprint()


GARBLED = st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=3)), max_size=4)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GARBLED)
def test_a_garbled_journal_never_makes_it_wrong(
    tmp_path_factory: pytest.TempPathFactory, garbled: list[tuple[float, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("garbled") / ("0" * 64)
    leave(path, (0, CHUNK + 9), (3 * CHUNK, 4 * CHUNK))
    journal = bytearray(journal_path(path).read_bytes())
    for share, patch in garbled:
        start = int(share * len(journal))
        journal[start : start + len(patch)] = patch
    journal_path(path).write_bytes(journal)
    with begin(path) as partial:
        assert all(0 <= start < end <= SIZE for start, end in partial.spans)
        assert complete(partial) == fingerprint()
    discard_partial(path)


def test_a_journal_that_has_grown_too_large_is_begun_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(path, (0, SIZE))
    monkeypatch.setattr(partial_module, "_MAX_JOURNAL", 10)
    with begin(path) as partial:
        assert partial.spans.size == 0
        assert complete(partial) == fingerprint()


@pytest.mark.parametrize("wrong", [0, 2, 5], ids=["first", "middle", "last"])
def test_a_wrong_chunk_loses_only_itself(path: Path, wrong: int) -> None:
    start, end = wrong * CHUNK, min((wrong + 1) * CHUNK, SIZE)
    chunks = fingerprint().chunks
    with begin(path, chunks=chunks) as partial:
        write(partial, 0, start)
        with pytest.raises(WrongChunkError) as caught:  # noqa: PT012 at the latest in the end
            partial.write(start, CONTENT[start:end][::-1])
            write(partial, end, SIZE)
            partial.finish()
        assert caught.value.is_brought
        assert (start, end) in list(partial.spans.gaps(SIZE)) or end != SIZE
    with begin(path, chunks=chunks) as partial:
        assert not partial.spans.has(start, end)
        assert complete(partial) == fingerprint()


def test_a_wrong_chunk_of_two_sources_is_nobodys_fault(path: Path) -> None:
    leave(path, (0, 100))
    with begin(path, chunks=fingerprint().chunks) as partial:
        with pytest.raises(WrongChunkError) as caught:  # noqa: PT012 at the latest in the end
            partial.write(100, bytes(CHUNK - 100))
            write(partial, CHUNK, SIZE)
            partial.finish()
        assert not caught.value.is_brought
        assert complete(partial) == fingerprint()


def test_says_that_it_cannot_be_read_any_more(path: Path) -> None:
    with begin(path) as partial:
        write(partial, 1, SIZE)
        path.write_bytes(b"")
        with pytest.raises(StoreError):  # noqa: PT012 whichever comes first
            write(partial, 0, 1)
            partial.finish()


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    yield
    assert [t for t in threading.enumerate() if t.name == "weightpkg-hash"] == []


def test_the_last_chunk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights" * 1000
    expected = Hasher()
    expected.update(content)
    add = Hasher._add

    def add_slowly(self: Hasher, data: memoryview) -> None:
        before = self.size
        self.size += data.nbytes
        time.sleep(0.2)  # as a digest is not computed at once, and lets other threads go on
        self.size = before
        add(self, data)

    monkeypatch.setattr(Hasher, "_add", add_slowly)
    with Partial(tmp_path / "partial", size=len(content)) as partial:
        partial.resume(lambda _: None)
        partial.begin(Provenance("here", None))
        partial.write(0, content)
        time.sleep(0.1)
        assert partial.finish() == expected.finish()
