"""A decoder loaded into onnxruntime, and its key/value cache.

Past and present of every layer are bound to one buffer, so a step copies nothing: the operator
writes the new positions behind the old ones. Buffers grow in steps as the text does.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Prompts enter in pieces of this many tokens: enough for full speed, and memory stays bounded.
_CHUNK = 512
_FIRST_CAPACITY = 512
_MANIFEST = "weightpkg.toml"

# onnxruntime's exceptions have no base of their own
ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """What the runner needs of `genai_config.json`."""

    vocab_size: int
    context_length: int
    n_layers: int
    n_kv_heads: int
    head_size: int
    eos_token_ids: tuple[int, ...]

    @classmethod
    def read(cls, directory: Path) -> ModelConfig:
        """Read the configuration of a model directory.

        Raises:
            RunError: there is none, or not of a decoder-only model.
        """
        path = directory / "genai_config.json"
        if _writes_no_text(directory, path.name):
            raise RunError(
                "the model is not a text model: it writes no text",
                hint="in Python `weightpkg.path(NAME)` is the directory of its model.onnx; one that "
                "makes vectors of texts has `sentence_embedding` there, and a tokenizer.json beside it",
            )
        try:
            model = json.loads(path.read_bytes())["model"]
            decoder = model["decoder"]
            eos = model.get("eos_token_id", [])
            return cls(
                vocab_size=int(model["vocab_size"]),
                context_length=int(model["context_length"]),
                n_layers=int(decoder["num_hidden_layers"]),
                n_kv_heads=int(decoder["num_key_value_heads"]),
                head_size=int(decoder["head_size"]),
                eos_token_ids=tuple(eos) if isinstance(eos, list) else (int(eos),),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"`{path}` is not a text model's configuration: {error}",
                hint="`weightpkg verify` tells whether the model is damaged",
            ) from error


def _writes_no_text(directory: Path, name: str) -> bool:
    """Whether a directory was made without the configuration of a text model."""
    try:
        manifest = tomllib.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    files = manifest.get("files", [])
    return bool(files) and all(file.get("path") != name for file in files)


class Session:
    """One sequence of tokens going through a model."""

    def __init__(self, directory: Path, config: ModelConfig, *, threads: int = 0) -> None:
        """Load the model.

        Args:
            directory: of the model.
            config: its configuration.
            threads: how many to compute with; 0 is one for each physical core.

        Raises:
            RunError: onnxruntime refuses the model, or there is not enough memory.
        """
        self.config = config
        self.tokens: list[int] = []
        self.provider = "CPUExecutionProvider"
        self.reason = "the one provider that this version uses"
        self._session = load_session(directory / "model.onnx", self.provider, threads)
        self._names = [f"{i}.{part}" for i in range(config.n_layers) for part in ("key", "value")]
        self._cache: list[NDArray[np.float32]] = []
        self._capacity = 0
        self._logits = np.empty((1, 1, config.vocab_size), np.float32)
        self._binding = self._session.io_binding()
        self._binding.bind_ortvalue_output("logits", _ort(self._logits))
        self._logits_to_keep = np.ones(1, np.int64)
        self._binding.bind_ortvalue_input("logits_to_keep", _ort(self._logits_to_keep))

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        del self.tokens[length:]

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens to the sequence; return the logits that follow the last one: (V,) float32.

        The array is overwritten by the next call.

        Raises:
            RunError: the sequence would be longer than the model's context, or memory ran out.
        """
        total = len(self.tokens) + len(tokens)
        if total > self.config.context_length:
            raise RunError(
                f"{total:,} tokens are more than the model's context of "
                f"{self.config.context_length:,}",
                hint="shorten the prompt",
            )
        self._reserve(total)
        for start in range(0, len(tokens), _CHUNK):
            self._step(tokens[start : start + _CHUNK])
        last: NDArray[np.float32] = self._logits[0, 0]
        return last

    def _step(self, tokens: Sequence[int]) -> None:
        total = len(self.tokens) + len(tokens)
        ids, mask = np.array([tokens], np.int64), np.ones((1, total), np.int64)
        self._binding.bind_ortvalue_input("input_ids", _ort(ids))
        self._binding.bind_ortvalue_input("attention_mask", _ort(mask))
        try:
            self._session.run_with_iobinding(self._binding)
        except ORT_ERRORS as error:
            raise RunError(f"the model failed after {total:,} tokens: {error}") from error
        self.tokens.extend(tokens)

    def _reserve(self, length: int) -> None:
        """Make room for `length` tokens: the next power of two, at most the whole context."""
        if length <= self._capacity:
            return
        capacity = max(_FIRST_CAPACITY, 1 << (length - 1).bit_length())
        capacity = min(capacity, self.config.context_length)
        shape = (1, self.config.n_kv_heads, capacity, self.config.head_size)
        kept = len(self.tokens)
        old, self._cache = self._cache, []
        try:
            for i, name in enumerate(self._names):
                buffer = np.zeros(shape, np.float32)
                if kept:
                    buffer[:, :, :kept] = old[i][:, :, :kept]
                self._cache.append(buffer)
                self._binding.bind_ortvalue_input(f"past_key_values.{name}", _ort(buffer))
                self._binding.bind_ortvalue_output(f"present.{name}", _ort(buffer))
        except MemoryError as error:
            self._cache, self._capacity = [], 0
            self.tokens.clear()
            raise RunError(f"not enough memory for a context of {capacity:,} tokens") from error
        self._capacity = capacity


def load_session(path: Path, provider: str, threads: int) -> ort.InferenceSession:
    """Load a graph; `RunError` where onnxruntime refuses it, or has not enough memory."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors: they come as exceptions
    options.intra_op_num_threads = threads
    try:
        return ort.InferenceSession(str(path.resolve()), options, providers=[provider])
    except ORT_ERRORS as error:
        raise RunError(
            f"onnxruntime cannot load `{path}`: {error}",
            hint="`weightpkg verify` tells whether the model is damaged",
        ) from error


def _ort(array: NDArray[np.generic]) -> ort.OrtValue:
    """Wrap an array without copying it; the array must live as long as it is bound."""
    return ort.OrtValue.ortvalue_from_numpy(array)
