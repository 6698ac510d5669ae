"""A bill of materials: what a list of models is made of, in whatever form it is then written.

It says what is the same on every machine: what the lockfile and the index say, and nothing of what is
installed here, who accepted what, or when someone looked. So one lockfile has one bill, to the byte.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from typing import TYPE_CHECKING

from weightpkg.errors import WeightpkgError
from weightpkg.package import UNKNOWN, FileSource, HfSource, HttpsSource, PypiSource

if TYPE_CHECKING:
    from weightpkg.audit import Subject
    from weightpkg.lockfile import LockedPackage
    from weightpkg.package import File, Model, Source

# of this project's own names, as RFC 9562 has it for names within names
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://github.com/weightpkg/weightpkg")
_EXTRA = "pip install 'weightpkg[audit]'"


class BillError(WeightpkgError):
    """A bill cannot be written: a library is missing, or a time is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """Packages, and the time that the bill is of."""

    subjects: tuple[Subject, ...]
    timestamp: datetime


def make_bill(subjects: Iterable[Subject], timestamp: datetime | None) -> Bill:
    """Return the bill of packages.

    Args:
        subjects: the packages.
        timestamp: what the bill is of; if not given, the day of the newest release in it.
    """
    found = tuple(subjects)
    days = [one.release.date for one in found if one.release]
    newest = max(days, default=datetime.fromtimestamp(0, tz=UTC).date())
    derived = datetime.combine(newest, time(), tzinfo=UTC)
    return Bill(subjects=found, timestamp=timestamp or derived)


def parse_timestamp(text: str) -> datetime:
    """Read seconds since the epoch, as `SOURCE_DATE_EPOCH` has them, or an ISO 8601 time.

    >>> parse_timestamp("86400").isoformat(), parse_timestamp("2026-01-02T03:04:05+01:00").isoformat()
    ('1970-01-02T00:00:00+00:00', '2026-01-02T02:04:05+00:00')

    Raises:
        BillError: it is neither.
    """
    try:
        if text.isascii() and text.isdecimal():
            return datetime.fromtimestamp(int(text), tz=UTC)
        found = datetime.fromisoformat(text).replace(microsecond=0)
    except (ValueError, OverflowError, OSError) as error:
        raise _not_a_time(text) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)


def _not_a_time(text: str) -> BillError:
    return BillError(
        f"`{text[:64]}` is not a time",
        hint="write seconds since 1970, or a time such as 2026-01-31T12:00:00Z",
    )


def missing_library(error: ImportError) -> BillError:
    """Return what is said where the extra is not installed."""
    return BillError(f"`{error.name}` is not installed, which writes bills", hint=_EXTRA)


def serial_of(content: str) -> uuid.UUID:
    """Return the one UUID of a bill's content."""
    return uuid.uuid5(_NAMESPACE, content)


def license_of(package: LockedPackage) -> str | None:
    """The SPDX expression of a package, None where nobody says."""
    return None if package.license == UNKNOWN else package.license


def purl_of(package: LockedPackage) -> str:
    """Return the package URL of a package: of its only repository or project, or a generic one.

    https://github.com/package-url/purl-spec
    """
    origins = {_origin(source) for file in package.files for source in _first(file)}
    origin = origins.pop() if len(origins) == 1 else None
    return origin or _purl("generic", None, package.full_name, str(package.version))


def purl_of_file(file: File) -> str | None:
    """Return the package URL of a file within its repository or project, if it has one."""
    source = next(iter(_first(file)), None)
    origin = _origin(source) if source else None
    if origin is None or not isinstance(source, HfSource | PypiSource):
        return None
    from urllib.parse import quote  # noqa: PLC0415  only here

    return f"{origin}#{quote(source.path)}"


def purl_of_repository(repository: str) -> str:
    """Return the package URL of a repository of the hub, at no revision in particular."""
    namespace, _, name = repository.partition("/")
    return _purl("huggingface", namespace, name, None)


def _first(file: File) -> Sequence[Source]:
    return file.sources[0] if file.sources else ()


def _origin(source: Source) -> str | None:
    match source:
        case HfSource():
            # the specification wants commits in lower case, and names as they are
            namespace, _, name = source.repo.partition("/")
            return _purl("huggingface", namespace, name, source.revision.lower())
        case PypiSource():
            return _purl("pypi", None, source.project, str(source.version))
        case _:
            return None


def _purl(kind: str, namespace: str | None, name: str, version: str | None) -> str:
    from packageurl import PackageURL  # noqa: PLC0415  only bills need it

    return PackageURL(kind, namespace, name, version).to_string()


def download_of(source: Source) -> str | None:
    """Return where anyone can have the bytes of a source; None for this machine's own files."""
    match source:
        case HfSource():
            return f"https://huggingface.co/{source.repo}/resolve/{source.revision}/{source.path}"
        case HttpsSource():
            return source.text if source.text.startswith("https:") else None
        case PypiSource() | FileSource():
            return None


def downloads_of(file: File) -> list[str]:
    """Return where a file that is in one piece can be had."""
    whole = [parts[0] for parts in file.sources if len(parts) == 1]
    return [url for source in whole if (url := download_of(source))]


def properties_of(subject: Subject) -> dict[str, str]:
    """Return what a bill says of a package beyond what its format has words for."""
    package = subject.package
    found: dict[str, object] = {
        "index": package.index,
        "reference": package.reference if _is_public(package.reference) else None,
        "variant": package.variant,
        "format": package.format,
        "architecture": package.architecture,
        "yanked": subject.release.yanked if subject.release else None,
    }
    return {f"weightpkg:{key}": str(value) for key, value in found.items() if value is not None}


def _is_public(reference: str | None) -> bool:
    """Whether a reference is no path of this machine."""
    return reference is not None and reference.startswith(("hf:", "https:", "pypi:"))


def conversion_notes(package: LockedPackage) -> dict[str, str]:
    """Return what a bill says of a package's conversion."""
    found: dict[str, object] = {
        "conversion": package.conversion,
        "converter-version": package.converter,
        "tree": package.tree,
    }
    return {f"weightpkg:{key}": str(value) for key, value in found.items() if value is not None}


def card_of(model: Model) -> dict[str, int]:
    """Return the numbers of a model that its index says."""
    found = {"parameters": model.parameters, "context-length": model.context_length}
    return {f"weightpkg:{key}": value for key, value in found.items() if value is not None}
