"""A page of an index, read: TOML becomes a `Model`, or one error that names page and key.

`docs/index.md` is the specification; every rule of it that one page can break is checked here, so
that a page that can be read is a valid one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import date

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.version import InvalidVersion, Version

from weightpkg.digest import Digest
from weightpkg.document import Table
from weightpkg.package import (
    File,
    Model,
    Parts,
    RelativePath,
    Release,
    Variant,
    parse_source,
)
from weightpkg.requirement import NormalizedName, normalize_name

SCHEMA = (1, 0)
"""The version of the specification that is known here: major, minor."""

FORMATS = ("gguf", "safetensors", "onnx")
TASKS = (
    "audio-classification", "automatic-speech-recognition", "feature-extraction", "fill-mask",
    "image-classification", "image-text-to-text", "object-detection", "question-answering",
    "sentence-similarity", "summarization", "text-classification", "text-generation",
    "text-ranking", "text-to-speech", "token-classification", "translation",
    "voice-activity-detection", "zero-shot-classification",
)  # fmt: skip
"""Tasks as Hugging Face names them: https://huggingface.co/tasks"""

_MAX_TEXT = 1000


def read_model(page: Table) -> Model:
    """Read the page of a model.

    Raises:
        UnsupportedVersionError: the page is of another major version of the specification.
        DocumentError: something is missing, wrong, or not known; names the key.
    """
    version = page.version("schema", SCHEMA)
    model = Model(
        name=page.parsed("name", _name),
        summary=page.parsed("summary", _text),
        task=page.parsed("task", _one_of(TASKS)),
        architecture=page.parsed("architecture", _name),
        parameters=page.natural("parameters"),
        context_length=page.natural("context-length"),
        license=page.parsed("license", _license),
        license_url=page.optional_parsed("license-url", _url),
        homepage=page.optional_parsed("homepage", _url),
        base_model=page.optional_parsed("base-model", _repository),
        tags=tuple(map(_text, page.strings("tags"))),
        default_variant=page.parsed("default-variant", normalize_name),
        releases=tuple(_read_release(table) for table in page.tables("releases")),
    )
    page.finish()
    _check_releases(page, model)
    return replace(model, notes=_notes(page, version))


def read_alias(page: Table) -> NormalizedName:
    """Read the page of an alias, and return what it is an alias of.

    Raises:
        UnsupportedVersionError: the page is of another major version of the specification.
        DocumentError: something is missing, wrong, or not known; names the key.
    """
    page.version("schema", SCHEMA)
    name = page.parsed("model", normalize_name)
    page.finish()
    return name


def _notes(page: Table, version: tuple[int, int]) -> tuple[str, ...]:
    if not page.ignored:
        return ()
    keys = ", ".join(f"`{key}`" for key in page.ignored)
    known, found = (".".join(map(str, numbers)) for numbers in (SCHEMA, version))
    return (f"{page.source} is of schema {found}, and of {known} is known here: ignored {keys}",)


def _check_releases(page: Table, model: Model) -> None:
    versions = [release.version for release in model.releases]
    if versions != sorted(set(versions), reverse=True):
        raise page.error("releases", "must have each version once, the newest first")
    if model.default_variant not in {variant.name for variant in model.releases[0].variants}:
        raise page.error("default-variant", "is not a variant of the newest release")


def _read_release(table: Table) -> Release:
    variants = table.table("variants")
    release = Release(
        version=table.parsed("version", _version),
        date=table.required("date", date),
        changes=table.parsed("changes", _text),
        yanked=table.optional_parsed("yanked", _text),
        variants=tuple(_read_variant(variants, name) for name in variants.keys()),  # noqa: SIM118  a Table is no dict
    )
    if not release.variants:
        raise table.error("variants", "must not be empty")
    table.finish()
    return release


def _read_variant(variants: Table, name: str) -> Variant:
    table = variants.table(name)
    try:
        normalized = normalize_name(name)
    except ValueError as error:
        raise variants.error(name, str(error)) from error
    if normalized != name:
        raise variants.error(name, f"must be written `{normalized}`")
    variant = Variant(
        name=normalized,
        format=table.parsed("format", _one_of(FORMATS)),
        quantization=table.optional_parsed("quantization", _name),
        files=tuple(_read_file(row) for row in table.tables("files")),
    )
    paths = [file.path.text.lower() for file in variant.files]
    if len(set(paths)) != len(paths):
        raise table.error("files", "has a path twice")
    table.finish()
    return variant


def _read_file(table: Table) -> File:
    file = File(
        path=table.parsed("path", RelativePath),
        sha256=table.parsed("sha256", lambda text: Digest("sha256", text)),
        size=table.natural("size"),
        blake3=table.optional_parsed("blake3", lambda text: Digest("blake3", text)),
        sources=tuple(_read_sources(table)),
    )
    table.finish()
    return file


def _read_sources(table: Table) -> Iterator[Parts]:
    """Yield the ways to get a file: a string is a source, an array the sources of its parts."""
    rows = table.required("sources", list)
    if not rows:
        raise table.error("sources", "must not be empty")
    for i, row in enumerate(rows):
        parts = row if isinstance(row, list) else [row]
        if not parts or not all(isinstance(part, str) for part in parts):
            reason = "must be a string, or an array of strings: the parts in order"
            raise table.error(f"sources[{i}]", reason)
        try:
            yield tuple(parse_source(part) for part in parts)
        except ValueError as error:
            raise table.error(f"sources[{i}]", str(error)) from error


def _name(text: str) -> str:
    normalize_name(text)
    return text


def _text(text: str) -> str:
    if not text.strip() or len(text) > _MAX_TEXT or not text.isprintable():
        raise ValueError(f"must be one line of at most {_MAX_TEXT} printable characters")
    return text


def _url(text: str) -> str:
    if not text.startswith("https://") or not text.isascii() or len(text.split()) != 1:
        raise ValueError("must be an https:// URL")
    return _text(text)


def _repository(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", text, re.ASCII):
        raise ValueError(f"`{text}` is not a repository: ORG/NAME")
    return text


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion as error:
        raise ValueError(f"`{text}` is not a PEP 440 version") from error


def _license(text: str) -> str:
    try:
        return canonicalize_license_expression(text)
    except InvalidLicenseExpression as error:
        raise ValueError(f"`{text}` is not an SPDX expression") from error


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in words:
            raise ValueError(f"`{text}` is none of {', '.join(words)}")
        return text

    return check
