"""What a lockfile shall say, and how two of them differ: decisions, and nothing on disk.

Locking changes as little as it can. A package that a lockfile has stays as long as the manifest will
have it, also if there is a newer one and also if it was yanked since; `Upgrade` says what may move.
What an index says of a locked release today must be what it said then.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from weightpkg import convert
from weightpkg.errors import (
    ConvertError,
    LicenseError,
    ModelNotFoundError,
    NoMatchingReleaseError,
    ProjectError,
    VariantNotFoundError,
)
from weightpkg.install import check_convertible
from weightpkg.license_policy import LicensePolicy
from weightpkg.lockfile import (
    DEFAULT_INDEX,
    LockedIndex,
    LockedModel,
    LockedPackage,
    Lockfile,
    changed_facts,
    with_facts,
)
from weightpkg.manifest import Manifest, Wanted
from weightpkg.package import UNKNOWN, Resolved
from weightpkg.reference import is_reference
from weightpkg.requirement import NormalizedName, Requirement

_GONE = (ModelNotFoundError, NoMatchingReleaseError, VariantNotFoundError)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a requirement comes to today, and the index that says so; None for a reference."""

    resolved: Resolved
    index: NormalizedName | None


Ask = Callable[[str], Offer]
"""Resolves a requirement or a reference, namespaces included; raises what `resolve` does."""


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Which packages need not stay as they are: those of these names, or all."""

    names: frozenset[NormalizedName] = frozenset()
    everything: bool = False

    def moves(self, package: LockedPackage, role: str) -> bool:
        """Whether a package may become another one."""
        own = {package.name, f"{package.name}-{package.variant}", package.full_name, role}
        return self.everything or bool(own & self.names)


@dataclass(slots=True)
class Locking:
    """A lockfile that shall be, and what is to be said of it."""

    lockfile: Lockfile
    notes: list[str] = field(default_factory=list)


def plan_lock(
    manifest: Manifest,
    old: Lockfile,
    ask: Ask,
    roots: Mapping[NormalizedName, str],
    upgrade: Upgrade,
) -> Locking:
    """Decide what a lockfile shall say.

    Args:
        manifest: what is wanted.
        old: what is locked; an empty one where nothing is.
        ask: resolves.
        roots: of the indexes that may be asked.
        upgrade: what may move.

    Raises:
        ResolutionError: something wanted is not to be had.
        ProjectError: a locked release is gone, or is another one today; a name to upgrade is none;
            two packages cannot be installed beside each other.
        LicenseError: the policy does not allow a license.
    """
    if upgrade.everything:
        old = replace(old, indexes=())
    check_roots(old, roots)
    _check_upgrade(upgrade, old)
    locking = Locking(Lockfile())
    models: list[LockedModel] = []
    packages: list[LockedPackage] = []
    for wanted in manifest.wanted:
        for model, package in _lock(wanted, old, ask, upgrade, locking.notes):
            check_policy(package, manifest.policy)
            models.append(model)
            packages.append(package)
    check_places(packages)
    used = {package.index for package in packages if package.index}
    indexes = tuple(LockedIndex(name, roots[name]) for name in sorted(used))
    locking.lockfile = Lockfile(
        models=tuple(models),
        packages=tuple({package.key: package for package in reversed(packages)}.values()),
        indexes=indexes,
    ).sorted()
    return locking


def check_roots(lockfile: Lockfile, roots: Mapping[NormalizedName, str]) -> None:
    """Refuse indexes that are not those that a lockfile was made with.

    Raises:
        ProjectError: an index is not configured, or has another root.
    """
    for index in lockfile.indexes:
        now = roots.get(index.name)
        if now is None:
            raise ProjectError(
                f"the lockfile needs the index `{index.name}`, which the manifest does not have",
                hint=f'add `{index.name} = "PATH"` to its `[indexes]`, or `weightpkg index add` it, if '
                "it is signed",
            )
        if now != index.root:
            raise ProjectError(
                f"the index `{index.name}` has the root {now}, and the lockfile was made with "
                f"{index.root}",
                hint="use the index that it was made with; if the change of its root is known to be "
                "right, `weightpkg lock --upgrade`",
            )


def check_places(packages: Iterable[LockedPackage]) -> None:
    """Refuse packages that have one place in the store, and are not the same.

    Two indexes may offer one name, and two files may be called alike; what is installed has no
    namespace, so that each would be installed in place of the other.

    Raises:
        ProjectError: so it is.
    """
    places: dict[object, LockedPackage] = {}
    for package in packages:
        place = (package.name, package.variant, package.version)
        other = places.setdefault(place, package)
        if _content(other) != _content(package):
            names = [one.reference or str(one) for one in (other, package)]
            raise ProjectError(
                f"`{names[0]}` and `{names[1]}` are called alike and are other files: only one of "
                "them can be installed",
                hint="use one of them; or have the other under another name, or version, in its index",
            )


def _content(package: LockedPackage) -> object:
    return package.reference, {file.path.text: file.sha256 for file in package.files}


def check_policy(package: LockedPackage, policy: LicensePolicy) -> None:
    """Refuse a package whose license the project does not allow.

    Raises:
        LicenseError: so it is.
    """
    check_license(str(package), package.license, policy)


def check_license(name: str, expression: str, policy: LicensePolicy) -> None:
    """Refuse a license that the project does not allow.

    Args:
        name: what is licensed so, for the error.
        expression: the license, in SPDX's grammar, or that nobody knows it.
        policy: the project's.

    Raises:
        LicenseError: so it is.
    """
    reason: str | None
    if expression == UNKNOWN:
        reason = "its license is not known" if policy.allowed is not None else None
    else:
        reason = policy.refusal(expression)
    if reason:
        raise LicenseError(
            f"`{name}` cannot be used in this project: {reason}",
            hint="`allow-licenses` and `deny` of the manifest say what can",
        )


def _check_upgrade(upgrade: Upgrade, old: Lockfile) -> None:
    known = {name for p in old.packages for name in (p.name, f"{p.name}-{p.variant}", p.full_name)}
    known |= {model.role for model in old.models}
    for name in sorted(upgrade.names - known):
        raise ProjectError(
            f"nothing called `{name}` is locked", hint="`weightpkg tree` lists what is"
        )


def _lock(
    wanted: Wanted, old: Lockfile, ask: Ask, upgrade: Upgrade, notes: list[str]
) -> Iterator[tuple[LockedModel, LockedPackage]]:
    for choice in wanted.choices:
        was = _locked_for(choice.requirement, wanted.role, old)
        package = _pick(choice.requirement, was, old, ask, upgrade, wanted.role, notes)
        model = LockedModel(
            role=wanted.role,
            group=wanted.group,
            platforms=choice.platforms,
            requirement=choice.requirement,
            package=package.key,
        )
        yield model, package


def _locked_for(requirement: str, role: str, old: Lockfile) -> LockedPackage | None:
    """The package that a requirement got before, if it still will do; the same role's first."""
    rows = sorted(old.models, key=lambda model: model.role != role)
    for model in rows:
        if model.requirement == requirement:
            package = old.package(model.package)
            if satisfies(package, requirement):
                return package
    return None


