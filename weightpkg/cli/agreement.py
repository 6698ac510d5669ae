"""Licences before a download: shown, asked about on a terminal, and recorded."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import click

from weightpkg.licences import Terms, check_accepted, settle, terms_for
from weightpkg.package import Resolved
from weightpkg.store import Store


def agree(wanted: Iterable[tuple[Resolved, Path]], store: Store, accept: Iterable[str]) -> None:
    """Have the licences accepted of models that are about to be downloaded.

    Args:
        wanted: the models, each with the directory of its index.
        store: where it is recorded.
        accept: licences that were accepted on the command line.

    Raises:
        LicenseError: one was not.
    """
    terms = terms_for(wanted, store)
    if terms:
        settle(terms, store, accept=accept, ask=_ask, who=_user(), when=datetime.now(UTC))


def _ask(terms: Terms) -> bool:
    if not _is_terminal():
        check_accepted([terms])
    click.echo(f"{', '.join(terms.models)}: {terms.license}\n\n{terms.text}", err=True)
    return click.confirm(f"do you accept {terms.license}?", err=True)


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stderr.isatty()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user need not have a name
        return "unknown"
