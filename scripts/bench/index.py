"""What a large index costs: `search`, `show`, `resolve`, `install --dry-run` as whole processes.

Usage: python scripts/bench/index.py [--models 100000] [--growth 1000000] [--runs 5] [--directory DIR]

With --growth, a larger index is measured as well, and how much more each command takes there; the
bars of time are for the smaller one, that of memory is for both. Indexes are generated in DIR, or in
a temporary directory, and used again where they are there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import WEIGHTPKG, Run, alternate, median, run
from report import Report

SEED = 5
MEMORY_MB = 150
MAKERS = (
    "aurora",
    "basalt",
    "cinder",
    "delta",
    "ember",
    "fjord",
    "garnet",
    "harbor",
    "iris",
    "juno",
)
SIZES = ("135m", "270m", "0.6b", "1b", "1.7b", "3b", "4b", "7b", "8b", "14b", "32b", "70b")
TUNINGS = ("base", "chat", "code", "embedding", "math", "reasoning", "vision", "tools")
LICENSES = ("Apache-2.0", "MIT", "LicenseRef-acme", "CC-BY-NC-4.0")
PAGE = """schema = 1
name = "{name}"
summary = "{title}: a {tuning} model of {size}, number {number}, tuned for {word}"
task = "text-generation"
architecture = "llama"
license = "{license}"
homepage = "https://models.example/{name}"
base-model = "{maker}/{title}"
tags = ["{tuning}", "{word}"]
default-variant = "q4"

[[releases]]
version = "1.0.0"
date = 2026-01-02
changes = "first release"
{variants}"""
VARIANT = """
[releases.variants.{variant}]
format = "gguf"
quantization = "{quantization}"

[[releases.variants.{variant}.files]]
path = "{name}-{variant}.gguf"
size = {bytes}
sha256 = "{sha256}"
sources = ["hf:{maker}/{title}-GGUF@main/{name}-{variant}.gguf"]
"""


def pages(count: int) -> Iterator[tuple[str, str]]:
    """Yield the name and the page of each model."""
    draw = random.Random(SEED)  # noqa: S311  no secret
    for number in range(count):
        maker, size, tuning = draw.choice(MAKERS), draw.choice(SIZES), draw.choice(TUNINGS)
        name = f"{maker}{number}-{size}-{tuning}"
        facts = {"name": name, "maker": maker, "title": f"{maker.title()}-{number}", "size": size}
        variants = "".join(
            VARIANT.format(
                **facts,
                variant=variant,
                quantization=quantization,
                bytes=draw.randrange(10**8, 10**11),
                sha256=hashlib.sha256(f"{name}-{variant}".encode()).hexdigest(),
            )
            for variant, quantization in (("q4", "Q4_K_M"), ("q8", "Q8_0"))
        )
        word = f"{draw.choice(MAKERS)}{draw.randrange(1000)}"
        license_ = draw.choice(LICENSES)
        page = PAGE.format(
            **facts, tuning=tuning, number=number, word=word, license=license_, variants=variants
        )
        yield name.replace(".", "-"), page


def generate(directory: Path, count: int) -> None:
    """Write an index, if it is not there."""
    models, done = directory / "models", directory / "complete"
    if done.exists():
        return
    models.mkdir(parents=True, exist_ok=True)
    for name, page in pages(count):
        (models / f"{name}.toml").write_text(page)
    done.touch()


def commands() -> dict[str, tuple[list[str], float]]:
    """The commands that are measured, and how long each may take, in seconds."""
    names = [name for name, _ in pages(10)]
    return {
        "search of one name": (["search", names[3]], 0.3),
        "search of what every model has": (["search", "llama"], 0.3),
        "search of two words": (["search", "reasoning", "ember7"], 0.3),
        "show": (["show", names[5]], 0.15),
        "resolve": (["resolve", "--for", "cpu,999GiB", names[6]], 0.15),
        "resolve with a variant": (["resolve", f"{names[6]}-q8"], 0.15),
        "install --dry-run": (["install", "--dry-run", f"{names[6]}-q8"], 0.15),
    }


def measure(directory: Path, count: int, runs: int) -> dict[str, list[Run]]:
    """Measure the first search of an index, which makes the catalogue, and each command after it."""
    generate(directory, count)
    with tempfile.TemporaryDirectory() as home:
        os.environ["WEIGHTPKG_INDEX"] = str(directory)
        os.environ["WEIGHTPKG_HOME"] = home
        lines = {title: [*WEIGHTPKG, *words] for title, (words, _) in commands().items()}
        first = run(lines["search of one name"])
        time.sleep(3)  # what has just changed is looked at once more, and then no more
        results = alternate(list(lines.values()), runs)
    return {"the first search": [first], **dict(zip(lines, results, strict=True))}


def judge(report: Report, found: dict[str, list[Run]], *, has_time_bars: bool) -> None:
    """Add what was measured of an index, beside its bars."""
    bars = {title: limit_s for title, (_, limit_s) in commands().items()}
    for title, each in found.items():
        wall_s = median(each, "wall_s")
        if has_time_bars and title in bars:
            report.at_most(title, wall_s, bars[title], unit=" s")
        else:
            report.add(title, wall_s, unit=" s")
        report.add("  processor time", median(each, "cpu_s"), unit=" s")
        peak = median(each, "peak_bytes") / 1e6
        report.at_most("  peak memory", peak, MEMORY_MB, form=".0f", unit=" MB")


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--growth", type=int, metavar="MODELS")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.directory or Path(temporary)
        few = measure(directory / str(arguments.models), arguments.models, arguments.runs)
        report.add("models in the index", arguments.models, form=",")
        judge(report, few, has_time_bars=True)
        if arguments.growth:
            many = measure(directory / str(arguments.growth), arguments.growth, arguments.runs)
            report.add("models in the index", arguments.growth, form=",")
            judge(report, many, has_time_bars=False)
            report.add("times the models", arguments.growth / arguments.models, form=".1f")
            for title in few:
                ratio = median(many[title], "wall_s") / median(few[title], "wall_s")
                report.add(f"  {title}: times as long", ratio, form=".1f")
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
