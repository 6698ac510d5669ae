"""A conversion as a whole process: wall time, peak memory, and the size of what it writes.

A peer is measured beside it where it is installed: mobius-onnx 0.1.0 (pip install mobius-onnx gguf).
With --synthetic the sources are random Llamas of 2 GB and of a quarter (scripts/make_synthetic_llama.py):
speed beside that of `cp` and `sync`, as a conversion does not end before its files are on the disk,
and memory, which must be that of the largest matrix and not grow with the file.

Usage: python scripts/bench/convert.py [--runs 5] [--gguf FILE] [--synthetic [--size-mb 2000]]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import Run, median, run
from report import Report, installed_model

WEIGHTPKG = (sys.executable, "-m", "weightpkg", "-q", "convert")
SYNTHESIZE = Path(__file__).resolve().parents[1] / "make_synthetic_llama.py"


def convert(command: list[str], output: Path, runs: int) -> tuple[list[Run], int]:
    """Convert some times; return the runs, and the bytes of the output."""
    measured = []
    for _ in range(runs + 1):
        shutil.rmtree(output, ignore_errors=True)
        measured.append(run(command))
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return measured[1:], size


def report_model(
    report: Report, source: Path, folder: Path, runs: int, bars: list[float]
) -> tuple[float, float]:
    """Convert a file; return seconds and MB. bars: of both, and of the output's size by the source's."""
    output = folder / "out"
    ours, size = convert([*WEIGHTPKG, str(source), "-o", str(output)], output, runs)
    wall = median(ours, "wall_s")
    report.at_most("weightpkg, wall time", wall, bars[0], form=".2f", unit=" s")
    report.add("weightpkg, processor time", median(ours, "cpu_s"), form=".2f", unit=" s")
    peak = median(ours, "peak_bytes") / 1e6
    report.at_most("weightpkg, peak memory", peak, bars[1], form=".0f", unit=" MB")
    report.at_most("output / GGUF", size / source.stat().st_size, bars[2], form=".2f")
    return wall, peak


def report_peer(
    report: Report, source: Path, folder: Path, our_wall: float, our_peak: float
) -> None:
    """Convert a file with a peer, if it is installed, and compare with our seconds and MB."""
    beside = shutil.which("mobius", path=str(Path(sys.executable).parent))
    peer = beside or shutil.which("mobius")  # it may have an environment of its own
    if peer is None:
        print("mobius-onnx is not installed (pip install mobius-onnx gguf): not compared")
        return
    named, output = folder / "model.gguf", folder / "theirs"
    named.symlink_to(source)
    command = [peer, "build-gguf", str(named), "--output", str(output)]
    theirs, size = convert([*command, "--keep-quantized", "--ep", "cpu"], output, 1)
    wall, peak = median(theirs, "wall_s"), median(theirs, "peak_bytes") / 1e6
    report.add("mobius-onnx, wall time", wall, form=".2f", unit=" s")
    report.add("mobius-onnx, peak memory", peak, form=".0f", unit=" MB")
    report.at_least("mobius-onnx / weightpkg, time", wall / our_wall, 8, form=".1f")
    report.at_most("weightpkg / mobius-onnx, memory", our_peak / peak, 0.25, form=".2f")
    report.add("mobius-onnx, output / GGUF", size / source.stat().st_size, form=".2f")


def beside_cp(source: Path, folder: Path, runs: int) -> tuple[list[Run], list[Run], list[Run]]:
    """Convert, copy, and copy and sync a file in turn, once to warm up."""
    output, copy = folder / "out", folder / "copy"
    commands = (
        [*WEIGHTPKG, str(source), "-o", str(output)],
        ["cp", str(source), str(copy)],
        ["sh", "-c", 'cp "$1" "$2" && sync "$2"', "sh", str(source), str(copy)],
    )
    rounds: tuple[list[Run], list[Run], list[Run]] = ([], [], [])
    for _ in range(runs + 1):
        for measured, command in zip(rounds, commands, strict=True):
            shutil.rmtree(output, ignore_errors=True)
            copy.unlink(missing_ok=True)
            subprocess.run(["sync", str(folder)], check=True)  # noqa: S607  what one leaves, the next would wait for
            measured.append(run(command))
    copy.unlink()
    shutil.rmtree(output, ignore_errors=True)
    return rounds[0][1:], rounds[1][1:], rounds[2][1:]


def synthetic(folder: Path, size_mb: int) -> Path:
    """Write a synthetic model, in a process of its own: this one must stay small."""
    path = folder / f"{size_mb}.gguf"
    command = [sys.executable, str(SYNTHESIZE), str(path), "--size-mb", str(size_mb)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def report_synthetic(report: Report, folder: Path, size_mb: int, runs: int) -> None:
    """Convert two synthetic models beside `cp`."""
    peaks = []
    for size in (size_mb // 4, size_mb):
        source = synthetic(folder, size)
        megabytes = source.stat().st_size / 1e6
        ours, copies, synced = beside_cp(source, folder, runs)
        source.unlink()
        peaks.append(median(ours, "peak_bytes") / 1e6)
        name = f"{size} MB"
        rates = [megabytes / median(each, "wall_s") for each in (ours, copies, synced)]
        for what, rate in zip(("conversion", "cp", "cp and sync"), rates, strict=True):
            report.add(f"{name}: {what}", rate, form=".0f", unit=" MB/s")
        cpu = median(ours, "cpu_s") / megabytes * 1e3
        report.add(f"{name}: processor time for 1 GB", cpu, form=".2f", unit=" s")
        report.add(f"{name}: conversion / cp", rates[0] / rates[1], form=".2f")
        report.at_least(f"{name}: conversion / (cp and sync)", rates[0] / rates[2], 0.4, form=".2f")
        report.at_most(f"{name}: peak memory", peaks[-1], 500, form=".0f", unit=" MB")
    report.at_most("peak memory, large / small", peaks[1] / peaks[0], 1.1, form=".2f")


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--gguf", type=Path, help="the source; that of smollm2-135m-q4 if not given"
    )
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--size-mb", type=int, default=2000, help="of the larger synthetic one")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one if not given")
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        if arguments.synthetic:
            report_synthetic(report, folder, arguments.size_mb, arguments.runs)
            return report.end()
        source = arguments.gguf or installed_model()[0]
        bars = [5.0, 400.0, 1.35] if arguments.gguf else [2.0, 300.0, 1.25]
        wall, peak = report_model(report, source, folder, arguments.runs, bars)
        report_peer(report, source, folder, wall, peak)
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
