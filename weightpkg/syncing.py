"""From a lockfile to models that are there, sound, and exactly those.

`plan_sync` decides and touches nothing; `sync` does what the plan says. What is installed is hashed
once and sealed (`seals`), so that a second sync only looks whether anyone has touched it; what was
touched and is bad is repaired from any source, and refused if that cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg import convert, retention, seals
from weightpkg.digest import Digest
from weightpkg.errors import (
    DocumentError,
    FetchError,
    IntegrityError,
    ProjectError,
    StoreError,
    TrustError,
    WeightpkgError,
)
from weightpkg.install import Plan, install, plan_install
from weightpkg.lockfile import LockedPackage, Lockfile
from weightpkg.locking import check_places, check_policy, check_roots, drift, is_for, this_platform
from weightpkg.package import UNKNOWN, File, Model, Parts, Release, Resolved, Variant
from weightpkg.progress import Progress
from weightpkg.project import Indexes, Project, known_facts, lock
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store

if TYPE_CHECKING:
    from weightpkg.fetch import Fetcher
    from weightpkg.verify import Problem


@dataclass(frozen=True, slots=True)
class Step:
    """What is to be done for one package.

    plan: of its installation.
    record: what is installed of it, if that is the same.
    directory: of its index, where paths of its sources begin.
    """

    package: LockedPackage
    plan: Plan
    record: Installed | None
    directory: Path

    @property
    def is_done(self) -> bool:
        """Whether it is there, as far as can be told without hashing."""
        return self.record is not None and self.plan.is_done


def plan_sync(packages: Iterable[LockedPackage], indexes: Indexes, store: Store) -> list[Step]:
    """Decide what is to be done for locked packages to be there.

    Raises:
        ProjectError: two of them cannot be installed beside each other.
        StoreError: the store cannot be read.
        ConvertError: a package cannot be converted by this version.
    """
    packages = list(packages)
    check_places(packages)
    return [_step(package, indexes, store) for package in packages]


def _step(package: LockedPackage, indexes: Indexes, store: Store) -> Step:
    resolved = resolved_of(package)
    check_conversion(package)
    plan = plan_install(resolved, store, allow_conversion=package.conversion is not None)
    record = find_record(package, store)
    if record is not None and record.conversion != plan.conversion:
        record = None
    if plan.missing:
        resolved = resolved_of(package, _sources_today(package, indexes))
        files = {file.path: file for file in resolved.variant.files}
        missing = tuple(files[file.path] for file in plan.missing)
        plan = replace(plan, resolved=resolved, missing=missing)
    return Step(package, plan, record, indexes.directory(package.index))


def check_conversion(package: LockedPackage) -> None:
    """Refuse a conversion's key that this version's converter would not give the package's files.

    Raises:
        ProjectError: so it is.
    """
    if package.conversion is None or not is_same_converter(package):
        return
    digests = {file.path.text: file.sha256 for file in package.files if file.sha256}
    if convert.conversion_key(digests) != package.conversion:
        raise ProjectError(
            f"the lockfile's conversion of `{package}` is not of its files",
            hint=f"`weightpkg lock --upgrade {package.name}` writes it anew",
        )


def find_record(package: LockedPackage, store: Store) -> Installed | None:
    """Return the record of a locked package, if what is installed of that name has its files."""
    record = store.find(package.name, package.variant, package.version)
    if record is None or record.reference != package.reference:
        return None
    installed = {file.path: file.sha256 for file in record.files}
    locked = {file.path.text: file.sha256 for file in package.files}
    return record if installed == locked else None


def _sources_today(package: LockedPackage, indexes: Indexes) -> dict[Digest, tuple[Parts, ...]]:
    """Where the index says today that files are; a mirror may say so of the same digests."""
    try:
        release = indexes.release_of(package)
    except (DocumentError, TrustError, FetchError):
        # the lockfile has all that is needed, but for newer sources
        return {}
    variants = release.variants if release else ()
    return {
        file.sha256: file.sources
        for variant in variants
        if variant.name == package.variant
        for file in variant.files
        if file.sha256
    }


def resolved_of(
    package: LockedPackage, sources: dict[Digest, tuple[Parts, ...]] | None = None
) -> Resolved:
    """Return a locked package as what is resolved and installed.

    Args:
        package: the package.
        sources: more places for its files, tried before those of the lockfile.
    """
    files = tuple(_with_sources(file, sources or {}) for file in package.files)
    variant = Variant(name=package.variant, format=package.format, files=files)
    release = Release(version=package.version, date=date.min, changes="locked", variants=(variant,))
    model = Model(
        name=package.name,
        summary=package.full_name,
        task=UNKNOWN,
        architecture=package.architecture,
        license=package.license,
        license_url=package.license_url,
        default_variant=package.variant,
        releases=(release,),
    )
    return Resolved(model=model, release=release, variant=variant, reference=package.reference)


def _with_sources(file: File, sources: dict[Digest, tuple[Parts, ...]]) -> File:
    today = sources.get(file.sha256, ()) if file.sha256 else ()
    return replace(file, sources=(*today, *(p for p in file.sources if p not in today)))


def yanks(packages: Iterable[LockedPackage], indexes: Indexes) -> Iterator[str]:
    """Yield what is to be said of packages that were yanked, or are gone, after they were locked."""
    for package in packages:
        if package.index is None:
            continue
        try:
            release = indexes.release_of(package)
        except (DocumentError, TrustError, FetchError) as error:
            # digests are locked, so that no index is needed to install the right bytes
            yield f"{package}: whether it was yanked cannot be told: {error.message}"
            continue
        again = f"`weightpkg lock --upgrade {package.name}` takes another release"
        if release is None:
            yield f"{package} is locked, and the index has it no more; {again}"
        elif release.yanked:
            yield f"{package} is locked, and was yanked: {release.yanked}; {again}"


def sync(
    steps: Sequence[Step],
    settings: Settings,
    progress: Progress,
    *,
    find_links: Sequence[Path] = (),
) -> list[Installed]:
    """Do what a plan says, make sure that all of it is sound, and return what is installed.

    Args:
        steps: made for this store.
        settings: where everything is.
        progress: told of each step.
        find_links: directories to look in before anything is downloaded.

    Raises:
        FetchError: no source has a file.
        IntegrityError: bytes are not what is locked, and no source has the right ones; or a
            conversion has another result than is locked.
        StoreError: the store cannot be written.
        ConvertError: a file cannot be converted.
    """
    store = settings.store()
    with ExitStack() as stack:

        @cache
        def fetcher(directory: Path) -> Fetcher:
            own = replace(settings, index_dir=directory)
            sources = stack.enter_context(own.sources(store))
            return own.fetcher(sources, store, progress, find_links=find_links)

        return [_sync_one(step, store, progress, fetcher) for step in steps]


def _sync_one(
    step: Step, store: Store, progress: Progress, fetcher: Callable[[Path], Fetcher]
) -> Installed:
    record = step.record
    if record is None or not step.plan.is_done:
        _take_converted(step, fetcher(step.directory))
        record = install(step.plan, store, fetcher(step.directory))
        progress.note(f"installed {step.package}")
    if problems := seals.check(store, record, progress):
        _repair(step, record, problems, store, fetcher(step.directory))
    check_tree(step.package, record)
    return record


def _take_converted(step: Step, fetcher: Fetcher) -> None:
    """Have the converted model from a mirror, where it is known what that must be."""
    package, plan = step.package, step.plan
    is_wanted = plan.converts and not plan.is_converted and fetcher.replacements
    if is_wanted and package.conversion and package.tree and plan.conversion == package.conversion:
        from weightpkg.converted import take_model  # noqa: PLC0415  only mirrors need it

        if take_model(package.conversion, package.tree, package.files, fetcher):
            fetcher.progress.note(f"took {package} as ONNX from a mirror")


def check_tree(package: LockedPackage, record: Installed) -> None:
    """Refuse a conversion that is not what was locked, where the same converter made both.

    Raises:
        IntegrityError: so it is.
    """
    if package.tree is None or record.conversion != package.conversion:
        return
    if record.tree != package.tree:
        raise IntegrityError(
            f"`{package}` was converted to {record.tree}, and {package.tree} is locked",
            hint=f"`weightpkg uninstall {package.full_name}`, then `weightpkg sync`; if it is so "
            "again, the lockfile was made on a machine that converts otherwise: report it",
        )


def is_same_converter(package: LockedPackage) -> bool:
    """Whether this version makes the same of a package's files as the one that locked it."""
    return package.conversion is None or package.converter == convert.CONVERTER_VERSION


