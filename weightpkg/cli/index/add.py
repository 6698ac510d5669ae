"""`weightpkg index add`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.config import MAX_STALENESS_DAYS, IndexConfig, check_url, directory_of
from weightpkg.digest import Digest
from weightpkg.errors import DocumentError
from weightpkg.requirement import NormalizedName, normalize_name
from weightpkg.settings import Settings


@click.command("add")
@click.argument("url")
@click.option("--name", metavar="NS", help="The namespace; without it, the one the index says.")
@click.option(
    "--root",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The first root, as the index's maintainers gave it to you.",
)
@click.option("--sha256", metavar="HEX", help="The first root's digest, in its place or beside it.")
@click.option(
    "--max-staleness",
    type=click.IntRange(0, MAX_STALENESS_DAYS),
    default=0,
    metavar="DAYS",
    help="Days after its expiry that the index still counts.",
)
@click.option("--allow-unsigned-index", is_flag=True, help="Take an index without signatures.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    url: str,
    name: str | None,
    root: Path | None,
    sha256: str | None,
    max_staleness: int,
    allow_unsigned_index: bool,
) -> None:
    """Have an index answer for a namespace.

    URL is https://..., or a directory. Whose signatures count is not learnt from the index itself:
    give the first root, or its SHA-256, as you had it from the maintainers in another way.
    """
    from weightpkg.enrolment import enrol

    settings = Settings.from_environment()
    content = _read(root) if root else None
    config = IndexConfig(
        name=_name(name),
        url=_url(url),
        root_sha256=_digest(content, sha256),
        max_staleness_days=max_staleness,
        allow_unsigned=allow_unsigned_index,
    )
    done = enrol(config, content, settings, make_progress(quiet=quiet), is_named=name is not None)
    click.echo(f"the index `{done.name}` is at {done.url}", err=True)


def _read(path: Path) -> bytes:
    with files.mapped(path):
        return path.read_bytes()


def _url(text: str) -> str:
    directory = directory_of(text)
    try:
        return check_url(text if directory is None else str(directory.absolute()))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="URL") from error


def _name(text: str | None) -> NormalizedName:
    from weightpkg.confusable import strange_letters

    if text is None:
        return NormalizedName("")
    try:
        return normalize_name(text)
    except ValueError as error:
        strange = strange_letters(text)
        reason = f"`{text}` is not a name{f': it has {strange}' if strange else ''}"
        raise DocumentError(reason, where="--name") from error


def _digest(content: bytes | None, text: str | None) -> Digest | None:
    try:
        given = Digest("sha256", text.lower()) if text else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--sha256") from error
    if content is None:
        return given
    found = Digest("sha256", hashlib.sha256(content).hexdigest())
    if given and given != found:
        raise click.BadParameter(f"the root's digest is {found.hex}", param_hint="--sha256")
    return found
