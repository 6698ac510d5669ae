"""What a continuous integration waits for: `sync --frozen` with everything there.

The project is made in a temporary directory; the store is the user's.

Usage: python scripts/bench/sync.py [NAME...] [--runs 9]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from measure import WEIGHTPKG, alternate, median
from report import MODEL, Report


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[MODEL])
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        subprocess.run([*WEIGHTPKG, "add", *arguments.names], check=True)
        subprocess.run([*WEIGHTPKG, "sync"], check=True)
        commands = [
            [*WEIGHTPKG, "sync", "--frozen"],
            [*WEIGHTPKG, "lock", "--check"],
            [*WEIGHTPKG, "--help"],
        ]
        frozen, check, help_ = alternate(commands, arguments.runs)
        os.chdir("/")
    report = Report()
    report.add("weightpkg --help", median(help_, "wall_s"), unit=" s")
    report.at_most("sync --frozen, all there", median(frozen, "wall_s"), 0.25, unit=" s")
    report.add("of it, processor time", median(frozen, "cpu_s"), unit=" s")
    report.add("lock --check", median(check, "wall_s"), unit=" s")
    report.add("peak memory", median(frozen, "peak_bytes") / 1e6, form=".0f", unit=" MB")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
