"""From a requirement to exactly one variant of one release; pure, and the same every time.

Whatever a requirement could mean is a candidate. Candidates have an order that does not depend on
the order in which an index lists them; each rule that excludes one is kept as data, and the first
that none excludes is chosen. `docs/resolution.md` says it for users.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NoReturn, Protocol

from weightpkg.confusable import lookalike
from weightpkg.errors import (
    ModelNotFoundError,
    NamespaceNotFoundError,
    NoMatchingReleaseError,
    NothingFitsError,
    VariantNotFoundError,
)
from weightpkg.package import UNKNOWN, Model, Release, Resolved, Variant
from weightpkg.requirement import NormalizedName, Requirement

if TYPE_CHECKING:
    from weightpkg.license_policy import LicensePolicy
    from weightpkg.machine import Machine
    from weightpkg.memory import KvCache, Need

RuleName = Literal[
    "version", "prerelease", "yanked", "variant", "license", "architecture", "memory"
]


class Models(Protocol):
    """Knows models by name."""

    def __contains__(self, name: NormalizedName, /) -> bool:
        """Whether there is a model of that name, or an alias."""

    def model(self, name: NormalizedName, /) -> Model:
        """Return it."""

    def nearest(self, name: str, /) -> Sequence[str]:
        """The names most like one that is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What may be chosen; a rule that is None excludes nothing.

    machine: where it shall run. It decides among variants, not against one that is asked for by name.
    context: tokens for which there must be memory, or None for `memory.DEFAULT_CONTEXT`.
    kv_cache: what keys and values are kept as.
    licenses: which licenses may be used.
    convertible: the architectures that are converted, by format; a format without is not looked at.
    needs: memory by full name and version, of what is installed, where it need not be estimated.
    """

    machine: Machine | None = None
    context: int | None = None
    kv_cache: KvCache = "float"
    licenses: LicensePolicy | None = None
    convertible: Mapping[str, Container[str]] | None = None
    needs: Mapping[str, Need] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A rule, and why it speaks against a candidate."""

    rule: RuleName
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A variant of a release that was considered.

    exclusions: every rule that excludes it.
    notes: what would have excluded it, had it not been asked for so exactly.
    need: the memory that it takes, or None where its size is not known, or no machine is.
    """

    resolved: Resolved
    exclusions: tuple[Exclusion, ...] = ()
    notes: tuple[Exclusion, ...] = ()
    need: Need | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """How a requirement was resolved.

    alias: the name that stood for the model's, if one did.
    wanted: the variant that was asked for, if one was.
    candidates: everything that was considered, the most wanted first.
    """

    requirement: Requirement
    alias: NormalizedName | None = None
    model: Model
    wanted: NormalizedName | None = None
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The first candidate that nothing excludes."""
        return next((each for each in self.candidates if not each.exclusions), None)

    def result(self) -> Resolved:
        """Return what was chosen.

        Raises:
            NoMatchingReleaseError: no release has a version that will do.
            VariantNotFoundError: none of them has such a variant.
            NothingFitsError: a rule excludes each candidate.
        """
        chosen = self.chosen
        if chosen is None:
            _raise(self)
        return chosen.resolved


def resolve(
    requirement: Requirement,
    index: Models,
    rules: Rules | None = None,
    *,
    namespaces: Mapping[NormalizedName, Models] | None = None,
) -> Resolved:
    """Find what a requirement asks for.

    The longest model name that the requirement begins with counts, and what is left is the variant;
    where nothing is left, it is the model's default, or, where rules exclude that, the largest of
    those that they do not.

    Args:
        requirement: what is asked for.
        index: the default index.
        rules: what may be chosen; without, anything.
        namespaces: the other indexes.

    Raises:
        ModelNotFoundError: no model has that name.
        VariantNotFoundError: the model has no such variant.
        NoMatchingReleaseError: no release has a version that will do.
        NothingFitsError: the rules exclude all that there is.
        NamespaceNotFoundError: no index owns the namespace.
        DocumentError: the model's page is not valid.
    """
    return explain(requirement, index, rules, namespaces=namespaces).result()


def explain(
    requirement: Requirement,
    index: Models,
    rules: Rules | None = None,
    *,
    namespaces: Mapping[NormalizedName, Models] | None = None,
) -> Explanation:
    """Say what a requirement could mean, in order, and what excludes each; as `resolve`.

    Raises:
        ModelNotFoundError: no model has that name.
        NamespaceNotFoundError: no index owns the namespace.
        DocumentError: the model's page is not valid.
    """
    owner = _owner(requirement, index, namespaces or {})
    name, variant = _split(requirement.name, owner)
    model, wanted = owner.model(name), variant or None
    takes_prereleases = _takes_prereleases(requirement, model)
    candidates = [
        _consider(
            Resolved(model=model, release=release, variant=variant),
            requirement,
            wanted,
            rules or Rules(),
            takes_prereleases=takes_prereleases,
        )
        for release in sorted(model.releases, key=lambda release: release.version, reverse=True)
        for variant in _by_preference(model, release.variants)
    ]
    return Explanation(
        requirement=requirement,
        alias=None if name == model.normalized_name else name,
        model=model,
        wanted=wanted,
        candidates=tuple(candidates),
    )


