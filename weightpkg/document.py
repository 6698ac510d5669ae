"""Typed reading of TOML: every value is asked for by key and type, and an error says where.

Hostile documents end here: size, nesting and numbers are bounded, unknown keys are errors (keys
that start with `x-` are free), and a missing or wrong value names its full key, such as
`releases[0].variants.q4.files[0].sha256`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, datetime
from typing import Any, TypeVar

import tomli

from weightpkg.errors import DocumentError, UnsupportedVersionError

T = TypeVar("T")

MAX_DOCUMENT_SIZE = 16 * 1024 * 1024
_MAX_DEPTH = 64


class Table:
    """A TOML table that knows its place in the document and which of its keys were read."""

    def __init__(
        self,
        values: Mapping[str, Any],
        *,
        source: str,
        where: str = "",
        ignored: list[str] | None = None,
    ) -> None:
        """Wrap a table.

        Args:
            values: its content.
            source: what to call the document in errors.
            where: the table's key.
            ignored: where to note unknown keys; without it they are refused.
        """
        self._values = values
        self._read: set[str] = set()
        self._ignored = ignored
        self.source = source
        self.where = where

    def error(self, key: str, message: str) -> DocumentError:
        """An error at one of this table's keys, to be raised by the caller."""
        return DocumentError(message, where=self._place(key), source=self.source)

    def _place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where and key else self.where or key

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self) -> list[str]:
        """The table's keys, in the document's order."""
        return list(self._values)

    def is_table(self, key: str) -> bool:
        """Whether there is a table at `key`; it is not read by this."""
        return isinstance(self._values.get(key), dict)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """The value, None where there is none; `DocumentError` where it has another type."""
        self._read.add(key)
        value = self._values.get(key)
        # bool is an int and datetime is a date to Python; to a reader of TOML they are not
        confused = isinstance(value, bool | datetime) and not issubclass(kind, bool | datetime)
        if value is not None and (not isinstance(value, kind) or confused):
            raise self.error(key, f"must be {_NAMES[kind]}, not {_describe(value)}")
        return value

    def required(self, key: str, kind: type[T]) -> T:
        """The value; `DocumentError` where there is none or it has another type."""
        value = self.optional(key, kind)
        if value is None:
            raise self.error(key, f"is missing ({_NAMES[kind]})")
        return value

    def parsed(self, key: str, parse: Callable[[str], T]) -> T:
        """The string at `key` as `parse` makes it; its ValueError becomes a `DocumentError`."""
        return self._parse(key, self.required(key, str), parse)

    def optional_parsed(self, key: str, parse: Callable[[str], T]) -> T | None:
        """As `parsed`, None where there is no such key."""
        text = self.optional(key, str)
        return None if text is None else self._parse(key, text, parse)

    def _parse(self, key: str, text: str, parse: Callable[[str], T]) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(key, str(error)) from error

    def natural(self, key: str) -> int | None:
        """A whole number from 0 to 2**63 - 1, or None where there is no such key."""
        value = self.optional(key, int)
        if value is not None and not 0 <= value < 2**63:
            raise self.error(key, "must be between 0 and 2**63 - 1")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """An array of strings, empty where there is no such key."""
        values = self.optional(key, list) or []
        for i, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"{key}[{i}]", f"must be a string, not {_describe(value)}")
        return tuple(values)

    def table(self, key: str) -> Table:
        """The table at `key`; `DocumentError` where there is none."""
        return self._child(self.required(key, dict), key)

    def tables(self, key: str) -> Iterator[Table]:
        """The tables of an array that must have at least one."""
        values = self.required(key, list)
        if not values:
            raise self.error(key, "must not be empty")
        for i, value in enumerate(values):
            if not isinstance(value, dict):
                raise self.error(f"{key}[{i}]", f"must be a table, not {_describe(value)}")
            yield self._child(value, f"{key}[{i}]")

    def _child(self, values: Mapping[str, Any], key: str) -> Table:
        return Table(values, source=self.source, where=self._place(key), ignored=self._ignored)

    def version(self, key: str, known: tuple[int, int]) -> tuple[int, int]:
        """Read which version of its specification the document follows: 1, or "1.2".

        Another major version is refused. In a document of a newer minor version, keys that are
        not known are left alone, and `ignored` has them when all was read; call this first.

        Raises:
            UnsupportedVersionError: another major version.
            DocumentError: there is no version, or it is none.
        """
        self._read.add(key)
        value = self._values.get(key)
        if value is None:
            raise self.error(key, "is missing (a whole number)")
        match = re.fullmatch(r"([0-9]{1,9})(?:\.([0-9]{1,9}))?", str(value))
        if match is None or not isinstance(value, str if match[2] else int):
            raise self.error(key, 'must be a whole number, or a string such as "1.2"')
        major, minor = int(match[1]), int(match[2] or 0)
        if major != known[0]:
            raise UnsupportedVersionError(
                f"is {value}, and this version reads {known[0]}",
                where=self._place(key),
                source=self.source,
                hint="a newer weightpkg may read it: `pip install --upgrade weightpkg`",
            )
        if minor > known[1]:
            self._ignored = []
        return major, minor

    @property
    def ignored(self) -> tuple[str, ...]:
        """The keys of a newer minor version that were left alone."""
        return tuple(self._ignored or ())

    def finish(self) -> None:
        """Refuse or note keys that nobody asked for; call when the whole table was read."""
        for key in self._values:
            if key in self._read or key.startswith("x-"):
                continue
            if self._ignored is not None:
                self._ignored.append(self._place(key))
                continue
            near = nearest(key, self._read)
            meant = f"; did you mean `{near[0]}`?" if near else ""
            raise self.error(key, f"is not a key that is known here{meant}")


def nearest(name: str, known: Iterable[str], *, n: int = 1) -> list[str]:
    """Return the names most like one that is not known, the most alike first.

    >>> nearest("licence", ["license", "name"])
    ['license']
    """
    import difflib  # noqa: PLC0415  only errors need it

    return difflib.get_close_matches(name, list(known), n=n)


_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    bool: "true or false",
    date: "a date",
    list: "an array",
    dict: "a table",
}


def _describe(value: object) -> str:
    for kind, name in ((bool, "true or false"), (datetime, "a date with a time"), *_NAMES.items()):
        if isinstance(value, kind):
            return name
    return f"a {type(value).__name__}"


def parse_document(content: bytes, *, source: str) -> Table:
    """Read a TOML document.

    Args:
        content: the document's bytes.
        source: what to call the document in errors, such as its file name.

    Raises:
        DocumentError: too large, not UTF-8, not TOML, or nested too deep.
    """
    if len(content) > MAX_DOCUMENT_SIZE:
        raise DocumentError(f"larger than {MAX_DOCUMENT_SIZE:,} bytes", source=source)
    try:
        values = tomli.loads(content.decode())
    except UnicodeDecodeError as error:
        raise DocumentError(f"not UTF-8 at byte {error.start}", source=source) from error
    except (tomli.TOMLDecodeError, RecursionError, ValueError) as error:
        reason = str(error) or "nested too deep"
        raise DocumentError(f"not TOML: {reason}", source=source) from error
    _check_depth(values, source)
    return Table(values, source=source)


def _check_depth(value: object, source: str) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise DocumentError(f"nested more than {_MAX_DEPTH} deep", source=source)
