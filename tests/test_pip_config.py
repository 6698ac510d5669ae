from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightpkg.errors import FetchError
from weightpkg.sources.pip_config import (
    DEFAULT_INDEX,
    PipConfig,
    config_files,
    parse_pip_config,
    read_pip_config,
)

HOME = Path("/home/u")


def parse(*texts: str, environ: dict[str, str] | None = None) -> PipConfig:
    files = [(Path(f"file{i}"), text) for i, text in enumerate(texts)]
    return parse_pip_config(files, environ or {}, home=HOME)


def test_asks_the_default_index_where_nothing_is_configured() -> None:
    config = parse()
    assert config.index_urls == (DEFAULT_INDEX,)
    assert config.find_links == ()
    assert config.transport.cert is None


@pytest.mark.parametrize(
    ("texts", "environ", "expected"),
    [
        pytest.param(["[global]\nindex-url=http://a/"], {}, "http://a/", id="global"),
        pytest.param(
            ["[global]\nindex-url=http://a/", "[global]\nindex-url=http://b/"],
            {},
            "http://b/",
            id="later file wins",
        ),
        pytest.param(
            ["[install]\nindex-url=http://a/", "[global]\nindex-url=http://b/"],
            {},
            "http://a/",
            id="install wins over global of a later file",
        ),
        pytest.param(
            ["[download]\nindex-url=http://a/\n[install]\nindex-url=http://b/"],
            {},
            "http://a/",
            id="download wins over install",
        ),
        pytest.param(
            ["[download]\nindex-url=http://a/"],
            {"PIP_INDEX_URL": "http://env/"},
            "http://env/",
            id="variable wins over all",
        ),
        pytest.param(
            ["[global]\nindex-url=http://a/"],
            {"PIP_INDEX_URL": ""},
            "http://a/",
            id="empty variable is none",
        ),
        pytest.param(["[global]\nindex_url=http://a/"], {}, "http://a/", id="underscore"),
        pytest.param(["[list]\nindex-url=http://a/"], {}, DEFAULT_INDEX, id="other command"),
    ],
)
def test_takes_values_in_the_order_of_pip(
    texts: list[str], environ: dict[str, str], expected: str
) -> None:
    assert parse(*texts, environ=environ).index_urls == (expected,)


def test_reads_lists_over_spaces_and_lines() -> None:
    config = parse(
        "[global]\nextra-index-url = http://a/\n    http://b/ http://c/\nfind-links = ~/wheels /opt\n"
    )
    assert config.index_urls == (DEFAULT_INDEX, "http://a/", "http://b/", "http://c/")
    assert config.find_links == (str(HOME / "wheels"), "/opt")


def test_a_later_list_replaces_an_earlier_one() -> None:
    config = parse("[global]\nfind-links = /a", environ={"PIP_FIND_LINKS": "/b /c"})
    assert config.find_links == ("/b", "/c")


@pytest.mark.parametrize("value", ["1", "yes", "true", "on", "True"])
def test_asks_no_index_where_that_is_forbidden(value: str) -> None:
    config = parse("[global]\nextra-index-url=http://a/", environ={"PIP_NO_INDEX": value})
    assert config.index_urls == ()


def test_reads_how_to_reach_servers() -> None:
    transport = parse(
        "[global]\ncert=~/ca.pem\nclient-cert=/me.pem\nproxy=http://proxy:1/\nretries=7\n"
        "trusted-host=One\n  two:8080\n",
        environ={"PIP_DEFAULT_TIMEOUT": "12.5"},
    ).transport
    assert transport.cert == str(HOME / "ca.pem")
    assert transport.client_cert == "/me.pem"
    assert transport.proxy == "http://proxy:1/"
    assert (transport.retries, transport.timeout_s) == (7, 12.5)
    assert transport.trusted_hosts == {"one", "two:8080"}


def test_takes_credentials_out_of_addresses() -> None:
    config = parse(
        "[global]\nindex-url=https://user:p%40ss@host/simple\nproxy=http://user:p%40ss@proxy/"
    )
    assert config.index_urls == ("https://host/simple",)
    assert dict(config.transport.credentials) == {("https", "host", 443): ("user", "p@ss")}
    assert "p@ss" not in repr(config)
    assert "p%40ss" not in repr(config)


@pytest.mark.parametrize(
    ("text", "environ", "where"),
    [
        pytest.param("index-url=x", {}, "file0", id="no section"),
        pytest.param("[global]\n[global]", {}, "file0", id="section twice"),
        pytest.param("[global]\ntimeout=soon", {}, "timeout", id="timeout is a word"),
        pytest.param("[global]\ntimeout=0", {}, "timeout", id="timeout is none"),
        pytest.param("[global]\ntimeout=nan", {}, "timeout", id="timeout is no number"),
        pytest.param("", {"PIP_RETRIES": "-1"}, "retries", id="retries are negative"),
        pytest.param("", {"PIP_NO_INDEX": "maybe"}, "no-index", id="neither yes nor no"),
        pytest.param("[global]\nindex-url=http://[::1/", {}, "URL", id="no URL"),
    ],
)
def test_says_where_a_value_cannot_be_read(text: str, environ: dict[str, str], where: str) -> None:
    with pytest.raises(FetchError, match=where):
        parse(text, environ=environ)


def test_lists_the_files_of_each_system() -> None:
    def files(platform: str, environ: dict[str, str]) -> list[str]:
        found = config_files(environ, home=HOME, prefix=Path("/venv"), platform=platform)
        return [path.as_posix() for path in found]

    assert files("linux", {}) == [
        "/etc/xdg/pip/pip.conf",
        "/etc/pip.conf",
        "/home/u/.pip/pip.conf",
        "/home/u/.config/pip/pip.conf",
        "/venv/pip.conf",
    ]
    assert files("linux", {"XDG_CONFIG_HOME": "/x"})[3] == "/x/pip/pip.conf"
    assert files("darwin", {})[0] == "/Library/Application Support/pip/pip.conf"
    assert files("darwin", {})[-2:] == ["/home/u/.config/pip/pip.conf", "/venv/pip.conf"]
    windows = files("win32", {"APPDATA": "/roaming", "PROGRAMDATA": "/data"})
    assert windows == [
        "/data/pip/pip.ini",
        "/home/u/pip/pip.ini",
        "/roaming/pip/pip.ini",
        "/venv/pip.ini",
    ]


def test_a_named_file_takes_the_place_of_the_users(tmp_path: Path) -> None:
    named = tmp_path / "named.conf"
    environ = {"PIP_CONFIG_FILE": str(named)}
    home = HOME / ".pip" / "pip.conf"

    def files() -> tuple[Path, ...]:
        return config_files(environ, home=HOME, prefix=Path("/venv"), platform="linux")

    assert home in files()
    named.write_text("")
    assert home not in files()
    assert files()[-1] == named


def test_the_null_device_turns_all_files_off(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url=http://a/")

    def indexes(environ: dict[str, str]) -> tuple[str, ...]:
        config = read_pip_config(environ, home=tmp_path, prefix=tmp_path, platform="linux")
        return config.index_urls

    assert indexes({}) == ("http://a/",)
    assert indexes({"PIP_CONFIG_FILE": os.devnull}) == (DEFAULT_INDEX,)


def test_refuses_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_bytes(b"[global]\nproxy=\xff\xfe")
    with pytest.raises(FetchError, match="not UTF-8"):
        read_pip_config({}, home=tmp_path, prefix=tmp_path, platform="linux")
