"""Which execution provider runs a model on this machine, and why; pure.

A request (`auto`, a kind of device, or a provider) meets what this onnxruntime brings, the devices
that are there, and what a graph needs of kernels. Every provider in the table gets a verdict, so that
what is printed is what was decided by.

Types of kernels: https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/docs/OperatorKernels.md
Keys of sessions: https://github.com/microsoft/onnxruntime/blob/v1.23.0/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from weightpkg.errors import RunError
from weightpkg.hardware import Device, DeviceKind

if TYPE_CHECKING:
    from onnx import ModelProto

CPU = "CPUExecutionProvider"
_DOCS = "https://github.com/microsoft/onnxruntime/blob/gh-pages/docs/execution-providers"


@dataclass(frozen=True, kw_only=True, slots=True)
class Provider:
    """A row of the table.

    name: onnxruntime's name; short: what a user types; kind: of the device it computes on.
    vendors: of devices that it can use; none for any.
    package: the distribution that brings it; systems: for which; none for any.
    lacks: what of `Needs` it has no kernels for, and why; `*` for whatever is not a plain ONNX operator.
    options: of the provider; session: keys of the session.
    source: where its options and limits are described.
    half_attention: whether its attention is in half precision only.
    int8_cache: whether its attention is known to take keys and values of 8 bits.
    window_caches: whether layers with a window may have buffers of only that.
    rank: of kinds that were not asked for, the higher first.
    """

    name: str
    short: str
    kind: DeviceKind
    package: str
    source: str
    vendors: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    session: Mapping[str, str] = field(default_factory=dict)
    half_attention: bool = False
    int8_cache: bool = False
    window_caches: bool = False
    rank: int = 0


_PLAIN = {
    "*": "has no kernels for onnxruntime's own operators, so most nodes land on the processor"
}

TABLE: tuple[Provider, ...] = (
    Provider(
        name="CUDAExecutionProvider",
        short="cuda",
        systems=("linux", "windows"),
        kind="gpu",
        vendors=("NVIDIA",),
        package="onnxruntime-gpu",
        # shapes change with every step, so no algorithm is searched for; memory grows by what is asked
        options={"arena_extend_strategy": "kSameAsRequested", "cudnn_conv_algo_search": "HEURISTIC"},
        half_attention=True,
        source=f"{_DOCS}/CUDA-ExecutionProvider.md",
        rank=90,
    ),
    Provider(
        name="NvTensorRTRTXExecutionProvider",
        short="tensorrt-rtx",
        systems=("linux", "windows"),
        kind="gpu",
        vendors=("NVIDIA",),
        package="onnxruntime-trt-rtx",
        lacks=_PLAIN,
        source=f"{_DOCS}/TensorRTRTX-ExecutionProvider.md",
        rank=50,
    ),
    Provider(
        name="TensorrtExecutionProvider",
        short="tensorrt",
        systems=("linux", "windows"),
        kind="gpu",
        vendors=("NVIDIA",),
        package="onnxruntime-gpu",
        lacks=_PLAIN,
        options={"trt_engine_cache_enable": "1"},
        source=f"{_DOCS}/TensorRT-ExecutionProvider.md",
        rank=40,
    ),
    Provider(
        name="DmlExecutionProvider",
        short="directml",
        systems=("windows",),
        kind="gpu",
        package="onnxruntime-directml",
        lacks={
            "gather-blocks": "has no GatherBlockQuantized",
            "int8-blocks": "multiplies 4-bit blocks only",
        },
        # it requires both: see "Configuration options" there
        session={"session.execution_mode": "sequential", "session.enable_mem_pattern": "0"},
        source=f"{_DOCS}/DirectML-ExecutionProvider.md",
        rank=70,
    ),
    Provider(
        name="WebGpuExecutionProvider",
        short="webgpu",
        kind="gpu",
        package="onnxruntime-webgpu",
        lacks={"int8-blocks": "8-bit blocks of 16 are not shown to work there"},
        source="https://github.com/microsoft/onnxruntime/tree/v1.23.0/onnxruntime/contrib_ops/webgpu",
        rank=60,
    ),
    Provider(
        name="CoreMLExecutionProvider",
        short="coreml",
        systems=("darwin",),
        kind="npu",
        vendors=("Apple",),
        package="onnxruntime",
        lacks=_PLAIN,
        options={"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"},
        source=f"{_DOCS}/CoreML-ExecutionProvider.md",
        rank=20,
    ),
    Provider(
        name="OpenVINOExecutionProvider",
        short="openvino",
        systems=("linux", "windows"),
        kind="gpu",
        vendors=("Intel",),
        package="onnxruntime-openvino",
        lacks={"gather-blocks": "has no GatherBlockQuantized", "attention": "has no attention with a shared cache"},
        options={"device_type": "AUTO:GPU,NPU,CPU"},
        source=f"{_DOCS}/OpenVINO-ExecutionProvider.md",
        rank=30,
    ),
    Provider(
        name="QNNExecutionProvider",
        short="qnn",
        systems=("windows",),
        kind="npu",
        vendors=("Qualcomm",),
        package="onnxruntime-qnn",
        lacks=_PLAIN,
        options={"backend_type": "htp", "htp_performance_mode": "burst"},
        source=f"{_DOCS}/QNN-ExecutionProvider.md",
        rank=20,
    ),
    Provider(
        name="MIGraphXExecutionProvider",
        short="migraphx",
        systems=("linux",),
        kind="gpu",
        vendors=("AMD",),
        package="onnxruntime-migraphx",
        lacks=_PLAIN,
        source=f"{_DOCS}/MIGraphX-ExecutionProvider.md",
        rank=30,
    ),
    Provider(
        name="ROCMExecutionProvider",
        short="rocm",
        systems=("linux",),
        kind="gpu",
        vendors=("AMD",),
        package="onnxruntime-rocm",
        half_attention=True,
        source=f"{_DOCS}/ROCm-ExecutionProvider.md",
        rank=35,
    ),
    Provider(
        name=CPU,
        short="cpu",
        kind="cpu",
        package="onnxruntime",
        int8_cache=True,
        window_caches=True,
        source="https://github.com/microsoft/onnxruntime/blob/v1.23.0/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h",
        rank=0,
    ),
)  # fmt: skip

BY_NAME = {provider.name: provider for provider in TABLE}


@dataclass(frozen=True, slots=True)
class Needs:
    """How many nodes of a graph need what of kernels."""

    counts: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelProto) -> Needs:
        """Count the nodes of a graph, those within its branches too."""
        return cls(dict(Counter(need for node in _nodes(model.graph) for need in _needs_of(node))))


TYPICAL = Needs({"*": 1, "int4-blocks": 1, "int8-blocks": 1, "gather-blocks": 1, "attention": 1})
"""Of a quantised decoder, where nobody has said which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What was thought of one provider.

    is_present: this onnxruntime brings it; has_device: something here that it can use.
    missing: what of the graph it cannot run, with the number of nodes.
    """

    provider: Provider
    is_present: bool
    has_device: bool
    missing: tuple[str, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether it can run all of the graph that matters."""
        return self.is_present and self.has_device and not self.missing

    @property
    def reason(self) -> str:
        """Say what speaks against it, or that nothing does."""
        if not self.is_present and self.has_device:
            return f"not in this onnxruntime: `{self.provider.package}` brings it"
        if not self.is_present:
            return "not in this onnxruntime"
        if not self.has_device:
            return "there is no device that it uses"
        return "; ".join(self.missing) or "runs all of the graph"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """The choice, and what it was made by.

    better: what would be faster here, with the package that brings it; None where nothing would.
    """

    request: str
    chosen: Provider
    reason: str
    verdicts: tuple[Verdict, ...]
    better: str | None = None

    def lines(self) -> list[str]:
        """Explain it to a user."""
        others = [
            f"  {verdict.provider.name}: {verdict.reason}"
            for verdict in self.verdicts
            if verdict.provider is not self.chosen and (verdict.is_present or verdict.has_device)
        ]
        more = [f"  better: {self.better}"] if self.better else []
        return [f"{self.chosen.name}: {self.reason}", *others, *more]


