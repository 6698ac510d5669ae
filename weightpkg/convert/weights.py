"""The tensors of a model by canonical (Hugging Face) name, read a slice of rows at a time.

`Weights` hands out each tensor once it has checked its shape, and remembers what was used: a
tensor that nobody asked for is as much an error as one that is missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightpkg.convert.graph import Graph
from weightpkg.convert.limits import peak_memory
from weightpkg.convert.plan import Exactness, Part, Plan
from weightpkg.errors import TensorMismatchError, UnsupportedQuantizationError
from weightpkg.formats import ggml
from weightpkg.tensor import BlockLayout, Blocks, Layout

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.formats.gguf import GGUFFile, GGUFTensor
    from weightpkg.formats.safetensors import SafetensorsCheckpoint, SafetensorsTensor

Rows = Callable[[int, int], "Blocks | NDArray[np.float32]"]

SLICE_WEIGHTS = 2 * 1024 * 1024
"""A slice is at most this many weights: large enough for NumPy to be fast, small enough that
# memory does not grow with the model."""

# How many float32 slices the memory of all that is decoded, or waits to be written, is that of.
_PIECES = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file has numbers as a graph can use them, without a copy. offset: bytes."""

    file: str
    offset: int


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor: its canonical name, shape, layout, and a function that reads rows of it.

    kind: what the file calls its type.
    source_size: its bytes in the file.

    shape: (N, K) or (N,); `rows(start, stop)` gives rows of the first axis, as `Blocks` for a
    block layout and as (stop - start, K) or (stop - start,) float32 for a dense one. Both ends
    must be multiples of `row_step`. `place` is where a dense one lies as it is, in float32;
    `columns` (K,) says which input each column is of, where they are not in the inputs' order.
    """

    name: str
    shape: tuple[int, ...]
    layout: Layout
    rows: Rows
    row_step: int = 1
    place: Place | None = None
    columns: NDArray[np.int64] | None = None
    kind: str = ""
    source_size: int = 0
    is_quantised_here: bool = False

    @property
    def size(self) -> int:
        """Bytes that are written of it."""
        count = math.prod(self.shape)
        if not isinstance(self.layout, BlockLayout):
            return 0 if self.stays else 4 * count
        floats = count // self.layout.block_size * (1 + self.layout.has_offset)
        return count * self.layout.bits // 8 + 4 * floats

    @property
    def becomes(self) -> str:
        """What it is in the output."""
        return f"{self.layout}, in place" if self.stays else str(self.layout)

    @property
    def stays(self) -> bool:
        """Whether the graph points to it where it is; a vector is kept in the graph itself."""
        return self.place is not None and len(self.shape) > 1

    @property
    def exactness(self) -> Exactness:
        """How much like the source's the weights are."""
        if self.is_quantised_here:
            return "quantised"
        if isinstance(self.layout, BlockLayout) and self.layout.has_offset:
            return "offsets rounded once"
        return "equal to the bit"

    def dense(self) -> NDArray[np.float32]:
        """Read the whole of a small dense tensor.

        Raises:
            TensorMismatchError: it is stored in blocks.
        """
        values = self.rows(0, self.shape[0])
        if isinstance(values, Blocks):
            raise TensorMismatchError(
                f"tensor `{self.name}` is quantised where only a dense one makes sense"
            )
        return values

    def slices(self) -> Iterator[Blocks | NDArray[np.float32]]:
        """Read all rows, a bounded number at a time."""
        row_weights = int(np.prod(self.shape[1:], dtype=np.int64))
        count = max(1, SLICE_WEIGHTS // max(1, row_weights))
        step = max(1, count // self.row_step) * self.row_step
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))


