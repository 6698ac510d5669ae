"""What this user's weightpkg is told once for all projects: `config.toml` in its home.

    [indexes.acme]                  an index, by the namespace that it owns
    url = "https://models.acme.example/index"
    root-sha256 = "5f1e..."         of the first root that is trusted
    max-staleness = 30              days that it may be past its expiry; 0 if not given
    allow-unsigned = false          true, in place of root-sha256, takes an index without signatures

    [source-replacement]            what stands in for the sources that lockfiles name

Edits go through tomlkit, from text to text, so that comments and order survive; each is read again
before it is written, and two processes that edit take turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from weightpkg import files
from weightpkg.digest import Digest
from weightpkg.document import Table, parse_document
from weightpkg.requirement import NormalizedName, is_name, normalize_name

if TYPE_CHECKING:
    from tomlkit.toml_document import TOMLDocument

CONFIG = "config.toml"
INDEXES = "indexes"
SOURCE_REPLACEMENT = "source-replacement"
MAX_STALENESS_DAYS = 3650

_NEW = "# What weightpkg is told for all projects of this user.\n\n"
_WEB = re.compile(
    r"https://[^/\s@?#]+(/[^\s?#]*)?\Z|http://(127\.0\.0\.1|localhost|\[::1\])(:\d+)?(/[^\s?#]*)?\Z"
)

Value = str | int | bool | list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """An index that owns a namespace.

    url: `https://...`, `http://` of this very machine, or the path of a directory.
    root_sha256: of the first root that is trusted; None where there are no signatures.
    max_staleness_days: how long after its expiry what it says is still believed.
    """

    name: NormalizedName
    url: str
    root_sha256: Digest | None = None
    max_staleness_days: int = 0
    allow_unsigned: bool = False

    @property
    def directory(self) -> Path | None:
        """Where it is on this machine, None if it is elsewhere."""
        return directory_of(self.url)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All of it.

    source_replacement: the section as it was read; None where there is none.
    """

    indexes: tuple[IndexConfig, ...] = ()
    source_replacement: Table | None = field(default=None, compare=False)

    def index(self, name: NormalizedName) -> IndexConfig | None:
        """The index that owns a namespace; None where nobody does."""
        return next((index for index in self.indexes if index.name == name), None)


def is_web(url: str) -> bool:
    """Whether an index is asked for over HTTP.

    >>> is_web("https://a.example/index"), is_web("http://a.example/"), is_web("/srv/index")
    (True, False, False)
    """
    return _WEB.match(url) is not None


def directory_of(url: str) -> Path | None:
    """Return the directory that a path or a `file:` URL names, None for any other URL.

    >>> directory_of("file:///srv/index").as_posix(), directory_of("https://a.example/index")
    ('/srv/index', None)
    """
    if re.match(r"file:", url):
        return Path(re.sub(r"\Afile:(//)?", "", url)).expanduser()
    is_path = not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url)
    return Path(url).expanduser() if is_path else None


def config_path(home: Path) -> Path:
    """Where the configuration is, or would be."""
    return home / CONFIG


def load_config(home: Path) -> Config:
    """Read the configuration of a home; one that is not there says nothing.

    Raises:
        DocumentError: it is not valid; names the key.
        StoreError: it cannot be read.
    """
    path = config_path(home)
    with files.mapped(path):
        if not path.exists():
            return Config()
        content = path.read_bytes()
    return read_config(content, source=CONFIG)


def read_config(content: bytes, *, source: str) -> Config:
    """Read a configuration.

    Args:
        content: the file's bytes.
        source: its name, for errors.

    Raises:
        DocumentError: a key is not known, or a value is not what it must be.
    """
    table = parse_document(content, source=source)
    indexes = tuple(_read_indexes(table.table(INDEXES))) if INDEXES in table else ()
    has_replacement = SOURCE_REPLACEMENT in table
    replacement = table.table(SOURCE_REPLACEMENT) if has_replacement else None
    table.finish()
    return Config(indexes=indexes, source_replacement=replacement)


def _read_indexes(table: Table) -> Iterator[IndexConfig]:
    seen: dict[NormalizedName, str] = {}
    for key in table.keys():  # noqa: SIM118  a Table is no dict
        if not is_name(key):
            raise table.error(key, "is not a name: letters, digits, `-`, `_` and `.`")
        name = normalize_name(key)
        if name in seen:
            raise table.error(key, f"is the same namespace as `{seen[name]}`")
        seen[name] = key
        yield _read_index(table.table(key), name)


