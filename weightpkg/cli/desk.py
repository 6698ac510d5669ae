"""What the commands of an index's maintainers have in common: where they work, and their keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from weightpkg.cli.console import print_json, print_table
from weightpkg.errors import SigningError

if TYPE_CHECKING:
    from weightpkg.signing.keys import Keyring, Passphrase
    from weightpkg.signing.metadata import Standing
    from weightpkg.signing.plan import SigningPlan
    from weightpkg.signing.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

_MAX_PASSPHRASE = 4096
_MAX_BINS = 8  # in a list


def directory_option(function: F) -> F:
    """`-C`: the maintainers' directory."""
    return click.option(
        "-C",
        "--directory",
        type=click.Path(path_type=Path),
        default=Path(),
        help="The maintainers' directory; this one if not given.",
    )(function)


def passphrase_option(function: F) -> F:
    """`--passphrase-file`: in place of a question."""
    return click.option(
        "--passphrase-file",
        type=click.Path(path_type=Path),
        help="Read the passphrase of keys from a file's first line, in place of asking.",
    )(function)


def passphrase_from(path: Path | None) -> Passphrase:
    """What finds the passphrase of a key: a file, or a question."""

    def find(key: Path) -> str:
        if path is None:
            answer: str = click.prompt(f"passphrase of {key}", hide_input=True, err=True)
            return answer
        return read_passphrase(path)

    return find


def read_passphrase(path: Path) -> str:
    """Read a passphrase.

    Raises:
        SigningError: the file cannot be read, or has none.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(_MAX_PASSPHRASE)
    except (OSError, UnicodeDecodeError) as error:
        raise SigningError(f"the passphrase file `{path}` cannot be read") from error
    line = text.partition("\n")[0]
    if not line:
        raise SigningError(f"the passphrase file `{path}` is empty")
    return line


def open_workspace(directory: Path) -> Workspace:
    """Open the maintainers' directory, which must be one.

    Raises:
        SigningError: it is none.
    """
    from weightpkg.signing.workspace import Workspace

    workspace = Workspace(directory)
    workspace.plan_text()
    return workspace


def open_keyring(
    workspace: Workspace, named: Iterable[Path], passphrase_file: Path | None
) -> Keyring:
    """The keys at hand."""
    from weightpkg.signing.keys import Keyring

    return Keyring(named, workspace.key_paths(), passphrase_from(passphrase_file))


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def key_name(path: Path) -> str:
    """What a key is called after its file."""
    return path.stem


def print_standings(
    standings: Sequence[Standing], plan: SigningPlan | None, *, as_json: bool
) -> None:
    """Say how far roles are signed, and whose signatures are missing."""

    def names(standing: Standing) -> list[str]:
        return [(plan.name_of(key) if plan else None) or key for key in standing.missing]

    if as_json:
        rows = [
            {
                "role": each.role,
                "version": each.version,
                "expires": each.expires.isoformat(),
                "signatures": each.signed,
                "threshold": each.threshold,
                "missing": names(each),
            }
            for each in standings
        ]
        print_json(rows)
        return
    shown = [each for each in standings if not (each.is_complete and "-bin-" in each.role)]
    rest = len(standings) - len(shown)
    shown = list(standings) if rest <= _MAX_BINS else shown
    if shown:
        print_table([_row(each, names(each)) for each in shown])
    if rest > _MAX_BINS:
        click.echo(f"{rest} bins signed")


def _row(standing: Standing, missing: Sequence[str]) -> tuple[str, str, str, str]:
    state = "signed" if standing.is_complete else f"waits for {', '.join(missing) or 'others'}"
    return (
        f"{standing.role} {standing.version}",
        f"{standing.signed} of {standing.threshold}",
        f"until {standing.expires:%Y-%m-%d}",
        state,
    )
