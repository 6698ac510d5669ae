"""Entries of an index, made of model files: hashed, their headers read, written as pages.

What a file says of itself (architecture, parameters, context length, license) is taken from its
header; what no file says (summary, task, sources) is asked for. Pages are edited as text, so that
what people wrote in them stays, and each is read again before it is written.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from weightpkg.digest import Fingerprint, Hasher
from weightpkg.document import parse_document
from weightpkg.errors import DocumentError, FormatError, SigningError
from weightpkg.files import mapped
from weightpkg.formats.gguf import GGUFFile
from weightpkg.formats.safetensors import SafetensorsFile
from weightpkg.package import Model, RelativePath
from weightpkg.page import read_model
from weightpkg.requirement import NormalizedName, normalize_name

_READ_SIZE = 1 << 20
_MAX_CONFIG = 1 << 20
_RELEASE = re.compile(r"^\[\[\s*releases\s*\]\][^\n]*\n", re.MULTILINE)
_DEFAULT = re.compile(r"^default-variant\s*=.*$", re.MULTILINE)
_QUANTIZATION = re.compile(
    r"[-._]((?:I?Q\d(?:_[A-Z0-9]+)*|MXFP4|BF16|F16|F32))(?=$|[-.])", re.IGNORECASE
)
_ENCODERS = ("bert", "nomic-bert", "roberta", "distilbert", "modernbert", "jina-bert-v2")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length")


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What files say of the model in them; None where they do not."""

    format: str
    architecture: str | None = None
    parameters: int | None = None
    context_length: int | None = None
    quantization: str | None = None
    license: str | None = None
    base_model: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewFile:
    """A file of a variant, hashed, and where its bytes can be had."""

    path: RelativePath
    fingerprint: Fingerprint
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewVariant:
    """A variant to be written."""

    name: NormalizedName
    format: str
    quantization: str | None
    files: tuple[NewFile, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class NewModel:
    """What a page says of a model above its releases."""

    name: str
    summary: str
    task: str
    license: str
    license_url: str | None = None
    homepage: str | None = None
    tags: tuple[str, ...] = ()


def read_facts(paths: Sequence[Path]) -> Facts:
    """Read what the files of a variant say of it.

    Args:
        paths: a GGUF file in one or more parts, or safetensors files with what lies beside them.

    Raises:
        FormatError: a file is malformed.
        SigningError: there is no model among them.
    """
    gguf = [path for path in paths if path.suffix == ".gguf"]
    safetensors = [path for path in paths if path.suffix == ".safetensors"]
    if gguf:
        facts = _gguf_facts(gguf[0])
        more = [_count_gguf(path) for path in gguf[1:]]
        return replace(facts, parameters=(facts.parameters or 0) + sum(more))
    if safetensors:
        config = next((path for path in paths if path.name == "config.json"), None)
        return _safetensors_facts(safetensors, config)
    raise SigningError(
        "there is no model among the files", hint="name a .gguf file, or .safetensors files"
    )


def _gguf_facts(path: Path) -> Facts:
    with GGUFFile.open(path) as file:
        architecture = file.get("general.architecture", str, "")
        context = file.metadata.get(f"{architecture}.context_length")
        return Facts(
            format="gguf",
            architecture=architecture or None,
            parameters=sum(math.prod(tensor.shape) for tensor in file.tensors.values()),
            context_length=context if type(context) is int and context > 0 else None,
            quantization=quantization_of(path.stem) or _most_used(file),
            license=_text(file.metadata.get("general.license")),
            base_model=_repository(file.metadata.get("general.base_model.0.repo_url")),
        )


def _count_gguf(path: Path) -> int:
    with GGUFFile.open(path) as file:
        return sum(math.prod(tensor.shape) for tensor in file.tensors.values())


def _most_used(file: GGUFFile) -> str | None:
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.type.name] += tensor.size
    return sizes.most_common(1)[0][0] if sizes else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _repository(value: object) -> str | None:
    match = re.fullmatch(r"https://huggingface\.co/([\w.-]+/[\w.-]+)/?", str(value), re.ASCII)
    return match[1] if match else None


