"""`weightpkg search`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.errors import DocumentError, FetchError, TrustError
from weightpkg.index import Hit, Index
from weightpkg.listing import Listing
from weightpkg.progress import Noting
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
    settings = Settings.from_environment()
    index = settings.index(note=_note)
    most = limit + 1 if limit else None
    hits = [("", hit) for hit in index.search(words, limit=most)]
    hits += _elsewhere(settings, words, most)
    hits.sort(key=lambda found: -found[1].score)
    _note_faults(index, is_empty=not hits)
    shown = hits[:limit] if limit else hits
    if as_json:
        print_json([_as_json(prefix, hit) for prefix, hit in shown])
    elif shown:
        rows = (_row(prefix, hit.listing) for prefix, hit in shown)
        print_table([("NAME", "SIZE", "TASK", "SUMMARY"), *rows])
    if len(shown) < len(hits):
        _note(f"there are more; the {limit} best are shown (--limit)")
    if not hits and not as_json:
        click.echo(f"no model matches {' '.join(words)}", err=True)
        ctx.exit(1)


def _elsewhere(
    settings: Settings, words: Sequence[str], limit: int | None
) -> Iterator[tuple[str, Hit]]:
    """Search the indexes that are configured; one that cannot be read is left out, and named."""
    for name, index in settings.namespaces(Noting(_note)).items():
        try:
            yield from ((f"{name}/", hit) for hit in index.search(words, limit=limit))
        except (TrustError, FetchError, DocumentError) as error:
            _note(f"left out: {error.message}")


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _note_faults(index: Index, *, is_empty: bool) -> None:
    faulty = index.faulty()
    if faulty and is_empty:
        index.model(faulty[0])  # an error, which says what is wrong
    if faulty:
        more = f" and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        _note(f"left out, as not valid: `{faulty[0]}`{more}; `weightpkg index lint` says why")


def _as_json(prefix: str, hit: Hit) -> dict[str, object]:
    model = hit.listing
    return {
        "name": f"{prefix}{model.name}",
        "summary": model.summary,
        "task": model.task,
        "tags": model.tags,
        "score": hit.score,
    }


def _row(prefix: str, model: Listing) -> tuple[str, str, str, str]:
    return f"{prefix}{model.full_name}", format_size(model.size), model.task, model.summary
