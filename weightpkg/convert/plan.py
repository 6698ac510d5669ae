"""What a conversion makes of a model: said before the first byte is written, and again at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Exactness = Literal["equal to the bit", "offsets rounded once", "quantised"]


@dataclass(frozen=True, slots=True)
class Part:
    """The tensors of one type that all become the same.

    kind: what the source calls their type.
    becomes: what they are in the output.
    source_size, size: bytes in the source, and bytes written.
    """

    kind: str
    becomes: str
    exactness: Exactness
    n_tensors: int
    source_size: int
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One conversion, as it will be.

    architecture: the GGUF name or `model_type`, or `onnx` for what is ONNX already.
    source_size: bytes of the files that are read.
    data_size: bytes of weights to be written; what else there is of a model takes a few more.
    memory: bytes that it takes at most, about; None where the system does not say what it took so far.
    """

    architecture: str
    source_size: int
    data_size: int
    parts: tuple[Part, ...]
    memory: int | None