class Weights:
    """The tensors of one model file."""

    def __init__(
        self, source: str, tensors: Iterable[Weight], *, if_not_zero: Collection[str] = ()
    ) -> None:
        """Take tensors; those named in `if_not_zero` may be left over if they are all zeros."""
        self.source = source
        self._tensors = {weight.name: weight for weight in tensors}
        self._if_not_zero = if_not_zero
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, shape: tuple[int, ...]) -> Weight:
        """Return a tensor that must be there and have this shape.

        Raises:
            TensorMismatchError: it is missing or has another shape.
        """
        weight = self._tensors.get(name)
        if weight is None:
            raise TensorMismatchError(f"`{self.source}`: tensor `{name}` is missing")
        if weight.shape != shape:
            raise TensorMismatchError(
                f"`{self.source}`: tensor `{name}` has shape {weight.shape}, not {shape}"
            )
        self._used.add(name)
        return weight

    def take_norm(self, name: str, width: int) -> tuple[Weight, Weight]:
        """Return a layer norm's weight and bias, each (width,).

        Raises:
            TensorMismatchError: one is missing or has another shape.
        """
        return self.take(f"{name}.weight", (width,)), self.take(f"{name}.bias", (width,))

    def drop_copy(self, name: str, original: str) -> None:
        """Leave out a tensor, if it is there, that is said to be the same as another.

        Raises:
            TensorMismatchError: it is not, or the other one is missing.
        """
        copy = self._tensors.pop(name, None)
        if copy is not None:
            refuse_differences(self.source, self.take(original, copy.shape), copy)

    def changed(self, change: Callable[[Weight], Weight]) -> Weights:
        """Return the same tensors, each after a change that keeps its name."""
        tensors = map(change, self._tensors.values())
        return Weights(self.source, tensors, if_not_zero=self._if_not_zero)

    def split(self, split: Callable[[Weight], Iterable[Weight]]) -> Weights:
        """Return the tensors that each of these is made of."""
        tensors = (part for weight in self._tensors.values() for part in split(weight))
        return Weights(self.source, tensors, if_not_zero=self._if_not_zero)

    def leave_out(self, prefix: str) -> None:
        """Leave out tensors whose names begin with this, which are of something else."""
        self._tensors = {n: w for n, w in self._tensors.items() if not n.startswith(prefix)}

    def extended(self, tensors: Iterable[Weight], *, if_not_zero: Collection[str]) -> Weights:
        """Return these and others.

        Raises:
            TensorMismatchError: a tensor is among both.
        """
        added = {weight.name: weight for weight in tensors}
        if both := sorted(added.keys() & self._tensors.keys()):
            raise TensorMismatchError(f"`{self.source}`: tensor `{both[0]}` is there twice")
        everything = [*self._tensors.values(), *added.values()]
        return Weights(self.source, everything, if_not_zero=if_not_zero)

    def parts(self) -> tuple[Part, ...]:
        """Say what becomes of the tensors that were taken, type by type, in the file's order."""
        groups: dict[tuple[str, str, Exactness], list[Weight]] = {}
        for name, weight in self._tensors.items():
            if name in self._used:
                key = weight.kind, weight.becomes, weight.exactness
                groups.setdefault(key, []).append(weight)
        return tuple(
            Part(*key, len(some), sum(w.source_size for w in some), sum(w.size for w in some))
            for key, some in groups.items()
        )

    def finish(self) -> None:
        """Refuse tensors that nobody took.

        Raises:
            TensorMismatchError: names them.
        """
        left = sorted(self._tensors.keys() - self._used)
        left = [n for n in left if n not in self._if_not_zero or self._tensors[n].dense().any()]
        if left:
            names = ", ".join(f"`{name}`" for name in left[:5])
            more = f" and {len(left) - 5} more" if len(left) > 5 else ""
            raise TensorMismatchError(
                f"`{self.source}`: the architecture has no use for {names}{more}",
                hint="the file may be of a variation of the architecture that is not supported",
            )


def plan_of(architecture: str, source_size: int, graph: Graph, weights: Weights) -> Plan:
    """Say what writing a graph's data will be, once all of the weights are in it."""
    memory = peak_memory()
    if memory is not None:
        pieces = min(graph.data_size, 4 * SLICE_WEIGHTS * _PIECES)
        memory += pieces + graph.held_size
    return Plan(architecture, source_size, graph.data_size, weights.parts(), memory)


