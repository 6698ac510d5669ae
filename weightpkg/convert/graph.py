"""An ONNX graph being built, and its file with external data being written.

Knows ONNX and nothing of models. The graph is small and lives in memory; weights are promised as
`Payload`s and streamed to `model.onnx.data` one slice at a time when the graph is saved, in the
order in which they were promised. The same calls give the same bytes on every machine: names are
counted, nothing is dated, offsets are aligned by one rule.

Format: https://github.com/onnx/onnx/blob/v1.19.0/onnx/onnx.in.proto and, for external data,
https://github.com/onnx/onnx/blob/v1.19.0/docs/ExternalData.md
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

import numpy as np
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import NodeProto, ValueInfoProto

Value = NewType("Value", str)
"""The name of a tensor in the graph."""

Dim = int | str
Slices = Callable[[], Iterator["NDArray[np.generic]"]]

DATA_FILE = "model.onnx.data"
IR_VERSION = 10
OPSETS = {"": 18, "com.microsoft": 1}

# Readers map the file: what begins on a page boundary can be used in place.
_ALIGNMENT = 4096
_ZEROS = bytes(_ALIGNMENT)

_ELEMENT_TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.float64): TensorProto.DOUBLE,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}


class Sink(Protocol):
    """Takes the bytes of the data file, in order."""

    def write(self, data: memoryview | bytes, /) -> object:
        """Take the next bytes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The type and shape of one initializer."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Payload:
    """Several tensors that one pass over a weight makes.

    `slices` yields their contents in order, in pieces of any shape; a piece belongs to one tensor.
    """

    tensors: tuple[Tensor, ...]
    slices: Slices


@dataclass(frozen=True, slots=True)
class External:
    """Where an initializer's bytes are in a file beside the model; another one may share them."""

    value: Value
    offset: int
    size: int
    location: str = DATA_FILE


