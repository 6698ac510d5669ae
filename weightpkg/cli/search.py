"""`weightpkg search`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.index import Index
from weightpkg.package import Model
from weightpkg.settings import Settings


@click.command("search")
@click.argument("words", nargs=-1, required=True, metavar="WORDS...")
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=25,
    show_default=True,
    help="Print at most so many; 0 prints all.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search names, summaries, tags and licenses; the best match comes first."""
    index = Settings.from_environment().index(note=_note)
    hits = index.search(words, limit=limit + 1 if limit else None)
    _note_faults(index, is_empty=not hits)
    shown = hits[:limit] if limit else hits
    if as_json:
        print_json([{**_as_json(hit.model), "score": hit.score} for hit in shown])
    elif shown:
        print_table([("NAME", "SIZE", "TASK", "SUMMARY"), *(_row(hit.model) for hit in shown)])
    if len(shown) < len(hits):
        _note(f"there are more; the {limit} best are shown (--limit)")
    if not hits and not as_json:
        click.echo(f"no model matches {' '.join(words)}", err=True)
        ctx.exit(1)


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _note_faults(index: Index, *, is_empty: bool) -> None:
    faulty = index.faulty()
    if faulty and is_empty:
        index.model(faulty[0])  # an error, which says what is wrong
    if faulty:
        more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        _note(f"left out, as not valid: `{faulty[0]}`{more}; `weightpkg index lint` says why")


def _as_json(model: Model) -> dict[str, object]:
    return {"name": model.name, "summary": model.summary, "task": model.task, "tags": model.tags}


def _row(model: Model) -> tuple[str, str, str, str]:
    variants = {variant.name: variant for variant in model.releases[0].variants}
    variant = variants[model.default_variant]
    return f"{model.name}-{variant.name}", format_size(variant.size), model.task, model.summary