def satisfies(package: LockedPackage, requirement: str) -> bool:
    """Whether a package can be what a requirement got."""
    if is_reference(requirement):
        return package.reference == requirement
    return package.reference is None and Requirement.parse(requirement).accepts(package.version)


def _pick(
    requirement: str,
    was: LockedPackage | None,
    old: Lockfile,
    ask: Ask,
    upgrade: Upgrade,
    role: str,
    notes: list[str],
) -> LockedPackage:
    offer = None
    if was is None:
        offer = ask(requirement)
        was = _like(package_of(offer), requirement, old)
    if was is None or upgrade.moves(was, role):
        package = package_of(offer or ask(requirement), notes)
        return with_facts(package, was) if was and was.key == package.key else package
    return was if was.reference else _confirmed(was, ask, notes)


def _like(new: LockedPackage, requirement: str, old: Lockfile) -> LockedPackage | None:
    """A locked package of the same model and variant that a requirement will have, too."""
    for package in reversed(old.packages):  # the newest first
        same = (package.index, package.name, package.variant) == (new.index, new.name, new.variant)
        if same and satisfies(package, requirement):
            return package
    return None


def _confirmed(was: LockedPackage, ask: Ask, notes: list[str]) -> LockedPackage:
    """Return a locked package, once its index was seen to describe the same bytes today.

    Its license is what the index says by now. What else that says, such as other sources, does not
    make it another lockfile.
    """
    hint = f"`weightpkg lock --upgrade {was.name}` takes another release"
    try:
        offer = ask(was.key)
    except _GONE as error:
        reason = f"`{was}` is locked, and the index `{was.index}` has it no more"
        raise ProjectError(reason, hint=hint) from error
    today = package_of(offer)
    if changed := changed_facts(was, today):
        raise ProjectError(
            f"`{was}` is locked with other bytes than the index has today: {', '.join(changed)}",
            hint=f"a release must never change; {hint}",
        )
    if yanked := offer.resolved.release.yanked:
        notes.append(f"{was} is locked, and was yanked: {yanked}")
    if today.license != was.license:
        notes.append(f"{was} is locked as {was.license}, and the index has {today.license} now")
        return replace(was, license=today.license, license_url=today.license_url)
    return was


