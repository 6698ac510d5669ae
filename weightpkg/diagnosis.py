"""What is wrong with a machine or its store, and what would make it better; pure.

A *problem* keeps something from working, and makes `weightpkg doctor` end with 1; a *note* is what
could be better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from weightpkg.survey import Survey

LEAST_FREE = 1_000_000_000
"""Bytes below which a disk is called full."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to be said, and what to do about it."""

    severity: Literal["problem", "note"]
    what: str
    remedy: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreHealth:
    """The state of a store.

    error: why it cannot be used, such as a foreign layout.
    is_writable: of the directory, or, where it is not there yet, of the one it would be made in.
    free: bytes on its disk.
    n_partials, partial_size: downloads that are not finished.
    n_leases: models and blobs that running processes use.
    n_quarantined: damaged files that were set aside.
    """

    path: str
    error: str | None = None
    is_writable: bool = True
    free: int | None = None
    size: int = 0
    n_installed: int = 0
    n_partials: int = 0
    partial_size: int = 0
    n_leases: int = 0
    n_quarantined: int = 0


@dataclass(frozen=True, slots=True)
class _Build:
    """A build of onnxruntime: what it brings, and where it can be installed."""

    distribution: str
    provider: str
    systems: tuple[str, ...]
    architectures: tuple[str, ...]


_X64 = ("x86_64", "amd64")
_ARM64 = ("arm64", "aarch64")
_CUDA = _Build("onnxruntime-gpu", "CUDAExecutionProvider", ("linux", "windows"), _X64)
_DIRECTML = _Build("onnxruntime-directml", "DmlExecutionProvider", ("windows",), (*_X64, *_ARM64))
_OPENVINO = _Build("onnxruntime-openvino", "OpenVINOExecutionProvider", ("linux", "windows"), _X64)
_QNN = _Build("onnxruntime-qnn", "QNNExecutionProvider", ("windows",), _ARM64)
_MIGRAPHX = _Build("onnxruntime-migraphx", "MIGraphXExecutionProvider", ("linux",), _X64)
_BUILDS = {
    ("gpu", "NVIDIA"): (_CUDA, _DIRECTML),
    ("gpu", "AMD"): (_DIRECTML, _MIGRAPHX),
    ("gpu", "Intel"): (_OPENVINO, _DIRECTML),
    ("npu", "Intel"): (_OPENVINO,),
    ("gpu", "Qualcomm"): (_QNN, _DIRECTML),
    ("npu", "Qualcomm"): (_QNN,),
}
"""Which builds use a device, best first."""


def diagnose(survey: Survey, store: StoreHealth) -> list[Finding]:
    """Return what there is to say, problems first."""
    findings = [*_of_runtime(survey), *_of_memory(survey), *_of_store(store), *_better(survey)]
    return sorted(findings, key=lambda finding: finding.severity != "problem")


def _of_runtime(survey: Survey) -> Iterator[Finding]:
    runtime = survey.runtime
    names = [name for name, _ in runtime.distributions]
    if len(names) > 1:
        removed = " ".join(names)
        kept = next((name for name in names if name.lower() != "onnxruntime"), names[0])
        yield Finding(
            "problem",
            f"{' and '.join(f'`{name}`' for name in names)} are installed together, and overwrite "
            "each other's files",
            f"pip uninstall {removed}, then pip install {kept}",
        )
    if runtime.version is None:
        yield Finding(
            "problem",
            f"onnxruntime cannot be imported: {runtime.error}",
            "pip install --force-reinstall onnxruntime",
        )
    elif "CPUExecutionProvider" not in runtime.providers:
        yield Finding("problem", "onnxruntime has no CPUExecutionProvider, which runs the models")
    cpu = survey.cpu
    if survey.architecture in _X64 and cpu.features and "avx2" not in cpu.features:
        yield Finding("note", "the processor has no AVX2: models run, and slowly")


def _of_memory(survey: Survey) -> Iterator[Finding]:
    memory = survey.memory
    if memory.usable is None:
        yield Finding(
            "note", "how much memory there is cannot be told: models are not chosen by it"
        )
    elif memory.limit is not None and memory.total is not None and memory.limit < memory.total:
        yield Finding(
            "note",
            f"this process may have {memory.limit / 2**30:.1f} GiB of the machine's "
            f"{memory.total / 2**30:.1f} GiB, by a limit of its control group",
        )


def _of_store(store: StoreHealth) -> Iterator[Finding]:
    if store.error is not None:
        yield Finding("problem", f"the store cannot be used: {store.error}")
    if not store.is_writable:
        yield Finding(
            "problem",
            f"`{store.path}` cannot be written",
            "give yourself the right to, or set WEIGHTPKG_HOME to another directory",
        )
    if store.free is not None and store.free < LEAST_FREE:
        yield Finding(
            "problem",
            f"only {store.free / 1e6:.0f} MB are free where the store is",
            "`weightpkg gc` removes what nothing needs, or set WEIGHTPKG_HOME",
        )
    if store.n_quarantined:
        yield Finding(
            "note",
            f"{store.n_quarantined} damaged files were set aside",
            "`weightpkg verify --repair`, and `weightpkg gc` removes them",
        )
    if store.n_partials:
        yield Finding(
            "note",
            f"{store.n_partials} downloads were not finished ({store.partial_size / 1e6:.0f} MB)",
            "install again to go on; `weightpkg list --partial` names them",
        )


def _better(survey: Survey) -> Iterator[Finding]:
    """Say which build of onnxruntime would use a device that this one does not."""
    said = set()
    for device in survey.devices:
        for build in _BUILDS.get((device.kind, device.vendor or ""), ()):
            fits = survey.system in build.systems and survey.architecture in build.architectures
            if not fits or build.provider in survey.runtime.providers:
                continue
            if build.distribution not in said:
                said.add(build.distribution)
                installed = [name for name, _ in survey.runtime.distributions] or ["onnxruntime"]
                yield Finding(
                    "note",
                    f"`{build.distribution}` brings {build.provider} for the {device.vendor} "
                    f"{device.kind.upper()}",
                    f"pip uninstall {' '.join(installed)}, then pip install {build.distribution}",
                )
            break
