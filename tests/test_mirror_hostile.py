"""A mirror's server among clients that mean no good: paths, heads, sockets that are held open."""

from __future__ import annotations

import hashlib
import http.client
import os
import resource
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from mirrors import KEY, MirrorDirectory, Served, make_mirror, serve
from weightpkg.digest import CHUNK_SIZE
from weightpkg.listening import connection
from weightpkg.mirror_server import connection as file_connection

CONFIG = b'{"model_type": "llama"}'
CANARY = b"nobody outside may read this"


@pytest.fixture
def mirror(tmp_path: Path) -> MirrorDirectory:
    mirror = make_mirror(tmp_path / "mirror")
    (tmp_path / "canary").write_bytes(CANARY)
    (tmp_path / "mirror" / "canary").write_bytes(CANARY)
    (tmp_path / "mirror" / ".weightpkg").mkdir(exist_ok=True)
    (tmp_path / "mirror" / ".weightpkg" / "canary").write_bytes(CANARY)
    return mirror


@pytest.fixture
def served(mirror: MirrorDirectory) -> Iterator[Served]:
    with serve(mirror.root) as served:
        yield served


def blob(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    return f"/blobs/sha256/{digest[:2]}/{digest}"


def raw(served: Served, content: bytes, *, timeout_s: float = 10) -> bytes:
    """Send bytes as they are, and return all that comes back until the server closes."""
    found = b""
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=timeout_s) as client,
        suppress(ConnectionError),
    ):
        client.sendall(content)
        while piece := client.recv(65536):
            found += piece
    return found


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


# 60 names that lead out of where they are, or might on some system

NAMES = [
    "..", ".", "%2e%2e", "%2e", ".%2e", "%2e.", "..%2f", "..%2fcanary", "%2e%2e%2fcanary", "..%5ccanary",
    "..\\canary", "%252e%252e", "..%252fcanary", "%c0%ae%c0%ae", "%c0%af", "%e0%80%ae", "..%c0%afcanary", "%ff",
    "%00", "canary%00", "canary%00.toml", "%0a", "%0d%0aX:1", "%09", "%7f", "%1b[31m", "a%2fb", "%2fetc%2fpasswd",
    "%2f", "/etc/passwd", "//etc/passwd", "%2f%2fetc", "C:%5cWindows", "c:", "C:%2fcanary", "%5c%5chost%5cshare",
    "file:%2f%2f%2fetc%2fpasswd", "http:%2f%2fevil%2f", "~", "~root", "%7e%2fcanary", "$HOME", "%24%7bHOME%7d",
    "con", "NUL", "aux.toml", "com1", "canary.", "canary%20", "%20", "%20..", "..%20", "...", "....", "..;",
    "..;%2fcanary", "%u002e%u002e", "%", "%2", "%zz", "%ef%bc%8e%ef%bc%8e", "%e2%80%a5", "a" * 300, "-rf", "*", "?",
    "canary%3f", "..%2f" * 20 + "canary", "._%2e%2f.", ".weightpkg%2fcanary", ".weightpkg", "mirror.toml%2f..",
]  # fmt: skip
PLACES = [
    "/{}", "/{}/canary", "/index/{}", "/index/{}/canary", "/index/default/models/{}", "/index/default/{}/tiny.toml",
    "/locks/{}", "/blobs/{}/{}", "/blobs/sha256/{}", "/blobs/sha256/{}/" + 64 * "a", "/blobs/sha256/aa/{}",
    "/models/{}/canary", f"/models/{KEY}/{{}}", f"/models/{KEY}/{{}}/../canary", "/api/{}", "/api/models/{}",
    "/api/models/acme/{}", "/api/models/{}/check", "/api/models/acme/check/revision/{}",
    "/api/models/acme/check/tree/{}", "/api/models/acme/check/tree/main/{}", "/{}/check/resolve/main/config.json",
    "/acme/{}/resolve/main/config.json", "/acme/check/resolve/{}/config.json", "/acme/check/resolve/main/{}",
    "/acme/check/resolve/main/1_Pooling/{}", "/v2/{}/tiny/manifests/q4", "/v2/library/{}/manifests/q4",
    "/v2/library/tiny/manifests/{}", "/v2/library/tiny/blobs/{}",
]  # fmt: skip