def decide(
    request: str,
    available: Sequence[str],
    devices: Sequence[Device],
    needs: Needs,
    *,
    system: str = "",
) -> Decision:
    """Choose a provider.

    Args:
        request: `auto`, `cpu`, `gpu`, `npu`, or a provider's name, short or whole.
        available: the providers of this onnxruntime.
        devices: what there is beside the processor.
        needs: of the graph.
        system: `linux`, `windows` or `darwin`; empty where it does not matter.

    Raises:
        RunError: what was asked for is not known, or cannot run the graph here.
    """
    verdicts = tuple(_judge(provider, available, devices, needs, system) for provider in TABLE)
    asked = _asked(request)
    candidates = sorted(
        (verdict for verdict in verdicts if verdict.provider in asked),
        key=lambda verdict: -verdict.provider.rank,
    )
    usable = [verdict for verdict in candidates if verdict.is_usable]
    if not usable:
        raise _cannot(request, candidates)
    chosen = usable[0].provider
    reason = _reason(request, chosen, candidates)
    return Decision(
        request=request,
        chosen=chosen,
        reason=reason,
        verdicts=verdicts,
        better=_better(chosen, verdicts),
    )


def require_int8_cache(provider: Provider) -> None:
    """Raise RunError where a provider is not known to keep keys and values in 8 bits."""
    if not provider.int8_cache:
        able = ", ".join(f"`--device {other.short}`" for other in TABLE if other.int8_cache)
        raise RunError(
            f"{provider.name} is not known to keep keys and values in int8",
            hint=f"leave --kv-cache out, or take {able}",
        )


