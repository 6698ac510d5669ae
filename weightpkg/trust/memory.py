"""What a client of a signed index never forgets: `memory.toml` in the index's state.

The greatest time that was seen, so that a clock set back un-expires nothing; the lowest version
that will do of each role, so that an older index is refused even where the metadata that was held is
gone; and which top-level metadata is held. Versions begin anew only when a root that is trusted has
changed the keys of the timestamp or the snapshot, which is how an index recovers from a thief who
signed too high a version (TUF specification 1.0, 5.3.11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import tomli_w

from weightpkg import files
from weightpkg.document import Table, parse_document
from weightpkg.errors import DocumentError, StoreError

MEMORY = "memory.toml"


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """All of it.

    seen: the greatest time.
    root: the lowest version of it that will do.
    keys: of timestamp and snapshot, as one digest.
    versions: the lowest of each other role.
    held: versions of the top-level metadata, all of which fit together; empty if none was had.
    roles: versions of the delegated roles that are held.
    """

    seen: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    root: int = 0
    keys: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, int] = field(default_factory=dict)


def load_memory(directory: Path) -> Memory:
    """Read what is remembered of an index; nothing, where it was never used.

    Raises:
        StoreError: it cannot be read.
    """
    path = directory / MEMORY
    with files.mapped(path):
        if not path.exists():
            return Memory()
        content = path.read_bytes()
    try:
        return _read(parse_document(content, source=str(path)))
    except DocumentError as error:
        hint = (
            "`weightpkg index remove` and `weightpkg index add` begin anew, with the root's digest"
        )
        raise StoreError(error.message, hint=hint) from error


def _read(table: Table) -> Memory:
    table.version("schema", (1, 0))
    memory = Memory(
        seen=table.parsed("seen", _time),
        root=table.natural("root") or 0,
        keys=table.required("keys", str),
        versions=_versions(table, "versions"),
        held=_versions(table, "held"),
        roles=_versions(table, "roles"),
    )
    table.finish()
    return memory


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"`{text}` has no time zone")
    return time


def _versions(table: Table, key: str) -> dict[str, int]:
    rows = table.table(key)
    return {name: rows.natural(name) or 0 for name in rows.keys()}  # noqa: SIM118  a Table is no dict


def save_memory(directory: Path, memory: Memory) -> None:
    """Write what is to be remembered.

    Raises:
        StoreError: it cannot be written.
    """
    document = {
        "schema": 1,
        "seen": memory.seen.astimezone(UTC).isoformat(),
        "root": memory.root,
        "keys": memory.keys,
        "versions": dict(memory.versions),
        "held": dict(memory.held),
        "roles": dict(memory.roles),
    }
    content = tomli_w.dumps(document).encode()
    files.write_file(directory / MEMORY, content, temporary=directory / "tmp")
