"""The header of a GGUF file, versions 2 and 3: read strictly, trusting no number in it.

It is read from front to back in time and memory proportional to its own size, and each length is
checked against the bytes that are left before it is used. Tensors lie one after the other without
overlap or holes, inside the file; their names never become paths. What is accepted here, the
reference implementation accepts too.
https://github.com/ggml-org/ggml/blob/v0.9.3/docs/gguf.md
https://github.com/ggml-org/llama.cpp/blob/b6700/ggml/src/gguf.cpp
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from dataclasses import dataclass, replace

from weightpkg.errors import GGUFError, shown
from weightpkg.formats.ggml import GGML_TYPES, GGMLType
from weightpkg.formats.mapped import HINT_FETCH
from weightpkg.formats.strangers import recognise

Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]

MAX_HEADER_SIZE = 256 * 1024 * 1024
MAX_COUNT = 65_536
MAX_KEY_SIZE = 64 * 1024
MAX_NAME_SIZE = 63
MAX_ALIGNMENT = 65_536
# A list of Python objects takes several times its bytes in the file, so all arrays together are
# bounded as well: a vocabulary of 262,144 tokens with scores, types and merges has 1.3 million.
MAX_ARRAY_ELEMENTS = 4 * 1024 * 1024

_DEFAULT_ALIGNMENT = 32

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_TENSOR_END = struct.Struct("<IQ")  # type, offset

# `enum gguf_type`; 8 is a string and 9 an array
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: _U32,
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_UINT32, _STRING, _ARRAY = 4, 8, 9


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies. shape: rows first, (out, in); offset: from the start of the file.

    A tensor is made of rows along its last axis; one with a single axis is one row.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row."""
        return self.shape[-1] // self.type.block_size * self.type.type_size


@dataclass(frozen=True, slots=True)
class Header:
    """All that stands before the tensors' bytes, and how many bytes that takes."""

    metadata: dict[str, Value]
    tensors: dict[str, GGUFTensor]
    size: int


def read_header(name: str, content: mmap.mmap | bytes) -> Header:
    """Read the header of a file.

    Args:
        name: what to call the file in errors.
        content: the whole file.

    Raises:
        GGUFError: it is no GGUF file, or breaks a rule of the format.
    """
    return _Reader(name, content).read()