def consider(resolved: Resolved, rules: Rules) -> Candidate:
    """Hold one variant, found by its source or by a lockfile, against rules.

    It is what was asked for, so that a machine does not exclude it.
    """
    need = _need(resolved, rules)
    exclusions = (*_license(resolved.model, rules), *_architecture(resolved, rules))
    notes = (*_yank(resolved.release), *_memory(need, rules))
    return Candidate(resolved=resolved, exclusions=exclusions, notes=notes, need=need)


def _owner(
    requirement: Requirement, index: Models, namespaces: Mapping[NormalizedName, Models]
) -> Models:
    if requirement.namespace is None:
        return index
    if requirement.namespace not in namespaces:
        name = requirement.name
        known, alike = sorted(namespaces), lookalike(requirement.namespace, namespaces)
        raise NamespaceNotFoundError(requirement.namespace, name, known, alike=alike)
    return namespaces[requirement.namespace]


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


def _by_preference(model: Model, variants: Iterable[Variant]) -> list[Variant]:
    """The default, which the model's page calls the best for most, then by size, the largest first."""
    return sorted(
        variants,
        key=lambda each: (each.name != model.default_variant, -(each.size or 0), each.name),
    )


def _takes_prereleases(requirement: Requirement, model: Model) -> bool:
    """Whether a pre-release will do: one is asked for, or no other release matches (PEP 440)."""
    has_asked = bool(requirement.versions) and bool(requirement.specifier.prereleases)
    return has_asked or not any(
        requirement.accepts(release.version)
        for release in model.releases
        if not release.version.is_prerelease and (release.yanked is None or requirement.is_pinned)
    )


def _consider(
    resolved: Resolved,
    requirement: Requirement,
    wanted: NormalizedName | None,
    rules: Rules,
    *,
    takes_prereleases: bool,
) -> Candidate:
    """Apply all rules; one that what was asked for overrules leaves a note."""
    release, variant = resolved.release, resolved.variant
    need = _need(resolved, rules)
    yank, memory = tuple(_yank(release)), tuple(_memory(need, rules))
    exclusions = (
        *_version(release, requirement, takes_prereleases=takes_prereleases),
        *(() if requirement.is_pinned else yank),
        *_variant(variant, wanted),
        *_license(resolved.model, rules),
        *_architecture(resolved, rules),
        *(() if wanted else memory),
    )
    notes = (*(yank if requirement.is_pinned else ()), *(memory if wanted else ()))
    return Candidate(resolved=resolved, exclusions=exclusions, notes=notes, need=need)


def _version(
    release: Release, requirement: Requirement, *, takes_prereleases: bool
) -> Iterator[Exclusion]:
    version = release.version
    if not requirement.accepts(version):
        yield Exclusion("version", f"{version} does not match `{requirement.versions}`")
    elif version.is_prerelease and not takes_prereleases:
        yield Exclusion("prerelease", f"{version} is a pre-release, and none is asked for")


def _yank(release: Release) -> Iterator[Exclusion]:
    if release.yanked is not None:
        yield Exclusion("yanked", f"{release.version} is yanked: {release.yanked}")


def _variant(variant: Variant, wanted: NormalizedName | None) -> Iterator[Exclusion]:
    if wanted is not None and variant.name != wanted:
        yield Exclusion("variant", f"`{wanted}` is asked for")


def _license(model: Model, rules: Rules) -> Iterator[Exclusion]:
    reason = rules.licenses.refusal(model.license) if rules.licenses else None
    if reason is not None:
        yield Exclusion("license", f"the license {reason}")


def _architecture(resolved: Resolved, rules: Rules) -> Iterator[Exclusion]:
    form, architecture = resolved.variant.format, resolved.model.architecture
    known = (rules.convertible or {}).get(form)
    if known is not None and architecture != UNKNOWN and architecture not in known:
        yield Exclusion("architecture", f"`{architecture}` in {form} format is not converted")


def _need(resolved: Resolved, rules: Rules) -> Need | None:
    if rules.machine is None:
        return None
    from weightpkg.memory import estimate  # noqa: PLC0415  only who asks for a machine needs it

    known = rules.needs.get(str(resolved))
    return known or estimate(resolved.model, resolved.variant, rules.context, rules.kv_cache)


def _memory(need: Need | None, rules: Rules) -> Iterator[Exclusion]:
    room = rules.machine.room if rules.machine else None
    if need is not None and room is not None and need.total > room:
        sizes = f"{_size(need.total)}, and there is room for {_size(room)}"
        yield Exclusion("memory", f"it needs {sizes}")


def _size(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _raise(explanation: Explanation) -> NoReturn:
    """Say the most general reason for which there is nothing."""
    versions = {"version", "prerelease", "yanked"}
    left = [
        candidate
        for candidate in explanation.candidates
        if not versions & {exclusion.rule for exclusion in candidate.exclusions}
    ]
    model, wanted = explanation.model, explanation.wanted
    if not left:
        raise NoMatchingReleaseError(
            model.name,
            explanation.requirement.versions,
            [_version_text(release) for release in model.releases],
        )
    named = [each for each in left if wanted in {None, each.resolved.variant.name}]
    if not named:
        available = {each.resolved.variant.name: None for each in left}
        raise VariantNotFoundError(model.name, wanted or "", list(available))
    reasons = [
        f"`{each.resolved}`: {'; '.join(exclusion.reason for exclusion in each.exclusions)}"
        for each in named
    ]
    raise NothingFitsError(str(explanation.requirement), reasons)


def _version_text(release: Release) -> str:
    yanked = f" (yanked: {release.yanked})" if release.yanked else ""
    return f"{release.version}{yanked}"
