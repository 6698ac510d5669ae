from __future__ import annotations

import base64
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from http_server import endless, endless_body, first_fails, redirect, serve
from weightpkg.errors import FetchError
from weightpkg.sources.transport import (
    Transport,
    TransportSettings,
    _redirected,
    origin,
    redacted,
    split_credentials,
)

if TYPE_CHECKING:
    from http_server import Handler, Site

CONTENT = bytes(range(256)) * 4
SECRETS = ("secret", "Basic", "Authorization")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        site.files["/file"] = CONTENT
        yield site


@pytest.fixture
def other() -> Iterator[Site]:
    with serve() as site:
        site.files["/file"] = b"elsewhere"
        yield site


@pytest.fixture(autouse=True)
def no_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def delays() -> list[float]:
    return []


@pytest.fixture
def transport(delays: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Transport]:
    monkeypatch.setattr(Transport, "sleep", lambda _, seconds: delays.append(seconds))
    with Transport(TransportSettings(timeout_s=10)) as transport:
        yield transport


def read(transport: Transport, url: str, *, start: int = 0, end: int | None = None) -> bytes:
    with transport.get(url, start=start, end=end) as body:
        return b"".join(body.pieces)


def sent(site: Site, name: str) -> list[str | None]:
    return [request.headers.get(name) for request in site.requests]


def test_reads_a_file_and_tells_its_size(site: Site, transport: Transport) -> None:
    with transport.get(site.url + "/file") as body:
        assert (body.size, body.range) == (len(CONTENT), None)
        assert b"".join(body.pieces) == CONTENT
    assert sent(site, "Accept-Encoding") == ["identity"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        pytest.param(0, 1, CONTENT[:1], id="first byte"),
        pytest.param(10, 20, CONTENT[10:20], id="middle"),
        pytest.param(1000, None, CONTENT[1000:], id="open end"),
        pytest.param(1000, 9999, CONTENT[1000:], id="past the end"),
    ],
)
def test_reads_a_range(
    site: Site, transport: Transport, start: int, end: int | None, expected: bytes
) -> None:
    with transport.get(site.url + "/file", start=start, end=end) as body:
        assert body.range is not None
        assert body.range.total == len(CONTENT)
        assert b"".join(body.pieces) == expected


def test_tells_when_a_server_does_not_answer_ranges(site: Site, transport: Transport) -> None:
    site.has_ranges = False
    with transport.get(site.url + "/file", start=10, end=20) as body:
        assert body.range is None
        assert b"".join(body.pieces) == CONTENT


@pytest.mark.parametrize(
    "told",
    [
        pytest.param("bytes 0-9/1024", id="another start"),
        pytest.param("bytes 10-29/1024", id="longer"),
        pytest.param("bytes 10-19/*", id="no total"),
        pytest.param("bytes 10-19/15", id="total too small"),
        pytest.param("lines 10-19/1024", id="another unit"),
        pytest.param(None, id="none"),
    ],
)
def test_refuses_another_range_than_was_asked_for(
    site: Site, transport: Transport, told: str | None
) -> None:
    def answer(handler: Handler) -> None:
        handler.reply(206, CONTENT[10:20], {"Content-Range": told} if told else {})

    site.answers["/lying"] = answer
    with pytest.raises(FetchError, match="asked for bytes from 10"):
        read(transport, site.url + "/lying", start=10, end=20)


def test_takes_the_beginning_of_a_range(site: Site, transport: Transport) -> None:
    told = {"Content-Range": "bytes 10-14/1024"}
    site.answers["/less"] = lambda handler: handler.reply(206, CONTENT[10:15], told)
    assert read(transport, site.url + "/less", start=10, end=20) == CONTENT[10:15]


def test_refuses_a_range_that_was_not_asked_for(site: Site, transport: Transport) -> None:
    told = {"Content-Range": "bytes 0-9/1024"}
    site.answers["/lying"] = lambda handler: handler.reply(206, CONTENT[:10], told)
    with pytest.raises(FetchError, match="HTTP 206"):
        read(transport, site.url + "/lying")


def test_tells_a_body_that_ends_early(site: Site, transport: Transport) -> None:
    site.answers["/short"] = lambda handler: handler.reply(200, b"abc", length=10)
    with pytest.raises(FetchError, match="/short`: the connection"):
        read(transport, site.url + "/short")


def test_refuses_a_compressed_answer(site: Site, transport: Transport) -> None:
    encoded = {"Content-Encoding": "gzip"}
    site.answers["/packed"] = lambda handler: handler.reply(200, b"\x1f\x8b", encoded)
    with pytest.raises(FetchError, match="compressed"):
        read(transport, site.url + "/packed")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 501])
