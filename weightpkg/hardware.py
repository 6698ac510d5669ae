"""What a machine has, read from what its operating system says of it.

Functions here take text and return values; `survey` gets the text. What is not said is None, and
never a guess.
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

DeviceKind = Literal["cpu", "gpu", "npu"]

_FEATURES = {
    "f16c": ("f16c",),
    "fma": ("fma",),
    "avx2": ("avx2",),
    "avx512": ("avx512f",),
    "avx512-vnni": ("avx512_vnni", "avx512vnni"),
    "avx-vnni": ("avx_vnni",),
    "amx-int8": ("amx_int8",),
    "amx-bf16": ("amx_bf16",),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}
"""What matters to onnxruntime's kernels, and the flags that Linux has for it."""

_SYSCTL_FEATURES = {
    "neon": "hw.optional.neon",
    "dotprod": "hw.optional.arm.FEAT_DotProd",
    "i8mm": "hw.optional.arm.FEAT_I8MM",
    "bf16": "hw.optional.arm.FEAT_BF16",
    "avx2": "hw.optional.avx2_0",
    "avx512": "hw.optional.avx512f",
    "fma": "hw.optional.fma",
    "f16c": "hw.optional.f16c",
}

# https://github.com/torvalds/linux/blob/v6.6/arch/arm64/include/asm/cputype.h
_IMPLEMENTERS = {
    0x41: "ARM", 0x46: "Fujitsu", 0x48: "HiSilicon", 0x4E: "NVIDIA", 0x51: "Qualcomm", 0x61: "Apple",
    0x6D: "Microsoft", 0xC0: "Ampere",
}  # fmt: skip
_PCI_VENDORS = {0x10DE: "NVIDIA", 0x1002: "AMD", 0x1022: "AMD", 0x8086: "Intel", 0x4D4F4351: "Qualcomm", 0x5143: "Qualcomm", 0x106B: "Apple"}  # fmt: skip

# cgroup v1 writes "no limit" as the largest number of pages
_NO_LIMIT = 1 << 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Cpu:
    """The processors; `physical` cores are what computes, `logical` what the system schedules on."""

    vendor: str | None = None
    model: str | None = None
    physical: int | None = None
    logical: int | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes in all, bytes that are free or can be freed, and the least limit on this process."""

    total: int | None = None
    available: int | None = None
    limit: int | None = None

    @property
    def usable(self) -> int | None:
        """Bytes that this process can have at most."""
        known = [size for size in (self.total, self.limit) if size is not None]
        return min(known, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """Something beside the processor that could compute.

    memory: bytes of its own.
    providers: of this onnxruntime, those that offer to use it.
    """

    kind: DeviceKind
    vendor: str | None = None
    name: str | None = None
    memory: int | None = None
    driver: str | None = None
    providers: tuple[str, ...] = ()


def parse_cpuinfo(text: str) -> Cpu:
    """Read Linux's /proc/cpuinfo, of x86 and of ARM."""
    blocks = [_pairs(block) for block in re.split(r"\n\s*\n", text.strip())]
    cpus = [block for block in blocks if "processor" in block]
    if not cpus:
        return Cpu()
    first = cpus[0]
    flags = set(f"{first.get('flags', '')} {first.get('Features', '')}".split())
    cores = {(cpu.get("physical id"), cpu["core id"]) for cpu in cpus if "core id" in cpu}
    return Cpu(
        vendor=first.get("vendor_id") or _implementer(first.get("CPU implementer")),
        model=first.get("model name") or blocks[-1].get("Model") or blocks[-1].get("Hardware"),
        physical=len(cores) or None,
        logical=len(cpus),
        features=tuple(name for name, known in _FEATURES.items() if flags & set(known)),
    )


def parse_sysctl(text: str) -> tuple[Cpu, Memory]:
    """Read what macOS's `sysctl hw machdep.cpu` prints: `key: value` lines."""
    values = _pairs(text)
    model = values.get("machdep.cpu.brand_string")
    vendor = values.get("machdep.cpu.vendor")
    if vendor is None and model is not None and model.startswith("Apple"):
        vendor = "Apple"
    features = [name for name, key in _SYSCTL_FEATURES.items() if values.get(key) == "1"]
    if "AVX512VNNI" in values.get("machdep.cpu.leaf7_features", "").split():
        features.append("avx512-vnni")
    cpu = Cpu(
        vendor=vendor,
        model=model,
        physical=_natural(values.get("hw.physicalcpu")),
        logical=_natural(values.get("hw.logicalcpu")),
        features=tuple(features),
    )
    return cpu, Memory(total=_natural(values.get("hw.memsize")))


