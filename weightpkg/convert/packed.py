"""Matrices that were quantised before they were saved: integers, scales and zero points to blocks.

A group of consecutive inputs shares a scale and a zero point: w = scale * (q - zero). As blocks that
is scale * (q - middle) + offset, with offset = scale * (middle - zero). A scale in float16 or bfloat16
has at most 11 bits and a difference of integers at most 9, so products and sum are exact in float32.

Where a matrix was quantised in the order of how active its inputs are (`act-order`, `actorder`), a
group has inputs from everywhere: then the columns are sorted by group, and the graph sorts the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightpkg.convert.weights import Weight, Weights, read_safetensors
from weightpkg.errors import TensorMismatchError
from weightpkg.formats.safetensors import SafetensorsCheckpoint, SafetensorsTensor
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Larger groups become several blocks: the kernels know these sizes.
_LARGEST_BLOCK = 128
_SMALLEST_BLOCK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMatrix:
    """A matrix, of which some rows (outputs) at a time are read; `row_step` divides both ends.

    integers(start, stop): (rows, K) uint8; scales: (rows, n_groups) float32; zeros: the same, int16;
    groups: (K,) int64, the group of each input, None where they follow each other.
    """

    shape: tuple[int, int]
    bits: Literal[4, 8]
    n_groups: int
    integers: Callable[[int, int], NDArray[np.uint8]]
    scales: Callable[[int, int], NDArray[np.float32]]
    zeros: Callable[[int, int], NDArray[np.int16]]
    groups: NDArray[np.int64] | None
    row_step: int


class Parts:
    """The tensors of one matrix by their last names."""

    def __init__(self, checkpoint: SafetensorsCheckpoint, prefix: str) -> None:
        self._checkpoint = checkpoint
        self._prefix = prefix

    def __contains__(self, part: str) -> bool:
        return f"{self._prefix}{part}" in self._checkpoint.tensors

    def tensor(self, part: str) -> SafetensorsTensor:
        """Return a tensor that must be there.

        Raises:
            TensorMismatchError: it is missing.
        """
        if part not in self:
            raise self.error(part, "is missing")
        return self._checkpoint.tensors[f"{self._prefix}{part}"]

    def matrix(self, part: str, shape: tuple[int | None, int | None]) -> NDArray[np.int32]:
        """Return 32-bit words as they lie in the file: (rows, columns), None for any number.

        Raises:
            TensorMismatchError: the tensor is missing, or of another type or shape.
        """
        words: NDArray[np.int32] = self.array(part, ("I32",), shape).view(np.int32)
        return words

    def array(
        self, part: str, types: tuple[str, ...], shape: tuple[int | None, ...]
    ) -> NDArray[np.generic]:
        """Return a tensor as it lies in the file, None standing for any size.

        Raises:
            TensorMismatchError: the tensor is missing, or of another type or shape.
        """
        tensor = self.tensor(part)
        if tensor.dtype.name not in types:
            raise self.error(part, f"has type {tensor.dtype.name}, not {' or '.join(types)}")
        wanted = zip(tensor.shape, shape, strict=False)
        is_alike = all(size in (found, None) for found, size in wanted)
        if len(tensor.shape) != len(shape) or not is_alike or 0 in tensor.shape:
            text = str(shape).replace("None", "any")
            raise self.error(part, f"has shape {tensor.shape}, not {text}")
        return self._checkpoint.array(tensor)

    def integers(self, part: str, count: int) -> NDArray[np.int64]:
        """Return a vector of whole numbers; errors as `matrix`."""
        return self.array(part, ("I32", "I64"), (count,)).astype(np.int64)

    def floats(self, part: str, shape: tuple[int | None, ...]) -> Floats:
        """Return numbers to be read piece by piece; errors as `matrix`."""
        values = self.array(part, ("F16", "BF16", "F32"), shape)
        return Floats(values, self.tensor(part).dtype.name == "BF16")

    def size(self, parts: Iterable[str]) -> int:
        """Return the bytes of those of some tensors that are there."""
        return sum(self.tensor(part).nbytes for part in parts if part in self)

    def release(self, parts: Iterable[str]) -> None:
        """Say that tensors are done with, so that they no longer count as this process's memory."""
        for part in parts:
            if part in self:
                tensor = self.tensor(part)
                self._checkpoint.release(tensor, 0, tensor.n_rows)

    def release_rows(self, part: str, start: int, stop: int) -> None:
        """Say the same of some rows along the last axis of a tensor."""
        self._checkpoint.release(self.tensor(part), start, stop)

    def error(self, part: str, reason: str) -> TensorMismatchError:
        """An error about a tensor, to be raised by the caller."""
        return TensorMismatchError(
            f"`{self._checkpoint.name}`: tensor `{self._prefix}{part}` {reason}"
        )


