"""What a program needs: have a model here, find it, load it.

In a project, which is looked for from the current directory upwards, a name is that of a role or of
a package in its lockfile, and nothing else is loaded; elsewhere it is whatever an index has.

`import weightpkg` gives these without importing any of it before it is used.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from weightpkg import seals
from weightpkg.errors import (
    ConvertError,
    IntegrityError,
    ModelNotFoundError,
    NotInstalledError,
    ProjectError,
    StoreError,
)
from weightpkg.install import install, plan_install
from weightpkg.licenses import check_accepted, terms_for
from weightpkg.lockfile import LockedPackage
from weightpkg.locking import check_policy, select, this_platform
from weightpkg.package import Resolved
from weightpkg.progress import Progress, Silence
from weightpkg.project import Indexes, Project, current_project
from weightpkg.reference import index_of, is_reference, notes_of, resolve_any
from weightpkg.report import is_meant
from weightpkg.requirement import Requirement, is_name, normalize_name
from weightpkg.resolve import resolve
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store
from weightpkg.syncing import check_platform, check_tree, find_record, plan_sync, sync

if TYPE_CHECKING:
    from weightpkg.memory import KvCache
    from weightpkg.run.model import Model
    from weightpkg.run.tasks.classification import Classifier
    from weightpkg.run.tasks.embedding import Embedder
    from weightpkg.run.tasks.filling import Filler
    from weightpkg.run.tasks.images import ImageClassifier
    from weightpkg.run.tasks.opening import AnyModel, Task
    from weightpkg.run.tasks.tagging import Tagger
    from weightpkg.run.tasks.tensors import TensorModel


_SILENCE = Silence()


def path(name: str, *, settings: Settings | None = None) -> Path:
    """Return the directory of an installed model, for any program that reads ONNX.

    Args:
        name: a role or a package of the project; elsewhere a requirement, such as
            `smollm2-135m-q4`, or a direct reference.
        settings: where things are, if not where the environment says.

    Raises:
        ResolutionError: there is no such model, or it is not installed.
        ConvertError: it was installed as files, without a conversion.
        ProjectError: the project has not locked it.
        IntegrityError: it is not what the project has locked.
    """
    settings = settings or Settings.from_environment()
    store = settings.store()
    project = current_project()
    if project is not None:
        return _directory(store, locked_record(name, project, settings, Silence()))
    return _directory(store, find_installed(name, settings, store))


def find_installed(
    name: str, settings: Settings, store: Store, progress: Progress = _SILENCE
) -> Installed:
    """Return the record of an installed model; `progress` is told what the name led to.

    Raises:
        ResolutionError: there is no such model, or it is not installed.
    """
    if is_reference(name):
        found = [record for record in store.installed() if record.reference == name]
        if not found:
            raise NotInstalledError(name)
        return max(found, key=store.used)
    requirement = Requirement.parse(name)
    try:
        resolved = resolve(
            requirement, settings.index(), settings.rules(), namespaces=settings.namespaces()
        )
    except ModelNotFoundError:
        # what was installed by a reference has a name that no index knows
        for record in store.installed():
            if record.reference and record.full_name == requirement.name:
                return record
        raise
    for note in notes_of(name, resolved.model):
        progress.note(f"note: {note}")
    installed = store.find(
        resolved.model.normalized_name, resolved.variant.name, resolved.release.version
    )
    # another index can have a model of that name, and this is not it
    if installed is None or (requirement.namespace and not _is_same(resolved, installed)):
        prefix = f"{requirement.namespace}/" if requirement.namespace else ""
        raise NotInstalledError(f"{prefix}{resolved.full_name}")
    return installed


def _is_same(resolved: Resolved, installed: Installed) -> bool:
    digests = {file.sha256 for file in installed.files}
    return all(file.sha256 in digests for file in resolved.variant.files)


def _directory(store: Store, installed: Installed) -> Path:
    again = installed.reference or installed.full_name
    if installed.conversion is None:
        raise ConvertError(
            f"`{again}` was installed as files, without a conversion",
            hint=f"weightpkg install {again}",
        )
    directory = store.model(installed.conversion)
    if directory is None:
        raise NotInstalledError(again)
    return directory


def ensure(
    name: str, *, settings: Settings | None = None, progress: Progress | None = None
) -> Path:
    """Return the directory of a model, installing it if it is not there.

    Raises:
        WeightpkgError: as `weightpkg install` says it.
    """
    settings = settings or Settings.from_environment()
    progress = progress or Silence()
    store = settings.store()
    return _directory(store, _ensure(name, settings, store, progress))


def _ensure(name: str, settings: Settings, store: Store, progress: Progress) -> Installed:
    project = current_project()
    if project is not None:
        return ensure_locked(name, project, settings, progress)
    with suppress(NotInstalledError):
        installed = find_installed(name, settings, store, progress)
        if installed.conversion and store.model(installed.conversion):
            return installed
    with settings.sources(store) as sources:
        find = sources.list_repository
        index, namespaces = settings.index(), settings.namespaces()
        resolved = resolve_any(name, index, find, rules=settings.rules, namespaces=namespaces)
        progress.note(f"resolved {name} to {resolved}")
        plan = plan_install(resolved, store)
        if plan.missing:
            place = index_of(name, index, namespaces).directory
            for terms in terms_for([(resolved, place)], store):
                progress.note(terms.note)
        return install(plan, store, settings.fetcher(sources, store, progress))


def locked_package(name: str, project: Project, progress: Progress) -> LockedPackage:
    """Return what a project has locked for a role, or under a package's name.

    Raises:
        ProjectError: nothing, or not for this platform, or the lockfile does not fit the manifest.
        DocumentError: one of the project's files is not valid.
    """
    check_platform(project.manifest.platforms)
    lockfile = project.lockfile(progress.note)
    here = this_platform()
    roles = select(lockfile, here, [None, *project.manifest.groups])
    if is_name(name) and (package := roles.get(normalize_name(name))):
        wants = {w.role: [c.requirement for c in w.choices] for w in project.manifest.wanted}
        rows = [model for model in lockfile.models if model.role == normalize_name(name)]
        if all(row.requirement in wants.get(row.role, []) for row in rows):
            return package
        raise ProjectError(
            f"`{project.lockfile_path}` does not have `{name}` as the manifest wants it",
            hint="weightpkg lock; weightpkg sync",
        )
    for package in roles.values():
        if is_meant(package, name):
            return package
    if elsewhere := [
        m for m in lockfile.models if is_name(name) and m.role == normalize_name(name)
    ]:
        where = ", ".join(sorted({one for model in elsewhere for one in model.platforms}))
        raise ProjectError(
            f"`{name}` is not locked for {here}, but for {where}",
            hint="the role's `variants` in the manifest say where it is what; `variant` is for all others",
        )
    known = ", ".join(f"`{role}`" for role in roles) or "nothing"
    raise ProjectError(
        f"`{name}` is not locked in `{project.root}`, which has {known}",
        hint=f"`weightpkg add {name}` locks it; outside of a project any name can be loaded",
    )


def locked_record(name: str, project: Project, settings: Settings, progress: Progress) -> Installed:
    """Return the record of what a project has locked, once it was seen that it is that.

    Raises:
        ProjectError: it is not locked.
        NotInstalledError: it is not installed.
        IntegrityError: it was damaged, or was converted to something else.
    """
    package, store = locked_package(name, project, progress), settings.store()
    record = find_record(package, store)
    if record is None or (record.conversion and store.model(record.conversion) is None):
        raise NotInstalledError(package.full_name)
    check_tree(package, record)
    if problems := seals.check(store, record, progress):
        raise IntegrityError(
            f"`{name}` is not as it was installed: {problems[0]}", hint="weightpkg sync --frozen"
        )
    return record


def ensure_locked(name: str, project: Project, settings: Settings, progress: Progress) -> Installed:
    """The same, and install it if it is not there; nothing of the project is changed.

    Raises:
        WeightpkgError: as `weightpkg sync --frozen` says it.
    """
    with suppress(NotInstalledError):
        return locked_record(name, project, settings, progress)
    package, store = locked_package(name, project, progress), settings.store()
    check_policy(package, project.manifest.policy)
    indexes = Indexes(project.root, project.manifest, settings)
    steps = plan_sync([package], indexes, store)
    missing = [(step.plan.resolved, step.directory) for step in steps if step.plan.missing]
    check_accepted(terms_for(missing, store))
    (record,) = sync(steps, settings, progress)
    return record


@overload
def load(
    name: str,
    *,
    task: Literal["text-generation"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> Model: ...
@overload
def load(
    name: str,
    *,
    task: Literal["feature-extraction"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> Embedder: ...
@overload
def load(
    name: str,
    *,
    task: Literal["text-classification"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> Classifier: ...
@overload
def load(
    name: str,
    *,
    task: Literal["token-classification"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> Tagger: ...
@overload
def load(
    name: str,
    *,
    task: Literal["fill-mask"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> Filler: ...
@overload
def load(
    name: str,
    *,
    task: Literal["image-classification"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> ImageClassifier: ...
@overload
def load(
    name: str,
    *,
    task: Literal["tensors"],
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> TensorModel: ...
@overload
def load(
    name: str,
    *,
    task: Task | None = ...,
    allow_install: bool = ...,
    threads: int = ...,
    device: str = ...,
    kv_cache: KvCache = ...,
    settings: Settings | None = ...,
    progress: Progress | None = ...,
) -> AnyModel: ...
def load(
    name: str,
    *,
    task: Task | None = None,
    allow_install: bool = True,
    threads: int = 0,
    device: str = "auto",
    kv_cache: KvCache = "float",
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> AnyModel:
    """Load a model, ready to answer, as the class of its task; it is not collected meanwhile.

    Args:
        name: a role or a package of the project; elsewhere a requirement, such as
            `smollm2-135m-q4`, or a direct reference.
        task: what it is to do; what it is for if not given. A type checker knows what is returned
            where it is.
        allow_install: install it if it is not there.
        threads: how many to compute with; 0 is one for each core that this process may use.
        device: `auto`, `cpu`, `gpu`, `npu`, or an execution provider's name.
        kv_cache: of a model that writes text: `int8` keeps keys and values in a quarter of the memory, a
            little less exactly.
        settings: where things are, if not where the environment says.
        progress: told of an installation's steps.

    Raises:
        WeightpkgError: it cannot be found, installed or loaded.
    """
    settings = settings or Settings.from_environment()
    progress = progress or Silence()
    store, project = settings.store(), current_project()
    with ExitStack() as stack:
        if allow_install:
            installed = _ensure(name, settings, store, progress)
        elif project is not None:
            installed = locked_record(name, project, settings, progress)
        else:
            installed = find_installed(name, settings, store, progress)
        directory = _directory(store, installed)
        with suppress(StoreError):  # whoever cannot write to a store cannot collect it either
            stack.enter_context(store.lease(directory.name))
        store.note_use(installed, time.time())
        from weightpkg.run.tasks.opening import open_model  # noqa: PLC0415  needs onnxruntime

        cache = store.root / "cache" / "graphs"
        model = open_model(
            directory, task=task, threads=threads, device=device, cache=cache, kv_cache=kv_cache
        )
        model.hold(stack.pop_all())
        return model