def test_names_the_status_of_an_error(
    site: Site, transport: Transport, delays: list[float], status: int
) -> None:
    site.answers["/broken"] = lambda handler: handler.reply(status)
    with pytest.raises(FetchError, match=f"/broken`: HTTP {status}"):
        read(transport, site.url + "/broken")
    assert delays == []


def test_tries_again_when_a_server_is_not_ready(
    site: Site, transport: Transport, delays: list[float]
) -> None:
    site.answers["/busy"] = first_fails(503, times=2, content=b"ready")
    assert transport.document(site.url + "/busy", max_bytes=100).content == b"ready"
    assert 0.25 <= delays[0] <= 0.5 <= delays[1] <= 1.0
    assert len(delays) == 2


def test_gives_up_after_so_many_retries(
    site: Site, transport: Transport, delays: list[float]
) -> None:
    site.answers["/busy"] = first_fails(503, times=99, content=b"")
    with pytest.raises(FetchError, match="HTTP 503"):
        transport.document(site.url + "/busy", max_bytes=100)
    assert len(site.requests) == 4
    assert len(delays) == 3


def test_says_that_a_connection_was_refused(transport: Transport, delays: list[float]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/file?token=secret"
    with pytest.raises(FetchError, match=r"/file`: the connection was refused") as caught:
        transport.document(url, max_bytes=100)
    assert "secret" not in str(caught.value)
    assert caught.value.hint is not None
    assert len(delays) == 3


def test_says_that_no_answer_came_in_time() -> None:
    settings = TransportSettings(timeout_s=0.1, retries=0)
    with socket.create_server(("127.0.0.1", 0)) as silent, Transport(settings) as transport:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(FetchError, match=r"no answer within 0\.1 seconds"):
            read(transport, url)


def test_says_that_a_host_has_no_address(transport: Transport, delays: list[float]) -> None:
    with pytest.raises(FetchError, match="cannot be resolved"):
        read(transport, "http://no-such-host.invalid/")
    assert delays == []


def test_says_that_a_connection_is_not_secure(
    site: Site, transport: Transport, delays: list[float]
) -> None:
    with pytest.raises(FetchError, match="TLS"):
        read(transport, site.url.replace("http:", "https:") + "/file")
    assert delays == []


def test_says_that_a_certificate_file_is_missing(tmp_path: Path) -> None:
    settings = TransportSettings(cert=str(tmp_path / "none.pem"))
    with Transport(settings) as transport, pytest.raises(FetchError, match=r"none\.pem") as caught:
        read(transport, "https://127.0.0.1:1/")
    assert "client-cert" in (caught.value.hint or "")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_follows_a_redirect(site: Site, other: Site, transport: Transport, status: int) -> None:
    site.answers["/moved"] = redirect(other.url + "/file", status=status)
    with transport.get(site.url + "/moved") as body:
        assert body.url == other.url + "/file"
        assert b"".join(body.pieces) == b"elsewhere"


def test_follows_a_redirect_with_its_range(site: Site, transport: Transport) -> None:
    site.answers["/moved"] = redirect("/file")
    assert read(transport, site.url + "/moved", start=5, end=9) == CONTENT[5:9]


def test_gives_up_after_five_redirects(site: Site, transport: Transport) -> None:
    site.answers["/loop"] = redirect("/loop")
    with pytest.raises(FetchError, match="more than 5 redirects"):
        read(transport, site.url + "/loop")
    assert len(site.requests) == 6


def test_does_not_read_the_body_of_a_redirect(site: Site, transport: Transport) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/file")
        endless_body(handler)

    site.answers["/moved"] = answer
    assert read(transport, site.url + "/moved") == CONTENT


def test_never_follows_from_https_to_http() -> None:
    with pytest.raises(FetchError, match="not safe to follow"):
        _redirected("https://host.example/x", "http://host.example/x")
    assert _redirected("http://host.example/x", "https://host.example/x").startswith("https:")


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[::1/", "", "data:,x"]
)
def test_refuses_a_redirect_to_what_is_no_web_address(
    site: Site, transport: Transport, target: str
) -> None:
    site.answers["/moved"] = redirect(target)
    with pytest.raises(FetchError):
        read(transport, site.url + "/moved")
    assert site.paths() == ["/moved"]


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_sends_the_credentials_of_a_url_to_its_origin_only(
    site: Site, other: Site, transport: Transport
) -> None:
    site.answers["/here"] = redirect("/there")
    site.answers["/there"] = redirect(other.url + "/file")
    url = site.url.replace("//", "//%C3%BCser:s%65cret@") + "/here"
    assert read(transport, url) == b"elsewhere"
    assert sent(site, "Authorization") == [basic("üser", "secret")] * 2
    assert sent(other, "Authorization") == [None]


def test_sends_configured_credentials_to_their_origin_only(site: Site, other: Site) -> None:
    site.answers["/moved"] = redirect(other.url + "/file")
    settings = TransportSettings(credentials={origin(site.url): ("user", "secret")})
    with Transport(settings) as transport:
        assert read(transport, site.url + "/moved") == b"elsewhere"
    assert sent(site, "Authorization") == [basic("user", "secret")]
    assert sent(other, "Authorization") == [None]
    assert "secret" not in repr(settings)


def test_sends_the_credentials_of_netrc_to_their_host_only(
    site: Site, other: Site, transport: Transport, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
    site.answers["/moved"] = redirect(f"http://localhost:{other.port}/file")
    assert read(transport, site.url + "/moved") == b"elsewhere"
    assert sent(site, "Authorization") == [basic("user", "secret")]
    assert sent(other, "Authorization") == [None]


def test_does_not_believe_credentials_in_a_redirect(
    site: Site, other: Site, transport: Transport
) -> None:
    site.answers["/moved"] = redirect(other.url.replace("//", "//evil:secret@") + "/file")
    assert read(transport, site.url + "/moved") == b"elsewhere"
    assert sent(other, "Authorization") == [None]


def test_keeps_no_cookies(site: Site, transport: Transport) -> None:
    cookie = {"Set-Cookie": "session=secret"}
    site.answers["/cookie"] = lambda handler: handler.reply(200, b"", cookie)
    read(transport, site.url + "/cookie")
    read(transport, site.url + "/file")
    assert sent(site, "Cookie") == [None, None]


@pytest.mark.parametrize("fault", ["status", "short", "redirect", "packed"])
def test_shows_no_secret_of_a_url(site: Site, transport: Transport, fault: str) -> None:
    packed = {"Content-Encoding": "gzip"}
    site.answers["/status"] = lambda handler: handler.reply(403)
    site.answers["/short"] = lambda handler: handler.reply(200, b"abc", length=10)
    site.answers["/redirect"] = redirect("file:///x?token=secret")
    site.answers["/packed"] = lambda handler: handler.reply(200, b"", packed)
    url = site.url.replace("//", "//user:secret@") + f"/{fault}?token=secret#secret"
    with pytest.raises(FetchError) as caught:
        read(transport, url)
    assert fault in caught.value.message
    assert not any(word in f"{caught.value} {caught.value.hint}" for word in SECRETS)


def test_reads_a_document_up_to_its_limit(site: Site, transport: Transport) -> None:
    document = transport.document(site.url + "/file", max_bytes=len(CONTENT))
    assert document.content == CONTENT
    with pytest.raises(FetchError, match=r"larger than 1,023 bytes"):
        transport.document(site.url + "/file", max_bytes=len(CONTENT) - 1)


def test_stops_reading_a_document_that_never_ends(site: Site, transport: Transport) -> None:
    site.answers["/endless"] = endless
    with pytest.raises(FetchError, match="larger than"):
        transport.document(site.url + "/endless", max_bytes=1_000_000)


def test_goes_through_a_proxy(site: Site) -> None:
    site.answers["http://far.invalid/file"] = lambda handler: handler.reply(200, b"by proxy")
    with Transport(TransportSettings(proxy=site.url)) as transport:
        assert read(transport, "http://far.invalid/file") == b"by proxy"


def test_says_that_a_proxy_cannot_be_reached() -> None:
    settings = TransportSettings(proxy="http://user:secret@127.0.0.1:1", retries=0)
    with Transport(settings) as transport, pytest.raises(FetchError, match="proxy") as caught:
        read(transport, "http://far.invalid/file")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "url", ["", "file:///x", "//host/x", "http://", "http://[::1/", "http://h:99999/", "x y"]
)
def test_refuses_what_is_no_web_address(transport: Transport, url: str) -> None:
    with pytest.raises(FetchError):
        read(transport, url)


@pytest.mark.parametrize(
    ("url", "bare", "credentials"),
    [
        ("https://host/x?q", "https://host/x?q", None),
        ("https://u:p@host/x", "https://host/x", ("u", "p")),
        ("https://u%40x:p%3A@host:8/x", "https://host:8/x", ("u@x", "p:")),
        ("https://token@host/x", "https://host/x", ("token", "")),
    ],
)
def test_splits_credentials(url: str, bare: str, credentials: tuple[str, str] | None) -> None:
    assert split_credentials(url) == (bare, credentials)


def test_agrees_with_the_client_about_what_a_host_is() -> None:
    assert origin("http://good.example\\@evil.example/").host == "good.example"
    assert origin("HTTP://Good.Example/").host == "good.example"
    assert origin("https://[::1]:8443/") == ("https", "::1", 8443)
    assert redacted("https://u:p@[::1]:8443/a?b#c") == "https://[::1]:8443/a"