def parse_meminfo(text: str) -> Memory:
    r"""Read Linux's /proc/meminfo.

    >>> parse_meminfo("MemTotal:  1000 kB\nMemAvailable: 10 kB").total
    1024000
    """
    values = _pairs(text)

    def size(key: str) -> int | None:
        match = re.match(r"(\d{1,18}) kB\Z", values.get(key, ""))
        return int(match[1]) * 1024 if match else None

    available = size("MemAvailable")
    return Memory(total=size("MemTotal"), available=size("MemFree") if available is None else available)  # fmt: skip


def memory_limit_files(text: str) -> list[str]:
    """Return where limits may be, below /sys/fs/cgroup, from what /proc/self/cgroup says.

    A limit of any group above counts as well. In a container the path is often that of the host,
    and what is there is the group itself.

    >>> memory_limit_files("0::/a/b")
    ['a/b/memory.max', 'a/memory.max', 'memory.max']
    """
    found: list[str] = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found += _upwards(path, "", "memory.max")
        elif "memory" in controllers.split(","):
            found += _upwards(path, "memory/", "memory.limit_in_bytes")
    return found


def parse_limit(text: str) -> int | None:
    """Read a cgroup's limit, of either version; None is no limit.

    >>> [parse_limit(text) for text in ("max", "1073741824", "9223372036854771712", "")]
    [None, 1073741824, None, None]
    """
    limit = _natural(text.strip())
    return None if limit is None or limit >= _NO_LIMIT else limit


def cpu_quota_files(text: str) -> list[str]:
    """Return where limits of processor time may be, below /sys/fs/cgroup.

    >>> cpu_quota_files("0::/a")
    ['a/cpu.max', 'cpu.max']
    """
    rows = [line.partition("::") for line in text.splitlines() if line.startswith("0::")]
    return [name for _, _, path in rows for name in _upwards(path, "", "cpu.max")]


def parse_cpu_quota(text: str) -> int | None:
    """Read a cgroup's `cpu.max`, time and period, as whole processors; None is no limit.

    >>> [parse_cpu_quota(text) for text in ("max 100000", "150000 100000", "50000 100000", "")]
    [None, 2, 1, None]
    """
    quota, _, period = text.strip().partition(" ")
    time, length = _natural(quota), _natural(period)
    return None if time is None or not length else max(1, -(-time // length))


def parse_nvidia_smi(text: str) -> list[Device]:
    """Read `nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits`."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == 3]
    return [
        Device(
            kind="gpu",
            vendor="NVIDIA",
            name=name,
            memory=None if (mebibytes := _natural(memory)) is None else mebibytes << 20,
            driver=driver,
        )
        for name, memory, driver in rows
    ]


def parse_pci_device(kind: DeviceKind, files: Mapping[str, str]) -> Device | None:
    """Read a device from Linux's /sys/class/drm/cardN/device, or of /sys/class/accel.

    Args:
        kind: which of the two classes it is in.
        files: the content of `vendor`, and, where it is there, of `mem_info_vram_total`.
    """
    try:
        vendor = _PCI_VENDORS.get(int(files.get("vendor", "").strip(), 16))
    except ValueError:
        return None
    if vendor is None:
        return None  # a screen of a virtual machine, or of a server's own controller
    return Device(
        kind=kind, vendor=vendor, memory=_natural(files.get("mem_info_vram_total", "").strip())
    )


def pci_vendor(number: int, name: str = "") -> str | None:
    """Return who made a device, by its PCI number, or else as it says itself."""
    return _PCI_VENDORS.get(number) or name or None


def merge_devices(devices: Iterable[Device]) -> list[Device]:
    """Return each device once: what one source says of it is completed by the next.

    Devices are told apart by kind and vendor; where a source sees several, so many there are.
    """
    found: list[Device] = []
    for device in devices:
        same = [i for i, known in enumerate(found) if _is_same(known, device)]
        if same:
            for i in same:
                found[i] = _completed(found[i], device)
        else:
            found.append(device)
    return found


def _is_same(one: Device, other: Device) -> bool:
    named = one.name is not None and other.name is not None
    return (one.kind, one.vendor) == (other.kind, other.vendor) and not named


def _completed(one: Device, other: Device) -> Device:
    return Device(
        kind=one.kind,
        vendor=one.vendor,
        name=one.name or other.name,
        memory=other.memory if one.memory is None else one.memory,
        driver=one.driver or other.driver,
        providers=tuple(dict.fromkeys((*one.providers, *other.providers))),
    )


def _upwards(path: str, mount: str, name: str) -> list[str]:
    parts = [part for part in PurePosixPath(path).parts if part not in {"/", ".."}]
    return [mount + "/".join((*parts[:i], name)) for i in range(len(parts), -1, -1)]


def _pairs(text: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _implementer(text: str | None) -> str | None:
    try:
        return _IMPLEMENTERS.get(int(text or "", 16))
    except ValueError:
        return None


def _natural(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,19}", text) else None
