"""Licenses before a download: shown, asked about on a terminal, and recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.package import Resolved
from weightpkg.store import Store

if TYPE_CHECKING:
    from weightpkg.licenses import Terms


def agree(
    wanted: Iterable[tuple[Resolved, Path]],
    store: Store,
    accept: Iterable[str],
    *,
    is_project: bool = False,
) -> None:
    """Have the licenses accepted of models that are about to be downloaded.

    Args:
        wanted: the models, each with the directory of its index.
        store: where it is recorded.
        accept: licenses that were accepted on the command line.
        is_project: whether it is for a project, where no license goes unanswered; elsewhere, where
            nobody can be asked, it is shown and stays unanswered.

    Raises:
        LicenseError: one was not.
    """
    wanted = list(wanted)
    if not wanted:
        return
    from weightpkg.licenses import settle, terms_for

    if terms := terms_for(wanted, store):
        ask = _ask_in_project if is_project else _ask
        settle(terms, store, accept=accept, ask=ask, who=_user(), when=datetime.now(UTC))


def _ask_in_project(terms: Terms) -> bool:
    return _is_terminal() and bool(_ask(terms))


def _ask(terms: Terms) -> bool | None:
    if not _is_terminal():
        click.echo(terms.note, err=True)
        return None
    click.echo(f"{', '.join(terms.models)}: {terms.license}\n\n{terms.text}", err=True)
    return click.confirm(f"do you accept {terms.license}?", err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user need not have a name
        return "unknown"
