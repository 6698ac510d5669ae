"""Any ONNX model: named arrays in, named arrays out.

What is fed is looked at before onnxruntime gets it: names, element types, numbers of dimensions, and
those dimensions that the model fixes. Dimensions that it only names, or does not know, take any size.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
import onnxruntime as ort

from weightpkg.errors import RunError, shown
from weightpkg.run.loading import ORT_ERRORS, SLOW_ON_CPU

if TYPE_CHECKING:
    from numpy.typing import NDArray

Dim: TypeAlias = "int | str | None"
Array: TypeAlias = "NDArray[np.generic]"
Feed: TypeAlias = "Array | bool | float | str | Sequence[Any]"
"""An array, or what one is made of: a number, a string, a list of them, a list of lists."""

DTYPES = {
    "bool": np.dtype(np.bool_),
    "double": np.dtype(np.float64),
    "float": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "int8": np.dtype(np.int8),
    "string": np.dtype(np.str_),
    "uint16": np.dtype(np.uint16),
    "uint32": np.dtype(np.uint32),
    "uint64": np.dtype(np.uint64),
    "uint8": np.dtype(np.uint8),
}
"""ONNX element types that NumPy has too."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of an input or an output.

    type: the ONNX element type, such as `float`; other things than tensors, as in `seq(map(...))`, are
        written out. dims: a size, the name of one that may be any, or None.
    """

    name: str
    type: str
    dims: tuple[Dim, ...]
    is_optional: bool = False

    @classmethod
    def of(cls, arg: Any, *, is_optional: bool = False) -> TensorSpec:
        """Read what onnxruntime says."""
        kind = str(arg.type)
        is_tensor = kind.startswith("tensor(")
        dims = (
            tuple(d if isinstance(d, int | str) else None for d in arg.shape) if is_tensor else ()
        )
        element = kind.removeprefix("tensor(").removesuffix(")") if is_tensor else kind
        return cls(str(arg.name), element, dims, is_optional)

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """NumPy's type of an element, None if it has none."""
        return DTYPES.get(self.type)

    @property
    def shape(self) -> str:
        """The dimensions as people write them; `?` may be any size.

        >>> TensorSpec("x", "float", (2, "batch", None)).shape
        '[2, batch, ?]'
        """
        return f"[{', '.join('?' if dim is None else str(dim) for dim in self.dims)}]"

    def __str__(self) -> str:
        optional = ", optional" if self.is_optional else ""
        return f"{self.name}: {self.type} {self.shape}{optional}"

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""
        return {
            "name": self.name,
            "type": self.type,
            "shape": list(self.dims),
            "optional": self.is_optional,
        }

    def array(self, value: Feed) -> Array:
        """Return a value as the array that the model takes.

        An array must have the type and the shape already; numbers and lists become one where that
        loses nothing.

        Raises:
            RunError: it is of another type or shape.
        """
        if self.dtype is None:
            raise RunError(f"input `{self.name}` is of type {self.type}, which cannot be fed here")
        array = value if isinstance(value, np.ndarray) else self._made_of(value)
        wanted, found = self.dtype, array.dtype
        if found.kind != wanted.kind or (wanted.kind != "U" and found != wanted):
            raise RunError(
                f"input `{self.name}` is of type {self.type}, not {found}",
                hint=f"in NumPy: `array.astype({wanted.name!r})`" if wanted.kind != "U" else None,
            )
        fits = len(self.dims) == array.ndim and all(
            not isinstance(dim, int) or dim == size
            for dim, size in zip(self.dims, array.shape, strict=True)
        )
        if not fits:
            found_shape = f"[{', '.join(map(str, array.shape))}]"
            raise RunError(f"input `{self.name}` has the shape {self.shape}, not {found_shape}")
        return array

    def zeros(self) -> Array:
        """Return zeros, of size 1 where any size will do: the state that many models begin with.

        Raises:
            RunError: the elements are not numbers.
        """
        if self.dtype is None or self.dtype.kind == "U":
            raise RunError(f"input `{self.name}` is of type {self.type}, of which there is no zero")
        return np.zeros([dim if isinstance(dim, int) else 1 for dim in self.dims], self.dtype)

    def _made_of(self, value: Feed) -> Array:
        """Numbers, strings or lists of them, as elements of the type that is wanted."""
        wanted = self.dtype
        assert wanted is not None  # noqa: S101  the only caller has looked
        kinds = {"b": "b", "i": "iu", "u": "iu", "f": "iuf", "U": "U"}[wanted.kind]
        try:
            array = np.array(value)
            if array.size == 0:
                return array.astype(wanted)
            if array.dtype.kind not in kinds:
                raise RunError(f"input `{self.name}` is of type {self.type}, not {array.dtype}")
            with np.errstate(over="raise"):
                made = array if wanted.kind == "U" else array.astype(wanted)
        except (ValueError, TypeError, OverflowError, FloatingPointError) as error:
            raise RunError(f"input `{self.name}`: {shown(str(error))}") from error
        if wanted.kind in "iu" and not np.array_equal(made.astype(object), array.astype(object)):
            raise RunError(f"input `{self.name}`: a number is too large for {self.type}")
        return made


