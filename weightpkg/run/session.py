"""A decoder loaded into onnxruntime, and its key/value cache.

Past and present of every layer are bound to one buffer, so a step copies nothing: the operator
writes the new positions behind the old ones. Buffers grow in steps as the text does.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from weightpkg.errors import RunError
from weightpkg.run.loading import MODEL_FILE, ORT_ERRORS, choose, load_graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Prompts enter in pieces: enough tokens for full speed, and memory stays bounded. Attention's own is
# that of a piece times all tokens before it, so later pieces are smaller.
_CHUNK, _LATER_CHUNK, _LATER = 512, 256, 1024
_FIRST_CAPACITY = 512
_MANIFEST = "weightpkg.toml"
# where a provider keeps the cache; the others take it from the processor's memory
_MEMORY = {"CUDAExecutionProvider": "cuda"}


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

    def __init__(
        self,
        directory: Path,
        config: ModelConfig,
        *,
        threads: int = 0,
        device: str = "auto",
        cache: Path | None = None,
    ) -> None:
        """Load the model.

        Args:
            directory: of the model.
            config: its configuration.
            threads: how many to compute with; 0 is one for each core that this process may use.
            device: `auto`, `cpu`, `gpu`, `npu`, or a provider's name.
            cache: where graphs are kept that were made for this machine; None keeps nothing.

        Raises:
            RunError: the device cannot run it, onnxruntime refuses it, or there is not enough memory.
        """
        self.config = config
        self.tokens: list[int] = []
        self._directory = directory
        self._loaded = load_graph(directory, device=device, threads=threads, cache=cache)
        self._session = self._loaded.session
        self._names = [f"{i}.{part}" for i in range(config.n_layers) for part in ("key", "value")]
        self._cache_type = _cache_type(self._session)
        self._place = _MEMORY.get(self._loaded.decision.chosen.name, "cpu")
        self._cache: list[ort.OrtValue] = []
        self._capacity = 0
        self._binding = self._session.io_binding()
        self._n_kept = 0
        self._keep_logits(1)

    @property
    def provider(self) -> str:
        """The execution provider."""
        return self._loaded.decision.chosen.name

    def explain(self) -> list[str]:
        """Say which provider runs the model and why, what others there are, and what would be better.

        Raises:
            RunError: the model's file is gone.
        """
        decision = self._loaded.decision
        with suppress(OSError):
            content = (self._directory / MODEL_FILE).read_bytes()
            decision = choose(content, decision.request, look_closely=True)
        lines = [*decision.lines(), f"threads: {self._loaded.threads}"]
        if self._loaded.on_cpu:
            lines.append(f"on the processor all the same: {', '.join(self._loaded.on_cpu)}")
        return lines

    def rewind(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        del self.tokens[length:]

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens to the sequence; return the logits that follow the last one: (V,) float32.

        The array is overwritten by the next call. Whether all of it is numbers is for the caller to see.

        Raises:
            RunError: the sequence would be longer than the model's context, or memory ran out.
        """
        last: NDArray[np.float32] = self.forward_all(tokens, keep=1)[0]
        return last

    def forward_all(self, tokens: Sequence[int], *, keep: int) -> NDArray[np.float32]:
        """Add tokens; return the logits that follow each of the last `keep`: (keep, V) float32.

        Otherwise as `forward`; all but the last tokens of a long prompt enter in chunks.
        """
        total = len(self.tokens) + len(tokens)
        if total > self.config.context_length:
            raise RunError(
                f"{total:,} tokens are more than the model's context of "
                f"{self.config.context_length:,}",
                hint="shorten the prompt",
            )
        self._reserve(total)
        start = 0
        while start < len(tokens):
            end = start + (_CHUNK if len(self.tokens) < _LATER else _LATER_CHUNK)
            if end > len(tokens) - keep:  # all that are kept are of one piece
                end = len(tokens)
            self._keep_logits(keep if end == len(tokens) else 1)
            self._step(tokens[start:end])
            start = end
        logits: NDArray[np.float32] = self._logits[0]
        return logits

    def _keep_logits(self, count: int) -> None:
        if count == self._n_kept:
            return
        self._logits = np.empty((1, count, self.config.vocab_size), np.float32)
        self._logits_to_keep = np.array([count], np.int64)
        self._binding.bind_ortvalue_output("logits", _ort(self._logits))
        self._binding.bind_ortvalue_input("logits_to_keep", _ort(self._logits_to_keep))
        self._n_kept = count

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
            for name in self._names:
                buffer = np.zeros(shape, self._cache_type)
                if kept:
                    buffer[:, :, :kept] = old.pop(0).numpy()[:, :, :kept]
                value = _ort(buffer, self._place)
                self._cache.append(value)
                self._binding.bind_ortvalue_input(f"past_key_values.{name}", value)
                self._binding.bind_ortvalue_output(f"present.{name}", value)
        except ORT_ERRORS as error:
            self._cache, self._capacity = [], 0
            self.tokens.clear()
            raise RunError(f"not enough memory for a context of {capacity:,} tokens") from error
        self._capacity = capacity


def _cache_type(session: ort.InferenceSession) -> type[np.generic]:
    types = [value.type for value in session.get_inputs() if value.name.endswith(".key")]
    return np.float16 if "tensor(float16)" in types else np.float32


def _ort(array: NDArray[np.generic], place: str = "cpu") -> ort.OrtValue:
    """Wrap an array; on the processor without copying it, and then it lives as long as the value."""
    return ort.OrtValue.ortvalue_from_numpy(array, place, 0)