@dataclass(frozen=True, slots=True)
class Floats:
    """A matrix of numbers of a checkpoint, as its words, which for bfloat16 are whole numbers."""

    words: NDArray[np.generic]
    is_bfloat16: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return self.words.shape

    def reshaped(self, shape: tuple[int, int]) -> Floats:
        """Return the same in another shape."""
        return Floats(self.words.reshape(shape), self.is_bfloat16)

    def float32(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Return a part of them."""
        part = self.words[rows, columns]
        if self.is_bfloat16:  # the upper half of a float32
            return (part.astype(np.uint32) << 16).view(np.float32)
        return part.astype(np.float32)


@dataclass(frozen=True, slots=True)
class Packing:
    """A way to save packed matrices: the tensors of each, of which the first tells that it is one.

    name: what it is called; parts: their last names, behind the matrix's own and a separator; read: takes the canonical name;
    whole: the last name of a matrix that is not packed.
    """

    name: str
    parts: tuple[str, ...]
    read: Callable[[str, Parts], Weight]
    separator: str = "."
    whole: str = ".weight"


def read_packed(
    checkpoint: SafetensorsCheckpoint,
    canonical_name: Callable[[str], str | None],
    packing: Packing,
) -> Weights:
    """Return a checkpoint's tensors under their canonical names, packed ones as blocks.

    Args:
        checkpoint: open files.
        canonical_name: takes a tensor's name; None leaves it out.
        packing: of the packed ones.

    Raises:
        TensorMismatchError: tensors of a matrix are missing or do not fit each other.
        UnsupportedQuantizationError: a tensor has a type that is not converted.
    """
    marker = f"{packing.separator}{packing.parts[0]}"
    names = [name for name in checkpoint.tensors if name.endswith(marker)]
    stems = [name.removesuffix(marker) for name in names]
    parts = {f"{stem}{packing.separator}{part}" for stem in stems for part in packing.parts}

    def dense_name(name: str) -> str | None:
        return None if name in parts else canonical_name(name)

    packed = []
    for stem in stems:
        name = canonical_name(f"{stem}{packing.whole}")
        if name is not None:
            part = Parts(checkpoint, f"{stem}{packing.separator}")
            size = part.size(packing.parts)
            packed.append(replace(packing.read(name, part), kind=packing.name, source_size=size))
    # some writers save biases of zeros for models that have none
    biases = {name for name in (canonical_name(f"{stem}.bias") for stem in stems) if name}
    return read_safetensors(checkpoint, dense_name).extended(packed, if_not_zero=biases)


def of_integers(
    name: str, names: tuple[str, ...], unpack: Callable[[Parts], PackedMatrix]
) -> Packing:
    """Return the packing of matrices of integers, whose tensors have these last names."""
    return Packing(name, names, lambda stem, parts: _as_blocks(stem, parts, names, unpack(parts)))


def _as_blocks(name: str, parts: Parts, names: tuple[str, ...], packed: PackedMatrix) -> Weight:
    width = packed.shape[1]
    group_size = width // packed.n_groups
    block_size = math.gcd(group_size, _LARGEST_BLOCK)
    if block_size < _SMALLEST_BLOCK:
        reason = f"has groups of {group_size} weights, which are not whole blocks of 16"
        raise parts.error(names[0], reason)
    middle = 1 << (packed.bits - 1)
    layout = BlockLayout(packed.bits, block_size, has_offset=_has_offset(packed, middle))
    columns = _columns(packed, parts)
    repeats = group_size // block_size

    def rows(start: int, stop: int) -> Blocks:
        q = packed.integers(start, stop)
        q = q if columns is None else q[:, columns]
        if packed.bits == 4:
            q = q[:, ::2] | (q[:, 1::2] << np.uint8(4))
        scale = packed.scales(start, stop)
        offset = None
        if layout.has_offset:
            zeros = packed.zeros(start, stop)
            offset = (scale * (middle - zeros).astype(np.float32)).repeat(repeats, axis=1)
        q = q.reshape(stop - start, width // block_size, -1)
        if stop == packed.shape[0]:
            parts.release(names)
        return Blocks(layout, q, scale.repeat(repeats, axis=1), offset)

    return Weight(name, packed.shape, layout, rows, row_step=packed.row_step, columns=columns)


def _has_offset(packed: PackedMatrix, middle: int) -> bool:
    return bool((packed.zeros(0, packed.shape[0]) != middle).any())


def _columns(packed: PackedMatrix, parts: Parts) -> NDArray[np.int64] | None:
    """Return the inputs sorted by group, None where they are so already."""
    width, groups = packed.shape[1], packed.groups
    group_size = width // packed.n_groups
    if groups is None or np.array_equal(groups, np.arange(width) // group_size):
        return None
    columns = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[columns], np.arange(width) // group_size):
        reason = f"does not have {group_size} inputs in each of {packed.n_groups} groups"
        raise parts.error("g_idx" if "g_idx" in parts else "weight_g_idx", reason)
    return columns


def unpack_words(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """words: (N, n) -> (N, n * 32 / bits), the lowest bits of each word first."""
    packed = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return packed
    values = np.empty((len(packed), 2 * packed.shape[1]), np.uint8)
    values[:, ::2] = packed & 15
    values[:, 1::2] = packed >> 4
    return values
