"""`--publisher-key FILE`: whoever gives it wants models that its owner signed, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from weightpkg.install import Check
    from weightpkg.progress import Progress
    from weightpkg.store import InstalledFile, Store

Command = TypeVar("Command", bound=Callable[..., Any])


def publisher_key_option(command: Command) -> Command:
    """Add the option to a command, as `publisher_key`."""
    return click.option(
        "--publisher-key",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Refuse models whose publisher's signature, model.sig, is not by this key or certificate.",
    )(command)


def make_check(path: Path | None, store: Store, progress: Progress) -> Check:
    """Make what refuses files that were not signed; without a key, nothing is refused.

    Raises:
        SignatureError: the file is no key that could sign.
        StoreError: it cannot be read.
    """
    if path is None:
        return lambda *_: None
    from weightpkg.publisher import check_publisher, read_publisher_key

    key = read_publisher_key(path)

    def check(name: str, files: Sequence[InstalledFile]) -> None:
        check_publisher(name, files, store, key)
        kind = "certificate" if key.is_certificate else "key"
        progress.note(f"{name}: signed by its publisher, {kind} sha256:{key.fingerprint}")

    return check
