"""Which licenses someone must agree to, what they are shown, and the record that they did.

Permissive and copyleft licenses ask nobody: who passes such bytes on has duties, who runs them has
none. Licenses that restrict use (`LicenseRef-...`, and the few of SPDX that do) are shown before the
first download and accepted once for each text: who, when, and the digest of what was shown. What a
publisher asks on a page of its own (a gated repository) is another matter, and never accepted here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import tomli_w

from weightpkg import files
from weightpkg.digest import Digest
from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError, LicenseError, StoreError
from weightpkg.license_policy import identifiers, is_satisfied
from weightpkg.package import UNKNOWN, RelativePath, Resolved
from weightpkg.store import Store

MAX_TEXT = 1024 * 1024

# SPDX licenses that forbid a use: https://spdx.org/licenses/
_RESTRICTED = re.compile(
    r"LicenseRef-|DocumentRef-|.*-(NC|ND)(-|\Z)|BUSL-|Elastic-|PolyForm-|SSPL-|Hippocratic-|JSON\Z",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """A license to agree to, and all that is shown of it.

    models: what comes under it.
    text: what an index has of it, or where it can be read.
    """

    license: str
    models: tuple[str, ...]
    text: str

    @property
    def note(self) -> str:
        """What is said where nobody can be asked."""
        return f"{', '.join(self.models)}: licensed as {self.text.splitlines()[0]}"

    @property
    def digest(self) -> Digest:
        """What stands for the text."""
        return Digest("sha256", hashlib.sha256(self.text.encode()).hexdigest())


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """The record that someone agreed to a text."""

    license: str
    text: Digest
    who: str
    when: datetime


def is_restricted(license_id: str) -> bool:
    """Whether a license restricts what its user may do, so that it must be accepted.

    >>> [is_restricted(name) for name in ("MIT", "LicenseRef-llama3", "CC-BY-NC-4.0", "CC-BY-4.0")]
    [False, True, True, False]
    """
    return _RESTRICTED.match(license_id) is not None


def to_accept(expression: str, accepted: Iterable[str] = ()) -> list[str]:
    """Return the licenses of an SPDX expression that must be accepted before it is satisfied.

    >>> to_accept("MIT OR LicenseRef-x"), to_accept("MIT AND LicenseRef-x")
    ([], ['LicenseRef-x'])
    """
    if expression == UNKNOWN:
        return []
    have = {name.casefold() for name in accepted}
    if is_satisfied(expression, lambda leaf: leaf.casefold() in have or not is_restricted(leaf)):
        return []
    return [leaf for leaf in identifiers(expression) if is_restricted(leaf)]


def terms_for(wanted: Iterable[tuple[Resolved, Path]], store: Store) -> list[Terms]:
    """Return what must be accepted before some models are downloaded.

    Args:
        wanted: models, each with the directory of its index, where the texts of licenses are.
        store: where it is recorded what was accepted.

    Raises:
        StoreError: a record cannot be read.
    """
    found: dict[str, Terms] = {}
    for resolved, directory in wanted:
        model = resolved.model
        offered = [
            Terms(leaf, (resolved.full_name,), _text(leaf, model.license_url, directory))
            for leaf in to_accept(model.license)
        ]
        accepted = [terms.license for terms in offered if is_accepted(terms, store)]
        for terms in offered if to_accept(model.license, accepted) else []:
            if terms.license not in accepted:
                before = found.get(terms.license)
                models = (*(before.models if before else ()), resolved.full_name)
                found[terms.license] = Terms(terms.license, models, terms.text)
    return list(found.values())


def _text(license_id: str, url: str | None, directory: Path) -> str:
    """The text that an index has in `licenses/ID.txt`, or where it is."""
    path = directory / "licenses" / f"{RelativePath(license_id.replace(' ', '-'))}.txt"
    if path.is_file():
        with files.mapped(path), path.open("rb") as stream:
            return stream.read(MAX_TEXT).decode(errors="replace")
    return f"{license_id}: {url or 'its text is at the publisher of the model'}\n"


def _path(license_id: str, store: Store) -> Path:
    return store.root / "licenses" / f"{RelativePath(license_id.replace(' ', '-'))}.toml"


def is_accepted(terms: Terms, store: Store) -> bool:
    """Whether these very terms were accepted.

    Raises:
        StoreError: the record cannot be read.
    """
    return any(one.text == terms.digest for one in acceptances(terms.license, store))


def acceptances(license_id: str, store: Store) -> list[Acceptance]:
    """Return who accepted which texts of a license, the oldest first.

    Raises:
        StoreError: the record cannot be read.
    """
    path = _path(license_id, store)
    if not path.exists():
        return []
    with files.mapped(path):
        content = path.read_bytes()
    try:
        rows = parse_document(content, source=str(path)).tables("accepted")
        return [_read(license_id, row) for row in rows]
    except DocumentError as error:
        raise StoreError(error.message, hint="remove the file, and accept it again") from error


def _read(license_id: str, row: Table) -> Acceptance:
    return Acceptance(
        license=license_id,
        text=row.parsed("text", lambda text: Digest("sha256", text)),
        who=row.required("who", str),
        when=row.parsed("when", datetime.fromisoformat),
    )


def record(terms: Terms, store: Store, *, who: str, when: datetime) -> None:
    """Write that someone accepted terms.

    Raises:
        StoreError: the store cannot be written.
    """
    new = Acceptance(license=terms.license, text=terms.digest, who=who, when=when)
    rows = [
        {"text": one.text.hex, "who": one.who, "when": one.when.isoformat()}
        for one in [*acceptances(terms.license, store), new]
    ]
    document = {"schema": 1, "license": terms.license, "accepted": rows}
    with store.use():
        store.write(_path(terms.license, store), tomli_w.dumps(document).encode())


def check_accepted(terms: Iterable[Terms]) -> None:
    """Refuse what would have to be accepted first.

    Raises:
        LicenseError: there is something.
    """
    for one in terms:
        models = ", ".join(f"`{name}`" for name in one.models)
        raise LicenseError(
            f"{models}: the license {one.license} was not accepted; {one.text.splitlines()[0]}",
            hint=f"read it, then `weightpkg install {one.models[0]} --accept-license {one.license}`",
        )


def settle(
    terms: Iterable[Terms],
    store: Store,
    *,
    accept: Iterable[str],
    ask: Callable[[Terms], bool | None],
    who: str,
    when: datetime,
) -> None:
    """Record what is accepted, by name or by an answer, before anything is downloaded.

    Args:
        terms: what must be accepted.
        store: where it is recorded.
        accept: licenses that were accepted beforehand.
        ask: shows terms, and returns whether they are accepted; None if nobody could be asked.
        who: the user.
        when: the present.

    Raises:
        LicenseError: something was not accepted; nothing is recorded of it.
        StoreError: the store cannot be written.
    """
    named = {name.casefold() for name in accept}
    for one in terms:
        answer = one.license.casefold() in named or ask(one)
        if answer is False:
            check_accepted([one])
        elif answer:
            record(one, store, who=who, when=when)
