r"""A file told by another one: ranges of that, and the bytes that it does not have.

    WPKP1\n   then, to the end:   C offset length   bytes of the base
                                  L length bytes    bytes of its own

Both numbers are eight bytes, the smallest first. What is made for: a few edits in a large file, which
may move all that comes after them, as a new chat template in the header of a GGUF file does. What
comes out is only right if its digest is: whoever applies a patch hashes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from weightpkg.errors import DocumentError

_MAGIC = b"WPKP1\n"
_PIECE = 1024 * 1024
_BLOCK = 4096
_MAX_MIDDLE = 64 * 1024 * 1024
_WINDOW = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Copy:
    """A range of the base."""

    offset: int
    size: int


Operation = Copy | bytes


def make_patch(base: BinaryIO, base_size: int, new: BinaryIO, size: int) -> bytes | None:
    """Return what makes `new` of `base`; None where they have too little in common.

    The beginning and the end that they share are found first; what is between is searched for whole
    blocks of the base, in order.
    """
    shortest = min(base_size, size)
    start = _common_prefix(base, new, shortest)
    end = _common_suffix(base, base_size, new, size, shortest - start)
    if max(base_size, size) - start - end > _MAX_MIDDLE:
        return None
    base.seek(start)
    new.seek(start)
    old_middle = base.read(base_size - start - end)
    middle = _match(old_middle, new.read(size - start - end), start)
    patch = _dump([Copy(0, start), *middle, Copy(base_size - end, end)])
    return patch if len(patch) < size // 2 else None


def _common_prefix(base: BinaryIO, new: BinaryIO, limit: int) -> int:
    base.seek(0)
    new.seek(0)
    done = 0
    while done < limit:
        n = min(_PIECE, limit - done)
        one, other = base.read(n), new.read(n)
        if one != other:
            return done + _n_equal(one, other)
        done += n
    return done


def _common_suffix(base: BinaryIO, base_size: int, new: BinaryIO, size: int, limit: int) -> int:
    done = 0
    while done < limit:
        n = min(_PIECE, limit - done)
        base.seek(base_size - done - n)
        new.seek(size - done - n)
        one, other = base.read(n), new.read(n)
        if one != other:
            return done + _n_equal(one[::-1], other[::-1])
        done += n
    return done


def _n_equal(one: bytes, other: bytes) -> int:
    """How many bytes two pieces begin with in common, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _match(old: bytes, new: bytes, base_offset: int) -> Iterator[Operation]:
    """Yield `new` by blocks of `old` that are in it in the same order, and what is between."""
    position = 0
    for start in range(0, len(old) - _BLOCK + 1, _BLOCK):
        block = old[start : start + _BLOCK]
        found = new.find(block, position, position + _WINDOW)
        if found >= 0:
            if found > position:
                yield new[position:found]
            yield Copy(base_offset + start, _BLOCK)
            position = found + _BLOCK
    if position < len(new):
        yield new[position:]


def _dump(operations: list[Operation]) -> bytes:
    parts = [_MAGIC]
    for operation in _joined(operations):
        if isinstance(operation, Copy):
            parts.append(b"C" + struct.pack("<QQ", operation.offset, operation.size))
        else:
            parts.append(b"L" + struct.pack("<Q", len(operation)) + operation)
    return b"".join(parts)


def _joined(operations: list[Operation]) -> Iterator[Operation]:
    last: Operation = b""
    for operation in operations:
        is_next = (
            isinstance(last, Copy)
            and isinstance(operation, Copy)
            and last.offset + last.size == operation.offset
        )
        if isinstance(last, Copy) and isinstance(operation, Copy) and is_next:
            last = Copy(last.offset, last.size + operation.size)
            continue
        if _size(last):
            yield last
        last = operation
    if _size(last):
        yield last


def _size(operation: Operation) -> int:
    return operation.size if isinstance(operation, Copy) else len(operation)


def apply_patch(patch: bytes, base: BinaryIO, base_size: int, size: int) -> Iterator[bytes]:
    """Yield what a patch makes of a base, piece by piece.

    Args:
        patch: the patch.
        base: an open file.
        base_size: its size.
        size: of what must come out.

    Raises:
        DocumentError: the patch is damaged, or was made to harm.
    """
    done = 0
    for operation in _read(patch):
        done += _size(operation)
        if done > size:
            raise _bad("makes more bytes than it should")
        if not isinstance(operation, Copy):
            yield operation
            continue
        if operation.offset + operation.size > base_size:
            raise _bad("asks for bytes that its base does not have")
        base.seek(operation.offset)
        left = operation.size
        while left:
            piece = base.read(min(left, _PIECE))
            if not piece:
                raise _bad("has a base that has become shorter")
            left -= len(piece)
            yield piece
    if done != size:
        raise _bad("makes fewer bytes than it should")


def _read(patch: bytes) -> Iterator[Operation]:
    if not patch.startswith(_MAGIC):
        raise _bad("is none")
    position = len(_MAGIC)
    while position < len(patch):
        kind = patch[position : position + 1]
        fields = "<QQ" if kind == b"C" else "<Q"
        end = position + 1 + struct.calcsize(fields)
        if kind not in (b"C", b"L") or end > len(patch):
            raise _bad("breaks off, or has a step that is not known")
        numbers = struct.unpack(fields, patch[position + 1 : end])
        position = end
        if kind == b"C":
            yield Copy(*numbers)
            continue
        position = end + numbers[0]
        if position > len(patch):
            raise _bad("breaks off")
        yield patch[end:position]


def _bad(reason: str) -> DocumentError:
    return DocumentError(f"the patch {reason}", hint="make the bundle again")
