"""Looks at this machine: asks the operating system, onnxruntime, and what is installed.

Nothing here decides: `hardware` reads what is said, `diagnosis` judges it. Whatever cannot be had is
left out, as a survey must work on a machine of which something is broken.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from weightpkg.hardware import (
    Cpu,
    Device,
    DeviceKind,
    Memory,
    cpu_quota_files,
    memory_limit_files,
    merge_devices,
    parse_cpu_quota,
    parse_cpuinfo,
    parse_limit,
    parse_meminfo,
    parse_nvidia_smi,
    parse_pci_device,
    parse_sysctl,
    pci_vendor,
)
from weightpkg.machine import Machine

_PROC = Path("/proc")
_SYS = Path("/sys")
_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Runtime:
    """The onnxruntime that would be imported.

    version: None where it cannot be imported; then `error` says why.
    distributions: every installed one that has an `onnxruntime` inside, with its version.
    providers: the execution providers in it.
    """

    version: str | None = None
    error: str | None = None
    distributions: tuple[tuple[str, str], ...] = ()
    providers: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What this machine has."""

    system: str
    architecture: str
    python: str
    cpu: Cpu
    memory: Memory
    devices: tuple[Device, ...]
    runtime: Runtime

    @property
    def machine(self) -> Machine:
        """The part that decides what is chosen; models run on the processor."""
        return Machine(device="cpu", memory=self.memory.usable, system=self.system)


def this_machine() -> Machine:
    """Describe this machine, from the operating system alone: fast, and nothing is imported."""
    return Machine(device="cpu", memory=_memory().usable, system=platform.system().lower())


def this_cpu() -> Cpu:
    """Describe the processors, as fast."""
    return _cpu()


def usable_cores() -> int:
    """Return how many threads compute best: physical cores that this process may use all of.

    A second thread on a core computes nothing more, and threads beyond a control group's share wait for
    each other.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [
        quota
        for name in cpu_quota_files(_text(_PROC / "self" / "cgroup"))
        if (quota := parse_cpu_quota(_text(_SYS / "fs" / "cgroup" / name))) is not None
    ]
    known = [count for count in (_cpu().physical, allowed, *quotas) if count]
    return max(1, min(known, default=1))


def look() -> Survey:
    """Look at all of this machine."""
    runtime, seen = _runtime()
    devices = merge_devices([*_nvidia(), *_pci(), *seen])
    return Survey(
        system=platform.system().lower(),
        architecture=platform.machine().lower(),
        python=platform.python_version(),
        cpu=_cpu(),
        memory=_memory(),
        devices=tuple(devices),
        runtime=runtime,
    )


def _cpu() -> Cpu:
    if sys.platform == "darwin":
        cpu, _ = parse_sysctl(_sysctl())
    elif sys.platform == "win32":
        cpu = Cpu(model=platform.processor() or None)
    else:
        cpu = parse_cpuinfo(_text(_PROC / "cpuinfo"))
    return replace(cpu, logical=cpu.logical or os.cpu_count())


def _memory() -> Memory:
    if sys.platform == "darwin":
        return parse_sysctl(_sysctl())[1]
    if sys.platform == "win32":
        return _windows_memory()
    limits = [
        limit
        for name in memory_limit_files(_text(_PROC / "self" / "cgroup"))
        if (limit := parse_limit(_text(_SYS / "fs" / "cgroup" / name))) is not None
    ]
    memory = parse_meminfo(_text(_PROC / "meminfo"))
    return replace(memory, limit=min(limits, default=None))


def _sysctl() -> str:
    return _output(["/usr/sbin/sysctl", "hw", "machdep.cpu"])


def _windows_memory() -> Memory:
    """Ask GlobalMemoryStatusEx, whose structure is two 32-bit numbers and seven of 64 bits."""
    if sys.platform != "win32":
        return Memory()
    import ctypes  # noqa: PLC0415  has `windll` only there

    status = (ctypes.c_uint64 * 8)()
    ctypes.cast(status, ctypes.POINTER(ctypes.c_uint32))[0] = ctypes.sizeof(status)
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return Memory()
    return Memory(total=status[1], available=status[2])


def _nvidia() -> list[Device]:
    import shutil  # noqa: PLC0415  slow to import, and `this_machine` is quick

    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = "--query-gpu=name,memory.total,driver_version"
    return parse_nvidia_smi(_output([program, query, "--format=csv,noheader,nounits"]))


def _pci() -> Iterator[Device]:
    places: tuple[tuple[DeviceKind, str, str], ...] = (
        ("gpu", "drm", r"card\d+\Z"),
        ("npu", "accel", r"accel\d+\Z"),
    )
    for kind, name, pattern in places:
        with suppress(OSError):
            for entry in sorted((_SYS / "class" / name).iterdir()):
                if re.match(pattern, entry.name):
                    files = {
                        key: _text(entry / "device" / key)
                        for key in ("vendor", "mem_info_vram_total")
                    }
                    device = parse_pci_device(kind, files)
                    if device is not None:
                        yield device


def _runtime() -> tuple[Runtime, list[Device]]:
    """Import onnxruntime, and ask it what it can do and what it sees."""
    distributions = tuple(sorted(set(_distributions())))
    try:
        import onnxruntime as ort  # noqa: PLC0415  slow, and broken is what it may be

        version, providers = str(ort.__version__), tuple(ort.get_available_providers())
        listed = ort.get_ep_devices() if hasattr(ort, "get_ep_devices") else []
        seen = [device for each in listed if (device := _of_ep_device(each)) is not None]
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        return Runtime(error=str(error), distributions=distributions), []
    return Runtime(version=version, distributions=distributions, providers=providers), seen


def _of_ep_device(each: object) -> Device | None:
    """Read an `OrtEpDevice`; the processor itself is told of elsewhere."""
    hardware = getattr(each, "device", None)
    kind = str(getattr(getattr(hardware, "type", None), "name", "")).lower()
    if kind not in {"gpu", "npu"}:
        return None
    return Device(
        kind="gpu" if kind == "gpu" else "npu",
        vendor=pci_vendor(getattr(hardware, "vendor_id", 0), str(getattr(hardware, "vendor", ""))),
        name=dict(getattr(hardware, "metadata", {})).get("Description"),
        providers=(str(getattr(each, "ep_name", "")),),
    )


def _distributions() -> Iterator[tuple[str, str]]:
    """Yield the installed distributions that bring a package called `onnxruntime`."""
    from importlib import metadata  # noqa: PLC0415  slow to import, and `this_machine` is quick

    for distribution in metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.lower().startswith(("onnxruntime", "ort-", "ort_")):
            has = (
                file.parts[:2] == ("onnxruntime", "__init__.py")
                for file in distribution.files or ()
            )
            if any(has):
                yield name, distribution.version


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(command: Sequence[str]) -> str:
    import subprocess  # noqa: PLC0415  slow to import, and `this_machine` on Linux has no need of it

    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""