def package_of(offer: Offer, notes: list[str] | None = None) -> LockedPackage:
    """Return what a lockfile says of an offer.

    Raises:
        ProjectError: a file has no digest.
    """
    resolved = offer.resolved
    for file in resolved.variant.files:
        if file.sha256 is None:
            raise ProjectError(
                f"`{resolved.reference}`: nobody says what digest `{file.path}` has",
                hint="`weightpkg lock`, without --check or --dry-run, fetches it to learn that",
            )
    conversion = None
    try:
        check_convertible(resolved)
        digests = {file.path.text: file.sha256 for file in resolved.variant.files if file.sha256}
        conversion = convert.conversion_key(digests)
    except ConvertError as error:
        if notes is not None:
            notes.append(f"{resolved} is kept as files: {error.message}")
    return LockedPackage(
        name=resolved.model.normalized_name,
        version=resolved.release.version,
        variant=resolved.variant.name,
        index=offer.index,
        reference=resolved.reference,
        license=resolved.model.license,
        license_url=resolved.model.license_url,
        format=resolved.variant.format,
        architecture=resolved.model.architecture,
        conversion=conversion,
        converter=convert.CONVERTER_VERSION if conversion else None,
        files=resolved.variant.files,
    )


def drift(manifest: Manifest, lockfile: Lockfile) -> list[str]:
    """Return where a lockfile does not say what a manifest wants, without asking any index."""
    wanted = {
        (one.role, one.group, choice.platforms): choice.requirement
        for one in manifest.wanted
        for choice in one.choices
    }
    locked = {(m.role, m.group, m.platforms): m for m in lockfile.models}
    reasons = [f"`{key[0]}` is not locked" for key in wanted if key not in locked]
    reasons += [f"`{key[0]}` is locked, and not wanted" for key in locked if key not in wanted]
    for key, model in locked.items():
        if key in wanted and wanted[key] != model.requirement:
            reasons.append(
                f"`{model.role}` is locked for `{model.requirement}`, and wants `{wanted[key]}`"
            )
        elif not satisfies(package := lockfile.package(model.package), model.requirement):
            reasons.append(
                f"`{model.role}` wants `{model.requirement}`, and is locked to {package}"
            )
    return list(dict.fromkeys(reasons))


def this_platform() -> str:
    """The name of the platform that this is.

    >>> this_platform().partition("-")[0] in ("linux", "macos", "windows")
    True
    """
    system = {"darwin": "macos"}.get(platform.system().lower(), platform.system().lower())
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "aarch64": "arm64"}.get(machine, machine)
    return f"{system}-{machine}"


def is_for(platforms: Iterable[str], here: str) -> bool:
    """Whether a platform is among some, or all are meant.

    >>> is_for(["linux"], "linux-arm64"), is_for([], "linux-arm64"), is_for(["macos"], "linux-arm64")
    (True, True, False)
    """
    named = set(platforms)
    return not named or bool(named & {here, here.partition("-")[0]})


def select(
    lockfile: Lockfile, here: str, groups: Iterable[str | None]
) -> dict[NormalizedName, LockedPackage]:
    """Return each role's package on a platform, for some groups.

    Args:
        lockfile: what is locked.
        here: the platform.
        groups: those that are meant; None is what belongs to no group.
    """
    chosen: dict[NormalizedName, LockedPackage] = {}
    meant = set(groups)
    exact_first = sorted(lockfile.models, key=lambda m: (here not in m.platforms, not m.platforms))
    for model in exact_first:
        if model.group in meant and model.role not in chosen and is_for(model.platforms, here):
            chosen[model.role] = lockfile.package(model.package)
    return dict(sorted(chosen.items()))


def index_of(requirement: str) -> NormalizedName:
    """The index that a requirement is for."""
    namespace = Requirement.parse(requirement).namespace
    return namespace or NormalizedName(DEFAULT_INDEX)
