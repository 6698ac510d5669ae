"""A decoder loaded into onnxruntime, and its key/value cache.

Buffers grow in steps as the text does; those of layers that see a window only up to what it needs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightpkg.errors import RunError, shown
from weightpkg.run import buffers
from weightpkg.run.buffers import Buffers, wrap
from weightpkg.run.documents import read_document
from weightpkg.run.loading import MODEL_FILE, ORT_ERRORS, choose, load_graph
from weightpkg.run.windows import START, Windows

if TYPE_CHECKING:
    import onnxruntime as ort
    from numpy.typing import NDArray

    from weightpkg.run.scales import Scales

# Prompts enter in pieces: enough tokens for full speed, and memory stays bounded. Attention's own is
# that of a piece times all tokens before it, so later pieces are smaller.
_CHUNK = 512
CONFIG, _MANIFEST = "genai_config.json", "weightpkg.toml"
_LARGEST, _LONGEST = 1 << 24, (1 << 31) - 1  # sizes and contexts that are no mistake
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
        path = directory / CONFIG
        if _writes_no_text(directory, path.name):
            raise RunError(
                "the model is not a text model: it writes no text",
                hint="in Python `weightpkg.path(NAME)` is the directory of its model.onnx; one that "
                "makes vectors of texts has `sentence_embedding` there, and a tokenizer.json beside it",
            )
        document = read_document(directory, CONFIG, is_needed=True)
        try:
            model = document["model"]
            decoder = model["decoder"]
            eos = model.get("eos_token_id", [])
            return cls(
                vocab_size=_size(model, "vocab_size"),
                context_length=_size(model, "context_length", most=_LONGEST),
                n_layers=_size(decoder, "num_hidden_layers"),
                n_kv_heads=_size(decoder, "num_key_value_heads"),
                head_size=_size(decoder, "head_size"),
                eos_token_ids=tuple(map(int, eos if isinstance(eos, list) else [eos])),
            )
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            raise RunError(
                f"`{path}` is not a text model's configuration: {error}",
                hint="`weightpkg verify` tells whether the model is damaged",
            ) from error


def _size(fields: Mapping[str, Any], name: str, *, most: int = _LARGEST) -> int:
    size = int(fields[name])
    if not 0 < size <= most:
        raise ValueError(f"`{name}` is {shown(f'{size:,}')}")
    return size


def check_decoder(session: ort.InferenceSession, config: ModelConfig) -> None:
    """See that a graph is the decoder that its configuration says.

    Raises:
        RunError: an input or an output is missing, or has another size.
    """
    optional = session.get_overridable_initializers()  # `logits_to_keep` has a default
    values = (*session.get_inputs(), *optional, *session.get_outputs())
    found = {value.name: value.shape for value in values}
    n_parts = sum(name.startswith("past_key_values.") for name in found)
    if n_parts != 2 * config.n_layers:
        raise _no_decoder(f"keeps keys and values of {n_parts // 2} layers, not {config.n_layers}")
    cache = (None, config.n_kv_heads, None, config.head_size)
    expected = dict.fromkeys(("input_ids", "attention_mask", "logits_to_keep"))
    expected |= {"logits": (None, None, config.vocab_size)}
    for name in part_names(range(config.n_layers)):
        expected |= {f"past_key_values.{name}": cache, f"present.{name}": cache}
    for name, sizes in expected.items():
        if name not in found:
            raise _no_decoder(f"has no `{name}`")
        for size, its in zip(sizes or (), found[name], strict=False):
            if size is not None and isinstance(its, int) and its != size:
                raise _no_decoder(f"has `{name}` of the shape {found[name]}, where {size} belongs")


def _no_decoder(reason: str) -> RunError:
    return RunError(
        f"`{MODEL_FILE}` is not the text model that `{CONFIG}` says: it {reason}",
        hint="run here are decoders that weightpkg converted; others may run in onnxruntime-genai",
    )


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
        scales: Scales | None = None,
    ) -> None:
        """Load the model.

        Args:
            directory: of the model.
            config: its configuration.
            threads: how many to compute with; 0 is one for each core that this process may use.
            device: `auto`, `cpu`, `gpu`, `npu`, or a provider's name.
            cache: where graphs are kept that were made for this machine; None keeps nothing.
            scales: of keys and values in 8 bits (`calibration`); None keeps them as floats.

        Raises:
            RunError: the device cannot run it, onnxruntime refuses it, it is not what the configuration
                says, or there is not enough memory.
        """
        self.config = config
        self.tokens: list[int] = []
        self._directory = directory
        self._loaded = load_graph(
            directory, device=device, threads=threads, cache=cache, scales=scales
        )
        self._session = self._loaded.session
        check_decoder(self._session, config)
        self._binding = self._session.io_binding()
        self._windows = Windows.parse(self._session.get_modelmeta().custom_metadata_map)
        self._whole, self._local = self._buffers()
        self._capacity = 0
        self._start = np.zeros(1, np.int32)
        if self._windows is not None:
            self._binding.bind_ortvalue_input(START, wrap(self._start))
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
        lines.append(f"keys and values: {self._kept_as()}")
        if self._loaded.on_cpu:
            lines.append(f"on the processor all the same: {', '.join(self._loaded.on_cpu)}")
        return lines

    def _kept_as(self) -> str:
        kind = np.dtype(cache_type(self._session)).name
        if self._windows is None:
            return kind
        local = f"{len(self._windows.layers)} of {self.config.n_layers} layers"
        return f"{kind}, in {local} of a window of {self._windows.size:,} tokens"

    def cached(self) -> Iterator[NDArray[np.generic]]:
        """Yield keys and values of each layer in turn, as they are kept: (G, T, D).

        Where a layer sees a window, older ones may be gone.
        """
        parts: dict[str, NDArray[np.generic]] = {}
        for each in (self._whole, self._local):
            parts |= each.rows(len(self.tokens) - each.first)
        yield from (parts[name] for name in part_names(range(self.config.n_layers)))

    def _buffers(self) -> tuple[Buffers, Buffers]:
        """Those of layers that see all of the text, and those of layers that see a window."""
        local = self._windows.layers if self._windows is not None else ()
        whole = [i for i in range(self.config.n_layers) if i not in local]
        sizes = (self.config.n_kv_heads, self.config.head_size)
        kind = cache_type(self._session)
        place = _MEMORY.get(self.provider, "cpu")
        one, other = (
            Buffers(self._binding, part_names(layers), sizes, kind, place)
            for layers in (whole, local)
        )
        return one, other

    def rewind(self, length: int) -> int:
        """Forget all tokens but the first `length`; return how many are left.

        Where that is further back than the windows' buffers reach, none is: they are to be computed again.
        """
        if self._windows is not None and self._windows.first_needed(length) < self._local.first:
            length = self._local.first = 0
        del self.tokens[length:]
        return len(self.tokens)

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
            is_early = len(self.tokens) + _CHUNK <= buffers.LEAST_LOCAL
            end = start + (_CHUNK if is_early else buffers.LATER_PIECE)
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
        self._binding.bind_ortvalue_output("logits", wrap(self._logits))
        self._binding.bind_ortvalue_input("logits_to_keep", wrap(self._logits_to_keep))
        self._n_kept = count

    def _step(self, tokens: Sequence[int]) -> None:
        self._make_room(len(tokens))
        total = len(self.tokens) + len(tokens)
        ids, mask = np.array([tokens], np.int64), np.ones((1, total), np.int64)
        self._binding.bind_ortvalue_input("input_ids", wrap(ids))
        self._binding.bind_ortvalue_input("attention_mask", wrap(mask))
        try:
            self._session.run_with_iobinding(self._binding)
        except ORT_ERRORS as error:
            raise RunError(f"the model failed after {total:,} tokens: {error}") from error
        self.tokens.extend(tokens)

    def _reserve(self, length: int) -> None:
        """Make room for `length` tokens."""
        if length <= self._capacity:
            return
        capacity, local = buffers.capacities(length, self.config.context_length, self._windows)
        self._resize(self._whole, capacity)
        if local > self._local.capacity:
            self._resize(self._local, local)
        self._capacity = capacity

    def _make_room(self, step: int) -> None:
        """Drop what no token sees any more, if the windows' buffers are full."""
        if self._windows is None:
            return
        n_tokens = len(self.tokens)
        n_rows = n_tokens - self._local.first
        if n_rows + step > self._local.capacity:
            first = max(self._local.first, self._windows.first_kept(n_tokens))
            try:
                self._local.drop(first, n_rows)
            except MemoryError as error:
                self._forget()
                raise RunError(f"not enough memory after {n_tokens:,} tokens") from error
            n_rows = n_tokens - first
        if n_rows + step > self._local.capacity:  # a step of more tokens than is usual
            self._resize(self._local, n_rows + step)
        self._start[0] = self._local.first

    def _resize(self, its: Buffers, capacity: int) -> None:
        try:
            its.resize(capacity, len(self.tokens) - its.first)
        except ORT_ERRORS as error:
            self._forget()
            raise RunError(f"not enough memory for a context of {capacity:,} tokens") from error

    def _forget(self) -> None:
        self._whole.clear()
        self._local.clear()
        self._capacity = 0
        self.tokens.clear()


def part_names(layers: Iterable[int]) -> list[str]:
    """Return what the caches of layers are called, keys and values of each in turn."""
    return [f"{i}.{part}" for i in layers for part in ("key", "value")]


def cache_type(session: ort.InferenceSession) -> type[np.generic]:
    """Return what a graph keeps keys and values as."""
    types = [value.type for value in session.get_inputs() if value.name.endswith(".key")]
    kinds: dict[str, type[np.generic]] = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}
    return next((kinds[each] for each in types if each in kinds), np.float32)
