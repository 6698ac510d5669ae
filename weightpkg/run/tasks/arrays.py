"""Arrays in files of strangers: .npy, .npz and JSON, read in bounds and without running anything.

A .npy header is a literal of Python; only the one form that NumPy writes is taken, by a pattern and not
by evaluation. Objects are pickles, and are refused.
https://numpy.org/doc/2.3/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from weightpkg.errors import RunError, shown
from weightpkg.formats.json_text import read_json

if TYPE_CHECKING:
    from weightpkg.run.tasks.tensors import Array, Feed

MAX_BYTES = 2**30
"""Of a file, and of what it holds."""

_MAX_HEADER = 4096
_MAX_JSON = 64 * 1024 * 1024
_MAX_JSON_MARKS = 16 * 1024 * 1024
_MAX_MEMBERS = 256
_MAX_DIMS = 32
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{1,16})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]*)\), \} *\n?\Z",
    re.ASCII,
)
_DESCR = re.compile(r"[<>|=](b1|i[1248]|u[1248]|f[248]|U[1-9][0-9]{0,5})\Z", re.ASCII)


def read_array(path: Path) -> Array:
    """Read a .npy file.

    Raises:
        RunError: there is none, it is malformed or too large, or holds objects.
    """
    with _opened(path) as stream:
        return _read_npy(stream, f"`{path}`")


def npy_bytes(array: Array) -> bytes:
    """Return an array as the content of a .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a .npz file: arrays by their names; errors as `read_array`."""
    with _opened(path) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                return _read_members(archive, path)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, RuntimeError, struct.error) as error:  # fmt: skip
            raise RunError(f"`{path}` is not a .npz file: {error}") from error


def _read_members(archive: zipfile.ZipFile, path: Path) -> dict[str, Array]:
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise RunError(f"`{path}` has {len(members):,} arrays, more than {_MAX_MEMBERS}")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise RunError(f"`{path}` unpacks to {total:,} bytes, more than {MAX_BYTES:,}")
    found = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        where = f"`{path}`, array `{shown(name)}`"
        if name in found or name == member.filename:
            raise RunError(f"{where}: is there twice, or is not a .npy file")
        with archive.open(member) as packed:
            # what a member says of its size is not believed: no more than that is unpacked
            content = packed.read(member.file_size + 1)
        if len(content) != member.file_size:
            raise RunError(f"{where}: is not of the size that the archive says")
        found[name] = _read_npy(io.BytesIO(content), where)
    return found


def read_json_value(path: Path) -> Feed:
    """Read a JSON file: a number, a string, or lists of them.

    Raises:
        RunError: there is none, it is malformed or too large, or is something else.
    """
    with _opened(path) as stream:
        content = stream.read(_MAX_JSON + 1)
    if len(content) > _MAX_JSON:
        raise RunError(f"`{path}` has more than {_MAX_JSON:,} bytes of JSON", hint="use .npy")
    return json_value(content, f"`{path}`")


def json_value(content: bytes, where: str) -> Feed:
    """Return what a text of JSON says, with errors as `read_json_value`."""
    try:
        value = read_json(content, max_marks=_MAX_JSON_MARKS)
    except ValueError as error:
        raise RunError(f"{where}: {error}") from error
    if value is None or isinstance(value, dict):
        raise RunError(f"{where} is not a number, a string, or a list")
    return value


def _opened(path: Path) -> IO[bytes]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror}") from error
    size = path.stat().st_size
    if not path.is_file() or size > MAX_BYTES:
        stream.close()
        what = f"has {size:,} bytes, more than {MAX_BYTES:,}" if path.is_file() else "is no file"
        raise RunError(f"`{path}` {what}")
    return stream


def _read_npy(stream: IO[bytes], where: str) -> Array:
    dtype, shape, is_fortran = _read_header(stream, where)
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_BYTES:
        raise RunError(f"{where}: has {size:,} bytes of numbers, more than {MAX_BYTES:,}")
    content = stream.read(size + 1)
    if len(content) != size:
        found = f"{len(content):,}" if len(content) < size else "more"
        raise RunError(f"{where}: has {found} bytes of numbers, not {size:,}")
    try:
        array = np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")
        native: Array = np.ascontiguousarray(array, dtype.newbyteorder("=")).reshape(shape)
    except (ValueError, OverflowError) as error:  # of no numbers, and too many for an index
        raise RunError(f"{where}: {error}") from error
    if native.dtype.kind == "U":
        _check_characters(native, where)
    return native


def _check_characters(array: Array, where: str) -> None:
    """NumPy keeps four bytes for a character, and looks at none of them before it is used."""
    codes = array.reshape(-1).view(np.uint32)
    if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise RunError(f"{where}: a string is not Unicode")


def _read_header(stream: IO[bytes], where: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    start = stream.read(8)
    if len(start) < 8 or not start.startswith(_MAGIC):
        kind = "a Python pickle" if start[:1] == b"\x80" else "not a .npy file"
        raise RunError(f"{where}: is {kind}", hint="numpy.save(path, array, allow_pickle=False)")
    form = {1: "<H", 2: "<I", 3: "<I"}.get(start[6])
    if form is None:
        raise RunError(f"{where}: is of version {start[6]} of the format, which is not known")
    length = stream.read(struct.calcsize(form))
    size = struct.unpack(form, length)[0] if len(length) == struct.calcsize(form) else 0
    if size > _MAX_HEADER:
        raise RunError(f"{where}: has a header of {size:,} bytes, more than {_MAX_HEADER:,}")
    text = stream.read(size).decode("latin-1")
    found = _HEADER.match(text)
    descr = found["descr"] if found else ""
    if "'descr': '|O'" in text:
        raise RunError(f"{where}: holds Python objects, a pickle, which is not read")
    if found is None or not _DESCR.match(descr):
        raise RunError(f"{where}: has a header that is not of numbers or strings: {shown(text)!r}")
    numbers = [part.strip() for part in found["shape"].split(",") if part.strip()]
    if len(numbers) > _MAX_DIMS or not all(n.isdigit() and len(n) < 16 for n in numbers):
        raise RunError(f"{where}: has a shape that no array has: {shown(found['shape'])}")
    return np.dtype(descr), tuple(map(int, numbers)), found["fortran"] == "True"