def _read_index(table: Table, name: NormalizedName) -> IndexConfig:
    staleness = table.natural("max-staleness") or 0
    if staleness > MAX_STALENESS_DAYS:
        raise table.error("max-staleness", f"must be at most {MAX_STALENESS_DAYS} days")
    index = IndexConfig(
        name=name,
        url=table.parsed("url", check_url),
        root_sha256=table.optional_parsed("root-sha256", lambda text: Digest("sha256", text)),
        max_staleness_days=staleness,
        allow_unsigned=bool(table.optional("allow-unsigned", bool)),
    )
    table.finish()
    if index.allow_unsigned and index.root_sha256:
        raise table.error("allow-unsigned", "cannot be together with `root-sha256`")
    if is_web(index.url) and not (index.allow_unsigned or index.root_sha256):
        raise table.error(
            "root-sha256", "is missing: it says whose signatures count (or `allow-unsigned = true`)"
        )
    return index


def check_url(text: str) -> str:
    """Return where an index is; ValueError if it cannot be there."""
    directory = directory_of(text)
    if is_web(text) or (directory is not None and directory.is_absolute()):
        return text
    raise ValueError(
        f"`{text}` is none of https://..., http:// of this machine without user and password, "
        "or the absolute path of a directory"
    )


def set_index(home: Path, index: IndexConfig) -> None:
    """Write an index into the configuration, in place of the one of its name.

    Raises:
        DocumentError: the configuration is not valid, or would not be.
        StoreError: it cannot be written.
    """
    values: dict[str, Value] = {"url": index.url}
    if index.root_sha256:
        values["root-sha256"] = index.root_sha256.hex
    if index.max_staleness_days:
        values["max-staleness"] = index.max_staleness_days
    if index.allow_unsigned:
        values["allow-unsigned"] = True
    _edit(home, lambda document: _set(document, (INDEXES, index.name), values))


def remove_index(home: Path, name: NormalizedName) -> bool:
    """Take an index out of the configuration; return whether it was there.

    Raises:
        DocumentError: the configuration is not valid.
        StoreError: it cannot be written.
    """
    if load_config(home).index(name) is None:
        return False
    _edit(home, lambda document: _remove(document, (INDEXES, name)))
    return True


def set_source_replacement(home: Path, values: Mapping[str, Value] | None) -> None:
    """Write the section, in place of what it was; None removes it.

    Raises:
        DocumentError: the configuration is not valid.
        StoreError: it cannot be written.
    """

    def edit(document: TOMLDocument) -> None:
        if values is None:
            _remove(document, (SOURCE_REPLACEMENT,))
        else:
            _set(document, (SOURCE_REPLACEMENT,), values)

    _edit(home, edit)


def _edit(home: Path, edit: Callable[[TOMLDocument], None]) -> None:
    import tomlkit  # noqa: PLC0415  only edits need it

    path = config_path(files.make_directory(home))
    with files.lock(home / "config.lock"):
        load_config(home)  # one that is broken is not edited
        with files.mapped(path):
            text = path.read_bytes().decode() if path.exists() else _NEW
        document = tomlkit.parse(text)
        edit(document)
        content = document.as_string().encode()
        read_config(content, source=CONFIG)
        files.write_file(path, content, temporary=home / "tmp")


def _set(document: TOMLDocument, keys: tuple[str, ...], values: Mapping[str, Value]) -> None:
    """Have a table say some values and nothing else; the comments of keys that stay, stay."""
    import tomlkit  # noqa: PLC0415  only edits need it

    table = cast("Any", document)
    for i, key in enumerate(keys):
        own = _key_like(table, key)
        if own not in table:
            table.add(own, tomlkit.table(is_super_table=i + 1 < len(keys)))
        table = table[own]
    for key in [key for key in table if key not in values]:
        del table[key]
    for key, value in values.items():
        if key not in table or table[key] != value:
            table[key] = value


def _remove(document: TOMLDocument, keys: tuple[str, ...]) -> None:
    table = cast("Any", document)
    for key in keys[:-1]:
        table = table.get(_key_like(table, key), {})
    own = _key_like(table, keys[-1])
    if own in table:
        del table[own]


def _key_like(table: Mapping[str, object], name: str) -> str:
    """The key of a table that is the same name, in the way it is written there."""
    names = (key for key in table if is_name(key) and normalize_name(key) == normalize_name(name))
    return next(names, name)
