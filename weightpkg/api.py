"""What a program needs: have a model here, find it, load it.

`import weightpkg` gives these without importing any of it before it is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg.errors import ConvertError, NotInstalledError
from weightpkg.install import install, plan_install
from weightpkg.progress import Progress, Silence
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings

if TYPE_CHECKING:
    from weightpkg.run.model import Model


def path(name: str, *, settings: Settings | None = None) -> Path:
    """Return the directory of an installed model, for any program that reads ONNX.

    Args:
        name: a requirement, such as `smollm2-135m-q4`.
        settings: where things are, if not where the environment says.

    Raises:
        ResolutionError: there is no such model, or it is not installed.
        ConvertError: it was installed as files, without a conversion.
    """
    settings = settings or Settings.from_environment()
    store = settings.store()
    resolved = resolve(Requirement.parse(name), settings.index())
    installed = store.find(
        resolved.model.normalized_name, resolved.variant.name, resolved.release.version
    )
    if installed is None:
        raise NotInstalledError(resolved.full_name)
    if installed.conversion is None:
        raise ConvertError(
            f"`{resolved.full_name}` was installed as files, without a conversion",
            hint=f"weightpkg install {resolved.full_name}",
        )
    directory = store.model(installed.conversion)
    if directory is None:
        raise NotInstalledError(resolved.full_name)
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
    resolved = resolve(Requirement.parse(name), settings.index())
    try:
        return path(f"{resolved.full_name}=={resolved.release.version}", settings=settings)
    except (NotInstalledError, ConvertError):
        pass
    progress.note(f"resolved {name} to {resolved}")
    plan = plan_install(resolved, store)
    with settings.sources(store) as open_source:
        install(plan, store, open_source, progress)
    return path(name, settings=settings)


def load(
    name: str,
    *,
    allow_install: bool = True,
    threads: int = 0,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model, ready to answer.

    Args:
        name: a requirement, such as `smollm2-135m-q4`.
        allow_install: install it if it is not there.
        threads: how many to compute with; 0 is one for each physical core.
        settings: where things are, if not where the environment says.
        progress: told of an installation's steps.

    Raises:
        WeightpkgError: it cannot be found, installed or loaded.
    """
    if allow_install:
        directory = ensure(name, settings=settings, progress=progress)
    else:
        directory = path(name, settings=settings)
    from weightpkg.run.model import Model  # noqa: PLC0415  needs onnxruntime

    return Model(directory, threads=threads)
