"""From a model directory to an onnxruntime session: the provider, this machine's graph, its cache.

What a machine makes of a graph (`tuning`, `attention`, and then onnxruntime's own optimisations) is kept in a file,
so that only the first load pays for it. The file's name says what it depends on: the graph, the
version of onnxruntime, the provider, the processor's features; its first 32 bytes are the SHA-256 of
the rest. One that is damaged or that onnxruntime refuses is made again, and one that cannot be written
is done without. Weights are never copied: a kept graph points to those of the model directory.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from weightpkg import files
from weightpkg.errors import RunError, StoreError
from weightpkg.run import attention, tuning
from weightpkg.run.providers import (
    BY_NAME,
    CPU,
    Decision,
    Needs,
    Provider,
    decide,
    landed_on_cpu,
    require_int8_cache,
)
from weightpkg.survey import look, this_cpu, usable_cores

if TYPE_CHECKING:
    from onnx import ModelProto

    from weightpkg.run.scales import Scales

ort.disable_telemetry_events()  # where a program imported it before weightpkg could say so

MODEL_FILE = "model.onnx"
MOST_KEPT = 64
"""Graphs in a cache; each has less than a megabyte, and the oldest go."""

SLOW_ON_CPU = ("SkipLayerNormFusion",)
"""Optimisations of onnxruntime 1.31 that are none on the processor: its kernel for a sum and LayerNorm
takes six times as long as one for each (1.12 against 0.18 ms for 512 rows of 384, Zen 3, one thread)."""

_FOLDER = "session.model_external_initializers_file_folder_path"
_RECORD = "session.record_ep_graph_assignment_info"
_DIGEST = 32
_PARALLEL = "session.prepack.enable_parallel"
_FEW = 2
_READS_AS_LONG = 40  # a byte of a tokenizer takes as long as so many of weights

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
    MemoryError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A session, and how it came about. on_cpu: kinds of nodes that another provider did not take."""

    session: ort.InferenceSession
    decision: Decision
    threads: int
    on_cpu: tuple[str, ...] = ()


def load_graph(
    directory: Path,
    *,
    device: str = "auto",
    threads: int = 0,
    cache: Path | None = None,
    scales: Scales | None = None,
    entries: Mapping[str, str] = MappingProxyType({}),
) -> Loaded:
    """Load `model.onnx` of a directory on the provider that is right for it.

    Args:
        directory: of the model.
        device: `auto`, `cpu`, `gpu`, `npu`, or a provider's name.
        threads: how many to compute with; 0 is one for each core that this process may use.
        cache: where graphs are kept that were made for this machine; None keeps nothing.
        scales: of keys and values in 8 bits; None keeps them as floats.
        entries: of onnxruntime's session configuration, that change how it computes and not what.

    Raises:
        RunError: the device cannot run it, onnxruntime refuses it, or there is not enough memory.
    """
    path = directory / MODEL_FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"`{path}` cannot be read: {error.strerror}") from error
    decision = choose(content, device)
    threads = threads or usable_cores()
    if scales is not None:
        require_int8_cache(decision.chosen)
    make = _Maker(directory, decision.chosen, threads, scales, entries=entries)
    try:
        session = _from_cache(content, make, cache)
    except ORT_ERRORS as error:
        raise _refused(path, error) from error
    on_cpu = landed_on_cpu(decision.chosen, _placement(session)) if make.is_other else []
    return Loaded(session, decision, threads, tuple(on_cpu))


def choose(content: bytes, device: str, *, look_closely: bool = False) -> Decision:
    """Decide which provider runs a graph.

    Where this onnxruntime has only the processor, and nothing else was asked for, nobody needs to look at
    the graph and the machine, which takes longer than to load a small model.

    Args:
        content: of `model.onnx`.
        device: the request.
        look_closely: look all the same, for what could be better.

    Raises:
        RunError: what was asked for cannot run it here.
    """
    available = [name for name in ort.get_available_providers() if name in BY_NAME]
    is_plain = available == [CPU] and device.lower() in {"auto", "cpu"}
    if is_plain and not look_closely:
        return decide(device, available, [], Needs())
    survey = look()
    needs = Needs.of(parse(content))
    return decide(device, available, survey.devices, needs, system=survey.system)