def _safetensors_facts(paths: Sequence[Path], config: Path | None) -> Facts:
    count, types = 0, Counter[str]()
    for path in paths:
        with SafetensorsFile.open(path) as file:
            for tensor in file.tensors.values():
                count += math.prod(tensor.shape)
                types[tensor.dtype.name] += tensor.nbytes
    fields = _config(config) if config else {}
    contexts = [fields[key] for key in _CONTEXT if type(fields.get(key)) is int]
    return Facts(
        format="safetensors",
        architecture=_text(fields.get("model_type")),
        parameters=count,
        context_length=contexts[0] if contexts and contexts[0] > 0 else None,
        quantization=types.most_common(1)[0][0] if types else None,
    )


def _config(path: Path) -> Mapping[str, Any]:
    with mapped(path), path.open("rb") as stream:
        content = stream.read(_MAX_CONFIG)
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise FormatError(str(path), "file", "is not JSON") from error
    return fields if isinstance(fields, dict) else {}


def quantization_of(stem: str) -> str | None:
    """What a file's name says of its quantization.

    >>> quantization_of("SmolLM2-135M-Instruct-Q4_K_M")
    'Q4_K_M'
    """
    found = _QUANTIZATION.findall(stem)
    return found[-1].upper() if found else None


def variant_name(quantization: str | None) -> NormalizedName:
    """What a variant is called, after its quantization.

    >>> variant_name("Q4_K_M"), variant_name(None)
    ('q4', 'default')
    """
    return normalize_name((quantization or "default").partition("_")[0])


def task_of(architecture: str | None) -> str:
    """What models of an architecture are mostly for."""
    return "feature-extraction" if architecture in _ENCODERS else "text-generation"


def hash_files(
    paths: Sequence[Path], sources: Sequence[str], advance: Callable[[int], None] = lambda _: None
) -> tuple[NewFile, ...]:
    """Hash files, and say where their bytes can be had.

    Args:
        paths: the files; each is called by its name.
        sources: as pages have them; `{path}` stands for a file's name, `{sha256}` for its digest.
            Without `{path}` or `{sha256}` a source is of the only file.
        advance: called with the bytes of each piece.

    Raises:
        SigningError: no source, one that cannot be of all files, or a name that is no file's.
        StoreError: a file cannot be read.
    """
    if not sources:
        raise SigningError(
            "nobody could fetch the files", hint="say where they are: `--source https://.../{path}`"
        )
    if len(paths) > 1 and any("{path}" not in text and "{sha256}" not in text for text in sources):
        raise SigningError(
            "a source of several files must have `{path}` in it",
            hint="`--source https://.../{path}`",
        )
    return tuple(_hash_file(path, sources, advance) for path in paths)


def _hash_file(path: Path, sources: Sequence[str], advance: Callable[[int], None]) -> NewFile:
    try:
        name = RelativePath(path.name)
    except ValueError as error:
        raise SigningError(str(error), hint="give the file a plain name") from error
    hasher = Hasher()
    with mapped(path), path.open("rb") as stream:
        while piece := stream.read(_READ_SIZE):
            hasher.update(piece)
            advance(len(piece))
    found = hasher.finish()
    filled = (text.replace("{path}", name.text) for text in sources)
    return NewFile(
        path=name,
        fingerprint=found,
        sources=tuple(text.replace("{sha256}", found.sha256.hex) for text in filled),
    )


def new_page(model: NewModel, facts: Facts, release: str, default_variant: NormalizedName) -> str:
    """Write the page of a new model.

    Args:
        model: what is said of it.
        facts: what its files say.
        release: the text of its first release.
        default_variant: which variant its name alone means.
    """
    rows: dict[str, object] = {
        "schema": 1,
        "name": model.name,
        "summary": model.summary,
        "task": model.task,
        "architecture": facts.architecture,
        "parameters": facts.parameters,
        "context-length": facts.context_length,
        "license": model.license,
        "license-url": model.license_url,
        "homepage": model.homepage,
        "base-model": facts.base_model,
        "tags": list(model.tags) or None,
        "default-variant": default_variant,
    }
    return f"{_rows(rows)}\n{release}"


