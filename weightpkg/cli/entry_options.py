"""What `index add-model` and `index release` have in common: the files of a variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from weightpkg import files
from weightpkg.cli.console import make_progress
from weightpkg.errors import SigningError

if TYPE_CHECKING:
    from weightpkg.entries import Facts, NewVariant
    from weightpkg.requirement import NormalizedName
    from weightpkg.signing.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option("--source", "sources", multiple=True, help="Where the bytes can be had, as docs/index.md has it; {path} stands for a file's name, {sha256} for its digest. Once for each way."),
    click.option("--variant", help="What the variant is called; after its quantization if not given."),
    click.option("--quantization", help="As its publisher calls it; what the files say if not given."),
    click.option("--changes", help="What is new, for users."),
    click.option("--date", "day", type=click.DateTime(["%Y-%m-%d"]), help="When the weights were published; today if not given."),
    click.option("--namespace", help="A publisher that is hosted; the index's own if not given."),
)  # fmt: skip


def entry_options(function: F) -> F:
    """All of them."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


def make_variant(
    paths: Sequence[Path],
    facts: Facts,
    sources: Sequence[str],
    *,
    name: str | None,
    quantization: str | None,
    quiet: bool,
) -> NewVariant:
    """Hash the files of a variant.

    Raises:
        SigningError: the name is none, or a file has no source.
        StoreError: a file cannot be read.
    """
    from weightpkg.entries import NewVariant, hash_files, variant_name

    quantization = quantization or facts.quantization
    variant = folded(name) if name else variant_name(quantization)
    for path in paths:
        if not path.is_file():
            raise SigningError(f"`{path}` is not a file")
    total = sum(path.stat().st_size for path in paths)
    with make_progress(quiet=quiet).task("hashing", total) as advance:
        hashed = hash_files(paths, sources, advance)
    return NewVariant(name=variant, format=facts.format, quantization=quantization, files=hashed)


def folded(text: str) -> NormalizedName:
    """A name in normalised form.

    Raises:
        SigningError: it is none.
    """
    from weightpkg.requirement import normalize_name

    try:
        return normalize_name(text)
    except ValueError as error:
        raise SigningError(str(error), hint="letters, digits, `-`, `_` and `.`") from error


def page_path(workspace: Workspace, namespace: str | None, name: str) -> Path:
    """Where the page of a model is.

    Raises:
        SigningError: the name is none, or there is no such namespace.
    """
    own = folded(namespace) if namespace else workspace.plan.namespace
    if own not in workspace.plan.namespaces:
        raise SigningError(
            f"this index has no namespace `{own}`", hint="`weightpkg index delegate`"
        )
    return workspace.pages_directory(own) / "models" / f"{folded(name)}.toml"


def read_text(path: Path) -> str:
    """A page's text.

    Raises:
        SigningError: there is none.
    """
    if not path.is_file():
        raise SigningError(
            f"there is no page `{path}`", hint="`weightpkg index add-model` makes one"
        )
    with files.mapped(path):
        return path.read_bytes().decode(errors="replace")


def write_text(path: Path, text: str, *, dry_run: bool) -> None:
    """Write a page, or show it."""
    if dry_run:
        click.echo(text, nl=False)
        return
    files.write_file(path, text.encode(), temporary=path.parent.parent)
    click.echo(f"wrote {path}; `weightpkg index sign` signs it", err=True)


def day_of(day: datetime | None) -> date:
    """A day that was given, or today."""
    return (day or datetime.now(UTC)).date()