class _Maker:
    """Makes sessions of one model, with a provider's options."""

    def __init__(
        self,
        directory: Path,
        provider: Provider,
        threads: int,
        scales: Scales | None = None,
        *,
        entries: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._directory = directory.resolve()
        self._provider = provider
        self._threads = threads
        self._scales = scales
        self._entries = entries
        self.is_other = provider.name != CPU

    def key(self, content: bytes) -> str:
        """Return what a graph that was made for this machine depends on."""
        features = " ".join(this_cpu().features)
        kept_as = self._scales.digest if self._scales else "float"
        parts = (
            *(ort.__version__, self._provider.name, platform.machine(), features),
            *(tuning.VERSION, attention.VERSION, kept_as),
        )
        digest = hashlib.sha256(content)
        digest.update("\n".join(map(str, parts)).encode())
        return digest.hexdigest()

    def tuned(self, content: bytes) -> bytes:
        """Return a graph as this machine wants it."""
        changes: list[Callable[[ModelProto], bool]] = [
            attention.without_claims,
            tuning.with_short_end,
        ]
        if self._provider.half_attention:
            changes.append(tuning.with_half_attention)
        if not self.is_other and tuning.wants_float_prefill(this_cpu(), platform.machine()):
            changes.append(tuning.with_float_prefill)
        if self._provider.window_caches:
            changes.append(attention.with_window_caches)
        if self._scales is not None:
            changes.append(partial(attention.with_int8_cache, scales=self._scales))
        model = parse(content)
        changed = [change(model) for change in changes]
        return model.SerializeToString() if any(changed) else content

    def session(
        self, content: bytes, *, save: Path | None = None, is_optimized: bool = False
    ) -> ort.InferenceSession:
        """Load a graph whose weights are in the model directory."""
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors: they come as exceptions
        options.intra_op_num_threads = self._threads
        options.add_session_config_entry(_FOLDER, str(self._directory))
        for key, value in (*self._provider.session.items(), *self._entries.items()):
            options.add_session_config_entry(key, value)
        if not self.is_other and self._packs_in_parallel():
            options.add_session_config_entry(_PARALLEL, "1")
        if self.is_other:
            options.add_session_config_entry(_RECORD, "1")
        if is_optimized:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save is not None:
            options.optimized_model_filepath = str(save)
        providers: list[object] = [(self._provider.name, dict(self._provider.options))]
        if self.is_other:
            providers.append(CPU)
        return ort.InferenceSession(
            content,
            options,
            providers=providers,
            disabled_optimizers=[] if self.is_other else SLOW_ON_CPU,
        )

    def _packs_in_parallel(self) -> bool:
        """Whether weights are packed by several threads, which is nearly all of loading.

        With two cores a tokenizer is read on the other one meanwhile. Where that takes longer, threads
        that wait for each other would only keep it from that.
        """
        if self._threads > _FEW:
            return True
        sizes: Counter[bool] = Counter()
        with suppress(OSError):
            for path in self._directory.iterdir():
                sizes[path.name == "tokenizer.json"] += path.stat().st_size
        return sizes[True] * _READS_AS_LONG < sizes[False]


def _from_cache(content: bytes, make: _Maker, cache: Path | None) -> ort.InferenceSession:
    """Load what was kept for this machine, or make it and keep it."""
    if cache is None or make.is_other:  # a provider's compiled parts are its own to keep
        return make.session(make.tuned(content))
    kept = cache / f"{make.key(content)}.onnx"
    optimized = read_kept(kept)
    if optimized is not None:
        with suppress(*ORT_ERRORS):
            return make.session(optimized, is_optimized=True)
    with tempfile.TemporaryDirectory(prefix="weightpkg-") as scratch:
        fresh = Path(scratch) / MODEL_FILE
        session = make.session(make.tuned(content), save=fresh)
        with suppress(StoreError, OSError):  # the next load is as slow as this one, and that is all
            keep(fresh.read_bytes(), kept)
    return session


def read_kept(path: Path) -> bytes | None:
    """Return the content of a kept file; None where it is not there, or not as it was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, graph = content[:_DIGEST], content[_DIGEST:]
    return graph if hashlib.sha256(graph).digest() == digest else None


def keep(graph: bytes, path: Path) -> None:
    """Keep a file behind its digest; of its kind, the oldest of more than `MOST_KEPT` go."""
    files.make_directory(path.parent, is_durable=False)
    content = hashlib.sha256(graph).digest() + graph
    files.write_file(path, content, temporary=path.parent, is_name_durable=False)
    kept = sorted(path.parent.glob(f"*{path.suffix}"), key=lambda each: each.stat().st_mtime)
    for old in kept[:-MOST_KEPT]:
        files.discard(old)


def parse(content: bytes) -> ModelProto:
    """Read a graph; RunError if it is none."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415  only where a graph is looked at
    from onnx import ModelProto  # noqa: PLC0415  the same

    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise RunError(
            f"`{MODEL_FILE}` is no ONNX model: {error}",
            hint="`weightpkg verify` tells whether the model is damaged",
        ) from error
    return model


def _placement(session: ort.InferenceSession) -> Sequence[tuple[str, str]]:
    """Provider and operator of each node; nothing where onnxruntime is too old to tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    return [
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _refused(path: Path, error: Exception) -> RunError:
    text = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
        return RunError(
            f"not enough memory to load `{path}`",
            hint="`weightpkg resolve NAME` says what each variant needs",
        )
    return RunError(
        f"onnxruntime cannot load `{path}`: {text}",
        hint="`weightpkg verify` tells whether the model is damaged",
    )
