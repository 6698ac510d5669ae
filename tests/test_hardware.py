"""What machines say of themselves, in the form in which systems say it; and what is made of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpkg.diagnosis import StoreHealth, diagnose
from weightpkg.hardware import (
    Cpu,
    Device,
    Memory,
    memory_limit_files,
    merge_devices,
    parse_cpuinfo,
    parse_limit,
    parse_meminfo,
    parse_nvidia_smi,
    parse_pci_device,
    parse_sysctl,
)
from weightpkg.survey import Runtime, Survey, look, this_machine


def x86(n: int, vendor: str, model: str, flags: str, *, threads: int = 1) -> str:
    """Lines of /proc/cpuinfo that matter, for each logical processor, as Linux 6.1 writes them."""
    return "\n\n".join(
        f"processor\t: {i}\nvendor_id\t: {vendor}\ncpu family\t: 6\nmodel name\t: {model}\n"
        f"physical id\t: 0\nsiblings\t: {n}\ncore id\t\t: {i // threads}\ncpu cores\t: {n // threads}\n"
        f"flags\t\t: {flags}\nbugs\t\t: spectre_v1\npower management:"
        for i in range(n)
    )


EPYC = x86(2, "AuthenticAMD", "AMD EPYC", "fpu sse4_2 movbe aes avx f16c fma rdrand bmi1 avx2 erms sha_ni vaes")  # fmt: skip
SAPPHIRE = x86(4, "GenuineIntel", "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", "fpu fma f16c avx2 avx512f avx512dq avx_vnni avx512_bf16 avx512_vnni amx_bf16 avx512_fp16 amx_tile amx_int8", threads=2)  # fmt: skip
ATOM = x86(2, "GenuineIntel", "Intel(R) Celeron(R) CPU N3350 @ 1.10GHz", "fpu sse4_1 sse4_2 popcnt aes rdrand")  # fmt: skip

GRAVITON3 = """\
processor\t: 0
BogoMIPS\t: 2100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg dcpodp svei8mm svebf16 i8mm bf16 dgh rng
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1