class Held:
    """What every task's class is: a context manager that frees the model at the end.

    A base class, as there is nothing to these methods that a task could do differently.
    """

    def __init__(self) -> None:
        self._held = ExitStack()

    def hold(self, stack: ExitStack) -> None:
        """Close a stack when the model is closed: what keeps its directory there."""
        self._held = stack

    def close(self) -> None:
        """Free what the model holds."""
        self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorModel(Held):
    """A model that takes and gives named arrays.

    >>> model = weightpkg.load("silero-vad", task="tensors")                    # doctest: +SKIP
    >>> model.run({"input": audio, "state": state, "sr": 16000})["output"]      # doctest: +SKIP
    """

    task: Literal["tensors"] = "tensors"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory.

        Args:
            directory: as a conversion made it.
            threads: how many to compute with; 0 is one for each physical core.

        Raises:
            RunError: onnxruntime refuses the model, or there is not enough memory.
        """
        super().__init__()
        self.directory = directory
        self._session = open_session(directory / "model.onnx", threads)
        self.inputs, self.outputs = _signature(self._session)

    @cached_property
    def _inputs(self) -> dict[str, TensorSpec]:
        return {spec.name: spec for spec in self.inputs}

    def run(
        self, inputs: Mapping[str, Feed], outputs: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Compute outputs from inputs.

        Args:
            inputs: by their names; arrays of the model's types, or numbers and lists.
            outputs: which ones; all if not given.

        Raises:
            RunError: a name, a type or a shape is not the model's, or the model fails.
        """
        feeds = self.checked(inputs)
        names = self.output_names(outputs)
        return dict(zip(names, self.compute(feeds, names), strict=True))

    def checked(self, inputs: Mapping[str, Feed]) -> dict[str, Array]:
        """Return what is to be fed, as arrays; errors as `run`."""
        for name in inputs:
            self.input(name)
        missing = [s.name for s in self.inputs if s.name not in inputs and not s.is_optional]
        if missing:
            raise RunError(
                f"input `{shown(missing[0])}` is missing",
                hint=f"the model takes {_listed(self.inputs)}",
            )
        return {name: self.input(name).array(value) for name, value in inputs.items()}

    def input(self, name: str) -> TensorSpec:
        """Return what the model says of an input.

        Raises:
            RunError: it has none of that name.
        """
        if name not in self._inputs:
            hint = f"the model takes {_listed(self.inputs)}"
            raise RunError(f"the model has no input `{shown(name)}`", hint=hint)
        return self._inputs[name]

    def output_names(self, names: Sequence[str] | None) -> list[str]:
        """Return the names of outputs, all of them for None.

        Raises:
            RunError: one is not the model's, or is no array.
        """
        known = {spec.name: spec for spec in self.outputs}
        for name in names or ():
            if name not in known:
                hint = f"the model gives {_listed(self.outputs)}"
                raise RunError(f"the model has no output `{shown(name)}`", hint=hint)
        arrays = [name for name, spec in known.items() if spec.dtype is not None]
        found = arrays if names is None else list(dict.fromkeys(names))
        if not found or not set(found) <= set(arrays):
            odd = next(spec for spec in known.values() if spec.dtype is None)
            raise RunError(f"output `{odd.name}` is of type {odd.type}, which is no array")
        return found

    def compute(self, feeds: Mapping[str, Array], names: Collection[str]) -> list[Array]:
        """Run the model on what `checked` returned; may be called by several threads at once.

        Raises:
            RunError: the model fails.
        """
        try:
            found: list[Array] = self._session.run(list(names), dict(feeds))
        except ORT_ERRORS as error:
            shapes = ", ".join(f"{name} {list(feed.shape)}" for name, feed in feeds.items())
            raise RunError(f"the model failed with {shapes}: {_first_line(error)}") from error
        return found


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Load a model on the CPU.

    Raises:
        RunError: onnxruntime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions
    options.intra_op_num_threads = threads
    return _opened(path, options)


def _opened(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    providers = ["CPUExecutionProvider"]
    try:
        return ort.InferenceSession(
            os.fspath(path.resolve()),
            options,
            providers=providers,
            disabled_optimizers=SLOW_ON_CPU,
        )
    except ORT_ERRORS as error:
        raise RunError(
            f"onnxruntime cannot load `{path}`: {_first_line(error)}",
            hint="`weightpkg verify` tells whether the model is damaged",
        ) from error


def _listed(specs: Iterable[TensorSpec]) -> str:
    return "; ".join(map(str, specs)) or "nothing"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _signature(
    session: ort.InferenceSession,
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    required = [TensorSpec.of(arg) for arg in session.get_inputs()]
    optional = session.get_overridable_initializers()
    inputs = (*required, *(TensorSpec.of(arg, is_optional=True) for arg in optional))
    return inputs, tuple(map(TensorSpec.of, session.get_outputs()))


def signature(directory: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and the outputs of a model, which is not made ready to run.

    Raises:
        RunError: onnxruntime refuses it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return _signature(_opened(directory / "model.onnx", options))