def test_there_are_enough_hostile_names() -> None:
    assert len(set(NAMES)) >= 60


@pytest.mark.parametrize("place", PLACES)
def test_no_name_leads_out(served: Served, place: str) -> None:
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    for name in NAMES:
        path = place.replace("{}", name)
        if not path.isascii() or any(c in path for c in " \t\r\n"):
            continue
        client.putrequest("GET", path.partition("?")[0])
        client.endheaders()
        response = client.getresponse()
        body = response.read()
        assert CANARY not in body, path
        assert b"root:" not in body, path
        assert 400 <= response.status < 500, (path, response.status)
    client.close()
    assert served.get(blob(CONFIG)).body == CONFIG


@pytest.mark.parametrize("target", ["/canary", "/.weightpkg/canary", "/index", "/index/", "/blobs/", "/models", "/.", "//canary", "/index//default/models/tiny.toml"])  # fmt: skip
def test_only_what_belongs_to_a_mirror_is_served(served: Served, target: str) -> None:
    assert status(raw(served, f"GET {target} HTTP/1.1\r\nHost: localhost:{served.port}\r\nConnection: close\r\n\r\n".encode())) in {400, 404}  # fmt: skip


def test_no_link_is_followed(served: Served, mirror: MirrorDirectory, tmp_path: Path) -> None:
    (mirror.root / "index" / "link").symlink_to(tmp_path)
    (mirror.root / "index" / "default" / "link.toml").symlink_to(tmp_path / "canary")
    fifo = mirror.root / "index" / "default" / "pipe"
    os.mkfifo(fifo)
    path = mirror.path(hashlib.sha256(CONFIG).hexdigest())
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    for target in ("/index/link/canary", "/index/default/link.toml", "/index/default/pipe", "/index/default", blob(CONFIG)):  # fmt: skip
        assert served.get(target).status == 404, target


HEADS = {
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
    "evil host": b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    "absolute form": b"GET http://evil.example/healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
    "connect": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "post": b"POST /api/models HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{}",
    "put": b"PUT /mirror.toml HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\nxx",
    "delete": b"DELETE /mirror.toml HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "body on get": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\nGET /evil",
    "chunked get": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "two lengths": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\nabcde",
    "length and chunks": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded header": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\nBad Name: 1\r\n\r\n",
    "null in header": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nX: a\0b\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    "long header": b"GET /healthz HTTP/1.1\r\nHost: {host}\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n",
    "long path": b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
    "endless path": b"GET /" + b"a" * 1_000_000,
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 9": b"GET /healthz HTTP/9.9\r\nHost: {host}\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "spaces": b"GET  /healthz  HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "many query fields": b"GET /api/models?" + b"a=1&" * 1000 + b" HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
    "query of bytes": b"GET /api/models?limit=%ff HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_is_none_is_refused(served: Served, name: str) -> None:
    host = f"localhost:{served.port}".encode()
    answer = raw(served, HEADS[name].replace(b"{host}", host))
    assert status(answer) in {0, 400, 403, 404, 405, 431, 505}, answer[:200]
    assert b"Traceback" not in answer
    assert served.get("/healthz").status == 200


def test_an_upgrade_is_not_made(served: Served) -> None:
    headers = {"Upgrade": "websocket", "Connection": "upgrade", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}  # fmt: skip
    assert served.get("/healthz", headers).status == 200


def test_a_body_is_not_swallowed_for_ever(served: Served) -> None:
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost:{served.port}\r\nTransfer-Encoding: chunked\r\n\r\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sent = 0
    with (
        socket.create_connection(("127.0.0.1", served.port), timeout=10) as client,
        suppress(ConnectionError),
    ):
        client.sendall(head.encode())
        for _ in range(1024):
            client.sendall(b"100000\r\n" + b"x" * 0x100000 + b"\r\n")
            sent += 0x100000
    assert sent < 64 << 20
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 64 << 20


def half_open(stack: ExitStack, served: Served, n: int) -> list[socket.socket]:
    found = []
    for _ in range(n):
        client = socket.create_connection(("127.0.0.1", served.port), timeout=10)
        stack.enter_context(client)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        found.append(client)
    return found


def seconds(served: Served, n: int = 30) -> float:
    taken = []
    for _ in range(n):
        began = time.perf_counter()
        assert served.get(blob(CONFIG)).body == CONFIG
        taken.append(time.perf_counter() - began)
    return statistics.quantiles(taken, n=20)[-1]


def test_a_good_client_is_served_among_200_that_say_half(served: Served) -> None:
    idle = seconds(served)
    with ExitStack() as stack:
        half_open(stack, served, 200)
        assert seconds(served) < 2 * idle + 0.2


def test_who_says_half_is_cut_off(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)
    with ExitStack() as stack:
        clients = half_open(stack, served, 20)
        began = time.monotonic()
        while time.monotonic() - began < 1.5:  # a byte now and then makes it no longer
            for client in clients:
                with suppress(OSError):
                    client.sendall(b"x")
            time.sleep(0.1)
        for client in clients:
            with suppress(ConnectionError):
                assert client.recv(100) == b""


def test_the_second_request_has_a_deadline_too(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.5)
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(f"GET /healthz HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /healthz")
        began = time.monotonic()
        with suppress(ConnectionError):
            while client.recv(1000):
                pass
        assert 0.3 < time.monotonic() - began < 4


def test_those_who_wait_make_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.Connection, "max_connections", 50)
    with ExitStack() as stack:
        clients = half_open(stack, served, 120)
        for _ in range(20):
            assert served.get("/healthz").status == 200
        gone = 0
        for client in clients[:60]:
            client.settimeout(2)
            with suppress(TimeoutError):
                try:
                    gone += client.recv(10) == b""
                except ConnectionError:
                    gone += 1
        assert gone == 60


