"""`weightpkg search`."""

from __future__ import annotations

import click

from weightpkg.cli.console import format_size, print_json, print_table
from weightpkg.package import Model
from weightpkg.settings import Settings


@click.command("search")
@click.argument("words", nargs=-1, required=True, metavar="WORDS...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], as_json: bool) -> None:
    """Search names, summaries and tags; the best match comes first."""
    hits = Settings.from_environment().index().search(words)
    if as_json:
        print_json([{**_as_json(hit.model), "score": hit.score} for hit in hits])
    elif hits:
        print_table([("NAME", "SIZE", "TASK", "SUMMARY"), *(_row(hit.model) for hit in hits)])
    else:
        click.echo(f"no model matches {' '.join(words)}", err=True)
        ctx.exit(1)


def _as_json(model: Model) -> dict[str, object]:
    return {"name": model.name, "summary": model.summary, "task": model.task, "tags": model.tags}


def _row(model: Model) -> tuple[str, str, str, str]:
    variants = {variant.name: variant for variant in model.releases[0].variants}
    variant = variants[model.default_variant]
    return f"{model.name}-{variant.name}", format_size(variant.size), model.task, model.summary
