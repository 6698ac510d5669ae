"""What a large index costs: `search`, `show` and `install --dry-run` as whole processes.

Usage: python scripts/bench/index.py [--models 100000] [--runs 5] [--directory DIR]

The index is generated in DIR, or in a temporary directory, and used again where it is there.
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

from measure import alternate, median, run
from report import Report

SEED = 5
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


def measure(directory: Path, count: int, runs: int) -> int:
    """Measure the commands on an index, print, return the exit code."""
    generate(directory, count)
    os.environ["WEIGHTPKG_INDEX"] = str(directory)
    os.environ["WEIGHTPKG_HOME"] = str(directory / "home")
    names = [name for name, _ in pages(10)]
    weightpkg = [sys.executable, "-m", "weightpkg"]
    start = time.perf_counter()
    first = run([*weightpkg, "search", names[3]])
    report = Report()
    report.add(f"{count:,} models: the first search", time.perf_counter() - start, unit=" s")
    report.add("  its peak memory", first.peak_bytes / 1e6, unit=" MB")
    commands = {
        "search of one name": ([*weightpkg, "search", names[3]], 0.3),
        "search of what every model has": ([*weightpkg, "search", "llama"], 0.3),
        "search of two words": ([*weightpkg, "search", "reasoning", "ember77"], 0.3),
        "show": ([*weightpkg, "show", names[5]], 0.15),
        "install --dry-run": ([*weightpkg, "install", "--dry-run", f"{names[6]}-q8"], 0.15),
        "--version": ([*weightpkg, "--version"], 0.15),
    }
    results = alternate([command for command, _ in commands.values()], runs)
    for (title, (_, limit_s)), each in zip(commands.items(), results, strict=True):
        report.at_most(title, median(each, "wall_s"), limit_s, form=".3f", unit=" s")
        report.add("  its processor time", median(each, "cpu_s"), unit=" s")
        report.at_most("  its peak memory", median(each, "peak_bytes") / 1e6, 150, unit=" MB")
    return report.end()


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.directory:
        return measure(arguments.directory, arguments.models, arguments.runs)
    with tempfile.TemporaryDirectory() as directory:
        return measure(Path(directory), arguments.models, arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