def landed_on_cpu(chosen: Provider, placed: Iterable[tuple[str, str]]) -> list[str]:
    """Say which kinds of nodes run on the processor although another provider was chosen.

    Args:
        chosen: the provider.
        placed: provider and operator of each node, as the session has them.
    """
    if chosen.name == CPU:
        return []
    counts = Counter(operator for provider, operator in placed if provider == CPU)
    return [f"{count} {operator}" for operator, count in sorted(counts.items())]


def _judge(
    provider: Provider,
    available: Sequence[str],
    devices: Sequence[Device],
    needs: Needs,
    system: str,
) -> Verdict:
    kinds = {"gpu", "npu"} if provider.short in {"openvino", "coreml"} else {provider.kind}
    fits = not system or not provider.systems or system in provider.systems
    has_device = provider.kind == "cpu" or any(
        fits
        and device.kind in kinds
        and (not provider.vendors or device.vendor in provider.vendors)
        for device in devices
    )
    missing = [
        f"{why} ({needs.counts[need]} nodes)" if needs is not TYPICAL else why
        for need, why in provider.lacks.items()
        if needs.counts.get(need)
    ]
    return Verdict(
        provider=provider,
        is_present=provider.name in available,
        has_device=has_device,
        missing=tuple(missing),
    )


def _asked(request: str) -> list[Provider]:
    wanted = request.lower()
    if wanted == "auto":
        return list(TABLE)
    if wanted in {"cpu", "gpu", "npu"}:
        return [provider for provider in TABLE if provider.kind == wanted]
    named = [
        provider
        for provider in TABLE
        if wanted in {provider.short, provider.name.lower(), provider.name.lower().removesuffix("executionprovider")}
    ]  # fmt: skip
    if not named:
        known = ", ".join(provider.short for provider in TABLE)
        raise RunError(
            f"`{request}` is no device and no execution provider that is known",
            hint=f"auto, cpu, gpu, npu, or one of {known}",
        )
    return named


def _cannot(request: str, candidates: Sequence[Verdict]) -> RunError:
    nearest = [verdict for verdict in candidates if verdict.is_present or verdict.has_device]
    reasons = "; ".join(f"{each.provider.name}: {each.reason}" for each in nearest or candidates)
    installable = next((v for v in nearest if v.has_device and not v.is_present and not v.missing), None)  # fmt: skip
    hint = "`--device auto` takes what can run it; `weightpkg doctor` shows what this machine has"
    if installable is not None:
        hint = f"pip install {installable.provider.package} in place of this onnxruntime"
    return RunError(f"`{request}` cannot run this model here: {reasons}", hint=hint)


def _reason(request: str, chosen: Provider, candidates: Sequence[Verdict]) -> str:
    if request.lower() not in {"auto", "cpu", "gpu", "npu"}:
        return "asked for, and it runs all of the graph"
    others = [v for v in candidates if v.provider is not chosen and v.is_present]
    if not others:
        return f"the one provider of this onnxruntime for `{request}`"
    return f"the best of {len(others) + 1} for `{request}`"


def _better(chosen: Provider, verdicts: Sequence[Verdict]) -> str | None:
    """The best provider that this machine's devices have kernels for and this build does not bring."""
    missing = [
        verdict.provider
        for verdict in verdicts
        if verdict.has_device and not verdict.is_present and not verdict.missing
    ]
    best = max(missing, key=lambda provider: provider.rank, default=None)
    if best is None or best.rank <= chosen.rank:
        return None
    return f"`{best.package}` brings {best.name}, which has kernels for all of this graph"


def _needs_of(node: object) -> list[str]:
    operator, domain = getattr(node, "op_type", ""), getattr(node, "domain", "")
    needs = ["*"] if domain == "com.microsoft" else []
    sizes = {attribute.name: attribute.i for attribute in getattr(node, "attribute", ())}
    if operator == "MatMulNBits":
        needs.append(f"int{sizes.get('bits', 4)}-blocks")
        if sizes.get("block_size") == 16:
            needs.append("blocks-of-16")
    elif operator == "GatherBlockQuantized":
        needs.append("gather-blocks")
    elif operator == "GroupQueryAttention":
        needs.append("attention")
        if sizes.get("local_window_size", -1) > 0:
            needs.append("sliding-window")
    return needs


def _nodes(graph: object) -> Iterable[object]:
    for node in getattr(graph, "node", ()):
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
