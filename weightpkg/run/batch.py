"""Several sequences going through one model together: they join and leave between two steps.

A step costs hardly more for four rows than for one, as the weights are read once for all of them.
Rows have different lengths in one key/value cache (N, G, S, D) of each layer; the operator is told
each row's own, and what it computes for one does not depend on the others. The first rows are those
that are being continued; behind them are those whose prompts are being read, a piece between two
steps, and those that have ended, from whose tokens a later prompt may go on.

The idea is Orca's (https://www.usenix.org/conference/osdi22/presentation/yu), and that of prompts in
pieces is Sarathi's (https://arxiv.org/abs/2308.16369).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from weightpkg.errors import RunError
from weightpkg.run.buffers import capacities, wrap
from weightpkg.run.generate import common_prefix
from weightpkg.run.loading import ORT_ERRORS
from weightpkg.run.session import cache_type, check_decoder, part_names
from weightpkg.run.windows import START, Windows

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    from weightpkg.run.session import ModelConfig

_LEAST_PIECE = 16  # fewer tokens at once are slower, one by one
_MOST_PIECE = 512
# what a piece of a prompt may take, while as many others wait for it, of the time of their own step
_PATIENCE = 1.5


class Request(Protocol):
    """What is to be continued, and who decides how.

    prompt: token ids, at least one, and fewer than the model's context has.
    is_cancelled: whether nobody wants more of it; looked at before each step.
    """

    prompt: Sequence[int]
    is_cancelled: bool

    def take(self, logits: NDArray[np.float32], tokens: Sequence[int], /) -> int | None:
        """Choose the next token; None if there is none to be computed.

        Args:
            logits: (V,), to be read before this returns.
            tokens: all that came before.
        """

    def fail(self, error: RunError, /) -> None:
        """Be told that nothing more comes."""


@dataclass(slots=True, eq=False)
class _Row:
    """One row of the cache.

    tokens: what is in the cache, and, while it is continued, the one token that enters next.
    rest: of its prompt, to be read.
    used: when a piece of its prompt was last read, or when it ended.
    """

    request: Request | None = None
    tokens: list[int] = field(default_factory=list)
    rest: list[int] = field(default_factory=list)
    used: float = 0.0


class Cache:
    """Keys and values of several rows: for each layer and part (N, G, S, D), S growing.

    Where a layer sees a window only, S ends growing when there is room for that, what may be taken
    back, and a piece of a prompt. first: (N,), the position that a row's first place there has.
    """

    def __init__(
        self, config: ModelConfig, n_rows: int, kind: type[np.generic], windows: Windows | None
    ) -> None:
        self._kind = kind
        self._config = config
        self._n_rows = n_rows
        self._windows = windows
        self.names = part_names(range(config.n_layers))
        local_names = set(part_names(windows.layers if windows is not None else ()))
        self._is_local = [name in local_names for name in self.names]
        self.buffers: list[NDArray[np.generic]] = []
        self.capacity = self._local_capacity = 0
        self.first = np.zeros(n_rows, np.int32)

    def reserve(self, length: int, kept: Sequence[int]) -> None:
        """Make room for `length` tokens in each row.

        Pages are taken from the system as they are written: short rows cost what they have.

        Args:
            length: how many, at most the context.
            kept: of how many tokens each row's keys and values are kept.

        Raises:
            RunError: there is not enough memory; nothing has changed.
        """
        if length <= self.capacity:
            return
        capacity, local = capacities(length, self._config.context_length, self._windows)
        try:
            fresh = [
                self._buffer(i, local if each else capacity)
                for i, each in enumerate(self._is_local)
            ]
        except MemoryError as error:
            reason = f"not enough memory for {self._n_rows} rows of {capacity:,} tokens"
            raise RunError(reason, hint="fewer rows, or shorter prompts, take less") from error
        for new, old, is_local in zip(fresh, self.buffers, self._is_local, strict=False):
            for row, count in enumerate(kept if new is not old else ()):
                part = self._part(row, count, is_local=is_local)
                new[row, :, part] = old[row, :, part]
        self.buffers, self.capacity, self._local_capacity = fresh, capacity, local

    def _buffer(self, i: int, capacity: int) -> NDArray[np.generic]:
        if self.buffers and self.buffers[i].shape[2] == capacity:
            return self.buffers[i]
        config = self._config
        shape = (self._n_rows, config.n_kv_heads, capacity, config.head_size)
        return np.zeros(shape, self._kind)

    def _part(self, row: int, count: int, *, is_local: bool) -> slice:
        """Where a row's first `count` tokens are in a buffer, as far as they are there."""
        first = int(self.first[row]) if is_local else 0
        return slice(0, max(0, count - first))

    def usable(self, row: int, count: int) -> int:
        """How many of a row's first `count` tokens a text can go on from: all, or none."""
        if self._windows is None or self._windows.first_needed(count) >= self.first[row]:
            return count
        return 0

    def make_room(self, row: int, n_tokens: int, step: int) -> int:
        """Drop what no token sees any more, if a window's buffers are full.

        Args:
            row: of how many tokens it has keys and values, and how many more shall come.
            n_tokens: how many it has.
            step: how many more shall come.

        Returns:
            How many can come at once: `step`, or fewer.

        Raises:
            RunError: there is not enough memory to move rows; what the row has is lost.
        """
        if self._windows is None or n_tokens - self.first[row] + step <= self._local_capacity:
            return step
        old = int(self.first[row])
        new = max(old, self._windows.first_kept(n_tokens))
        try:
            for buffer, is_local in zip(self.buffers, self._is_local, strict=True):
                if is_local:
                    buffer[row, :, : n_tokens - new] = buffer[row, :, new - old : n_tokens - old]
        except MemoryError as error:
            raise RunError(f"not enough memory after {n_tokens:,} tokens") from error
        self.first[row] = new
        return min(step, self._local_capacity - (n_tokens - new))

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first tokens of one row to another."""
        self.first[target] = self.first[source]
        for buffer, is_local in zip(self.buffers, self._is_local, strict=True):
            part = self._part(source, length, is_local=is_local)
            buffer[target, :, part] = buffer[source, :, part]

    def exchange(self, one: int, other: int, lengths: tuple[int, int]) -> None:
        """Let two rows, of so many tokens, change places."""
        if one == other:
            return
        for buffer, is_local in zip(self.buffers, self._is_local, strict=True):
            its = self._part(one, lengths[0], is_local=is_local)
            others = self._part(other, lengths[1], is_local=is_local)
            held = buffer[one, :, its].copy()
            buffer[one, :, others] = buffer[other, :, others]
            buffer[other, :, its] = held
        self.first[[one, other]] = self.first[[other, one]]


class Batch:
    """The rows of one model. For one thread; `step` does a little of all that there is to do."""

    def __init__(self, session: ort.InferenceSession, config: ModelConfig, n_rows: int) -> None:
        """Take a loaded decoder.

        Args:
            session: of its graph, whose inputs and outputs are on the CPU.
            config: its configuration.
            n_rows: how many requests at once.

        Raises:
            RunError: the graph is not what the configuration says.
        """
        check_decoder(session, config)
        self._session = session
        self._config = config
        self._windows = Windows.parse(session.get_modelmeta().custom_metadata_map)
        self._cache = Cache(config, n_rows, cache_type(session), self._windows)
        self._rows = [_Row() for _ in range(n_rows)]
        self._n_active = 0
        self._many, self._single = session.io_binding(), session.io_binding()
        self._bound: tuple[int, int] | None = None  # rows and capacity that `_many` is bound to
        self._logits = np.empty((n_rows, 1, config.vocab_size), np.float32)
        self._keep = np.ones(1, np.int64)
        self._step_s = self._token_s = 0.0

    @property
    def n_free(self) -> int:
        """How many more requests can be taken now."""
        return sum(row.request is None for row in self._rows)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self.n_free == len(self._rows)

    def add(self, request: Request) -> int:
        """Take a request into a free row; return how many tokens of its prompt are there already.

        Raises:
            RunError: there is not enough memory for its prompt.
        """
        self._reserve(len(request.prompt) + 1)
        n_cached = [
            self._cache.usable(i, common_prefix(self._in_cache(i), request.prompt))
            for i in range(len(self._rows))
        ]
        free = [i for i, row in enumerate(self._rows) if row.request is None]
        place = max(free, key=lambda i: (n_cached[i], -self._rows[i].used))
        best = max(range(len(n_cached)), key=n_cached.__getitem__)
        row = self._rows[place]
        if n_cached[best] > n_cached[place]:  # of one that is being answered
            self._cache.copy(best, place, n_cached[best])
            row.tokens = self._rows[best].tokens[: n_cached[best]]
        count = max(n_cached)
        if not count:
            self._cache.first[place] = 0
        row.request, row.rest = request, list(request.prompt[count:])
        del row.tokens[count:]
        return count

    def _in_cache(self, place: int) -> Sequence[int]:
        """The tokens of a row whose keys and values are there."""
        tokens = self._rows[place].tokens
        return tokens[:-1] if place < self._n_active else tokens

    def step(self) -> None:
        """Read a piece of a prompt, if there is one, and continue all rows by one token."""
        self._drop_cancelled()
        reading = [row for row in self._rows if row.rest and row.request]
        if reading:
            self._read(min(reading, key=lambda row: row.used), self._piece_size(len(reading)))
        if self._n_active:
            self._continue()

    def fail_all(self, error: RunError) -> None:
        """End everything, and tell it why."""
        self._fail([row for row in self._rows if row.request is not None], error)

    def _drop_cancelled(self) -> None:
        for row in list(self._rows):
            if row.request is not None and row.request.is_cancelled:
                if not row.rest:
                    row.tokens.pop()  # which is not in the cache yet
                self._end(row)

    def _read(self, row: _Row, size: int) -> None:
        """Read a piece of a row's prompt; at its end, the row is one of those to be continued."""
        place = self._rows.index(row)
        start = time.perf_counter()
        try:
            size = self._cache.make_room(place, len(row.tokens), min(size, len(row.rest)))
            piece = row.rest[:size]
            logits = self._run_single(place, len(row.tokens), piece)
        except RunError as error:
            self._fail([row], error)
            return
        self._token_s = (time.perf_counter() - start) / len(piece)
        row.tokens += piece
        row.used = time.monotonic()
        del row.rest[: len(piece)]
        if not row.rest:
            self._activate(row)
            self._choose(row, logits)

    def _piece_size(self, n_reading: int) -> int:
        """How many tokens to read: the more if more rows wait for theirs than are held up by it."""
        if not self._n_active or not self._token_s:
            return _MOST_PIECE
        patience = _PATIENCE * max(1, n_reading / self._n_active)
        patient = int(patience * self._step_s / self._token_s)
        return min(max(patient, _LEAST_PIECE), _MOST_PIECE)

    def _continue(self) -> None:
        active = self._rows[: self._n_active]
        start = time.perf_counter()
        try:
            self._reserve(max(len(row.tokens) for row in active))
            logits = self._run_many(active)
        except RunError as error:
            self._fail(active, error)
            return
        self._step_s = time.perf_counter() - start
        for row, its in zip(list(active), logits, strict=True):
            self._choose(row, its)

    def _choose(self, row: _Row, logits: NDArray[np.float32]) -> None:
        assert row.request is not None  # noqa: S101  it is being continued
        is_full = len(row.tokens) == self._config.context_length
        token = row.request.take(logits, row.tokens)
        if token is None or is_full:
            self._end(row)
        else:
            row.tokens.append(token)

    def _activate(self, row: _Row) -> None:
        self._move(row, self._n_active)
        self._n_active += 1

    def _end(self, row: _Row) -> None:
        """Free a row; what is in the cache may be of use to a later prompt."""
        if self._rows.index(row) < self._n_active:
            self._n_active -= 1
            self._move(row, self._n_active)
        row.request, row.used = None, time.monotonic()
        row.rest.clear()

    def _fail(self, rows: Sequence[_Row], error: RunError) -> None:
        for row in list(rows):
            if row.request is not None:
                row.request.fail(error)
            self._end(row)
            row.tokens.clear()  # nobody knows what of it is in the cache

    def _move(self, row: _Row, place: int) -> None:
        here = self._rows.index(row)
        other = self._rows[place]
        self._cache.exchange(here, place, (len(row.tokens), len(other.tokens)))
        self._rows[here], self._rows[place] = other, row

    def _reserve(self, length: int) -> None:
        kept = [min(len(row.tokens), self._cache.capacity) for row in self._rows]
        self._cache.reserve(min(length, self._config.context_length), kept)

    def _run_single(self, place: int, n_past: int, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens to one row; return the logits that follow the last one: (V,)."""
        self._bind_cache(self._single, place, place + 1)
        mask = np.ones((1, n_past + len(tokens)), np.int64)
        ids = np.array([tokens], np.int64)
        first = self._cache.first[place : place + 1]
        logits: NDArray[np.float32] = self._run(self._single, ids, mask, first, self._logits[:1])[0]
        return logits

    def _run_many(self, rows: Sequence[_Row]) -> NDArray[np.float32]:
        """Add each row's last token, which is not in the cache yet; return (N, V) logits."""
        if self._bound != (bound := (len(rows), self._cache.capacity)):
            self._bind_cache(self._many, 0, len(rows))
            self._bound = bound
        lengths = np.array([len(row.tokens) for row in rows])
        for place, length in enumerate(lengths):
            self._cache.make_room(place, int(length) - 1, 1)
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.array([row.tokens[-1:] for row in rows], np.int64)
        first = self._cache.first[: len(rows)]
        return self._run(self._many, ids, mask, first, self._logits[: len(rows)])

    def _bind_cache(self, binding: ort.IOBinding, first: int, last: int) -> None:
        for name, buffer in zip(self._cache.names, self._cache.buffers, strict=True):
            value = wrap(buffer[first:last])
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)

    def _run(
        self,
        binding: ort.IOBinding,
        ids: NDArray[np.int64],
        mask: NDArray[np.int64],
        first: NDArray[np.int32],
        logits: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """ids: (N, T), mask: (N, S), first: (N,), logits: (N, 1, V), which are filled -> (N, V)."""
        binding.bind_ortvalue_input("input_ids", wrap(ids))
        binding.bind_ortvalue_input("attention_mask", wrap(mask))
        binding.bind_ortvalue_input("logits_to_keep", wrap(self._keep))
        if self._windows is not None:
            binding.bind_ortvalue_input(START, wrap(first))
        binding.bind_ortvalue_output("logits", wrap(logits))
        try:
            self._session.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            raise RunError(f"the model failed after {mask.shape[1]:,} tokens: {error}") from error
        result: NDArray[np.float32] = logits[:, 0]
        return result