def expand_names(
    whole: Mapping[str, str], layer: Mapping[str, str], n_layers: int, layers: str = "model.layers"
) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name, for weights and biases alike.

    Args:
        whole: names of what the model has once, without `.weight` and `.bias`.
        layer: the same for what each layer has, without the layer's own name.
        n_layers: how many there are.
        layers: the canonical name of all layers.
    """
    names = dict(whole)
    for i in range(n_layers):
        names |= {f"blk.{i}.{gguf}": f"{layers}.{i}.{name}" for gguf, name in layer.items()}
    return {
        f"{gguf}.{part}": f"{name}.{part}"
        for gguf, name in names.items()
        for part in ("weight", "bias")
    }


def read_gguf(file: GGUFFile, names: Mapping[str, str]) -> Weights:
    """Return a GGUF file's tensors under their canonical names.

    Args:
        file: an open file.
        names: GGUF name to canonical name; a tensor without an entry keeps its own, so that it
            is reported as left over.

    Raises:
        UnsupportedQuantizationError: a tensor has a block type that is not converted.
    """
    tensors = file.tensors.values()
    return Weights(file.name, [_gguf_weight(file, t, names.get(t.name, t.name)) for t in tensors])


def _gguf_weight(file: GGUFFile, tensor: GGUFTensor, name: str) -> Weight:
    layout = tensor.type.layout
    if layout is None:
        raise UnsupportedQuantizationError(
            f"`{file.name}`: tensor `{tensor.name}` has type {tensor.type.name}, "
            "which is not converted yet",
            hint=f"types that are: {', '.join(ggml.convertible_types())}",
        )

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        values = ggml.decode_rows(tensor.type, file.rows(tensor, start, stop))
        file.release(tensor, start, stop)
        return values

    if len(tensor.shape) == 1:
        rows_of_vector = partial(_vector, rows)
        return Weight(
            name,
            tensor.shape,
            layout,
            rows_of_vector,
            kind=tensor.type.name,
            source_size=tensor.size,
        )
    return Weight(name, tensor.shape, layout, rows, kind=tensor.type.name, source_size=tensor.size)


def _vector(rows: Rows, start: int, stop: int) -> Blocks | NDArray[np.float32]:
    values = rows(0, 1)
    return values if isinstance(values, Blocks) else values[0, start:stop]


def read_safetensors(
    checkpoint: SafetensorsCheckpoint, canonical_name: Callable[[str], str | None]
) -> Weights:
    """Return a checkpoint's tensors under their canonical names.

    Args:
        checkpoint: open files.
        canonical_name: takes a tensor's name; None leaves it out, as the architecture has no use
            for it, such as a buffer that it computes itself.

    Raises:
        TensorMismatchError: two tensors have one canonical name.
        UnsupportedQuantizationError: a tensor has a type that is not converted.
    """
    found: dict[str, SafetensorsTensor] = {}
    for tensor in checkpoint.tensors.values():
        name = canonical_name(tensor.name)
        if name in found:
            both = f"`{found[name].name}` and `{tensor.name}`"
            raise TensorMismatchError(f"`{checkpoint.name}`: tensors {both} are the same one")
        if name is not None:
            found[name] = tensor
    weights = [_safetensors_weight(checkpoint, tensor, name) for name, tensor in found.items()]
    return Weights(checkpoint.name, weights)


def _safetensors_weight(
    checkpoint: SafetensorsCheckpoint, tensor: SafetensorsTensor, name: str
) -> Weight:
    layout = tensor.dtype.layout
    if layout is None:
        raise UnsupportedQuantizationError(
            f"`{checkpoint.name}`: tensor `{tensor.name}` has type {tensor.dtype.name}, "
            "which is not converted",
            hint="types that are: F32, F16, BF16",
        )

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        if len(tensor.shape) == 1:
            return ggml.dense_rows(checkpoint.rows(tensor, 0, 1), layout.dtype)[0, start:stop]
        values = ggml.dense_rows(checkpoint.rows(tensor, start, stop), layout.dtype)
        checkpoint.release(tensor, start, stop)
        return values

    # a file's header has any length: numbers that are not aligned are copied to where they are
    is_usable = layout.dtype == "float32" and tensor.start % 4 == 0
    place = Place(checkpoint.file_of(tensor), tensor.start) if is_usable else None
    return Weight(
        name,
        tensor.shape,
        layout,
        rows,
        place=place,
        kind=tensor.dtype.name,
        source_size=tensor.nbytes,
    )


def refuse_differences(source: str, first: Weight, second: Weight) -> None:
    """Refuse two tensors of one shape and layout that are said to be the same and are not.

    Raises:
        TensorMismatchError: they are not.
    """
    for one, other in zip(first.slices(), second.slices(), strict=True):
        if not all(map(np.array_equal, _arrays(one), _arrays(other))):
            raise TensorMismatchError(
                f"`{source}`: `{first.name}` and `{second.name}` differ, "
                "where the configuration says that they are one"
            )


def _arrays(values: Blocks | NDArray[np.float32]) -> tuple[NDArray[np.generic], ...]:
    return (values.q, values.scale) if isinstance(values, Blocks) else (values,)


def reorder_rows(
    weight: Weight, group: int, order: Callable[[NDArray[np.generic]], NDArray[np.generic]]
) -> Weight:
    """Return the weight with the rows of each `group` of rows in another order.

    Args:
        weight: (N, ...), with N a multiple of `group`.
        group: how many rows are reordered among themselves.
        order: takes (n_groups, group, ...), returns the same shape reordered along the second axis.
    """

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        return _changed_rows(weight.rows(start, stop), apply)

    def apply(values: NDArray[np.generic]) -> NDArray[np.generic]:
        grouped = values.reshape(-1, group, *values.shape[1:])
        return order(grouped).reshape(values.shape)

    return replace(weight, rows=rows, row_step=group, place=None)


def every_second(weight: Weight, first: Literal[0, 1]) -> Weight:
    """Return the rows `first`, `first` + 2 and so on of a weight (N, ...)."""

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        values = weight.rows(2 * start, 2 * stop)
        if not isinstance(values, Blocks):
            return values[first::2]
        offset = None if values.offset is None else values.offset[first::2]
        return Blocks(values.layout, values.q[first::2], values.scale[first::2], offset)

    shape = (weight.shape[0] // 2, *weight.shape[1:])
    return replace(weight, shape=shape, rows=rows, place=None)


def transposed(weight: Weight) -> Weight:
    """Return a dense (K, N) weight as (N, K); each slice of it is cut out of the whole.

    Raises:
        UnsupportedQuantizationError: it is stored in blocks, which run along rows.
    """
    n_rows, width = weight.shape
    if isinstance(weight.layout, BlockLayout):
        raise UnsupportedQuantizationError(f"tensor `{weight.name}` is stored columns first")

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        values = weight.rows(0, n_rows)
        assert not isinstance(values, Blocks)  # noqa: S101  the layout says so
        return np.ascontiguousarray(values[:, start:stop].T)

    return replace(weight, shape=(width, n_rows), rows=rows, place=None)


def plus_one(weight: Weight) -> Weight:
    """Return a dense weight with 1 added, as Gemma's norms do where they use theirs."""

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        values = weight.rows(start, stop)
        return values if isinstance(values, Blocks) else values + np.float32(1)

    return replace(weight, rows=rows, place=None)


