"""Which models there are to serve: what is installed, by the names that clients may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from weightpkg.footprint import directory_need
from weightpkg.memory import KvCache
from weightpkg.requirement import is_name, normalize_name
from weightpkg.store import Installed, Store


@dataclass(frozen=True, slots=True)
class Entry:
    """A model that can be served. created_s: when it was installed, in seconds since 1970."""

    name: str
    directory: Path
    created_s: int
    is_text: bool

    def size(self, n_rows: int, context: int, kv_cache: KvCache = "float") -> int:
        """How many bytes it will need to answer `n_rows` of `context` tokens at once."""
        need = directory_need(self.directory, context, kv_cache)
        return need.total + (n_rows - 1) * need.kv_cache


class Library:
    """The models of a store, or some of them."""

    def __init__(self, store: Store, chosen: Mapping[str, Path] | None = None) -> None:
        """Look at a store.

        Args:
            store: the store.
            chosen: the only ones to be served, by the names that were asked for; None for all.
        """
        self._store = store
        self._chosen = chosen

    def entries(self) -> dict[str, Entry]:
        """All that can be served now, by name."""
        if self._chosen is not None:
            return {name: _entry(name, path) for name, path in sorted(self._chosen.items())}
        found = [(record.full_name, self._directory(record)) for record in self._store.installed()]
        return {name: _entry(name, path) for name, path in sorted(found) if path is not None}

    def find(self, name: str) -> Entry | None:
        """Return a model by its full name, or by its name alone where one variant is there."""
        entries = self.entries()
        if not is_name(name):
            return entries.get(name)
        normal = normalize_name(name)
        if normal in entries:
            return entries[normal]
        variants = [entry for key, entry in entries.items() if key.startswith(f"{normal}-")]
        return variants[0] if len(variants) == 1 else None

    def _directory(self, record: Installed) -> Path | None:
        directory = self._store.model(record.conversion) if record.conversion else None
        return directory if directory is not None and _kind(directory) else None


def _entry(name: str, directory: Path) -> Entry:
    created_s = int(directory.stat().st_mtime)
    return Entry(name, directory, created_s, is_text=_kind(directory) == "text")


def _kind(directory: Path) -> str | None:
    if (directory / "genai_config.json").is_file():
        return "text"
    return "vectors" if (directory / "tokenizer.json").is_file() else None
