"""The pages of an index that is to be signed: read, checked, and said in short for searches.

Only pages that changed are parsed: what is signed already was checked when it was. What a page's
entry says beside size and digest is what a search needs to know, so that no search reads pages.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpkg.document import MAX_DOCUMENT_SIZE, parse_document
from weightpkg.errors import DocumentError, SigningError
from weightpkg.index import ambiguities
from weightpkg.listing import Listing
from weightpkg.page import read_alias, read_model
from weightpkg.requirement import normalize_name
from weightpkg.signing.metadata import KINDS, entry_of

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

Custom = Mapping[str, Any]

_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,99}\.txt")
_MAX_ALIASES = 8  # one after the other, as `index` has it


def scan(
    directory: Path,
    prefix: str,
    signed: Mapping[str, TargetFile],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[str, TargetFile]:
    """Return the entry of each page below a directory, by path; those that are signed as they were.

    Args:
        directory: has `models`, and maybe `aliases` and `licenses`.
        prefix: what comes before them in paths: nothing, or the namespace and `/`.
        signed: the entries that were made before.
        advance: called with the bytes of each page.

    Raises:
        DocumentError: a page is not valid, or two things have one name.
    """
    found = {}
    for kind in KINDS:
        for name, content in _files(directory / kind):
            path = f"{prefix}{kind}/{name}"
            found[path] = _entry(path, kind, name, content, signed.get(path))
            advance(len(content))
    check_names({path.removeprefix(prefix): entry for path, entry in found.items()})
    return found


def _files(directory: Path) -> Iterator[tuple[str, bytes]]:
    if not directory.is_dir():
        return
    with os.scandir(directory) as entries:  # for a hundred thousand, paths would be slow
        names = sorted((entry.name, entry.is_file(follow_symlinks=False)) for entry in entries)
    for name, is_file in names:
        source = f"{directory.name}/{name}"
        if not is_file:
            raise DocumentError("is not a regular file", source=source)
        try:
            with open(os.path.join(directory, name), "rb") as stream:  # noqa: PTH118, PTH123  the same
                if os.fstat(stream.fileno()).st_size > MAX_DOCUMENT_SIZE:
                    raise DocumentError(f"larger than {MAX_DOCUMENT_SIZE:,} bytes", source=source)
                content = stream.read()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DocumentError(f"cannot be read: {reason}", source=source) from error
        yield name, content


def _entry(path: str, kind: str, name: str, content: bytes, old: TargetFile | None) -> TargetFile:
    if old is not None and _is_same(content, old):
        return old
    return entry_of(path, content, describe(kind, name, content))


def _is_same(content: bytes, entry: TargetFile) -> bool:
    digest = entry.hashes.get("sha256")
    return entry.length == len(content) and digest == hashlib.sha256(content).hexdigest()


def describe(kind: str, name: str, content: bytes) -> Custom:
    """Check a page, and say what a search needs to know of it.

    Args:
        kind: one of `KINDS`.
        name: the file's.
        content: its bytes.

    Raises:
        DocumentError: it is not valid, or belongs elsewhere.
    """
    source = f"{kind}/{name}"
    if kind == "licenses":
        return _license(name, content, source)
    stem = name.removesuffix(".toml")
    try:
        is_right = name.endswith(".toml") and normalize_name(stem) == stem
    except ValueError:
        is_right = False
    if not is_right:
        raise DocumentError("is not called by a normalised name", source=source)
    if kind == "aliases":
        return {"model": read_alias(parse_document(content, source=source))}
    return _model(stem, content, source)


def _license(name: str, content: bytes, source: str) -> Custom:
    if not _LICENSE.fullmatch(name):
        raise DocumentError("is not called by a license's SPDX name and `.txt`", source=source)
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}", source=source) from error
    return {}


def _model(stem: str, content: bytes, source: str) -> Custom:
    model = read_model(parse_document(content, source=source))
    if model.normalized_name != stem:
        reason = f"`{model.name}` belongs on the page {model.normalized_name}.toml"
        raise DocumentError(reason, where="name", source=source)
    variants = {variant.name: None for release in model.releases for variant in release.variants}
    said = Listing.of(model).as_custom()
    if model.name == stem:
        del said["name"]
    return {**said, "variants": list(variants)}


def custom_of(entry: TargetFile) -> Custom:
    """What an entry says of its page."""
    custom: Custom = entry.custom or {}
    return custom


def check_names(entries: Mapping[str, TargetFile]) -> None:
    """Check what only all pages together tell: names that two things have, aliases that lead nowhere.

    Args:
        entries: by path, without the namespace.

    Raises:
        DocumentError: the first such fault.
    """
    models, aliases = {}, {}
    for path, entry in entries.items():
        kind, _, name = path.partition("/")
        stem = name.removesuffix(".toml")
        if kind == "models":
            models[stem] = custom_of(entry)
        elif kind == "aliases":
            aliases[stem] = str(custom_of(entry).get("model"))
    for alias in aliases:
        _follow(alias, aliases, models)
    full = [f"{stem}-{name}" for stem, said in models.items() for name in said.get("variants", ())]
    if len({*full, *models, *aliases}) == len(full) + len(models) + len(aliases):
        return
    named = (
        (str(said.get("name", stem)), said.get("variants", ())) for stem, said in models.items()
    )
    for fault in ambiguities(named, list(aliases)):
        raise fault


def _follow(alias: str, aliases: Mapping[str, str], models: Mapping[str, Custom]) -> None:
    way = [alias]
    source = f"aliases/{alias}.toml"
    if alias in models:
        raise DocumentError(f"`{alias}` is a model, too", source=source)
    while way[-1] in aliases:
        way.append(aliases[way[-1]])
        if way[-1] in way[:-1] or len(way) > _MAX_ALIASES + 1:
            reason = f"leads in a circle, or through too many aliases: {' -> '.join(way)}"
            raise DocumentError(reason, where="model", source=source)
    if way[-1] not in models:
        raise DocumentError(f"no model is called `{way[-1]}`", where="model", source=source)


def namespace_directories(directory: Path) -> list[str]:
    """The names of the directories of a working directory that hold pages of hosted namespaces."""
    return sorted(
        path.name
        for path in directory.iterdir()
        if path.is_dir() and any((path / kind).is_dir() for kind in KINDS)
    )


def check_digest(path: str, content: bytes, entry: TargetFile) -> None:
    """Hold a page's bytes against its entry.

    Raises:
        SigningError: it is not the page that was signed.
    """
    if not _is_same(content, entry):
        raise SigningError(
            f"`{path}` is not what was signed", hint="sign it: `weightpkg index sign`"
        )


def check_page(path: str, content: bytes, entry: TargetFile) -> None:
    """Hold what an entry says of a page against the page, and that against the rules.

    Raises:
        SigningError: the entry says other things.
        DocumentError: the page is not valid.
    """
    kind, name = path.split("/")[-2:]
    if dict(describe(kind, name, content)) != dict(custom_of(entry)):
        raise SigningError(f"`{path}` is not what its entry says of it")