def test_who_reads_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_connection, "PIECE_TIMEOUT_S", 1.0)
    mirror = MirrorDirectory(tmp_path)
    content = bytes(8 * CHUNK_SIZE)
    mirror.blob(content)
    with serve(tmp_path) as served, ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", served.port))
            client.sendall(f"GET {blob(content)} HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())  # fmt: skip
        assert served.get(blob(content)).body == content
        assert comes(lambda: sum("went away" in line for line in served.log) == 10)
        text = served.get("/metrics").body.decode()
        assert "weightpkg_mirror_broken_total 10" in text
        assert "weightpkg_mirror_active_requests 1" in text


def test_clients_that_leave_leave_nothing_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = MirrorDirectory(tmp_path)
    content = bytes(8 * CHUNK_SIZE)
    mirror.blob(content)
    with serve(tmp_path) as served:
        assert served.get("/healthz").status == 200  # now the server's loop has its own
        before = n_descriptors()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
                client.sendall(f"GET {blob(content)} HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())  # fmt: skip
                assert client.recv(1000)
        for _ in range(50):  # who is gone before the answer begins
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(f"GET {blob(content)} HTTP/1.1\r\nHost: localhost:{served.port}\r\n\r\n".encode())  # fmt: skip
        assert comes(lambda: "active_requests 1\n" in served.get("/metrics").body.decode())
        assert comes(lambda: n_descriptors() <= before + 1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def comes(is_so: Callable[[], bool], timeout_s: float = 30) -> bool:
    """Return whether something comes to be so."""
    end = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def n_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    head = f"GET {blob(CONFIG)} HTTP/1.1\r\nHost: localhost:{served.port}\r\n"
    sent = (head + "\r\n") * 5 + head + "Connection: close\r\n\r\n"
    found = b""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as client:
        client.sendall(sent.encode())
        while piece := client.recv(65536):
            found += piece
    assert found.count(b"HTTP/1.1 200") == found.count(CONFIG) == 6


INDEX_PAGES = [
    b"", b"\0", b"schema = 2\n", b"not toml", b"x = " + b"[" * 500, b'schema = 1\nname = "../evil"\n', bytes(range(256)),
]  # fmt: skip


@pytest.mark.parametrize("page", INDEX_PAGES)
def test_a_page_that_is_none_is_left_out(mirror: MirrorDirectory, page: bytes) -> None:
    mirror.file("index/default/models/evil.toml", page)
    mirror.file("locks/evil.lock", page)
    mirror.file("index/default/metadata/1.targets.json", page)
    with serve(mirror.root) as served:
        assert served.get(blob(CONFIG)).body == CONFIG
        assert served.get("/api/models/acme/check").status == 200
        assert any(line.startswith("warning") for line in served.log)
