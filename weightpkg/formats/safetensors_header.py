"""The header of a safetensors file: read strictly, trusting no number in it.

    8 bytes   size of the header, little-endian
    header    JSON: {"NAME": {"dtype": "F16", "shape": [1, 16], "data_offsets": [0, 32]}, ...}
    data      tensors one after the other, without overlap or holes, to the end of the file

What is accepted here, the reference implementation accepts too, and reads alike. It takes the last
of two tensors of the same name, and fields that it does not know; here both are refused.
https://github.com/huggingface/safetensors/blob/24b0b285/README.md#format
https://github.com/huggingface/safetensors/blob/24b0b285/safetensors/src/tensor.rs
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass

from weightpkg.errors import SafetensorsError, shown
from weightpkg.formats.json_text import JSON, read_json
from weightpkg.formats.mapped import HINT_FETCH
from weightpkg.formats.strangers import recognise
from weightpkg.tensor import DenseLayout

MAX_HEADER_SIZE = 25_000_000
MAX_PADDING = 64 * 1024
MAX_NAME_LENGTH = 512
MAX_DIMS = 64  # of an array of numpy

_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_SIZE = struct.Struct("<Q")
_WHITESPACE = b" \t\n\r"


@dataclass(frozen=True, slots=True)
class SafetensorsType:
    """A number format: `bits` a weight.

    words: numpy's type of the same number, or, where it has none, of a word that holds its bits.
    layout: what its numbers become, None where they cannot be converted yet.
    """

    name: str
    bits: int
    words: str
    layout: DenseLayout | None = None


_TYPES = [
    SafetensorsType("F64", 64, "<f8"),
    SafetensorsType("F32", 32, "<f4", DenseLayout("float32")),
    SafetensorsType("F16", 16, "<f2", DenseLayout("float16")),
    SafetensorsType("BF16", 16, "<u2", DenseLayout("bfloat16")),
    SafetensorsType("I64", 64, "<i8"),
    SafetensorsType("I32", 32, "<i4"),
    SafetensorsType("I16", 16, "<i2"),
    SafetensorsType("I8", 8, "i1"),
    SafetensorsType("U64", 64, "<u8"),
    SafetensorsType("U32", 32, "<u4"),
    SafetensorsType("U16", 16, "<u2"),
    SafetensorsType("U8", 8, "u1"),
    SafetensorsType("BOOL", 8, "?"),
    SafetensorsType("C64", 64, "<c8"),
    SafetensorsType("F8_E4M3", 8, "u1"),
    SafetensorsType("F8_E5M2", 8, "u1"),
    SafetensorsType("F8_E8M0", 8, "u1"),
    SafetensorsType("F8_E4M3FNUZ", 8, "u1"),
    SafetensorsType("F8_E5M2FNUZ", 8, "u1"),
    SafetensorsType("F6_E2M3", 6, "u1"),
    SafetensorsType("F6_E3M2", 6, "u1"),
    SafetensorsType("F4", 4, "u1"),
]
SAFETENSORS_TYPES = {kind.name: kind for kind in _TYPES}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """Where a tensor lies. start: from the start of the file.

    A tensor is made of rows along its last axis; one with a single axis, or none, is one row.
    """

    name: str
    dtype: SafetensorsType
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def n_rows(self) -> int:
        """The product of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return math.prod(self.shape[-1:]) * self.dtype.bits // 8


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the tensors' bytes, and how many bytes that takes.

    tensors: as they lie in the file.
    """

    metadata: dict[str, str]
    tensors: dict[str, SafetensorsTensor]
    size: int


def read_header(name: str, content: mmap.mmap | bytes) -> Header:
    """Read the header of a file.

    Args:
        name: what to call the file in errors.
        content: the whole file.

    Raises:
        SafetensorsError: it is no safetensors file, or breaks a rule of the format.
    """
    return _Reader(name, content).read()


def is_tensor_name(name: str) -> bool:
    """Whether a tensor may be called so: printable, not overlong, and no way out of a directory."""
    is_plain = 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable()
    return is_plain and name != _METADATA and ".." not in re.split(r"[/\\]", name)


class _Reader:
    """Reads a header; `place` is what is being read, for errors."""

    def __init__(self, name: str, content: mmap.mmap | bytes) -> None:
        self._name = name
        self._content = content
        self._place = "header"

    def _error(self, reason: str, *, hint: str | None = None) -> SafetensorsError:
        return SafetensorsError(self._name, self._place, reason, hint=hint)

    def read(self) -> Header:
        text = self._read_text()
        fields = self._read_fields(text)
        metadata = self._read_metadata(fields.pop(_METADATA, {}))
        data_start = _SIZE.size + len(text)
        tensors = [self._read_tensor(name, entry, data_start) for name, entry in fields.items()]
        # an empty tensor begins where the next one does
        tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
        self._check_layout(tensors, data_start)
        return Header(metadata, {tensor.name: tensor for tensor in tensors}, data_start)

    def _read_text(self) -> bytes:
        content, rest = self._content, len(self._content) - _SIZE.size
        start = content[:64]
        if start[_SIZE.size : _SIZE.size + 1].strip(b"{" + _WHITESPACE):
            hint = recognise(start, "safetensors")
            raise self._error("does not begin with its size and `{`", hint=hint)
        if rest < 0:
            hint = recognise(start, "safetensors") or HINT_FETCH
            raise self._error(f"the file ends after {len(start)} bytes", hint=hint)
        size: int = _SIZE.unpack_from(content)[0]
        if size > MAX_HEADER_SIZE:
            hint = recognise(start, "safetensors")
            raise self._error(f"{size:,} bytes, more than {MAX_HEADER_SIZE:,}", hint=hint)
        if size > rest:
            raise self._error(f"{size:,} bytes, but the file ends after {rest:,}", hint=HINT_FETCH)
        return content[_SIZE.size : _SIZE.size + size]

    def _read_fields(self, text: bytes) -> dict[str, JSON]:
        # The format's text allows no whitespace in front, but there are files aligned to a page
        # by it, and the reference reads them.
        padding = len(text) - len(text.strip(_WHITESPACE))
        if padding > MAX_PADDING:
            raise self._error(f"{padding:,} bytes of whitespace, more than {MAX_PADDING:,}")
        try:
            fields = read_json(text)
        except ValueError as error:
            raise self._error(str(error)) from error
        if not isinstance(fields, dict):
            raise self._error("is not an object")
        return fields

    def _read_metadata(self, values: JSON) -> dict[str, str]:
        self._place = f"`{_METADATA}`"
        if not isinstance(values, dict):
            raise self._error("is not an object")
        metadata: dict[str, str] = {}
        for key, value in values.items():
            if not isinstance(value, str):
                raise self._error(f"the value of {shown(key)!r} is not a string")
            metadata[key] = value
        return metadata

    def _read_tensor(self, name: str, entry: JSON, data_start: int) -> SafetensorsTensor:
        self._place = "header"
        if not is_tensor_name(name):
            raise self._error(
                f"the tensor name {shown(name)!r} is empty, not printable, a path, "
                f"or longer than {MAX_NAME_LENGTH}"
            )
        self._place = f"tensor `{shown(name)}`"
        if not isinstance(entry, dict) or entry.keys() != _FIELDS:
            raise self._error("is not an object of dtype, shape and data_offsets alone")
        dtype = self._read_dtype(entry["dtype"])
        shape = self._read_numbers("shape", entry["shape"])
        offsets = self._read_numbers("data_offsets", entry["data_offsets"])
        size = self._byte_size(dtype, shape)
        if len(offsets) != 2 or offsets[1] - offsets[0] != size:
            raise self._error(
                f"data_offsets {_listed(offsets)} where dtype and shape take {size:,} bytes"
            )
        return SafetensorsTensor(name, dtype, shape, data_start + offsets[0], size)

    def _read_dtype(self, name: JSON) -> SafetensorsType:
        if not isinstance(name, str):
            raise self._error("dtype is not a string")
        kind = SAFETENSORS_TYPES.get(name)
        if kind is None:
            raise self._error(
                f"there is no dtype {shown(name)!r}", hint="a newer weightpkg may know it"
            )
        return kind

    def _read_numbers(self, field: str, values: JSON) -> tuple[int, ...]:
        # to Python true is also a whole number; in JSON it is not
        if not isinstance(values, list) or not all(type(value) is int for value in values):
            raise self._error(f"{field} is not an array of whole numbers")
        numbers = tuple(value for value in values if isinstance(value, int))
        if len(numbers) > MAX_DIMS:
            raise self._error(f"{field} has {len(numbers):,} numbers, more than {MAX_DIMS}")
        if min(numbers, default=0) < 0:
            raise self._error(f"{field} {_listed(numbers)} has a negative number")
        return numbers

    def _byte_size(self, dtype: SafetensorsType, shape: tuple[int, ...]) -> int:
        # a tensor may be empty, but none of its other dimensions may overflow either
        if math.prod(max(1, size) for size in shape) * dtype.bits >= 2**63:
            raise self._error(f"shape {_listed(shape)} is too large to count")
        if math.prod(shape[-1:]) * dtype.bits % 8:
            raise self._error(
                f"a row of shape {_listed(shape)} is not made of whole bytes ({dtype.name})"
            )
        return math.prod(shape) * dtype.bits // 8

    def _check_layout(self, tensors: list[SafetensorsTensor], data_start: int) -> None:
        end = data_start
        for tensor in tensors:
            if tensor.start != end:
                self._place = f"tensor `{shown(tensor.name)}`"
                raise self._error(
                    f"begins at {tensor.start - data_start:,} where {end - data_start:,} must be: "
                    "tensors lie one after the other, without overlap or holes"
                )
            end += tensor.nbytes
        self._place = "file"
        size = len(self._content)
        if end > size:
            raise self._error(
                f"ends after {size:,} bytes, but its tensors after {end:,}", hint=HINT_FETCH
            )
        if end < size:
            raise self._error(f"{size - end:,} bytes that belong to no tensor")


def _listed(numbers: tuple[int, ...]) -> str:
    return shown(str(list(numbers)))
