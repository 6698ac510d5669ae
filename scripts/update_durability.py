"""Run the durability tests in full, and write what they did into docs/durability.md.

Usage: python scripts/update_durability.py [--quick]

`--quick` injects as often as the tests do in every change, and not as often as promised.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "durability.md"
TESTS = (
    "corruptions", "faults", "full_disk", "kill", "nth_fault", "power_cut", "races", "state_machine",
)  # fmt: skip
_TABLE = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.DOTALL)


def main() -> int:
    """Run, write, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        lines = Path(name) / "lines"
        start = time.monotonic()
        code = run(lines, thorough=not arguments.quick)
        minutes = (time.monotonic() - start) / 60
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
    if code == 0:
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(_TABLE.sub(lambda _: table(rows, minutes), text), encoding="utf-8")
    return code


def run(lines: Path, *, thorough: bool) -> int:
    """Run the tests, which append to a file what they did."""
    environment = {**os.environ, "WEIGHTPKG_DURABILITY_REPORT": str(lines)}
    if thorough:
        environment["WEIGHTPKG_THOROUGH"] = "1"
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "3600", *files]
    return subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode


def table(rows: Iterable[dict[str, object]], minutes: float) -> str:
    """Return the rows as Markdown, those of one kind added up."""
    sums: dict[str, list[int]] = {}
    for row in rows:
        counts = sums.setdefault(str(row["what"]), [0, 0])
        counts[0] += int(str(row["injected"]))
        counts[1] += int(str(row["lost"]))
    lines = [f"| {what} | {n:,} | {lost:,} |" for what, (n, lost) in sorted(sums.items())]
    head = ["| what was done | how often | lost or missed |", "| --- | ---: | ---: |"]
    return "\n".join([*head, *lines, "", f"One run of {minutes:.0f} minutes on two cores.", ""])


if __name__ == "__main__":
    sys.exit(main())
