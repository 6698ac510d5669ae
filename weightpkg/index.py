"""An index: a directory of TOML pages, one a model, that says what exists and where its bytes are.

Pages are read when they are asked for. `docs/index.md` is the specification; every rule of it is
checked here, by the functions that read a page, so that a page that can be read is a valid one, and
`lint` adds what only the whole index can tell.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.version import InvalidVersion, Version

from weightpkg.digest import Digest
from weightpkg.document import MAX_DOCUMENT_SIZE, Table, parse_document
from weightpkg.errors import DocumentError, ModelNotFoundError, UnsupportedVersionError
from weightpkg.package import (
    File,
    Model,
    Parts,
    RelativePath,
    Release,
    Resolved,
    Variant,
    parse_source,
)
from weightpkg.requirement import NormalizedName, normalize_name

SCHEMA = 1
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
_NEAREST = 3


@dataclass(frozen=True, slots=True)
class Hit:
    """A model that a search found; higher scores are better."""

    model: Model
    score: int


class Index:
    """An index in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._models: dict[str, Model] = {}

    def names(self) -> list[str]:
        """The normalised names of all models, in order.

        Raises:
            DocumentError: the directory is no index.
        """
        pages = self.directory / "models"
        if not pages.is_dir():
            raise DocumentError(
                "is not a directory",
                source=str(pages),
                hint="an index is a directory that holds `models/NAME.toml`",
            )
        return sorted(path.stem for path in pages.glob("*.toml"))

    def __contains__(self, name: NormalizedName) -> bool:
        return self._page(name).is_file()

    def model(self, name: NormalizedName) -> Model:
        """Return a model.

        Raises:
            ModelNotFoundError: there is none of that name.
            DocumentError: its page is not valid.
        """
        if name not in self._models:
            if name not in self:
                raise ModelNotFoundError(name, self.nearest(name))
            self._models[name] = self._read(self._page(name))
        return self._models[name]

    def nearest(self, name: str) -> list[str]:
        """The names most like one that is not there."""
        known = self.names()
        near = difflib.get_close_matches(name, known, n=_NEAREST, cutoff=0.6)
        return near or [other for other in known if other in name or name in other][:_NEAREST]

    def search(self, words: Sequence[str]) -> list[Hit]:
        """Return the models that match all of the words, best first.

        Raises:
            DocumentError: a page is not valid.
        """
        models = [self._read(self._page(name)) for name in self.names()]
        hits = [Hit(model, _score(model, [word.lower() for word in words])) for model in models]
        found = [hit for hit in hits if hit.score]
        return sorted(found, key=lambda hit: (-hit.score, hit.model.name))

    def find(self, digest: Digest) -> Iterator[tuple[Resolved, File]]:
        """Yield each variant that has a file of a SHA-256, with that file.

        Raises:
            DocumentError: a page is not valid.
        """
        for name in self.names():
            model = self.model(NormalizedName(name))
            for release in model.releases:
                for variant in release.variants:
                    for file in variant.files:
                        if file.sha256 == digest:
                            yield Resolved(model=model, release=release, variant=variant), file

    def lint(self) -> list[DocumentError]:
        """Return every fault of the index, by page."""
        faults: list[DocumentError] = []
        models: list[Model] = []
        for path in sorted((self.directory / "models").iterdir()):
            try:
                models.append(self._read(path))
            except DocumentError as error:
                faults.append(error)
        return faults + list(_ambiguities(models))

    def warnings(self) -> list[str]:
        """Return what is allowed in a valid index, and not good."""
        return [
            f"models/{name}.toml: {model.name}-{variant.name} {release.version}: "
            f"`{file.path}` has no size, so only its digest and the free disk bound the download"
            for name in self.names()
            for model in [self.model(NormalizedName(name))]
            for release in model.releases
            for variant in release.variants
            for file in variant.files
            if file.size is None
        ]

    def _page(self, name: str) -> Path:
        return self.directory / "models" / f"{name}.toml"

    def _read(self, path: Path) -> Model:
        source = f"models/{path.name}"
        try:
            if path.is_symlink() or not path.is_file() or path.suffix != ".toml":
                raise DocumentError("is not a regular file NAME.toml", source=source)
            if path.stat().st_size > MAX_DOCUMENT_SIZE:
                raise DocumentError(f"larger than {MAX_DOCUMENT_SIZE:,} bytes", source=source)
            content = path.read_bytes()
        except OSError as error:
            reason = error.strerror or str(error)
            raise DocumentError(f"cannot be read: {reason}", source=source) from error
        model = read_model(parse_document(content, source=source))
        if model.normalized_name != path.stem:
            reason = f"`{model.name}` belongs on the page {model.normalized_name}.toml"
            raise DocumentError(reason, where="name", source=source)
        return model


def _score(model: Model, words: Sequence[str]) -> int:
    """How well a model matches: 0 where a word is nowhere, a name counts more than a summary."""
    name = model.name.lower()
    tags = [tag.lower() for tag in (*model.tags, model.task, model.architecture, model.license)]
    total = 0
    for word in words:
        scores = (
            (100, word == name),
            (60, name.startswith(word)),
            (40, word in name),
            (30, word in tags),
            (15, any(word in tag for tag in tags)),
            (10, word in model.summary.lower()),
        )
        best = max((score for score, matches in scores if matches), default=0)
        if not best:
            return 0
        total += best
    return total


def _ambiguities(models: Sequence[Model]) -> Iterator[DocumentError]:
    """Yield each name that two things have: a variant's full name, or a model's."""
    owners: dict[str, list[str]] = defaultdict(list)
    for model in models:
        owners[model.normalized_name].append(f"model `{model.name}`")
        variants = {variant.name for release in model.releases for variant in release.variants}
        for variant in sorted(variants):
            owner = f"variant `{variant}` of `{model.name}`"
            owners[normalize_name(f"{model.name}-{variant}")].append(owner)
    for name, owned in sorted(owners.items()):
        if len(owned) > 1:
            yield DocumentError(f"is ambiguous: {' and '.join(owned)}", source=name)


def read_model(page: Table) -> Model:
    """Read the page of a model.

    Raises:
        UnsupportedVersionError: the page is of a newer schema.
        DocumentError: something is missing, wrong, or not known; names the key.
    """
    schema = page.required("schema", int)
    if schema != SCHEMA:
        raise UnsupportedVersionError(
            f"is {schema}, and this version reads {SCHEMA}",
            where="schema",
            source=page.source,
            hint="a newer weightpkg may read it: `pip install --upgrade weightpkg`",
        )
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
        tags=tuple(map(_text, page.strings("tags"))),
        default_variant=page.parsed("default-variant", normalize_name),
        releases=tuple(_read_release(table) for table in page.tables("releases")),
    )
    page.finish()
    _check_releases(page, model)
    return model


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
