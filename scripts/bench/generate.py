"""Tokens a second, load, first token and memory, beside other engines on the same model, in one run.

Each engine has a process of its own, and they take turns; what is timed as a whole process is started
anew each time. Where an answer repeats its prompt, ours is measured beside our own without guessing.
Engines that are not installed are left out:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python     (builds for 10 minutes)
    pip install onnxruntime-genai

Usage: python scripts/bench/generate.py [--gguf FILE --model DIR] [--rounds 5] [--threads 2] [--json]

--synthetic makes a random Llama of 1.1 billion weights in Q4_K in place of a published model, and holds
the figures to the bars of that one.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from measure import alternate, median
from report import Report, installed_model, model_arguments

PROMPTS = (128, 512)
LONG = 2040
GRAPHS = Path(tempfile.gettempdir()) / "weightpkg-bench-graphs"
SUMMARY = "Repeat the text.\n\n{text}\n\nThe text again:\n\n{beginning}"
DECODE_AFTER, DECODE = 128, 64
Feed = Callable[[Sequence[int]], object]
Figures = dict[str, float]


@dataclass(frozen=True)
class Results:
    """Rates of each engine in its own process, whole processes, and guesses beside none."""

    rates: dict[str, Figures]
    processes: dict[str, Figures]
    lookup: Figures


def tokens(count: int) -> list[int]:
    """Return the same random tokens for everybody."""
    return [int(token) for token in np.random.default_rng(0).integers(300, 32_000, count)]


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

    config = ModelConfig.read(directory)
    session = Session(directory, config, threads=threads, cache=GRAPHS)
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


def whole_process(engine: str, source: Path, directory: Path, threads: int, n_prompt: int) -> None:
    """Load an engine, read a prompt, print when the first token is there; or, for `load`, only load."""
    prompt = tokens(n_prompt)
    if engine == "weightpkg":
        from weightpkg.run.model import Model  # noqa: PLC0415  each engine in its own process

        with Model(directory, threads=threads, cache=GRAPHS) as model:
            if prompt:
                print(model.session.forward(prompt).argmax(), flush=True)
            else:
                print("loaded", flush=True)
        return
    import llama_cpp as peer  # noqa: PLC0415  each engine in its own process

    llama = peer.Llama(
        str(source),
        n_ctx=2048,
        n_batch=512,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    if prompt:
        llama.eval(prompt)
    print("done", flush=True)


def lookup(directory: Path, threads: int, rounds: int) -> Figures:
    """Decode an answer that repeats its prompt, with and without guesses, in turns."""
    from weightpkg.run.model import Model  # noqa: PLC0415  each engine in its own process

    words = Path(__file__).with_name("golden").joinpath("text.txt").read_text(encoding="utf-8")
    prompt = SUMMARY.format(text=words[:1500], beginning=words[:150])
    rates: dict[bool, list[float]] = {False: [], True: []}
    answers = set()
    with Model(directory, threads=threads, cache=GRAPHS) as model:
        for _ in range(rounds):
            for is_guessing, seen in rates.items():
                answer = model.generate(prompt, max_tokens=160, lookup=is_guessing)
                seen.append(answer.statistics.decode_rate)
                answers.add(answer.tokens)
    plain, guessing = (statistics.median(rates[is_guessing]) for is_guessing in (False, True))
    return {"plain": plain, "lookup": guessing, "is same": float(len(answers) == 1)}


def processes(source: Path, directory: Path, threads: int, rounds: int) -> dict[str, Figures]:
    """Time whole processes of ours and of llama.cpp in turns: load, first token, memory."""
    if not importlib.util.find_spec("llama_cpp"):
        return {}
    command = [sys.executable, __file__, "--gguf", str(source), "--model", str(directory)]
    command += ["--threads", str(threads)]
    engines, cases = ("weightpkg", "llama_cpp"), {"load": 0, "first token": 24, "long": LONG}
    found: dict[str, Figures] = {name: {} for name in engines}
    for case, count in cases.items():
        commands = [[*command, "--engine", name, "--whole", str(count)] for name in engines]
        for name, runs in zip(engines, alternate(commands, rounds), strict=True):
            found[name][f"{case}, s"] = median(runs, "first_output_s")
            if case == "long":
                found[name]["peak, MB"] = median(runs, "peak_bytes") / 1e6
    return found


def serve(engine: str, source: Path, directory: Path, threads: int) -> None:
    """Load an engine, and measure once for each line of standard input."""
    run = ENGINES[engine](source, directory, threads)
    for _ in sys.stdin:
        print(json.dumps(run()), flush=True)


def compare(source: Path, directory: Path, threads: int, rounds: int) -> dict[str, Figures]:
    """Return the medians of each engine that is installed; its first round only warms it up."""
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
    for i in range(rounds + 1):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            print("next", file=process.stdin, flush=True)
            figures = json.loads(process.stdout.readline())
            if i:
                seen[name].append(figures)
    for process in processes.values():
        process.communicate()
    return {
        name: {key: statistics.median(each[key] for each in runs) for key in runs[0]}
        for name, runs in seen.items()
    }


def print_report(results: Results, *, is_synthetic: bool) -> int:
    """Print figures and the ratios that have bars; return the exit code."""
    report = Report()
    for name, rates in results.rates.items():
        for key, rate in rates.items():
            report.add(f"{name}, {key}", rate, form=".1f", unit=" tokens/s")
    for name, figures in results.processes.items():
        for key, figure in figures.items():
            report.add(f"{name}, {key}", figure, form=".2f")
    for name in set(ENGINES) - set(results.rates):
        print(f"{name} is not installed; see --help")
    _compare(report, results, is_synthetic=is_synthetic)
    return report.end()


def _compare(report: Report, results: Results, *, is_synthetic: bool) -> None:
    ours = results.rates["weightpkg"]
    decode, prefill = (0.95, 0.9) if is_synthetic else (1.0, 1.8)
    if theirs := results.rates.get("llama_cpp"):
        ratio = ours["decode"] / theirs["decode"]
        report.at_least("decode / llama.cpp's", ratio, decode, form=".2f")
        for count in PROMPTS:
            key = f"prefill {count}"
            report.at_least(f"{key} / llama.cpp's", ours[key] / theirs[key], prefill, form=".2f")
    if theirs := results.rates.get("onnxruntime_genai"):
        for key, rate in ours.items():
            report.at_least(f"{key} / onnxruntime-genai's", rate / theirs[key], 1.0, form=".2f")
    if results.processes:
        mine, peer = (results.processes[name] for name in ("weightpkg", "llama_cpp"))
        bars = {"load, s": 2.5} if is_synthetic else {"first token, s": 1.2, "peak, MB": 1.5}
        for key, bar in bars.items():
            report.at_most(f"{key} / llama.cpp's", mine[key] / peer[key], bar, form=".2f")
    if guesses := results.lookup:
        ratio = guesses["lookup"] / guesses["plain"]
        report.at_least("with guesses / without, same text again", ratio, 1.5, form=".2f")
        report.at_least("1 if both gave the same tokens", guesses["is same"], 1.0, form=".0f")


def synthetic(directory: Path) -> tuple[Path, Path]:
    """Make a model of 1.1 billion random weights; return the GGUF file and its conversion."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from make_synthetic_llama import write  # noqa: PLC0415  needs gguf, only for this
    from weightpkg.convert import SourceFile  # noqa: PLC0415  the same
    from weightpkg.convert.pipeline import prepare  # noqa: PLC0415  the same
    from weightpkg.progress import Silence  # noqa: PLC0415  the same

    source, output = directory / "synthetic.gguf", directory / "onnx"
    write(source, 656_000_000)
    output.mkdir()
    with prepare(SourceFile(source, None, source.name)) as prepared:
        prepared.convert(output, Silence())
    return source, output


def run_all(source: Path, directory: Path, arguments: argparse.Namespace) -> int:
    """Measure, print, return the exit code."""
    threads, rounds = arguments.threads, arguments.rounds
    results = Results(
        rates=compare(source, directory, threads, rounds),
        processes=processes(source, directory, threads, rounds),
        lookup={} if arguments.synthetic else lookup(directory, threads, rounds),
    )
    if arguments.json:
        print(json.dumps(asdict(results), indent=2))
        return 0
    return print_report(results, is_synthetic=arguments.synthetic)


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    model_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--whole", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.synthetic:
        with tempfile.TemporaryDirectory() as scratch:
            source, directory = synthetic(Path(scratch))
            return run_all(source, directory, arguments)
    source, directory = (arguments.gguf, arguments.model) if arguments.gguf else installed_model()
    if arguments.whole is not None:
        whole_process(arguments.engine, source, directory, arguments.threads, arguments.whole)
        return 0
    if arguments.engine:
        serve(arguments.engine, source, directory, arguments.threads)
        return 0
    return run_all(source, directory, arguments)


if __name__ == "__main__":
    sys.exit(main())
