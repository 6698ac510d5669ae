"""`weightpkg bench`."""

from __future__ import annotations

import click

from weightpkg.api import load
from weightpkg.cli.console import format_size, make_progress, print_json, print_table
from weightpkg.cli.kv_cache import USED, kv_cache_option
from weightpkg.memory import KvCache
from weightpkg.run.benchmark import Benchmark, benchmark


@click.command("bench")
@click.argument("name")
@click.option(
    "--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of it."
)
@click.option(
    "--answer", type=click.IntRange(1), default=64, show_default=True, help="Tokens of it."
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, gpu, npu, or a provider."
)
@kv_cache_option(USED)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each physical core.")
@click.option("--no-install", is_flag=True, help="Fail if the model is not installed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    name: str,
    prompt: int,
    answer: int,
    rounds: int,
    device: str,
    kv_cache: KvCache,
    threads: int,
    no_install: bool,
    as_json: bool,
) -> None:
    """Measure how fast a model is on this machine: medians of some rounds."""
    progress = make_progress(quiet=quiet)
    with load(
        name,
        task="text-generation",
        allow_install=not no_install,
        threads=threads,
        device=device,
        kv_cache=kv_cache,
        progress=progress,
    ) as model:
        progress.note(f"measuring {rounds} rounds of {prompt} and {answer} tokens")
        figures = benchmark(
            model.session, load_s=model.load_s, n_prompt=prompt, n_answer=answer, rounds=rounds
        )
    if as_json:
        print_json({"name": name, **figures.as_json()})
    else:
        print_table(_rows(figures))


def _rows(figures: Benchmark) -> list[tuple[str, str]]:
    return [
        ("provider", figures.provider),
        ("load", f"{figures.load_s:.2f} s"),
        ("prefill", f"{figures.prefill_rate:.0f} tokens/s, {figures.n_prompt} tokens"),
        ("first token", f"{figures.first_token_s:.3f} s"),
        ("decode", f"{figures.decode_rate:.1f} tokens/s, {figures.n_answer} tokens"),
        ("peak memory", format_size(figures.peak_memory)),
    ]
