"""Answers a second of `weightpkg serve`, with one client and with several, beside llama-cpp-python's server.

Both serve the same model with the same threads, one after the other; the clients are the same. The
peer is left out where it is not installed (pip install 'llama-cpp-python[server]').

Usage: python scripts/bench/serve.py [--clients 8] [--requests 1000] [--threads 2]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx

from report import MODEL, Report, installed_model, model_arguments

TOKENS = 64
WORDS = ("river", "lamp", "seven", "garden", "stone", "music", "winter", "paper", "north", "bread")
START_S = 120


@dataclass
class Measured:
    """What some clients saw. gaps_s: between two pieces of an answer."""

    seconds: float
    n_tokens: int
    n_answers: int
    n_lost: int = 0
    gaps_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, of all clients together."""
        return self.n_tokens / self.seconds

    def gap(self, part: float) -> float:
        """Seconds of a gap that such a part of all are not longer than."""
        return sorted(self.gaps_s)[int(part * (len(self.gaps_s) - 1))]


def prompt(number: int) -> str:
    """Return a text of its own for each request, so that no cache helps anybody."""
    words = (WORDS[(number * 7 + i * (number % 9 + 1)) % len(WORDS)] for i in range(40))
    return f"{number}. Write on: " + " ".join(words)


async def answer(client: httpx.AsyncClient, model: str, number: int, tokens: int) -> list[float]:
    """Ask once; return when each piece of the answer came; httpx.HTTPError if it did not end well."""
    body = {
        "model": model,
        "prompt": prompt(number),
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "logit_bias": {"2": -100},  # the end, so that all answers have the same length
    }
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        times: list[float] = []
        reason = None
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line[6:])["choices"][0]
            reason = choice["finish_reason"] or reason
            if choice["text"]:
                times.append(time.perf_counter())
    if reason != "length":  # which is what all have that were not cut off
        raise httpx.RemoteProtocolError(f"the answer ended by {reason}")
    return times


async def measure(url: str, model: str, clients: int, requests: int, tokens: int) -> Measured:
    """Have clients ask, each one request after the other."""
    numbers = iter(range(requests))
    found = Measured(0, 0, 0)

    async def work(client: httpx.AsyncClient) -> None:
        for number in numbers:
            try:
                times = await answer(client, model, number, tokens)
            except (httpx.HTTPError, LookupError):  # an error may come within the stream
                found.n_lost += 1
                continue
            found.n_tokens += tokens
            found.n_answers += 1
            found.gaps_s += [b - a for a, b in pairwise(times)]

    start = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    found.seconds = time.perf_counter() - start
    return found


@contextmanager
def serving(command: Sequence[str], port: int) -> Iterator[str]:
    """Run a server; yield its address once it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(START_S * 10):
            if process.poll() is not None:
                raise SystemExit(f"`{' '.join(command)}` ended with {process.returncode}")
            try:
                httpx.get(f"{url}/v1/models", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def both(url: str, model: str, clients: int, rounds: int) -> tuple[Measured, Measured]:
    """Measure one client and several, after warming up; the best of some rounds."""
    asyncio.run(measure(url, model, 1, 2, 16))
    singles = [asyncio.run(measure(url, model, 1, 4, TOKENS)) for _ in range(rounds)]
    many = [asyncio.run(measure(url, model, clients, 3 * clients, TOKENS)) for _ in range(rounds)]
    rates = [each.rate for each in many]
    middle = many[rates.index(statistics.median_low(rates))]
    return sorted(singles, key=lambda each: each.rate)[len(singles) // 2], middle


def our_command(directory: Path, port: int) -> list[str]:
    """Return what starts our server."""
    serve = [sys.executable, "-m", "weightpkg", "-q", "serve"]
    return [*serve, str(directory), "--port", str(port)]


def report_ours(report: Report, arguments: argparse.Namespace, directory: Path) -> float:
    """Measure our server; return the tokens a second of several clients."""
    port, clients = free_port(), arguments.clients
    command = our_command(directory, port)
    command += ["--threads", str(arguments.threads), "--rows", str(clients)]
    with serving(command, port) as url:
        name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
        one, many = both(url, name, clients, arguments.rounds)
        report.add("weightpkg, one client", one.rate, form=".1f", unit=" tokens/s")
        report.add(f"weightpkg, {clients} clients", many.rate, form=".1f", unit=" tokens/s")
        report.at_least(f"{clients} clients / one", many.rate / one.rate, 2.5, form=".2f")
        report.add("median gap", many.gap(0.5) * 1e3, form=".1f", unit=" ms")
        ratio = many.gap(0.95) / many.gap(0.5)
        report.at_most("95th percentile of gaps / median", ratio, 3, form=".2f")
        if arguments.requests:
            all_of_it = asyncio.run(measure(url, name, clients, arguments.requests, 8))
            report.at_most("requests lost", all_of_it.n_lost, 0, form=".0f")
            report.at_least(
                "requests answered", all_of_it.n_answers, arguments.requests, form=".0f"
            )
    return many.rate


def report_peer(report: Report, arguments: argparse.Namespace, source: Path, ours: float) -> None:
    """Measure llama-cpp-python's server, and compare."""
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama-cpp-python is not installed: not compared")
        return
    port, clients = free_port(), arguments.clients
    command = [
        sys.executable,
        "-m",
        "llama_cpp.server",
        "--model",
        str(source),
        "--port",
        str(port),
    ]
    command += ["--n_threads", str(arguments.threads), "--n_ctx", "2048", "--model_alias", MODEL]
    command += ["--interrupt_requests", "false"]  # or else a new request cuts off the one before
    with serving(command, port) as url:
        one, many = both(url, MODEL, clients, arguments.rounds)
    report.at_most("requests that llama-cpp-python lost", one.n_lost + many.n_lost, 0, form=".0f")
    report.add("llama-cpp-python, one client", one.rate, form=".1f", unit=" tokens/s")
    report.add(f"llama-cpp-python, {clients} clients", many.rate, form=".1f", unit=" tokens/s")
    report.at_least("weightpkg / llama-cpp-python", ours / many.rate, 1.5, form=".2f")


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model_arguments(parser)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument(
        "--requests", type=int, default=1000, help="in all, to see that none is lost"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.gguf and arguments.model:
        source, directory = arguments.gguf, arguments.model
    else:
        source, directory = installed_model()
    report = Report()
    ours = report_ours(report, arguments, directory)
    report_peer(report, arguments, source, ours)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