def _repair(
    step: Step, record: Installed, problems: Sequence[Problem], store: Store, fetcher: Fetcher
) -> None:
    from weightpkg.repair import repair  # noqa: PLC0415  only damage needs it

    for problem in problems:
        fetcher.progress.note(f"repairing: {problem}")
    by_digest = {file.sha256: file for file in step.plan.resolved.variant.files}
    done = repair(problems, store, fetcher, by_digest.get)
    failed = [one.error for one in done if one.error]
    left = [] if failed else seals.check(store, record, fetcher.progress)
    if failed or left:
        raise IntegrityError(
            f"`{step.package}` is damaged, and cannot be repaired: {_why(failed, left)}",
            hint="`weightpkg verify` says what is bad; `--find-links DIR` may have the files",
        )


def _why(failed: Sequence[WeightpkgError], left: Sequence[Problem]) -> str:
    return failed[0].message if failed else str(left[0])


def groups_of(
    manifest_groups: Iterable[NormalizedName], *, only: Sequence[str], without_dev: bool
) -> list[str | None]:
    """Return the groups that are meant: everyone's, and the named ones, or all but `dev`."""
    named = list(manifest_groups)
    if only:
        return [None, *only]
    return [None, *(name for name in named if not (without_dev and name == "dev"))]


def check_platform(platforms: Sequence[str]) -> None:
    """Refuse a platform that a project is not for; none named are all.

    Raises:
        ProjectError: so it is.
    """
    if not is_for(platforms, here := this_platform()):
        raise ProjectError(
            f"the project is for {', '.join(platforms)}, and this is {here}",
            hint="`platforms` of its manifest says so",
        )