class _Reader:
    """Reads the header from front to back; `place` is what is being read, for errors."""

    def __init__(self, name: str, content: mmap.mmap | bytes) -> None:
        self._position = 0
        self._name = name
        self._content = content
        self._size = len(content)
        self._end = min(self._size, MAX_HEADER_SIZE)
        self._place = "header"
        self._elements = 0

    def _error(self, reason: str, *, hint: str | None = None) -> GGUFError:
        return GGUFError(self._name, self._place, reason, hint=hint)

    def read(self) -> Header:
        self._read_version()
        n_tensors = self._read_count("tensors")
        n_metadata = self._read_count("metadata keys")
        metadata: dict[str, Value] = {}
        alignment = _DEFAULT_ALIGNMENT
        for i in range(n_metadata):
            key, kind, value = self._read_pair(i, metadata)
            if key == "general.alignment":
                alignment = self._check_alignment(kind, value)
            elif key == "split.count" and isinstance(value, int) and value > 1:
                raise self._error(
                    f"the file is one part of {value}, which cannot be read yet",
                    hint="join the parts with llama.cpp's `llama-gguf-split --merge`",
                )
            metadata[key] = value
        tensors = self._read_tensors(n_tensors, alignment)
        return Header(metadata, tensors, self._position)

    def _need(self, size: int, what: str) -> None:
        """Refuse what does not fit into the rest of the header."""
        if size > self._end - self._position:
            if size <= self._size - self._position:
                raise self._error(f"the header is larger than {MAX_HEADER_SIZE:,} bytes")
            raise self._error(
                f"{what} of {size:,} bytes, but the file ends after {self._size - self._position:,}",
                hint=HINT_FETCH,
            )

    def _unpack(self, form: struct.Struct) -> tuple[int, ...]:
        self._need(form.size, "a number")
        values: tuple[int, ...] = form.unpack_from(self._content, self._position)
        self._position += form.size
        return values

    def _read_number(self, form: struct.Struct) -> int:
        return self._unpack(form)[0]

    def _read_string(self, what: str, limit: int = MAX_HEADER_SIZE) -> str:
        size = self._read_number(_U64)
        if size > limit:
            raise self._error(f"{what} of {size:,} bytes, more than {limit:,}")
        self._need(size, what)
        start, self._position = self._position, self._position + size
        try:
            return self._content[start : self._position].decode()
        except UnicodeDecodeError as error:
            raise self._error(f"{what} is not UTF-8 at byte {error.start}") from error

    def _read_version(self) -> None:
        start = self._content[:64]
        if not start.startswith(b"GGUF"):
            found = f"does not begin with `GGUF` but with {start[:4]!r}"
            is_cut_off = b"GGUF".startswith(start)
            raise self._error(found, hint=HINT_FETCH if is_cut_off else recognise(start, "GGUF"))
        self._position = 4
        version = self._read_number(_U32)
        if version & 0xFFFF == 0 and version:
            raise self._error(
                "the numbers are big-endian",
                hint="gguf-py's `gguf_convert_endian.py` makes a little-endian file",
            )
        if version not in (2, 3):
            raise self._error(f"version {version} is not known, only 2 and 3")

    def _read_count(self, what: str) -> int:
        count = self._read_number(_U64)
        if count > MAX_COUNT:
            raise self._error(f"{count:,} {what}, more than {MAX_COUNT:,}")
        return count

    def _read_pair(self, i: int, known: dict[str, Value]) -> tuple[str, int, Value]:
        self._place = f"metadata key {i}"
        key = self._read_string("a key", MAX_KEY_SIZE)
        if not key or not key.isascii() or not key.isprintable():
            raise self._error(f"the key {shown(key)!r} is not printable ASCII")
        self._place += f" `{shown(key)}`"
        if key in known:
            raise self._error("the key is there twice")
        kind = self._read_number(_U32)
        if kind == _STRING:
            return key, kind, self._read_string("a string")
        if kind == _ARRAY:
            return key, kind, self._read_array()
        if kind not in _SCALARS:
            raise self._error(f"there is no value type {kind}")
        return key, kind, self._read_number(_SCALARS[kind])

    def _read_array(self) -> Value:
        kind = self._read_number(_U32)
        count = self._read_number(_U64)
        if kind == _ARRAY:
            raise self._error("an array of arrays")
        if kind != _STRING and kind not in _SCALARS:
            raise self._error(f"there is no value type {kind}")
        self._need(count * (8 if kind == _STRING else _SCALARS[kind].size), "an array")
        self._elements += count
        if self._elements > MAX_ARRAY_ELEMENTS:
            raise self._error(f"more than {MAX_ARRAY_ELEMENTS:,} array elements in all")
        if kind == _STRING:
            return self._read_strings(count)
        form = struct.Struct(f"<{count}{_SCALARS[kind].format[1:]}")
        return list(self._unpack(form))

    def _read_strings(self, count: int) -> list[str]:
        """As many times `_read_string`, made for vocabularies: 0.4 microseconds each."""
        content, end, position = self._content, self._end, self._position
        unpack = _U64.unpack_from
        strings: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(content, position)[0]
                if position > end:
                    break
                strings.append(content[start:position].decode())
        except UnicodeDecodeError as error:
            raise self._error(f"element {len(strings)} is not UTF-8") from error
        except struct.error:
            position = end + 1
        if position > end:
            raise self._error(f"element {len(strings)} goes past the end", hint=HINT_FETCH)
        self._position = position
        return strings

    def _check_alignment(self, kind: int, value: Value) -> int:
        if kind != _UINT32 or not isinstance(value, int):
            raise self._error("must be a uint32")
        if not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
            raise self._error(f"must be a power of two from 1 to {MAX_ALIGNMENT:,}, not {value}")
        return value

    def _read_tensors(self, count: int, alignment: int) -> dict[str, GGUFTensor]:
        tensors: dict[str, GGUFTensor] = {}
        expected = 0  # where the next tensor begins, counted from the start of the data
        for i in range(count):
            tensor = self._read_tensor(i, tensors)
            if tensor.offset != expected:
                raise self._error(
                    f"offset {tensor.offset:,} where {expected:,} must be: "
                    "tensors lie one after the other, without overlap or holes"
                )
            tensors[tensor.name] = tensor
            expected = _align(tensor.offset + tensor.size, alignment)
        start = _align(self._position, alignment)
        for i, tensor in enumerate(tensors.values()):
            self._place = f"tensor {i} `{tensor.name}`"
            self._check_end(start + tensor.offset + tensor.size)
            tensors[tensor.name] = replace(tensor, offset=start + tensor.offset)
        return tensors

    def _read_tensor(self, i: int, known: dict[str, GGUFTensor]) -> GGUFTensor:
        """Read a tensor; its offset is not yet that in the file."""
        self._place = f"tensor {i}"
        name = self._read_string("a name", MAX_NAME_SIZE)
        if not name or not name.isprintable() or ".." in re.split(r"[/\\]", name):
            raise self._error(f"the name {name!r} is not printable, or a path")
        self._place += f" `{name}`"
        if name in known:
            raise self._error("the name is there twice")
        n_dims = self._read_number(_U32)
        if not 1 <= n_dims <= 4:
            raise self._error(f"{n_dims:,} dimensions, not 1 to 4")
        shape = self._unpack(struct.Struct(f"<{n_dims}q"))[::-1]  # ggml has the row first
        number, offset = self._unpack(_TENSOR_END)
        kind = GGML_TYPES.get(number)
        if kind is None:
            raise self._error(
                f"there is no tensor type {number}", hint="a newer weightpkg may know it"
            )
        return GGUFTensor(name, kind, shape, offset, self._byte_size(kind, shape))

    def _byte_size(self, kind: GGMLType, shape: tuple[int, ...]) -> int:
        if min(shape) < 0:
            raise self._error(f"shape {shape} has a negative dimension")
        # a tensor may be empty, but none of its other dimensions may overflow either
        if math.prod(max(1, size) for size in shape) * kind.type_size >= 2**63:
            raise self._error(f"shape {shape} is too large to count")
        if shape[-1] % kind.block_size:
            raise self._error(
                f"rows of {shape[-1]:,} cannot be made of blocks of {kind.block_size} ({kind.name})"
            )
        return math.prod(shape) // kind.block_size * kind.type_size

    def _check_end(self, end: int) -> None:
        if end > self._size:
            raise self._error(
                f"ends at byte {end:,}, but the file after {self._size:,}", hint=HINT_FETCH
            )


def _align(position: int, alignment: int) -> int:
    return (position + alignment - 1) // alignment * alignment
