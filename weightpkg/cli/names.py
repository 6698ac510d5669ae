"""What a shell may offer where a command takes the name of a role or of a locked package."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from click.shell_completion import CompletionItem
from click.types import StringParamType

from weightpkg.errors import WeightpkgError

if TYPE_CHECKING:
    import click


class LockedName(StringParamType):
    """A name that the project's lockfile has."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  click's signature
        param: click.Parameter,  # noqa: ARG002  click's signature
        incomplete: str,
    ) -> list[CompletionItem]:
        """Offer roles, then packages; nothing where there is no project."""
        try:
            names = list(_names())
        except WeightpkgError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def _names() -> Iterable[str]:
    from weightpkg.project import require_project

    lockfile = require_project(Path.cwd()).lockfile(lambda _: None)
    roles = [model.role for model in lockfile.models]
    return dict.fromkeys([*roles, *(package.full_name for package in lockfile.packages)])