_BUFFER = re.compile(r"(.+\.)?rotary_emb\.(cos_cached|inv_freq|sin_cached)")


def without_buffers(name: str) -> str | None:
    """Return a checkpoint's name for a tensor; None if the configuration says what is in it."""
    return None if _BUFFER.fullmatch(name) else name


def part_of_groups(weight: Weight, group: int, first: int, last: int) -> Weight:
    """Return rows from first to last of each `group` of rows of a weight (N, ...)."""
    size = last - first

    def rows(start: int, stop: int) -> Blocks | NDArray[np.float32]:
        whole = weight.rows(start // size * group, stop // size * group)
        return _changed_rows(whole, apply)

    def apply(values: NDArray[np.generic]) -> NDArray[np.generic]:
        grouped = values.reshape(-1, group, *values.shape[1:])
        return grouped[:, first:last].reshape(-1, *values.shape[1:])

    shape = (weight.shape[0] // group * size, *weight.shape[1:])
    name = f"{weight.name}.{first}"
    return replace(weight, name=name, shape=shape, rows=rows, row_step=size, place=None)


def _changed_rows(
    values: Blocks | NDArray[np.float32],
    apply: Callable[[NDArray[np.generic]], NDArray[np.generic]],
) -> Blocks | NDArray[np.float32]:
    if not isinstance(values, Blocks):
        return apply(values).astype(np.float32, copy=False)
    offset = None if values.offset is None else apply(values.offset).astype(np.float32)
    q = apply(values.q).astype(np.uint8, copy=False)
    scale = apply(values.scale).astype(np.float32, copy=False)
    return Blocks(values.layout, q, scale, offset)


def undo_rotary_permutation(weight: Weight, head_size: int) -> Weight:
    """Return q or k rows in Hugging Face's order.

    llama.cpp's converter interleaves the two halves of each head, because ggml rotates neighbours:
    https://github.com/ggml-org/llama.cpp/blob/b6700/convert_hf_to_gguf.py `LlamaModel.permute`
    """

    def order(rows: NDArray[np.generic]) -> NDArray[np.generic]:
        pairs = rows.reshape(len(rows), head_size // 2, 2, *rows.shape[2:])
        return pairs.swapaxes(1, 2)  # (H, D/2, 2, ...) -> (H, 2, D/2, ...)

    return reorder_rows(weight, head_size, order)


def same_layout(weights: Sequence[Weight]) -> bool:
    """Whether the weights can be one matrix, row upon row."""
    return len(list(alike(weights))) == 1


def alike(weights: Iterable[Weight]) -> Iterator[list[Weight]]:
    """Yield runs of neighbours that can be one matrix, row upon row, without a copy of any bytes."""
    run: list[Weight] = []
    for weight in weights:
        if run and not _continues(run[-1], weight):
            yield run
            run = []
        run.append(weight)
    yield run


def _continues(first: Weight, second: Weight) -> bool:
    if (first.layout, first.shape[1:]) != (second.layout, second.shape[1:]):
        return False
    if not _are_equal(first.columns, second.columns):
        return False
    if first.place is None or second.place is None:
        return first.place is second.place
    n_bytes = 4 * int(np.prod(first.shape, dtype=np.int64))
    return second.place == Place(first.place.file, first.place.offset + n_bytes)


def _are_equal(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first, second)
