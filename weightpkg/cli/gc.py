"""`weightpkg gc`."""

from __future__ import annotations

import re
import sys
import time

import click

from weightpkg.cli.console import format_size, make_progress, print_json, print_table
from weightpkg.retention import Doomed, Policy, collect, plan_collection, total_freed
from weightpkg.settings import Settings

_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_size(text: str) -> int:
    """Read bytes: 500M, 20GB or 1000000."""
    match = re.match(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?\Z", text.lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 20GB")
    return int(float(match[1]) * _SIZES[match[2]])


def parse_time(text: str) -> float:
    """Read seconds: 30d, 12h or 90m."""
    match = re.match(r"(\d+)([smhdw])\Z", text.lower())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time such as 30d or 12h")
    return float(int(match[1]) * _TIMES[match[2]])


@click.command("gc")
@click.option(
    "--unused-for", type=parse_time, metavar="TIME", help="Also models not used for so long: 30d."
)
@click.option(
    "--max-size",
    type=parse_size,
    metavar="SIZE",
    help="Also the least recently used, down to this: 20GB.",
)
@click.option("--sources", is_flag=True, help="Also files whose conversion is kept.")
@click.option("-y", "--yes", is_flag=True, help="Remove without asking.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    unused_for: float | None,
    max_size: int | None,
    sources: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove what nothing needs: what, why and how much is printed first.

    Kept are installed models, what the lockfiles of registered projects name, and what a running
    process uses; what is younger than an hour stays, too.
    """
    store = Settings.from_environment().store()
    progress = make_progress(quiet=quiet)
    policy = Policy(
        now=time.time(), unused_for_s=unused_for, max_size=max_size, drop_sources=sources
    )
    planned = plan_collection(store, policy)
    if as_json:
        print_json({"size": total_freed(planned), "items": [_as_json(one) for one in planned]})
    elif planned:
        print_table([(d.kind, format_size(d.size), d.name[:40], d.reason) for d in planned])
    if not planned or dry_run:
        progress.note(f"{format_size(total_freed(planned))} can be freed")
        return
    if not yes and not (sys.stdin.isatty() and click.confirm("remove all this?", err=True)):
        progress.note("nothing was removed; `weightpkg gc --yes` does it")
        return
    waiting = "waiting for other processes to leave the store"
    with store.use_alone(on_wait=lambda: progress.note(waiting)):
        _, freed = collect(store, policy)
    progress.note(f"{format_size(freed)} freed")


def _as_json(doomed: Doomed) -> dict[str, object]:
    return {
        "kind": doomed.kind,
        "name": doomed.name,
        "reason": doomed.reason,
        "size": doomed.size,
        "path": str(doomed.path),
    }
