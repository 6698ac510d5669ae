"""Looking at machines that are not here: their files and programs, made up in a directory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from weightpkg import survey
from weightpkg.hardware import Device
from weightpkg.machine import Machine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux has")

CPUINFO = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: avx2 avx512f\n"
MEMINFO = "MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n"


class Fake:
    """A Linux in a directory: /proc, /sys, and programs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/cpuinfo", CPUINFO)
        self.write("proc/meminfo", MEMINFO)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path


@pytest.fixture
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(survey, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(survey, "_SYS", tmp_path / "sys")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return Fake(tmp_path)


def memory() -> int | None:
    return survey.this_machine().memory


def test_without_limits_all_memory_counts(linux: Fake) -> None:
    assert memory() == 16 * 2**30
    assert survey.this_machine() == Machine(device="cpu", memory=16 * 2**30, system="linux")


@pytest.mark.parametrize(
    ("cgroup", "limits", "usable"),
    [
        ("0::/\n", {"memory.max": "2147483648\n"}, 2**31),
        ("0::/\n", {"memory.max": "max\n"}, 2**34),
        (
            "0::/user.slice/job.scope\n",
            {"user.slice/memory.max": "4294967296\n", "user.slice/job.scope/memory.max": "max\n"},
            2**32,
        ),
        ("4:memory:/docker/ab\n", {"memory/memory.limit_in_bytes": "3221225472\n"}, 3 * 2**30),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 2**34),
        ("0::/\n", {"memory.max": "1099511627776\n"}, 2**34),  # more than the machine has
    ],
    ids=["v2", "v2 no limit", "v2 of the slice", "v1 in a container", "v1 no limit", "larger"],
)
def test_the_least_limit_of_control_groups_counts(
    linux: Fake, cgroup: str, limits: dict[str, str], usable: int
) -> None:
    linux.write("proc/self/cgroup", cgroup)
    for name, text in limits.items():
        linux.write(f"sys/fs/cgroup/{name}", text)
    assert memory() == usable


def test_a_machine_that_says_nothing_is_described_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey, "_PROC", tmp_path)
    monkeypatch.setattr(survey, "_SYS", tmp_path)
    monkeypatch.setenv("PATH", "")
    seen = survey.look()
    assert seen.memory.usable is None
    assert seen.machine.memory is None
    assert seen.devices == ()


def test_devices_of_all_kinds_are_seen(linux: Fake) -> None:
    linux.write("sys/class/drm/card0/device/vendor", "0x10de\n")
    linux.write("sys/class/drm/card1/device/vendor", "0x1002\n")
    linux.write("sys/class/drm/card1/device/mem_info_vram_total", "8573157376\n")
    linux.write("sys/class/drm/card1-DP-1/status", "connected\n")
    linux.write("sys/class/drm/card2/device/vendor", "0x1234\n")
    linux.write("sys/class/drm/version", "drm\n")
    linux.write("sys/class/accel/accel0/device/vendor", "0x8086\n")
    program = linux.write("bin/nvidia-smi", "#!/bin/sh\necho 'NVIDIA H200, 143771, 570.86.15'\n")
    program.chmod(0o755)
    assert survey.look().devices == (
        Device(kind="gpu", vendor="NVIDIA", name="NVIDIA H200", memory=143771 << 20, driver="570.86.15"),
        Device(kind="gpu", vendor="AMD", memory=8573157376),
        Device(kind="npu", vendor="Intel"),
    )  # fmt: skip


@pytest.mark.parametrize("script", ["exit 9", "echo 'NVIDIA-SMI has failed'", "kill -9 $$"])
def test_a_driver_that_fails_is_no_error(linux: Fake, script: str) -> None:
    linux.write("bin/nvidia-smi", f"#!/bin/sh\n{script}\n").chmod(0o755)
    assert survey.look().devices == ()


@pytest.mark.parametrize(
    ("kind", "vendor_id", "vendor", "metadata", "device"),
    [
        ("GPU", 0x10DE, "", {"Description": "RTX"}, Device(kind="gpu", vendor="NVIDIA", name="RTX", providers=("CUDA",))),
        ("NPU", 0x8086, "Intel Corporation", {}, Device(kind="npu", vendor="Intel", providers=("CUDA",))),
        ("GPU", 0x9999, "Moore", {}, Device(kind="gpu", vendor="Moore", providers=("CUDA",))),
        ("CPU", 0x8086, "Intel", {}, None),
    ],
)  # fmt: skip
def test_reads_what_onnxruntime_sees(
    kind: str, vendor_id: int, vendor: str, metadata: dict[str, str], device: Device | None
) -> None:
    hardware = SimpleNamespace(
        type=SimpleNamespace(name=kind), vendor_id=vendor_id, vendor=vendor, metadata=metadata
    )
    each = SimpleNamespace(ep_name="CUDA", device=hardware)
    assert survey._of_ep_device(each) == device
