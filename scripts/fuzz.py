"""Give the readers of model files what chance makes of valid ones; all must end well.

Well is: the file is read, or refused with an error of weightpkg's own, in under a second, by a
process that never has 200 MB. The same number gives the same files.

Usage: python scripts/fuzz.py [N] [--first SEED] [--only gguf|safetensors|index|onnx]
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import safetensors_file  # noqa: E402  they are found by the line above
from mutations import (  # noqa: E402  the same
    gguf_seed,
    mutated_gguf,
    mutated_safetensors,
    onnx_seed,
    safetensors_seed,
    spliced,
)
from weightpkg.errors import FormatError  # noqa: E402  the same
from weightpkg.formats import gguf_header, safetensors_header  # noqa: E402  the same
from weightpkg.formats.onnx_file import check_model  # noqa: E402  the same
from weightpkg.formats.safetensors import read_index  # noqa: E402  the same

MAX_S = 1.0
MAX_BYTES = 200_000_000
HANGS_S = 20
CHUNK = 2500

_INDEX = (
    b'{"metadata": {"total_size": 1.5}, "weight_map": {"a.weight": "m-00001-of-00002.safetensors", '
    b'"b.weight": "m-00002-of-00002.safetensors", "b.bias": "m-00002-of-00002.safetensors"}}'
)


@dataclass
class Tally:
    """What became of some files. worst: of one file; peak: of the process that read them."""

    refused: int = 0
    accepted: int = 0
    faults: list[str] = field(default_factory=list)
    worst_s: float = 0.0
    peak_bytes: int = 0

    def add(self, other: Tally) -> None:
        """Count another one in."""
        self.refused += other.refused
        self.accepted += other.accepted
        self.faults += other.faults
        self.worst_s = max(self.worst_s, other.worst_s)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def gguf(seed: int) -> Callable[[], None]:
    """Make a GGUF file; return what reads it, as a conversion would, up to its tensors' bytes."""
    valid = gguf_seed()
    content = spliced(valid, seed, end=-768) if seed % 2 else mutated_gguf(valid, seed)

    def read() -> None:
        header = gguf_header.read_header("a.gguf", content)
        for tensor in header.tensors.values():
            assert 0 <= tensor.offset <= tensor.offset + tensor.size <= len(content)

    return read


def safetensors(seed: int) -> Callable[[], None]:
    """Make a safetensors file; return what reads it."""
    valid = safetensors_seed()
    content = spliced(valid, seed, end=-290) if seed % 2 else mutated_safetensors(valid, seed)

    def read() -> None:
        header = safetensors_header.read_header("a.safetensors", content)
        for tensor in header.tensors.values():
            assert header.size <= tensor.start <= tensor.start + tensor.nbytes <= len(content)

    return read


def index(seed: int) -> Callable[[], None]:
    """Make the index of a safetensors checkpoint; return what reads it."""
    content = (
        spliced(_INDEX, seed)
        if seed % 2
        else mutated_safetensors(safetensors_file(_INDEX), seed)[8:]
    )

    def read() -> None:
        for shard in read_index("a.json", content).values():
            assert "/" not in shard
            assert ".." not in shard.split("\\")

    return read


def onnx(seed: int) -> Callable[[], None]:
    """Make an ONNX model; return what checks it."""
    folder = Path(tempfile.gettempdir())
    model = folder / f"{os.getpid()}.onnx"
    model.write_bytes(spliced(onnx_seed(), seed))

    def read() -> None:
        assert set(check_model(model, "a.onnx", {"data": folder / "data"})) <= {"data"}

    return read


KINDS = {"gguf": gguf, "safetensors": safetensors, "index": index, "onnx": onnx}


def fuzz(kind: str, first: int, last: int) -> Tally:
    """Read the files of some seeds.

    Args:
        kind: one of `KINDS`.
        first: the first seed.
        last: the one after the last.
    """
    tally = Tally()
    for seed in range(first, last):
        read = KINDS[kind](seed)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_VIRTUAL, HANGS_S)
        try:
            read()
            tally.accepted += 1
        except FormatError as error:
            tally.refused += 1
            if not str(error).isprintable() or len(str(error)) > 300:
                tally.faults.append(f"{kind} {seed}: a message that is long or not printable")
        except Exception as error:  # noqa: BLE001  any other is what is looked for
            tally.faults.append(f"{kind} {seed}: {error!r}")
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        seconds = time.process_time() - start
        tally.worst_s = max(tally.worst_s, seconds)
        if seconds > MAX_S:
            tally.faults.append(f"{kind} {seed}: {seconds:.1f} s")
    tally.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if tally.peak_bytes > MAX_BYTES:
        tally.faults.append(f"{kind} {first} to {last}: {tally.peak_bytes / 1e6:.0f} MB")
    return tally


def _hang(*_: object) -> NoReturn:
    raise TimeoutError(f"takes more than {HANGS_S} s")


def _prepare(folder: str) -> None:
    """Make a process ready: a file that hangs is ended, and there is a folder for files."""
    signal.signal(signal.SIGVTALRM, _hang)
    tempfile.tempdir = folder
    (Path(folder) / "data").write_bytes(bytes(64))


def fuzz_all(kind: str, first: int, last: int) -> Tally:
    """Do as `fuzz`, in fresh processes on all cores: they have no memory but their own."""
    tally = Tally()
    firsts = range(first, last, CHUNK)
    lasts = [min(each + CHUNK, last) for each in firsts]
    context = get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(mp_context=context, initializer=_prepare, initargs=(folder,)) as pool,
    ):
        for part in pool.map(fuzz, [kind] * len(firsts), firsts, lasts):
            tally.add(part)
    return tally


def main() -> int:
    """Fuzz, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("n", nargs="?", type=int, default=100_000, help="files of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", choices=KINDS)
    arguments = parser.parse_args()
    faults: list[str] = []
    for kind in [arguments.only] if arguments.only else KINDS:
        start = time.perf_counter()
        tally = fuzz_all(kind, arguments.first, arguments.first + arguments.n)
        faults += tally.faults
        print(
            f"{kind}: {arguments.n:,} files, {tally.refused:,} refused, {tally.accepted:,} read, "
            f"{len(tally.faults)} faults; at most {1000 * tally.worst_s:.0f} ms and "
            f"{tally.peak_bytes / 1e6:.0f} MB; {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    for fault in faults[:20]:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