processor\t: 1
BogoMIPS\t: 2100.00
Features\t: fp asimd asimddp sve i8mm bf16
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd40
CPU revision\t: 1
"""
PI4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

Hardware\t: BCM2835
Revision\t: c03114
Serial\t\t: 10000000deadbeef
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        (EPYC, Cpu(vendor="AuthenticAMD", model="AMD EPYC", physical=2, logical=2, features=("f16c", "fma", "avx2"))),
        (SAPPHIRE, Cpu(vendor="GenuineIntel", model="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz", physical=2, logical=4, features=("f16c", "fma", "avx2", "avx512", "avx512-vnni", "avx-vnni", "amx-int8", "amx-bf16"))),
        (ATOM, Cpu(vendor="GenuineIntel", model="Intel(R) Celeron(R) CPU N3350 @ 1.10GHz", physical=2, logical=2)),
        (GRAVITON3, Cpu(vendor="ARM", logical=2, features=("neon", "dotprod", "i8mm", "bf16", "sve"))),
        (PI4, Cpu(vendor="ARM", model="Raspberry Pi 4 Model B Rev 1.4", logical=1, features=("neon",))),
        ("", Cpu()),
        ("nonsense", Cpu()),
        ("processor: x\nCPU implementer: y", Cpu(logical=1)),
    ],
    ids=["epyc", "sapphire rapids", "celeron", "graviton 3", "raspberry pi", "empty", "none", "odd"],
)  # fmt: skip
def test_reads_cpuinfo(text: str, cpu: Cpu) -> None:
    assert parse_cpuinfo(text) == cpu


M2 = """\
hw.ncpu: 8
hw.memsize: 17179869184
hw.physicalcpu: 8
hw.logicalcpu: 8
hw.optional.neon: 1
hw.optional.arm.FEAT_DotProd: 1
hw.optional.arm.FEAT_I8MM: 1
hw.optional.arm.FEAT_BF16: 1
hw.optional.arm.FEAT_SME: 0
machdep.cpu.cores_per_package: 8
machdep.cpu.brand_string: Apple M2
"""
MACBOOK_2019 = """\
hw.memsize: 34359738368
hw.physicalcpu: 8
hw.logicalcpu: 16
hw.optional.avx2_0: 1
hw.optional.avx512f: 0
hw.optional.fma: 1
hw.optional.f16c: 1
machdep.cpu.vendor: GenuineIntel
machdep.cpu.brand_string: Intel(R) Core(TM) i9-9980HK CPU @ 2.40GHz
machdep.cpu.leaf7_features: RDWRFSGSBASE TSC_THREAD_OFFSET SGX BMI1 AVX2 SMEP
"""


def test_reads_sysctl() -> None:
    apple, memory = parse_sysctl(M2)
    assert apple == Cpu(vendor="Apple", model="Apple M2", physical=8, logical=8, features=("neon", "dotprod", "i8mm", "bf16"))  # fmt: skip
    assert memory.total == 16 * 2**30
    intel, _ = parse_sysctl(MACBOOK_2019)
    assert (intel.vendor, intel.physical, intel.logical) == ("GenuineIntel", 8, 16)
    assert intel.features == ("avx2", "fma", "f16c")
    assert parse_sysctl("") == (Cpu(), Memory())


def test_reads_meminfo() -> None:
    text = "MemTotal:       24684096 kB\nMemFree:        16513508 kB\nMemAvailable:   23875916 kB\nHugePages_Total:       0\n"
    assert parse_meminfo(text) == Memory(total=24684096 * 1024, available=23875916 * 1024)
    old = text.replace("MemAvailable", "Other")  # before Linux 3.14
    assert parse_meminfo(old).available == 16513508 * 1024
    assert parse_meminfo("MemTotal: many") == Memory()


DOCKER_V2 = "0::/\n"
SYSTEMD = "0::/user.slice/user-1000.slice/session-3.scope\n"
DOCKER_V1 = (
    "11:memory:/docker/0123abcd\n10:cpu,cpuacct:/docker/0123abcd\n1:name=systemd:/docker/0123abcd\n"
)
HYBRID = "9:name=systemd:/\n4:memory:/jobs/7\n0::/\n"
KUBERNETES = "0::/../../pod1234/abcd\n"


@pytest.mark.parametrize(
    ("text", "files"),
    [
        (DOCKER_V2, ["memory.max"]),
        (SYSTEMD, [
            "user.slice/user-1000.slice/session-3.scope/memory.max",
            "user.slice/user-1000.slice/memory.max",
            "user.slice/memory.max",
            "memory.max",
        ]),
        (DOCKER_V1, [
            "memory/docker/0123abcd/memory.limit_in_bytes",
            "memory/docker/memory.limit_in_bytes",
            "memory/memory.limit_in_bytes",
        ]),
        (HYBRID, [
            "memory/jobs/7/memory.limit_in_bytes",
            "memory/jobs/memory.limit_in_bytes",
            "memory/memory.limit_in_bytes",
            "memory.max",
        ]),
        (KUBERNETES, ["pod1234/abcd/memory.max", "pod1234/memory.max", "memory.max"]),
        ("", []),
        ("nonsense\n:\n", []),
    ],
    ids=["docker v2", "systemd", "docker v1", "hybrid", "kubernetes", "empty", "none"],
)  # fmt: skip
def test_finds_limits_of_control_groups(text: str, files: list[str]) -> None:
    assert memory_limit_files(text) == files


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max\n", None), ("2147483648\n", 2**31), ("9223372036854771712\n", None), ("", None), ("-1", None)],
)  # fmt: skip
def test_reads_limits(text: str, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_the_least_limit_counts() -> None:
    assert Memory(total=100, limit=60).usable == 60
    assert Memory(total=100).usable == 100
    assert Memory().usable is None


def test_reads_nvidia_smi() -> None:
    text = "NVIDIA H200, 143771, 570.86.15\nNVIDIA GeForce RTX 4090, 24564, 570.86.15\nGrace, [N/A], 550.1\n"
    first, second, third = parse_nvidia_smi(text)
    assert first == Device(kind="gpu", vendor="NVIDIA", name="NVIDIA H200", memory=143771 << 20, driver="570.86.15")  # fmt: skip
    assert (second.name, third.memory) == ("NVIDIA GeForce RTX 4090", None)
    assert parse_nvidia_smi("No devices were found\n") == []


def test_reads_devices_of_linux() -> None:
    radeon = parse_pci_device("gpu", {"vendor": "0x1002\n", "mem_info_vram_total": "17163091968\n"})
    assert radeon == Device(kind="gpu", vendor="AMD", memory=17163091968)
    meteor_lake = parse_pci_device("npu", {"vendor": "0x8086\n", "mem_info_vram_total": ""})
    assert meteor_lake == Device(kind="npu", vendor="Intel")
    for virtual in ("0x1234\n", "0x1af4\n", "", "what"):
        assert parse_pci_device("gpu", {"vendor": virtual}) is None


def test_a_device_that_several_tell_of_is_one() -> None:
    told = [
        Device(kind="gpu", vendor="NVIDIA", name="NVIDIA H200", memory=1, driver="1"),
        Device(kind="gpu", vendor="NVIDIA", name="NVIDIA H100", memory=1, driver="1"),
        Device(kind="gpu", vendor="NVIDIA"),
        Device(kind="gpu", vendor="NVIDIA", providers=("CUDAExecutionProvider",)),
        Device(kind="npu", vendor="Intel"),
    ]
    merged = merge_devices(told)
    assert [(device.vendor, device.name) for device in merged] == [
        ("NVIDIA", "NVIDIA H200"),
        ("NVIDIA", "NVIDIA H100"),
        ("Intel", None),
    ]
    assert merged[0].providers == ("CUDAExecutionProvider",)


@given(st.text() | st.text("0123456789:,/ \n\tabcprocessor"))
def test_no_text_breaks_a_reader(text: str) -> None:
    parse_cpuinfo(text)
    parse_sysctl(text)
    parse_meminfo(text)
    parse_limit(text)
    parse_nvidia_smi(text.replace("\0", ""))
    parse_pci_device("gpu", {"vendor": text, "mem_info_vram_total": text})
    assert all(".." not in name.split("/") for name in memory_limit_files(text))


PLAIN = Survey(
    system="linux",
    architecture="x86_64",
    python="3.11.7",
    cpu=parse_cpuinfo(EPYC),
    memory=Memory(total=2**34, available=2**33),
    devices=(),
    runtime=Runtime(
        version="1.31.1",
        distributions=(("onnxruntime", "1.31.1"),),
        providers=("AzureExecutionProvider", "CPUExecutionProvider"),
    ),
)
SOUND = StoreHealth(path="/store", free=10**11)


def findings(survey: Survey = PLAIN, store: StoreHealth = SOUND) -> list[tuple[str, str]]:
    return [(each.severity, f"{each.what} {each.remedy}") for each in diagnose(survey, store)]


def test_a_sound_machine_has_nothing_to_say() -> None:
    assert findings() == []


@pytest.mark.parametrize(
    ("device", "system", "architecture", "distribution"),
    [
        (Device(kind="gpu", vendor="NVIDIA"), "linux", "x86_64", "onnxruntime-gpu"),
        (Device(kind="gpu", vendor="NVIDIA"), "windows", "amd64", "onnxruntime-gpu"),
        (Device(kind="gpu", vendor="NVIDIA"), "windows", "arm64", "onnxruntime-directml"),
        (Device(kind="gpu", vendor="NVIDIA"), "linux", "aarch64", None),
        (Device(kind="gpu", vendor="AMD"), "windows", "amd64", "onnxruntime-directml"),
        (Device(kind="gpu", vendor="AMD"), "linux", "x86_64", "onnxruntime-migraphx"),
        (Device(kind="gpu", vendor="Intel"), "linux", "x86_64", "onnxruntime-openvino"),
        (Device(kind="npu", vendor="Intel"), "windows", "amd64", "onnxruntime-openvino"),
        (Device(kind="npu", vendor="Qualcomm"), "windows", "arm64", "onnxruntime-qnn"),
        (Device(kind="gpu", vendor="Apple"), "darwin", "arm64", None),
        (Device(kind="gpu"), "linux", "x86_64", None),
    ],
)
def test_names_the_package_that_would_bring_more(
    device: Device, system: str, architecture: str, distribution: str | None
) -> None:
    survey = replace(PLAIN, devices=(device,), system=system, architecture=architecture)
    found = findings(survey)
    if distribution is None:
        assert found == []
    else:
        ((severity, text),) = found
        assert severity == "note"
        assert text.startswith(f"`{distribution}` brings")
        assert f"then pip install {distribution}" in text


def test_what_is_there_already_is_not_named() -> None:
    runtime = replace(PLAIN.runtime, providers=("CUDAExecutionProvider", "CPUExecutionProvider"))
    survey = replace(PLAIN, devices=(Device(kind="gpu", vendor="NVIDIA"),), runtime=runtime)
    assert findings(survey) == []


def test_two_packages_of_onnxruntime_are_a_problem() -> None:
    both = (("onnxruntime", "1.31.1"), ("onnxruntime-gpu", "1.31.0"))
    ((severity, text),) = findings(
        replace(PLAIN, runtime=replace(PLAIN.runtime, distributions=both))
    )
    assert severity == "problem"
    assert "pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu" in text


@pytest.mark.parametrize(
    ("runtime", "word"),
    [
        (Runtime(error="DLL load failed"), "DLL load failed"),
        (
            Runtime(version="1.31.1", providers=("CUDAExecutionProvider",)),
            "no CPUExecutionProvider",
        ),
    ],
)
def test_a_runtime_that_cannot_run_is_a_problem(runtime: Runtime, word: str) -> None:
    ((severity, text),) = findings(replace(PLAIN, runtime=runtime))
    assert severity == "problem"
    assert word in text


@pytest.mark.parametrize(
    ("store", "severity", "word"),
    [
        (replace(SOUND, error="layout 9"), "problem", "layout 9"),
        (replace(SOUND, is_writable=False), "problem", "cannot be written"),
        (replace(SOUND, free=10**8), "problem", "only 100 MB are free"),
        (replace(SOUND, n_quarantined=2), "note", "2 damaged files"),
        (replace(SOUND, n_partials=1, partial_size=5 * 10**6), "note", "not finished (5 MB)"),
    ],
)
def test_a_stores_health(store: StoreHealth, severity: str, word: str) -> None:
    ((found, text),) = findings(store=store)
    assert found == severity
    assert word in text


def test_problems_come_first() -> None:
    store = replace(SOUND, n_partials=1, is_writable=False)
    survey = replace(PLAIN, memory=Memory(total=2**34, limit=2**30), cpu=parse_cpuinfo(ATOM))
    severities = [severity for severity, _ in findings(survey, store)]
    assert severities == ["problem", "note", "note"]


def test_looks_at_this_very_machine() -> None:
    survey = look()
    assert survey.runtime.version
    assert "CPUExecutionProvider" in survey.runtime.providers
    assert survey.memory.total
    assert survey.memory.total > 2**28
    assert survey.cpu.logical
    assert survey.machine == this_machine()
