"""`weightpkg index remove`."""

from __future__ import annotations

import click

from weightpkg.errors import NamespaceNotFoundError
from weightpkg.requirement import normalize_name
from weightpkg.settings import Settings


@click.command("remove")
@click.argument("name")
def command(name: str) -> None:
    """Have an index answer no more, and forget all that is held of it.

    What is installed stays. What was remembered against older versions of the index is gone, too.
    """
    from weightpkg.enrolment import dismiss

    settings = Settings.from_environment()
    try:
        known = dismiss(normalize_name(name), settings)
    except ValueError:
        known = False
    if not known:
        names = [index.name for index in settings.config().indexes]
        raise NamespaceNotFoundError(name, "NAME", names)
