"""What the project around a command says of what may be used: its licenses, and its namespaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightpkg.index import Index
    from weightpkg.license_policy import LicensePolicy
    from weightpkg.requirement import NormalizedName
    from weightpkg.settings import Settings


def project_rules(
    settings: Settings,
) -> tuple[LicensePolicy | None, Mapping[NormalizedName, Index]]:
    """Return the policy of the project that this directory is in, and the indexes of namespaces.

    Outside of a project there is no policy, and the indexes are the user's own.

    Raises:
        DocumentError: the manifest, or the configuration, is not valid.
    """
    if _may_be_project(Path.cwd()):
        from weightpkg.project import Indexes, current_project

        if (project := current_project()) is not None:
            indexes = Indexes(project.root, project.manifest, settings)
            return project.manifest.policy, indexes.namespaces()
    return None, settings.namespaces()


def _may_be_project(here: Path) -> bool:
    """Whether it takes a look into files to say: whoever is in no project need not import what reads one."""
    names = ("weights.toml", "pyproject.toml")
    return any((place / name).is_file() for place in (here, *here.parents) for name in names)
