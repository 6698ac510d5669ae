"""What a conversion's process and the one that started it say to each other: a JSON array a line.

The parent sends one request. The child answers with any number of

    ["task", DESCRIPTION, TOTAL]   ["advance", BYTES]   ["end"]   ["note", TEXT]

and then, as its last word, one of

    ["done", CONVERSION]           ["planned", PLAN]     ["error", CLASS, ATTRIBUTES]
    ["system", ERRNO, REASON]      ["limit", NAME]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from weightpkg import errors
from weightpkg.convert import Job, SourceFile
from weightpkg.convert.directory import Conversion, OutputFile
from weightpkg.convert.limits import Limits
from weightpkg.convert.plan import Part, Plan
from weightpkg.digest import Digest
from weightpkg.errors import ConvertError, WeightpkgError


@dataclass(frozen=True, slots=True)
class Request:
    """One conversion. directory: an empty one; None to be told only what it would be."""

    job: Job
    directory: Path | None
    limits: Limits

    def dump(self) -> str:
        """Return it as a line."""
        job = self.job
        sources = [_dump_source(source) for source in job.sources]
        fields = [job.form, job.name, sources, job.quantization]
        directory = self.directory and str(self.directory)
        return json.dumps([fields, directory, asdict(self.limits)]) + "\n"

    @classmethod
    def load(cls, line: str) -> Request:
        """Read a line of `dump`."""
        (form, name, sources, quantization), directory, limits = json.loads(line)
        job = Job(form, name, tuple(map(_load_source, sources)), quantization)
        return cls(job, directory and Path(directory), Limits(**limits))


def _dump_source(source: SourceFile) -> list[str | None]:
    blake3 = str(source.blake3) if source.blake3 else None
    sha256 = str(source.digest) if source.digest else None
    return [str(source.path), sha256, source.name, blake3]


def _load_source(fields: list[str | None]) -> SourceFile:
    path, sha256, name, blake3 = fields
    assert path is not None  # noqa: S101  as `_dump_source` wrote it
    assert name is not None  # noqa: S101  the same
    digests = (Digest.parse(text) if text else None for text in (sha256, blake3))
    return SourceFile(Path(path), next(digests), name, next(digests))


def dump_conversion(conversion: Conversion) -> dict[str, Any]:
    """Return a result as JSON has it."""
    files = [[file.path, file.size, str(file.blake3)] for file in conversion.files]
    return {
        "architecture": conversion.architecture,
        "source_size": conversion.source_size,
        "files": files,
        "placed": sorted(conversion.placed),
        "parts": [astuple(part) for part in conversion.parts],
    }


def load_conversion(fields: dict[str, Any]) -> Conversion:
    """Read what `dump_conversion` made."""
    files = tuple(OutputFile(path, size, Digest.parse(d)) for path, size, d in fields["files"])
    placed = frozenset(fields["placed"])
    parts = _load_parts(fields["parts"])
    return Conversion(fields["architecture"], fields["source_size"], files, placed, parts)


def dump_plan(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON has it."""
    return asdict(plan) | {"parts": [astuple(part) for part in plan.parts]}


def load_plan(fields: dict[str, Any]) -> Plan:
    """Read what `dump_plan` made."""
    return Plan(**fields | {"parts": _load_parts(fields["parts"])})


def _load_parts(rows: list[list[Any]]) -> tuple[Part, ...]:
    return tuple(Part(*row) for row in rows)


def dump_error(error: WeightpkgError) -> tuple[str, dict[str, Any]]:
    """Return the class of an error, and all that it carries."""
    return type(error).__name__, vars(error)


def load_error(name: str, attributes: dict[str, Any]) -> WeightpkgError:
    """Make an error anew from what `dump_error` returned, without its constructor's arguments."""
    kind = getattr(errors, name, None)
    if not (isinstance(kind, type) and issubclass(kind, WeightpkgError)):
        kind = ConvertError
    error = kind.__new__(kind)
    WeightpkgError.__init__(error, attributes["message"], hint=attributes["hint"])
    for key, value in attributes.items():
        setattr(error, key, _tuples(value))
    return error


def _tuples(value: object) -> object:
    """Undo what JSON does to tuples; errors carry no lists."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_tuples, value))
    return value
