"""pip's own configuration: where pip works, `pypi:` sources work.

Files and variables are read in pip's order (https://pip.pypa.io/en/stable/topics/configuration/,
and `OVERRIDE_ORDER` of pip 23.2): global, user, site, `$PIP_CONFIG_FILE`; of their merged values
`[global]` first, then `[install]`, then `[download]`, and last the `PIP_*` variables. A later
value replaces an earlier one, lists too.

User and password are taken out of index addresses here, so that no other module can show them.
"""

from __future__ import annotations

import configparser
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightpkg.errors import FetchError
from weightpkg.sources.transport import Origin, TransportSettings, origin, split_credentials

DEFAULT_INDEX = "the default index"
"""Stands in `index_urls` for the one that pip asks if nobody says otherwise; no address has spaces."""

_SECTIONS = ("global", "install", "download")
_TRUE = {"y", "yes", "t", "true", "on", "1"}
_FALSE = {"n", "no", "f", "false", "off", "0"}
_HINT = "`pip config debug` shows where each value comes from"

Values = Mapping[str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PipConfig:
    """Where pip looks for packages, in order, and how it reaches servers.

    `find_links` and `index_urls` are URLs or paths, without user and password.
    """

    find_links: tuple[str, ...] = ()
    index_urls: tuple[str, ...] = (DEFAULT_INDEX,)
    transport: TransportSettings


def read_pip_config(
    environ: Mapping[str, str], *, home: Path, prefix: Path, platform: str
) -> PipConfig:
    """Read the configuration of this machine.

    Args:
        environ: the environment variables.
        home: the user's home directory.
        prefix: the Python environment's directory, `sys.prefix`.
        platform: the operating system, `sys.platform`.

    Raises:
        FetchError: a file or a value cannot be read; pip would stop as well.
    """
    files = []
    for path in config_files(environ, home=home, prefix=prefix, platform=platform):
        try:
            files.append((path, path.read_text(encoding="utf-8")))
        except OSError:
            continue  # as pip does
        except UnicodeDecodeError as error:
            raise _error(str(path), "not UTF-8") from error
    return parse_pip_config(files, environ, home=home)


def config_files(
    environ: Mapping[str, str], *, home: Path, prefix: Path, platform: str
) -> tuple[Path, ...]:
    """List the files that pip reads, later ones winning, whether they are there or not."""
    own = environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return ()
    name = "pip.ini" if platform == "win32" else "pip.conf"
    site = prefix / name
    everyone, user = _directories(environ, home=home, platform=platform)
    if own and Path(own).exists():
        user = ()
    named = (Path(own),) if own else ()
    return (*(path / name for path in everyone + user), site, *named)


def _directories(
    environ: Mapping[str, str], *, home: Path, platform: str
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    if platform == "win32":
        common = Path(environ.get("PROGRAMDATA", "C:/ProgramData"))
        roaming = Path(environ.get("APPDATA", home / "AppData" / "Roaming"))
        return (common / "pip",), (home / "pip", roaming / "pip")
    if platform == "darwin":
        support = Path("Library", "Application Support", "pip")
        own = home / support if (home / support).is_dir() else home / ".config" / "pip"
        return (Path("/") / support,), (home / ".pip", own)
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return (*(Path(d) / "pip" for d in shared), Path("/etc")), (home / ".pip", config / "pip")


def parse_pip_config(
    files: Iterable[tuple[Path, str]], environ: Mapping[str, str], *, home: Path
) -> PipConfig:
    """Make one configuration of files, given as name and text in pip's order, and variables.

    Raises:
        FetchError: a file or a value is malformed.
    """
    values = _merge(files, environ)
    offline = _boolean(values, "no-index")
    indexes = values["index-url"].split() if "index-url" in values else [DEFAULT_INDEX]
    indexes += values.get("extra-index-url", "").split()
    credentials: dict[Origin, tuple[str, str]] = {}
    find_links = [
        _strip_credentials(_expand(link, home), credentials)
        for link in values.get("find-links", "").split()
    ]
    index_urls = [_strip_credentials(url, credentials) for url in indexes]
    return PipConfig(
        find_links=tuple(find_links),
        index_urls=() if offline else tuple(index_urls),
        transport=_transport_settings(values, credentials, home=home),
    )


def _merge(files: Iterable[tuple[Path, str]], environ: Mapping[str, str]) -> Values:
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for path, text in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text, source=str(path))
        except configparser.Error as error:
            raise _error(str(path), str(error).splitlines()[0]) from error
        for name in _SECTIONS:
            if parser.has_section(name):
                sections[name] |= {_key(key): value for key, value in parser.items(name)}
    variables = {
        _key(name.removeprefix("PIP_")): value
        for name, value in environ.items()
        if name.startswith("PIP_")
    }
    merged: dict[str, str] = {}
    for layer in (*sections.values(), variables):
        merged |= {key: value for key, value in layer.items() if value}  # pip ignores empty ones
    return merged


def _key(name: str) -> str:
    key = name.lower().replace("_", "-").removeprefix("--")
    return "timeout" if key == "default-timeout" else key


def _transport_settings(
    values: Values, credentials: Mapping[Origin, tuple[str, str]], *, home: Path
) -> TransportSettings:
    standard = TransportSettings()
    return TransportSettings(
        timeout_s=_number(values, "timeout", standard.timeout_s, least=0.1),
        retries=int(_number(values, "retries", standard.retries, least=0)),
        cert=_path(values, "cert", home),
        client_cert=_path(values, "client-cert", home),
        proxy=values.get("proxy"),
        trusted_hosts=frozenset(values.get("trusted-host", "").lower().split()),
        credentials=credentials,
    )


def _strip_credentials(url: str, credentials: dict[Origin, tuple[str, str]]) -> str:
    if not url.startswith(("http://", "https://")):
        return url
    bare, found = split_credentials(url)
    if found:
        credentials[origin(bare)] = found
    return bare


def _boolean(values: Values, key: str) -> bool:
    text = values.get(key, "no").lower()
    if text not in _TRUE | _FALSE:
        raise _error(key, "must be yes or no")
    return text in _TRUE


def _number(values: Values, key: str, standard: float, *, least: float) -> float:
    try:
        number = float(values.get(key, standard))
    except ValueError:
        number = math.nan
    if not least <= number <= 1_000_000:
        raise _error(key, f"must be a number, and at least {least:g}")
    return number


def _path(values: Values, key: str, home: Path) -> str | None:
    return _expand(values[key], home) if key in values else None


def _expand(text: str, home: Path) -> str:
    return str(home / text[2:]) if text.startswith("~/") else text


def _error(where: str, reason: str) -> FetchError:
    return FetchError(f"pip's configuration: `{where}`: {reason}", hint=_HINT)
