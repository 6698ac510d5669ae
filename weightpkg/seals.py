"""What was hashed once and has not been touched since.

To hash a model each time that it is loaded would cost a second for each 4.5 GB. So whoever has
hashed one writes down what the system knows of its files: inode, size, and times of the last change,
the last of which no program of an ordinary user can set back (Windows keeps no such time; there, a
writer that means to deceive can). As long as nothing of it is different, nobody has
written to them. Bits that a disk turns by itself are found by `weightpkg verify`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg import files
from weightpkg.errors import StoreError
from weightpkg.progress import Progress
from weightpkg.store import Installed, Store

if TYPE_CHECKING:
    from weightpkg.verify import Problem


def check(store: Store, record: Installed, progress: Progress) -> list[Problem]:
    """Return what is bad of an installed model; hash it if it was touched since it was last hashed.

    Raises:
        StoreError: its record or its files cannot be read.
    """
    if is_sealed(store, record):
        return []
    from weightpkg.verify import verify  # noqa: PLC0415  what is sealed does not need it

    before = _state(store, record)
    problems = verify(store, progress, [record])
    if not problems:
        with suppress(StoreError):  # who cannot write to the store hashes each time
            _write(store, record, before)
    return problems


def is_sealed(store: Store, record: Installed) -> bool:
    """Whether nobody has touched an installed model since it was hashed."""
    try:
        seal = _path(store, record).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return seal == _dump(record, _state(store, record))


def verified(store: Store, record: Installed) -> datetime | None:
    """When an installed model was last hashed and sound; None if never, or if it was touched since."""
    if not is_sealed(store, record):
        return None
    with suppress(OSError):
        return datetime.fromtimestamp(_path(store, record).stat().st_mtime, tz=UTC)
    return None


def _write(store: Store, record: Installed, state: list[str]) -> None:
    path = _path(store, record)
    with store.use():
        files.make_directory(path.parent)
        content = _dump(record, state).encode()
        files.write_file(path, content, temporary=store.temporary, is_name_durable=False)


def _dump(record: Installed, state: list[str]) -> str:
    named = [str(record), record.conversion, str(record.tree)]
    digests = [f"{file.path} {file.sha256} {file.blake3}" for file in record.files]
    return json.dumps([named, digests, state], indent=0)


def _path(store: Store, record: Installed) -> Path:
    name = f"{record.full_name}-{record.version}.json"
    return store.root / "sealed" / name


def _state(store: Store, record: Installed) -> list[str]:
    return sorted(_lines(store, record))


def _lines(store: Store, record: Installed) -> Iterator[str]:
    paths = [store.blob_path(file.sha256) for file in record.files if file.is_kept]
    paths += [store.chunks_path(file.sha256) for file in record.files if file.is_kept]
    if record.conversion:
        paths.append(store.model_path(record.conversion))
    for path in paths:
        for found, state in files.walk(path):
            facts = (
                state.st_ino,
                state.st_size,
                state.st_mtime_ns,
                state.st_ctime_ns,
                state.st_mode,
            )
            yield f"{found.relative_to(store.root).as_posix()} {' '.join(map(str, facts))}"
