"""`weightpkg index update`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from weightpkg.cli.console import make_progress
from weightpkg.errors import NamespaceNotFoundError, WeightpkgError
from weightpkg.requirement import NormalizedName, normalize_name
from weightpkg.settings import Settings
from weightpkg.trust.index import SignedIndex, Updated


@click.command("update")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...]) -> None:
    """Bring up to date what is held of indexes: metadata, roles and pages.

    NAME is the namespace of a configured index; without it, all are updated. What is refused changes
    nothing, and the others are updated all the same.
    """
    settings = Settings.from_environment()
    progress, code = make_progress(quiet=ctx.obj), 0
    for name in _chosen(names, settings):
        config = settings.config().index(name)
        index = settings.open_index(config, progress) if config else None
        if not isinstance(index, SignedIndex):
            progress.note(f"{name}: has no signatures; its pages are read where they are")
            continue
        try:
            for line in _lines(name, index.update()):
                click.echo(line, err=True)
        except WeightpkgError as error:
            if len(names) == 1:
                raise
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            code = code or error.exit_code
    ctx.exit(code)


def _chosen(names: tuple[str, ...], settings: Settings) -> list[NormalizedName]:
    known = [index.name for index in settings.config().indexes]
    for name in names:
        try:
            is_known = normalize_name(name) in known
        except ValueError:
            is_known = False
        if not is_known:
            raise NamespaceNotFoundError(name, "NAME", known)
    return [normalize_name(name) for name in names] or known


def _lines(name: str, done: Updated) -> Iterator[str]:
    before, after = done.before.get("snapshot"), done.after.get("snapshot")
    if before == after:
        yield f"{name}: up to date, snapshot {after}"
        return
    was = f", it was {before}" if before else ""
    yield f"{name}: snapshot {after}{was}"
    yield from (f"  {page}" for page in done.pages)
