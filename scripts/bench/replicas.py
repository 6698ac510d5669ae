"""Tokens a second of `weightpkg serve --ray` with one replica and with two, beside `serve` alone.

All compute with as many threads in all as two replicas have, and with half of them; the clients are the
same. What Ray's processes need of a machine shows where there are no more cores than that.

Usage: python scripts/bench/replicas.py [--clients 8] [--threads 1]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import httpx

from report import Report, installed_model, model_arguments
from serve import TOKENS, free_port, measure, our_command, serving


def rate(directory: Path, arguments: argparse.Namespace, *options: str) -> tuple[float, float]:
    """Return tokens a second of all clients together, and the seconds until it answered."""
    port, start = free_port(), time.perf_counter()
    command = our_command(directory, port)
    command += ["--rows", str(arguments.clients), *options]
    with serving(command, port) as url:
        seconds = time.perf_counter() - start
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        asyncio.run(measure(url, name, arguments.clients, arguments.clients, 8))
        n_requests = 3 * arguments.clients
        found = asyncio.run(measure(url, name, arguments.clients, n_requests, TOKENS))
    if found.n_lost:
        print(f"{found.n_lost} of {n_requests} requests were lost")
    return found.rate, seconds


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model_arguments(parser)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1, help="of one replica")
    arguments = parser.parse_args()
    directory = arguments.model or installed_model()[1]
    half, whole = str(arguments.threads), str(2 * arguments.threads)
    rows = {
        f"serve, {half} threads": ("--threads", half),
        f"serve, {whole} threads": ("--threads", whole),
        f"--ray, 1 replica of {half}": ("--threads", half, "--ray"),
        f"--ray, 2 replicas of {half}": ("--threads", half, "--ray", "--replicas", "2"),
    }
    report, found = Report(), {}
    for name, options in rows.items():
        found[name], seconds = rate(directory, arguments, *options)
        report.add(name, found[name], form=".1f", unit=" tokens/s")
        report.add(f"{name}: until it answers", seconds, form=".1f", unit=" s")
    alone, _, one, two = found.values()
    report.add("1 replica / serve alone", one / alone, form=".2f")
    report.add("2 replicas / 1", two / one, form=".2f")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
