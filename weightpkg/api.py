"""What a program needs: have a model here, find it, load it.

`import weightpkg` gives these without importing any of it before it is used.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.errors import ConvertError, ModelNotFoundError, NotInstalledError, StoreError
from weightpkg.install import install, plan_install
from weightpkg.progress import Progress, Silence
from weightpkg.reference import is_reference, resolve_any
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store

if TYPE_CHECKING:
    from weightpkg.run.model import Model


def path(name: str, *, settings: Settings | None = None) -> Path:
    """Return the directory of an installed model, for any program that reads ONNX.

    Args:
        name: a requirement, such as `smollm2-135m-q4`, or a direct reference.
        settings: where things are, if not where the environment says.

    Raises:
        ResolutionError: there is no such model, or it is not installed.
        ConvertError: it was installed as files, without a conversion.
    """
    settings = settings or Settings.from_environment()
    store = settings.store()
    return _directory(store, find_installed(name, settings, store))


def find_installed(name: str, settings: Settings, store: Store) -> Installed:
    """Return the record of an installed model.

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
        resolved = resolve(requirement, settings.index(), settings.rules())
    except ModelNotFoundError:
        # what was installed by a reference has a name that no index knows
        for record in store.installed():
            if record.reference and record.full_name == requirement.name:
                return record
        raise
    installed = store.find(
        resolved.model.normalized_name, resolved.variant.name, resolved.release.version
    )
    if installed is None:
        raise NotInstalledError(resolved.full_name)
    return installed


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
    with suppress(NotInstalledError, ConvertError):
        return path(name, settings=settings)
    store = settings.store()
    with settings.sources(store) as sources:
        find = sources.list_repository
        resolved = resolve_any(name, settings.index(), find, rules=settings.rules())
        progress.note(f"resolved {name} to {resolved}")
        fetcher = settings.fetcher(sources, store, progress)
        install(plan_install(resolved, store), store, fetcher)
    return path(name, settings=settings)


def load(
    name: str,
    *,
    allow_install: bool = True,
    threads: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model, ready to answer; it is not collected while it is loaded.

    Args:
        name: a requirement, such as `smollm2-135m-q4`, or a direct reference.
        allow_install: install it if it is not there.
        threads: how many to compute with; 0 is one for each physical core.
        settings: where things are, if not where the environment says.
        progress: told of an installation's steps.

    Raises:
        WeightpkgError: it cannot be found, installed or loaded.
    """
    settings = settings or Settings.from_environment()
    if allow_install:
        ensure(name, settings=settings, progress=progress)
    store = settings.store()
    with ExitStack() as stack:
        installed = find_installed(name, settings, store)
        directory = _directory(store, installed)
        with suppress(StoreError):  # whoever cannot write to a store cannot collect it either
            stack.enter_context(store.lease(directory.name))
        store.note_use(installed, time.time())
        from weightpkg.run.model import Model  # noqa: PLC0415  needs onnxruntime

        model = Model(directory, threads=threads)
        model.hold(stack.pop_all())
        return model