def prepare(project: Project, settings: Settings, progress: Progress, *, frozen: bool) -> Lockfile:
    """Return a lockfile that fits the project; one that does not is written anew, if it may be.

    Raises:
        ProjectError: nothing is locked, or not what the manifest wants, and it may not be; an index
            is another one; the project is not for this platform.
        LicenseError: the policy does not allow what is locked.
    """
    manifest = project.manifest
    check_platform(manifest.platforms)
    lockfile = project.lockfile(progress.note) if frozen else project.old_lockfile(progress.note)
    reasons = drift(manifest, lockfile)
    if reasons and frozen:
        raise ProjectError(
            f"`{project.lockfile_path.name}` does not fit `{project.manifest_path.name}`: "
            f"{'; '.join(reasons)}",
            hint="`weightpkg lock` brings it up to date; commit what it writes",
        )
    if reasons or not project.lockfile_path.exists():
        plan = lock(project, settings, progress.note, progress=progress)
        lockfile = known_facts(plan.lockfile, settings.store())
        project.write_lockfile(lockfile)
        progress.note(f"wrote {project.lockfile_path.name}")
    check_roots(lockfile, Indexes(project.root, project.manifest, settings).roots())
    for package in lockfile.packages:
        check_policy(package, manifest.policy)
        if not is_same_converter(package):
            progress.note(f"{package} was locked with another converter; its tree is not compared")
    return lockfile


def finish(
    project: Project,
    lockfile: Lockfile,
    done: Sequence[Installed],
    store: Store,
    *,
    frozen: bool,
    prune: bool,
) -> list[str]:
    """Keep what a project uses from collection, and write down what became known of it.

    Args:
        project: the project.
        lockfile: what was synced.
        done: what is installed of it.
        store: where.
        frozen: whether its files stay as they are.
        prune: whether to uninstall what it had before and has no more.

    Returns:
        What was done, a line each.

    Raises:
        StoreError: something cannot be written.
    """
    path = project.lockfile_path
    notes = []
    if not frozen and project.write_lockfile(known_facts(lockfile, store)):
        notes.append(f"{path.name} has the digests now that it did not know")
    had = retention.project_models(store, path)
    now = {store.record_path(record).relative_to(store.root).as_posix() for record in done}
    if prune:
        gone = _only_here(had - now, lockfile, path, store)
        if gone:
            retention.uninstall(store, gone)
        notes += [f"uninstalled {record}" for record in gone]
        had -= {store.record_path(r).relative_to(store.root).as_posix() for r in gone}
    try:
        retention.register_project(store, path, had | now)
    except StoreError as error:  # a store for many, which others fill, need not be written
        notes.append(
            f"a `weightpkg gc` of this store does not know of the project: {error.message}"
        )
    return notes


def _only_here(
    names: Iterable[str], lockfile: Lockfile, path: Path, store: Store
) -> list[Installed]:
    """The records that a project has no more, and no other project has."""
    locked = {(p.name, p.version, p.variant) for p in lockfile.packages}
    others = {
        name
        for other in retention.projects(store)
        if other != path.absolute()
        for name in retention.project_models(store, other)
    }
    return [
        record
        for record in store.installed()
        if store.record_path(record).relative_to(store.root).as_posix() in set(names) - others
        and (record.name, record.version, record.variant) not in locked
    ]
