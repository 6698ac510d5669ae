"""Hashing what is installed again beside `sha256sum` and `b3sum`; and an install that has nothing to do.

Usage: python scripts/bench/verify.py [--size 2e9] [--runs 3]

One file of that size is installed as it is, and lies in the system's cache when it is read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from download import NAME, make_file, write_index
from measure import alternate, median
from report import Report


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=float, default=2e9, help="bytes of the file")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        file = make_file(work / NAME, int(arguments.size))
        index = write_index(work / "index", "http://127.0.0.1:9", file, with_blake3=True)
        weightpkg = [sys.executable, "-m", "weightpkg", "-q"]
        os.environ |= {"WEIGHTPKG_HOME": str(work / "store"), "WEIGHTPKG_INDEX": str(index)}
        install = [*weightpkg, "install", "--no-convert", "big-q4"]
        subprocess.run([*install, "--find-links", str(work)], check=True)
        commands = {
            "weightpkg verify": [*weightpkg, "verify"],
            "sha256sum": ["sha256sum", str(file)],
            "b3sum": ["b3sum", str(file)],
            "install, all there": install,
        }
        commands = {key: value for key, value in commands.items() if shutil.which(value[0])}
        columns = dict(
            zip(commands, alternate(list(commands.values()), arguments.runs), strict=True)
        )
        report = Report()
        for client, runs in columns.items():
            report.add(client, median(runs, "wall_s"), unit=" s")
        seconds = {client: median(runs, "wall_s") for client, runs in columns.items()}
        ratio = seconds["sha256sum"] / seconds["weightpkg verify"]
        report.at_least("verify, times sha256sum", ratio, 6, form=".1f")
        if "b3sum" in seconds:
            report.add("verify, times b3sum", seconds["b3sum"] / seconds["weightpkg verify"])
        report.at_most("install, all there", seconds["install, all there"], 0.3, unit=" s")
        return report.end()


if __name__ == "__main__":
    sys.exit(main())
