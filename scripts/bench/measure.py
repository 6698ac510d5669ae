"""Whole processes, measured: wall time, peak memory, time to the first byte of output."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WEIGHTPKG = [sys.executable, "-m", "weightpkg"]


@dataclass(frozen=True)
class Run:
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    first_output_s: float


def run(command: Sequence[str]) -> Run:
    """Run a command to its end; its peak memory is the operating system's own count.

    Linux counts the memory that this process has when it starts the other one, so a caller must be
    small: what measures imports no NumPy.

    Raises:
        RuntimeError: it failed.
    """
    # what pip installs is compiled; a checkout is too after the first run, if it may be
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - start
        process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, first)


def alternate(commands: Sequence[Sequence[str]], runs: int) -> list[list[Run]]:
    """Run commands in turn, once to warm up and then `runs` times, so that drift hits all alike."""
    for command in commands:
        run(command)
    rounds = [[run(command) for command in commands] for _ in range(runs)]
    return [list(column) for column in zip(*rounds, strict=True)]


def median(
    runs: Sequence[Run], figure: Literal["wall_s", "cpu_s", "peak_bytes", "first_output_s"]
) -> float:
    """The median of one figure."""
    return float(statistics.median(getattr(each, figure) for each in runs))
