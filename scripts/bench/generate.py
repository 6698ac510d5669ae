"""Tokens a second, decoding and reading prompts, beside other engines, in one run.

Each engine has a process of its own, and they take turns. Those that are not installed are left out:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python     (builds for 10 minutes)
    pip install onnxruntime-genai

Usage: python scripts/bench/generate.py [--rounds 5] [--threads 2] [--json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from report import Report, installed_model, model_arguments

PROMPTS = (128, 512)
DECODE_AFTER, DECODE = 128, 64
Feed = Callable[[Sequence[int]], object]
Figures = dict[str, float]


def tokens(count: int) -> list[int]:
    """Return the same random tokens for everybody."""
    return [int(token) for token in np.random.default_rng(0).integers(100, 40_000, count)]


def measure(feed: Feed, reset: Callable[[], object]) -> Figures:
    """Measure one engine that is fed tokens: tokens/s of each figure."""
    figures = {}
    for count in PROMPTS:
        reset()
        start = time.perf_counter()
        feed(tokens(count))
        figures[f"prefill {count}"] = count / (time.perf_counter() - start)
    reset()
    feed(tokens(DECODE_AFTER))
    start = time.perf_counter()
    for token in tokens(DECODE):
        feed([token])
    figures["decode"] = DECODE / (time.perf_counter() - start)
    return figures


def weightpkg(_: Path, directory: Path, threads: int) -> Callable[[], Figures]:
    """Our own runner."""
    from weightpkg.run.session import ModelConfig, Session  # noqa: PLC0415  each engine in its own process

    session = Session(directory, ModelConfig.read(directory), threads=threads)
    return lambda: measure(session.forward, lambda: session.rewind(0))


def llama_cpp(source: Path, _: Path, threads: int) -> Callable[[], Figures]:
    """llama.cpp with the source."""
    import llama_cpp as engine  # noqa: PLC0415  each engine in its own process

    model = engine.Llama(
        str(source),
        n_ctx=2048,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    return lambda: measure(model.eval, model.reset)


def onnxruntime_genai(_: Path, directory: Path, threads: int) -> Callable[[], Figures]:
    """onnxruntime-genai with the same directory."""
    import onnxruntime_genai as engine  # noqa: PLC0415  each engine in its own process

    config = engine.Config(str(directory))
    config.overlay(
        json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}})
    )
    model = engine.Model(config)
    state: list[engine.Generator] = []

    def reset() -> None:
        parameters = engine.GeneratorParams(model)
        parameters.set_search_options(max_length=2048, do_sample=False)
        state[:] = [engine.Generator(model, parameters)]

    def feed(new: Sequence[int]) -> None:
        state[0].append_tokens(np.array([new], np.int32))
        state[0].get_logits()

    return lambda: measure(feed, reset)


ENGINES = {
    "weightpkg": weightpkg,
    "llama_cpp": llama_cpp,
    "onnxruntime_genai": onnxruntime_genai,
}


def serve(engine: str, source: Path, directory: Path, threads: int) -> None:
    """Load an engine, warm it up, and measure once for each line of standard input."""
    run = ENGINES[engine](source, directory, threads)
    run()
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def compare(source: Path, directory: Path, threads: int, rounds: int) -> dict[str, Figures]:
    """Return the medians of each engine that is installed."""
    names = [name for name in ENGINES if importlib.util.find_spec(name)]
    command = [sys.executable, __file__, "--gguf", str(source), "--model", str(directory)]
    processes = {
        name: subprocess.Popen(
            [*command, "--threads", str(threads), "--engine", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    }
    seen: dict[str, list[Figures]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            print("next", file=process.stdin, flush=True)
            seen[name].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    return {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        for name, runs in seen.items()
    }


def print_report(figures: dict[str, Figures]) -> int:
    """Print tokens/s and the ratios that have bars; return the exit code."""
    report = Report()
    for name, rates in figures.items():
        for key, rate in rates.items():
            report.add(f"{name}, {key}", rate, form=".1f", unit=" tokens/s")
    ours = figures["weightpkg"]
    for name in set(ENGINES) - set(figures):
        print(f"{name} is not installed; see --help")
    if theirs := figures.get("llama_cpp"):
        ratio = ours["decode"] / theirs["decode"]
        report.at_least("decode / llama.cpp's", ratio, 1.0, form=".2f")
        for count in PROMPTS:
            key = f"prefill {count}"
            report.at_least(f"{key} / llama.cpp's", ours[key] / theirs[key], 1.5, form=".2f")
    return report.end()


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source, directory = (arguments.gguf, arguments.model) if arguments.gguf else installed_model()
    if arguments.engine:
        serve(arguments.engine, source, directory, arguments.threads)
        return 0
    figures = compare(source, directory, arguments.threads, arguments.rounds)
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return 0
    return print_report(figures)


if __name__ == "__main__":
    sys.exit(main())
