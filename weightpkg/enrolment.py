"""An index becomes one of the user's: looked at whole, once, before the configuration names it.

Nothing is trusted on first use: without the first root or its digest, a signed index is refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from weightpkg import files
from weightpkg.config import IndexConfig, is_web, remove_index, set_index
from weightpkg.confusable import lookalike
from weightpkg.errors import FetchError, TrustError
from weightpkg.indexes import origin_of, state_of
from weightpkg.trust.index import SignedIndex
from weightpkg.trust.origin import Origin
from weightpkg.trust.pages import FIRST_ROOT, MAX_ROOT, Surroundings

if TYPE_CHECKING:
    from weightpkg.progress import Progress
    from weightpkg.requirement import NormalizedName
    from weightpkg.settings import Settings


def enrol(
    config: IndexConfig,
    root: bytes | None,
    settings: Settings,
    progress: Progress,
    *,
    is_named: bool,
) -> IndexConfig:
    """Look at an index, and write it into the configuration; return what was written.

    Args:
        config: what is asked for; the name is empty where the index says it.
        root: the first root, None where only its digest is known.
        settings: where all is.
        progress: told what takes long.
        is_named: whether the name was given.

    Raises:
        TrustError: the index is refused, or its name could be taken for another's.
        FetchError: it cannot be had.
        DocumentError: the configuration is not valid.
    """
    origin = origin_of(config, settings.connect)
    _check_signed(config, origin)
    if config.root_sha256 is None:
        if not is_named:
            reason = "is missing: nobody signs what this index is called"
            raise TrustError(config.url, "--name", reason)
        _check_name(config, settings)
        set_index(settings.home, config)
        return config
    with files.scratch_directory(settings.home / "tmp") as scratch:
        if root is not None:
            files.write_file(scratch / FIRST_ROOT, root, temporary=scratch / "tmp")
        pages = SignedIndex(config, origin, Surroundings(state=scratch, progress=progress)).pages
        pages.refresh()
        config = replace(config, name=config.name or pages.namespace)
        _check_name(config, settings)
        content = (scratch / FIRST_ROOT).read_bytes()
    state = state_of(settings.home, config.name)
    files.write_file(state / FIRST_ROOT, content, temporary=state / "tmp")
    SignedIndex(config, origin, Surroundings(state=state, progress=progress)).pages.refresh()
    set_index(settings.home, config)
    return config


def _check_signed(config: IndexConfig, origin: Origin) -> None:
    """Refuse an index that nobody said how to trust."""
    if config.root_sha256 is not None or config.allow_unsigned:
        return
    name = config.name or config.url
    try:
        origin.read("metadata/timestamp.json", MAX_ROOT)
    except FetchError as error:
        if not is_web(config.url):
            return  # a directory given by path is the user's own
        hint = "`--allow-unsigned-index` takes it all the same, if it has no signatures at all"
        raise TrustError(
            name, "--root", "is missing: whose signatures count?", hint=hint
        ) from error
    raise TrustError(
        name,
        "--root",
        "is missing: the index is signed, and it is not asked itself whom to trust",
        hint="give the first root's file, or its SHA-256 (`--sha256`), as its maintainers told you",
    )


def _check_name(config: IndexConfig, settings: Settings) -> None:
    """Refuse a name that is another index's, or looks as if it were."""
    name, before = config.name, settings.config().index(config.name)
    if before is not None and before.root_sha256 != config.root_sha256:
        raise TrustError(
            name,
            "--root",
            f"is not the one that this index has here; it is at {before.url}",
            hint=f"if it is another index now, `weightpkg index remove {name}` first",
        )
    known = [index.name for index in settings.config().indexes]
    if other := lookalike(name, [*known, "default"]):
        raise TrustError(
            name,
            name,
            f"could be taken for `{other}`, which is another index",
            hint=f"if it is `{other}` that you mean, write that; else choose another `--name`",
        )


def dismiss(name: NormalizedName, settings: Settings) -> bool:
    """Take an index out of the configuration, and forget all of it; return whether it was there.

    Raises:
        DocumentError: the configuration is not valid.
        StoreError: it cannot be written.
    """
    was_there = remove_index(settings.home, name)
    state = state_of(settings.home, name)
    if state.is_dir():
        files.remove(state, trash=settings.home / "tmp", is_durable=True)
    return was_there
