"""ONNX files as others made them: parsed without being run, and refused where they could do harm.

A model is a protocol buffer, in which tensors may name files that hold their bytes, and nodes name
operators. Every tensor is looked at wherever it stands (in graphs, subgraphs, functions, attributes,
sparse tensors, training information), as is every node. No file that is named is opened here.

Format: https://github.com/onnx/onnx/blob/v1.19.0/onnx/onnx.in.proto and, for external data,
https://github.com/onnx/onnx/blob/v1.19.0/docs/ExternalData.md
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import FunctionProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from weightpkg.errors import OnnxError, shown
from weightpkg.formats.mapped import HINT_FETCH, map_file
from weightpkg.formats.strangers import recognise
from weightpkg.package import RelativePath

if TYPE_CHECKING:
    from onnx import StringStringEntryProto

MAX_SIZE = 2**31 - 1  # of a protocol buffer

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Operators that onnxruntime has itself; all others would be code from somewhere else."""

_REFUSED_OPERATORS = {
    "EPContext": "holds a program for one processor, or the path of one",
    "PythonOp": "runs Python",
    "PythonOpGrad": "runs Python",
    "TritonOp": "runs a Triton kernel",
}
_KEYS = ("location", "offset", "length", "checksum")
_NUMBER = re.compile(r"[0-9]{1,19}\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Place:
    """A message somewhere in a model. is_sparse: whether it is part of a sparse tensor."""

    message: Message
    is_sparse: bool


def check_model(path: Path, name: str, beside: Mapping[str, Path]) -> tuple[str, ...]:
    """Check a model; return the names of the files that hold its external data, sorted.

    Args:
        path: the model.
        name: what to call it in errors.
        beside: the files that are in its directory, by name.

    Raises:
        OnnxError: it is no ONNX model, or breaks a rule.
    """
    return _Checker(name, beside).check(_parse(path, name))


def _parse(path: Path, name: str) -> ModelProto:
    with map_file(path, name, OnnxError) as content:
        hint = recognise(content[:64], "ONNX")
        if len(content) > MAX_SIZE:
            reason = f"{len(content):,} bytes, more than {MAX_SIZE:,}"
            raise OnnxError(name, "file", reason, hint=hint)
        try:
            model: ModelProto = ModelProto.FromString(memoryview(content))
        except DecodeError as error:
            reason = "is not a protocol buffer of an ONNX model"
            raise OnnxError(name, "file", reason, hint=hint or HINT_FETCH) from error
    if not model.HasField("graph"):
        raise OnnxError(name, "file", "has no graph", hint=hint or HINT_FETCH)
    return model


def _walk(model: ModelProto) -> Iterator[_Place]:
    """Yield every message of a model, at any depth."""
    todo = [_Place(model, is_sparse=False)]
    while todo:
        place = todo.pop()
        yield place
        is_sparse = place.is_sparse or isinstance(place.message, SparseTensorProto)
        todo += (_Place(part, is_sparse) for part in _parts(place.message))


def _parts(message: Message) -> Iterator[Message]:
    for name in _message_fields(message.DESCRIPTOR):
        value: Any = getattr(message, name)
        if not isinstance(value, Message):
            yield from value
        elif message.HasField(name):
            yield value


@cache
def _message_fields(descriptor: Any) -> tuple[str, ...]:
    """Return the fields of a kind of message that are messages, or several of them."""
    return tuple(field.name for field in descriptor.fields if field.message_type is not None)


class _Checker:
    """Looks at each message of one model; `message` is which, for errors."""

    def __init__(self, name: str, beside: Mapping[str, Path]) -> None:
        self._name = name
        self._beside = beside
        self._message: Message = ModelProto()
        self._found: dict[str, int] = {}

    def _error(self, reason: str, *, hint: str | None = None) -> OnnxError:
        return OnnxError(self._name, _describe(self._message), reason, hint=hint)

    def check(self, model: ModelProto) -> tuple[str, ...]:
        for place in _walk(model):
            message = place.message
            self._message = message
            # whoever reads the file may know what onnx does not: that would not have been checked
            if len(UnknownFieldSet(message)):
                hint = "a newer version of the package `onnx` may know it"
                raise self._error("has a field that is not known", hint=hint)
            if isinstance(message, NodeProto):
                self._check_operator(message.domain, message.op_type)
            elif isinstance(message, FunctionProto):
                self._check_operator(message.domain, message.name)
            elif isinstance(message, TensorProto):
                self._check_tensor(message, is_sparse=place.is_sparse)
        return tuple(sorted(self._found))

    def _check_operator(self, domain: str, operator: str) -> None:
        if domain not in DOMAINS:
            raise self._error(
                f"is of the domain {_quoted(domain)}, whose operators onnxruntime does not have",
                hint="operators of other domains need code that nobody verified",
            )
        if operator in _REFUSED_OPERATORS:
            raise self._error(f"operator {operator} {_REFUSED_OPERATORS[operator]}")

    def _check_tensor(self, tensor: TensorProto, *, is_sparse: bool) -> None:
        if any(size < 0 for size in tensor.dims):
            raise self._error(f"shape {shown(str(list(tensor.dims)))} has a negative number")
        is_external = tensor.data_location == TensorProto.EXTERNAL
        if not is_external and not tensor.external_data:
            return
        if not is_external:
            raise self._error("names external data and says that it has none")
        if is_sparse:
            raise self._error("is part of a sparse tensor, which cannot have external data")
        if tensor.data_type == TensorProto.STRING:
            raise self._error("has strings, which cannot be external data")
        if tensor.HasField("raw_data"):
            raise self._error("has its bytes in the model and in external data")
        self._check_external(self._read_entries(tensor.external_data))

    def _read_entries(self, entries: Iterable[StringStringEntryProto]) -> dict[str, str]:
        found: dict[str, str] = {}
        for entry in entries:
            if entry.key not in _KEYS:
                raise self._error(f"external data has the key {_quoted(entry.key)}")
            if entry.key in found:
                raise self._error(f"external data has the key `{entry.key}` twice")
            found[entry.key] = entry.value
        return found

    def _check_external(self, entries: dict[str, str]) -> None:
        location = entries.get("location", "")
        if not _is_plain_name(location):
            raise self._error(f"external data is in {_quoted(location)}, which is not a plain name")
        size = self._size(location)
        offset = self._number(entries.get("offset", "0"), "offset")
        length = self._number(entries.get("length", str(max(0, size - offset))), "length")
        if offset + length > size:
            raise self._error(
                f"external data is at {offset:,} to {offset + length:,} of `{location}`, "
                f"which has {size:,} bytes",
                hint=HINT_FETCH,
            )

    def _size(self, location: str) -> int:
        """Return the bytes of a file of external data, which must be there and be a plain file."""
        if location not in self._found:
            path = self._beside.get(location)
            if path is None:
                raise self._error(
                    f"external data is in `{location}`, which is not one of the model's files",
                    hint="install the model with all of its files",
                )
            entry = path.lstat()
            if not stat.S_ISREG(entry.st_mode):
                raise self._error(f"external data is in `{location}`, which is not a regular file")
            self._found[location] = entry.st_size
        return self._found[location]

    def _number(self, text: str | bytes, key: str) -> int:
        if not isinstance(text, str) or not _NUMBER.match(text):
            raise self._error(f"external data has {key} {_quoted(text)}, which is not a number")
        return int(text)


def _describe(message: Message) -> str:
    kind = message.DESCRIPTOR.name.removesuffix("Proto").lower()
    if isinstance(message, NodeProto):
        return f"node {_quoted(message.name or message.op_type)}"
    name = getattr(message, "name", "")
    return f"{kind} {_quoted(name)}" if name else kind


def _quoted(text: str | bytes) -> str:
    """Quote what a stranger wrote; protobuf gives bytes for what is not UTF-8."""
    content = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return f"`{shown(content if content.isprintable() else ascii(content)[1:-1])}`"


def _is_plain_name(location: str | bytes) -> bool:
    if not isinstance(location, str) or "/" in location:
        return False
    try:
        RelativePath(location)
    except ValueError:
        return False
    return True