class Graph:
    """A graph under construction."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[NodeProto] = []
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._initializers: list[TensorProto] = []
        self._payloads: list[tuple[int, Payload]] = []
        self._names: Counter[str] = Counter()
        self._data_size = 0
        self._locations: set[str] = set()
        self._externals: dict[str, External] = {}

    def input(self, name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> Value:
        """Declare an input of the model."""
        self._inputs.append(_value_info(name, dtype, shape))
        return Value(name)

    def output(self, value: Value, dtype: type[np.generic], shape: Sequence[Dim]) -> None:
        """Declare a value to be an output of the model."""
        self._outputs.append(_value_info(value, dtype, shape))

    def optional_input(self, name: str, default: NDArray[np.generic]) -> Value:
        """Declare an input that has a value when nobody feeds it."""
        self.input(name, default.dtype.type, default.shape)
        self._initializers.append(numpy_helper.from_array(default, name))
        return Value(name)

    def op(
        self,
        op_type: str,
        inputs: Sequence[Value | None],
        *,
        outputs: int | Sequence[str | None] = 1,
        domain: str = "",
        attributes: Mapping[str, int | float | str | Sequence[int]] | None = None,
    ) -> tuple[Value, ...]:
        """Add a node; return its outputs.

        Args:
            op_type: the operator's name.
            inputs: None stands for an optional input that is left out.
            outputs: how many, or their names (None: not wanted).
            domain: the operator's domain.
            attributes: the operator's attributes.
        """
        name = self._fresh(op_type)
        if isinstance(outputs, int):
            values = [name if outputs == 1 else f"{name}.{i}" for i in range(outputs)]
        else:
            values = [value or "" for value in outputs]
        node = helper.make_node(
            op_type,
            [value or "" for value in inputs],
            values,
            name=name,
            domain=domain,
        )
        for key, setting in sorted((attributes or {}).items()):
            node.attribute.append(helper.make_attribute(key, setting))
        self._nodes.append(node)
        return tuple(Value(value) for value in values if value)

    def constant(self, array: NDArray[np.generic], name: str = "constant") -> Value:
        """Add a small tensor that is kept in the graph itself."""
        value = Value(self._fresh(name))
        self._initializers.append(numpy_helper.from_array(array, value))
        return value

    def external(self, name: str, payload: Payload) -> tuple[External, ...]:
        """Promise tensors whose bytes go to the data file when the graph is saved."""
        places = []
        first = self._data_size
        for i, tensor in enumerate(payload.tensors):
            value = Value(self._fresh(name if i == 0 else f"{name}.{i}"))
            offset = -(-self._data_size // _ALIGNMENT) * _ALIGNMENT
            first = offset if i == 0 else first
            external = External(value, offset, tensor.size)
            places.append(external)
            self._add_external(value, tensor, external)
            self._data_size = offset + tensor.size
        self._payloads.append((first, payload))
        return tuple(places)

    def in_place(self, name: str, tensor: Tensor, location: str, offset: int) -> External:
        """Point to bytes of a file that is to lie beside the model, as it is.

        Args:
            name: of the initializer.
            tensor: its type and shape.
            location: the file's name.
            offset: of the first byte.
        """
        value = Value(self._fresh(name))
        external = External(value, offset, tensor.size, location)
        self._add_external(value, tensor, external)
        self._locations.add(location)
        return external

    def share(self, external: External, shape: tuple[int, ...], dtype: type[np.generic]) -> Value:
        """Give the bytes of an external tensor a second name and shape.

        Raises:
            ValueError: the shape does not have the same number of bytes.
        """
        tensor = Tensor(np.dtype(dtype), shape)
        if tensor.size != external.size:
            raise ValueError(f"{shape} has {tensor.size} bytes, not {external.size}")
        value = Value(self._fresh(f"{external.value}.shared"))
        self._add_external(value, tensor, external)
        return value

    def find_external(self, name: str) -> External | None:
        """Return an external tensor by its name in the graph, None if there is none."""
        return self._externals.get(name)

    def _add_external(self, value: Value, tensor: Tensor, external: External) -> None:
        self._externals.setdefault(value, external)
        proto = TensorProto(
            name=value,
            data_type=_ELEMENT_TYPES[tensor.dtype],
            dims=tensor.shape,
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": external.location, "offset": external.offset, "length": tensor.size}
        for key, text in place.items():
            proto.external_data.add(key=key, value=str(text))
        self._initializers.append(proto)

    def _fresh(self, name: str) -> str:
        self._names[name] += 1
        count = self._names[name]
        return name if count == 1 else f"{name}_{count}"

    @property
    def data_size(self) -> int:
        """Bytes of the data file that `write_data` will write."""
        return self._data_size

    @property
    def held_size(self) -> int:
        """Bytes of the most that a payload collects while its first tensor is written."""
        tensors = (payload.tensors[1:] for _, payload in self._payloads)
        return max((sum(tensor.size for tensor in some) for some in tensors), default=0)

    @property
    def locations(self) -> list[str]:
        """The files, beside the data file, that the graph points into."""
        return sorted(self._locations)

    def write_data(self, sink: Sink) -> None:
        """Stream the promised bytes.

        Raises:
            ValueError: a payload made more or fewer bytes than it had promised.
        """
        position = 0
        for offset, payload in self._payloads:
            sink.write(_ZEROS[: offset - position])
            position = offset
            slices = payload.slices()
            for tensor in payload.tensors:
                padding = -position % _ALIGNMENT
                sink.write(_ZEROS[:padding])
                _copy_exactly(slices, tensor.size, sink)
                position += padding + tensor.size
            if next(slices, None) is not None:
                raise ValueError("a payload has more bytes than it promised")

    def model(self, metadata: Mapping[str, str]) -> bytes:
        """Return the serialized `ModelProto`, which points into the data file."""
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, self._initializers
        )
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = helper.make_model(
            graph, producer_name="weightpkg", opset_imports=opsets, ir_version=IR_VERSION
        )
        helper.set_model_props(model, dict(sorted(metadata.items())))
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def _copy_exactly(slices: Iterator[NDArray[np.generic]], size: int, sink: Sink) -> None:
    while size:
        piece = next(slices, None)
        if piece is None or piece.nbytes > size:
            raise ValueError("a payload does not have the bytes it promised")
        sink.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        size -= piece.nbytes


def _value_info(name: str, dtype: type[np.generic], shape: Sequence[Dim]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, _ELEMENT_TYPES[np.dtype(dtype)], shape)
