"""What a user waits for: `--help`, and the first token of a second `run`.

Usage: python scripts/bench/startup.py [--runs 9]
"""

from __future__ import annotations

import argparse
import sys

from measure import WEIGHTPKG, alternate, median
from report import MODEL, Report, installed_model


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    arguments = parser.parse_args()
    installed_model()
    commands = [
        [*WEIGHTPKG, "--help"],
        [sys.executable, "-m", "pip", "--version"],
        [*WEIGHTPKG, "run", MODEL, "--max-tokens", "8", "Why is the sky blue?"],
    ]
    help_, pip, answer = alternate(commands, arguments.runs)
    report = Report()
    help_s, pip_s = median(help_, "wall_s"), median(pip, "wall_s")
    report.add("weightpkg --help", help_s, unit=" s")
    report.add("pip --version", pip_s, unit=" s")
    report.at_most("ratio", help_s / pip_s, 0.5, form=".2f")
    first = median(answer, "first_output_s")
    report.at_most("second run, first token after", first, 1.5, form=".2f", unit=" s")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
