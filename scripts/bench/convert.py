"""A conversion as a whole process: wall time, peak memory, and the size of what it writes.

A peer is measured beside it where it is installed: mobius-onnx 0.1.0 (pip install mobius-onnx gguf).

Usage: python scripts/bench/convert.py [--runs 5] [--gguf FILE]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from measure import Run, median, run
from report import Report, installed_model


def convert(command: list[str], output: Path, runs: int) -> tuple[list[Run], int]:
    """Convert some times; return the runs, and the bytes of the output."""
    measured = []
    for _ in range(runs + 1):
        shutil.rmtree(output, ignore_errors=True)
        measured.append(run(command))
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return measured[1:], size


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--gguf", type=Path, help="the source; that of smollm2-135m-q4 if not given"
    )
    arguments = parser.parse_args()
    source = arguments.gguf or installed_model()[0]
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        weightpkg = [sys.executable, "-m", "weightpkg", "-q", "convert"]
        ours, size = convert([*weightpkg, str(source), "-o", str(output)], output, arguments.runs)
        report.at_most("weightpkg, wall time", median(ours, "wall_s"), 2.0, form=".2f", unit=" s")
        peak = median(ours, "peak_bytes") / 1e6
        report.at_most("weightpkg, peak memory", peak, 300, form=".0f", unit=" MB")
        report.at_most("output / GGUF", size / source.stat().st_size, 1.25, form=".2f")
        peer = shutil.which("mobius", path=str(Path(sys.executable).parent))
        if peer is None:
            print("mobius-onnx is not installed (pip install mobius-onnx gguf): not compared")
            return report.end()
        named = Path(folder) / "model.gguf"
        named.symlink_to(source)
        command = [peer, "build-gguf", str(named), "--output", str(output)]
        command += ["--keep-quantized", "--ep", "cpu"]
        theirs, size = convert(command, output, 1)
        report.add("mobius-onnx, wall time", median(theirs, "wall_s"), form=".2f", unit=" s")
        report.add(
            "mobius-onnx, peak memory", median(theirs, "peak_bytes") / 1e6, form=".0f", unit=" MB"
        )
        report.add("mobius-onnx, output / GGUF", size / source.stat().st_size, form=".2f")
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