def release_text(version: str, day: date, changes: str, variants: Iterable[NewVariant]) -> str:
    """Write a release with its variants."""
    head = f"[[releases]]\n{_rows({'version': version, 'date': day, 'changes': changes})}"
    return head + "".join(map(variant_text, variants))


def variant_text(variant: NewVariant) -> str:
    """Write a variant of the release that stands above it."""
    key = f"releases.variants.{variant.name}"
    rows = _rows({"format": variant.format, "quantization": variant.quantization})
    return f"\n[{key}]\n{rows}" + "".join(_file_text(key, file) for file in variant.files)


def _file_text(key: str, file: NewFile) -> str:
    found = file.fingerprint
    rows = {
        "path": file.path.text,
        "size": found.size,
        "sha256": found.sha256.hex,
        "blake3": found.blake3.hex,
        "sources": list(file.sources),
    }
    return f"\n[[{key}.files]]\n{_rows(rows)}"


def _rows(rows: Mapping[str, object]) -> str:
    return "".join(f"{key} = {_toml(value)}\n" for key, value in rows.items() if value is not None)


def _toml(value: object) -> str:
    """A value of a page; JSON's strings are TOML's, but for a character that pages do not have."""
    if isinstance(value, int):
        return f"{value:_}" if value >= 10_000 else str(value)
    if isinstance(value, date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False)


def read_page(text: str, source: str) -> Model:
    """Read a page that was made.

    Raises:
        DocumentError: it breaks a rule; names the key.
    """
    return read_model(parse_document(text.encode(), source=source))


def with_release(page: str, source: str, new: str, variants: Sequence[str]) -> str:
    """Return a page with one more release, which must be the newest.

    Args:
        page: its text.
        source: its name, for errors.
        new: the release's text.
        variants: its variants; the first one becomes the default where the present one is not there.

    Raises:
        DocumentError: the page would break a rule.
    """
    model = read_page(page, source)
    start = _release_starts(page, model, source)[0]
    text = f"{page[:start]}{new}\n{page[start:]}"
    if model.default_variant not in variants:
        text = _DEFAULT.sub(f'default-variant = "{variants[0]}"', text, count=1)
    read_page(text, source)
    return text


def with_variant(page: str, source: str, version: Version, new: str) -> str:
    """Return a page with one more variant of a release that is there.

    Raises:
        DocumentError: the page would break a rule.
        SigningError: there is no such release.
    """
    model = read_page(page, source)
    starts = [*_release_starts(page, model, source), len(page)]
    end = starts[_position(model, version) + 1]
    text = f"{page[:end].rstrip()}\n{new}" + (f"\n{page[end:]}" if end < len(page) else "")
    read_page(text, source)
    return text


def with_yank(page: str, source: str, version: Version, reason: str) -> str:
    """Return a page in which a release says why nobody should use it.

    Raises:
        DocumentError: the reason is not one line of text.
        SigningError: there is no such release, or it is yanked.
    """
    model = read_page(page, source)
    position = _position(model, version)
    if (old := model.releases[position].yanked) is not None:
        raise SigningError(f"`{model.name}` {version} is yanked already: {old}")
    start = _release_starts(page, model, source)[position]
    head = _RELEASE.match(page, start)
    end = head.end() if head else start
    text = f"{page[:end]}yanked = {_toml(reason)}\n{page[end:]}"
    read_page(text, source)
    return text


def _position(model: Model, version: Version) -> int:
    versions = [release.version for release in model.releases]
    if version not in versions:
        known = ", ".join(map(str, versions[:5]))
        raise SigningError(f"`{model.name}` has no release {version}", hint=f"it has {known}")
    return versions.index(version)


def _release_starts(page: str, model: Model, source: str) -> list[int]:
    starts = [match.start() for match in _RELEASE.finditer(page)]
    if len(starts) != len(model.releases):
        raise DocumentError("is written in a way that cannot be edited", source=source)
    return starts


def parse_version(text: str) -> Version:
    """Read a version.

    Raises:
        SigningError: it is none.
    """
    try:
        return Version(text)
    except InvalidVersion as error:
        raise SigningError(f"`{text}` is not a PEP 440 version", hint="such as `1.0.0`") from error
