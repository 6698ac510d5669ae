"""From a requirement to exactly one variant of one release; pure, and the same every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from weightpkg.errors import (
    ModelNotFoundError,
    NoMatchingReleaseError,
    ResolutionError,
    VariantNotFoundError,
)
from weightpkg.package import Model, Release, Resolved
from weightpkg.requirement import NormalizedName, Requirement


class Models(Protocol):
    """Knows models by name."""

    def __contains__(self, name: NormalizedName, /) -> bool:
        """Whether there is a model of that name."""

    def model(self, name: NormalizedName, /) -> Model:
        """Return it."""

    def nearest(self, name: str, /) -> Sequence[str]:
        """The names most like one that is not there."""


def resolve(requirement: Requirement, index: Models) -> Resolved:
    """Find what a requirement asks for.

    The longest model name that the requirement begins with counts, and what is left is the variant;
    where nothing is left, it is the model's default.

    Raises:
        ModelNotFoundError: no model has that name.
        VariantNotFoundError: the model has no such variant.
        NoMatchingReleaseError: no release has a version that will do.
        ResolutionError: another namespace than the default index's.
        DocumentError: the model's page is not valid.
    """
    if requirement.namespace is not None:
        raise ResolutionError(
            f"no index owns the namespace `{requirement.namespace}`",
            hint=f"the default index has no prefix: `{requirement.name}`",
        )
    name, rest = _split(requirement.name, index)
    model = index.model(name)
    release = _choose_release(requirement, model)
    wanted = rest or model.default_variant
    for variant in release.variants:
        if variant.name == wanted:
            return Resolved(model=model, release=release, variant=variant)
    raise VariantNotFoundError(model.name, wanted, [variant.name for variant in release.variants])


def _split(name: NormalizedName, index: Models) -> tuple[NormalizedName, NormalizedName]:
    for model, variant in _splits(name):
        if model in index:
            return model, variant
    raise ModelNotFoundError(name, index.nearest(name))


def _splits(name: NormalizedName) -> Iterator[tuple[NormalizedName, NormalizedName]]:
    """Yield (model, variant) from the longest model name to the shortest.

    >>> [model for model, variant in _splits(NormalizedName("a-b-q4"))]
    ['a-b-q4', 'a-b', 'a']
    """
    words = name.split("-")
    for i in range(len(words), 0, -1):
        yield NormalizedName("-".join(words[:i])), NormalizedName("-".join(words[i:]))


def _choose_release(requirement: Requirement, model: Model) -> Release:
    """The newest that will do; a yanked one only where exactly its version is asked for."""
    specifier = requirement.specifier
    exact = any(part.operator in {"==", "==="} for part in specifier)
    for release in model.releases:
        if release.version in specifier and (exact or release.yanked is None):
            return release
    versions = [
        f"{release.version} (yanked: {release.yanked})" if release.yanked else str(release.version)
        for release in model.releases
    ]
    raise NoMatchingReleaseError(model.name, str(specifier) or "no version in particular", versions)
