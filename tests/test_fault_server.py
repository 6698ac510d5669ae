from __future__ import annotations

import hashlib
import http.client
import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import pytest
import requests

from fault_server import FAULTS, FaultServer, fault_server
from faults.heads import RETRY_AFTER
from plain_client import Answer, Download, End, ask

CONTENT = random.Random(0).randbytes(300_000)
SIZE = len(CONTENT)
HALF = SIZE // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SLOW_S = 0.5
ETAG = f'"{SHA256}"'


def patience_s(fault: str) -> float:
    """Return how long to wait for an answer, so that only those that never come are waited for."""
    is_slow = any(word in fault for word in ("stall", "drip", "continue-endless"))
    return SLOW_S if is_slow else 10


@pytest.fixture(scope="module")
def running() -> Iterator[FaultServer]:
    with fault_server(CONTENT) as server:
        yield server


@pytest.fixture
def server(running: FaultServer) -> FaultServer:
    running.reset()
    return running


def test_serves_the_whole(server: FaultServer) -> None:
    answer = requests.get(server.url("none"), timeout=5)
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["Content-Length"] == str(SIZE)
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        pytest.param("bytes=0-0", 0, 1, id="first byte"),
        pytest.param("bytes=1000-1999", 1000, 2000, id="middle"),
        pytest.param("bytes=1000-", 1000, SIZE, id="open end"),
        pytest.param("bytes=1000-999999999", 1000, SIZE, id="past the end"),
        pytest.param("bytes=-10", SIZE - 10, SIZE, id="last bytes"),
        pytest.param("bytes=-999999999", 0, SIZE, id="more last bytes than there are"),
    ],
)
def test_serves_a_range(server: FaultServer, wanted: str, start: int, end: int) -> None:
    answer = requests.get(server.url("none"), headers={"Range": wanted}, timeout=5)
    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{SIZE}"
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize("wanted", ["bytes=9-3", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "1-2"])
def test_takes_no_notice_of_a_range_it_does_not_know(server: FaultServer, wanted: str) -> None:
    answer = requests.get(server.url("none"), headers={"Range": wanted}, timeout=5)
    assert (answer.status_code, answer.content) == (200, CONTENT)


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_has_nothing_beyond_the_end(server: FaultServer, wanted: str) -> None:
    answer = requests.get(server.url("none"), headers={"Range": wanted}, timeout=5)
    assert (answer.status_code, answer.content) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize(
    ("fault", "condition", "status"),
    [
        pytest.param("none", ETAG, 206, id="the same"),
        pytest.param("none", '"other"', 200, id="another"),
        pytest.param("none", f"W/{ETAG}", 200, id="weak"),
        pytest.param("none", "Thu, 01 Jan 1970 00:00:00 GMT", 200, id="date"),
        pytest.param("etag-weak", f"W/{ETAG}", 200, id="weak, and the server's too"),
        pytest.param("etag-none", ETAG, 200, id="of a server that has none"),
    ],
)
def test_honours_if_range(server: FaultServer, fault: str, condition: str, status: int) -> None:
    ask(server.url(fault))
    answer = ask(server.url(fault), headers={"Range": "bytes=5-9", "If-Range": condition})
    assert answer.status == status
    assert answer.body == (CONTENT[5:10] if status == 206 else CONTENT)


def test_answers_head_as_get_without_the_body(server: FaultServer) -> None:
    head = requests.head(server.url("none"), timeout=5)
    assert (head.status_code, head.headers["Content-Length"]) == (200, str(SIZE))
    assert (head.headers["ETag"], server.sent) == (ETAG, 0)


def test_keeps_a_connection(server: FaultServer) -> None:
    parts = urlsplit(server.url("none"))
    connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    connection.connect()
    first = connection.sock.getsockname()
    for method in ("GET", "HEAD", "GET"):
        connection.request(method, parts.path)
        assert connection.getresponse().read() == (b"" if method == "HEAD" else CONTENT)
        assert connection.sock.getsockname() == first
    connection.close()


def test_counts_bytes_and_records_requests(server: FaultServer) -> None:
    ask(server.url("none"), headers={"Range": "bytes=10-19", "X-Asked": "yes"})
    ask(server.url("none"), method="HEAD")
    assert server.sent == 10
    assert [request.method for request in server.requests] == ["GET", "HEAD"]
    assert server.requests[0].path == "/none/model.gguf"
    assert server.requests[0].headers["x-asked"] == "yes"
    server.reset()
    assert (server.sent, server.requests) == (0, [])


def test_each_url_has_its_own_state(server: FaultServer) -> None:
    for fault in ("truncated-once", "reset-once"):
        assert [ask(server.url(fault)).end == "whole" for _ in range(3)] == [False, True, True]
    server.reset()
    assert ask(server.url("truncated-once")).end == "closed"


def test_knows_no_other_urls(server: FaultServer) -> None:
    with pytest.raises(KeyError):
        server.url("truncatd")
    assert ask(server.root + "/truncatd/model.gguf").status == 404
    assert ask(server.root + "/").status == 404


def cut(end: End, n_bytes: int = HALF) -> Callable[[Answer], bool]:
    return lambda answer: (answer.end, answer.body) == (end, CONTENT[:n_bytes])


def empty(end: End, status: int = 200) -> Callable[[Answer], bool]:
    return lambda answer: (answer.end, answer.status, answer.body) == (end, status, b"")


def wrong(body: bytes) -> Callable[[Answer], bool]:
    return lambda answer: (answer.status, answer.end, answer.body) == (200, "whole", body)


def header(name: str, told: str | None) -> Callable[[Answer], bool]:
    return lambda answer: answer.headers.get(name) == told


FIRST: dict[str, Callable[[Answer], bool]] = {
    "truncated": cut("closed"),
    "truncated-once": cut("closed"),
    "truncated-without-length": cut("whole"),
    "truncated-chunk": cut("closed"),
    "bad-chunk-size": cut("nonsense"),
    "reset": cut("reset"),
    "stall": cut("timeout"),
    "stall-after-head": empty("timeout"),
    "stall-before-answer": empty("timeout", 0),
    "empty-reply": empty("closed", 0),
    "truncated-head": lambda answer: answer.end == "closed" and "etag" in answer.headers,
    "pieces": cut("closed", 64 * 1024),
    "chunked": lambda answer: answer.body == CONTENT and "content-length" not in answer.headers,
    "last-chunk-missing-once": cut("closed", SIZE),
    "length-too-small": cut("whole"),
    "length-too-large": cut("closed", SIZE),
    "length-negative": header("content-length", "-1"),
    "extra-bytes-without-length": wrong(CONTENT + bytes(1000)),
    "longer-file": wrong(CONTENT + bytes(1000)),
    "shorter-file": wrong(CONTENT[:-1]),
    "empty-file": wrong(b""),
    "endless": lambda answer: answer.end == "too long" and not any(answer.body),
    "etag-weak": header("etag", f"W/{ETAG}"),
    "etag-none": header("etag", None),
    "gzip": lambda answer: answer.body[:2] == b"\x1f\x8b",
    "gzip-claimed": header("content-encoding", "gzip"),
    "login-page": header("content-type", "text/html"),
    "429-seconds": header("retry-after", "1"),
    "503-negative": header("retry-after", "-5"),
    "503-huge": header("retry-after", "1000000000"),
    "503-garbage": header("retry-after", "soon"),
    "503-past-date": header("retry-after", "Thu, 01 Jan 1970 00:00:00 GMT"),
    "redirect": header("location", "hop1"),
    "redirect-loop": header("location", "model.gguf"),
    "redirect-to-file": header("location", "file:///etc/hostname"),
    "100-continue-endless": empty("timeout", 100),
    "head-endless": empty("too long"),
    "head-of-many-lines": empty("too long"),
    "head-with-long-line": empty("too long"),
    "drip-head": empty("timeout", 0),
    "drip-body": cut("timeout", 1),
    "http-0.9": lambda answer: not answer.status,
    "http-1.0": lambda answer: answer.status_line == "HTTP/1.0 200 OK" and answer.body == CONTENT,
    "status-garbage": lambda answer: answer.status_line == "200 HTTP",
}


@pytest.mark.parametrize("fault", FIRST)
def test_goes_wrong_in_its_first_answer(server: FaultServer, fault: str) -> None:
    answer = ask(server.url(fault), timeout_s=patience_s(fault), max_bytes=2 * SIZE)
    assert FIRST[fault](answer), (answer.status_line, answer.headers, len(answer.body), answer.end)
    assert not FIRST[fault](ask(server.url("none"))), "the check finds fault with a right answer"


RANGED: dict[str, tuple[str | None, bytes]] = {
    "range-wrong-start": (f"bytes 1001-1999/{SIZE}", CONTENT[1001:2000]),
    "range-overlapping": (f"bytes 0-1999/{SIZE}", CONTENT[:2000]),
    "range-too-short": (f"bytes 1000-1499/{SIZE}", CONTENT[1000:1500]),
    "range-mislabelled": (f"bytes 1000-1999/{SIZE}", CONTENT[1001:2001]),
    "range-wrong-total": (f"bytes 1000-1999/{SIZE}0", CONTENT[1000:2000]),
    "range-wrong-unit": (f"lines 1000-1999/{SIZE}", CONTENT[1000:2000]),
    "range-without-total": ("bytes 1000-1999/*", CONTENT[1000:2000]),
    "range-unnamed": (None, CONTENT[1000:2000]),
    "range-as-whole": (None, CONTENT[1000:2000]),
    "range-ignored": (None, CONTENT),
    "range-refused": (f"bytes */{SIZE}", b""),
    "part-unasked": (f"bytes 0-{SIZE - 1}/{SIZE}", CONTENT),
}


@pytest.mark.parametrize("fault", RANGED)
def test_goes_wrong_in_its_answer_to_a_range(server: FaultServer, fault: str) -> None:
    ask(server.url(fault))
    answer = ask(server.url(fault), headers={"Range": "bytes=1000-1999"})
    assert (answer.headers.get("content-range"), answer.body) == RANGED[fault]
    assert answer.status == {"range-refused": 416, "range-as-whole": 200}.get(
        fault, 200 if fault == "range-ignored" else 206
    )


def test_answers_a_range_in_several_parts(server: FaultServer) -> None:
    answer = ask(server.url("range-multipart"), headers={"Range": "bytes=1000-1999"})
    assert answer.headers["content-type"].startswith("multipart/byteranges")
    assert answer.body.startswith(b"--edge\r\nContent-Range: bytes 1000-1999/")
    assert CONTENT[1000:2000] in answer.body


def test_the_etag_changes_and_the_bytes_do_not(server: FaultServer) -> None:
    answers = [ask(server.url("etag-changes")) for _ in range(3)]
    assert [answer.headers["etag"] for answer in answers] == ['"0"', '"1"', '"2"']
    assert answers[1].body == answers[2].body == CONTENT


def test_bytes_are_wrong_under_the_right_etag(server: FaultServer) -> None:
    for fault, n_wrong in (("corrupt-byte", 1), ("other-file", SIZE), ("corrupt-byte-once", 1)):
        answer = ask(server.url(fault))
        assert answer.headers["etag"] == ETAG
        pairs = zip(answer.body, CONTENT, strict=True)
        assert sum(found != right for found, right in pairs) == n_wrong
    assert ask(server.url("corrupt-byte-once")).body == CONTENT


def test_bytes_differ_between_ranges(server: FaultServer) -> None:
    url, headers = server.url("differs-each-time"), {"Range": "bytes=1000-1999"}
    bodies = {ask(url, headers=headers).body for _ in range(3)}
    assert len(bodies) == 3


def test_the_file_is_replaced_after_half_of_it(server: FaultServer) -> None:
    old = ask(server.url("file-replaced"))
    assert (old.end, len(old.body), old.headers["etag"]) == ("closed", HALF, '"old"')
    wanted = {"Range": f"bytes={HALF}-"}
    blind = ask(server.url("file-replaced"), headers=wanted)
    assert (blind.status, blind.body) == (206, CONTENT[HALF:])
    asking = ask(server.url("file-replaced"), headers=wanted | {"If-Range": '"old"'})
    assert (asking.status, asking.body) == (200, CONTENT)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name.endswith("-once")])
def test_goes_wrong_once(server: FaultServer, fault: str) -> None:
    url = server.url(fault)
    with suppress(requests.RequestException):
        assert requests.get(url, timeout=SLOW_S).content != CONTENT
    assert requests.get(url, timeout=5).content == CONTENT


@pytest.mark.parametrize("fault", [f"{code}-{told}" for code in (429, 503) for told in RETRY_AFTER])
def test_is_ready_after_two_requests(server: FaultServer, fault: str) -> None:
    code = int(fault[:3])
    answers = [ask(server.url(fault)) for _ in range(3)]
    assert [answer.status for answer in answers] == [code, code, 200]
    assert ["retry-after" in answer.headers for answer in answers] == [True, True, False]


def test_says_when_to_come_again(server: FaultServer) -> None:
    date = parsedate_to_datetime(ask(server.url("503-date")).headers["retry-after"])
    assert -1 <= date.timestamp() - time.time() <= 2


def test_redirects_twenty_times(server: FaultServer) -> None:
    answer = requests.get(server.url("redirect-20-hops"), timeout=5)
    assert (len(answer.history), answer.content) == (20, CONTENT)


def test_says_interim_answers_first(server: FaultServer) -> None:
    parts = urlsplit(server.url("100-continue"))
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\n\r\n".encode())
        assert connection.recv(75, socket.MSG_WAITALL) == b"HTTP/1.1 100 Continue\r\n\r\n" * 3
        assert connection.recv(15, socket.MSG_WAITALL) == b"HTTP/1.1 200 OK"


def raw(url: str) -> tuple[bytes, bytes]:
    """Return all that comes until the server closes: the head, and what is behind it."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\n\r\n".encode())
        head, _, rest = b"".join(iter(lambda: connection.recv(64 * 1024), b"")).partition(
            b"\r\n\r\n"
        )
    return head, rest


@pytest.mark.parametrize(
    ("fault", "headers", "rest"),
    [
        ("extra-bytes", [f"Content-Length: {SIZE}"], CONTENT + bytes(1000)),
        ("length-garbage", [f"Content-Length: {SIZE} bytes"], CONTENT),
        ("two-lengths", [f"Content-Length: {SIZE}", f"content-length: {HALF}"], CONTENT),
        (
            "chunks-and-length",
            ["Transfer-Encoding: chunked", f"Content-Length: {HALF}"],
            b"%x\r\n%b\r\n0\r\n\r\n" % (SIZE, CONTENT),
        ),
        ("closes-unsaid", [f"Content-Length: {SIZE}"], CONTENT),
    ],
)
def test_lies_about_the_end(
    server: FaultServer, fault: str, headers: list[str], rest: bytes
) -> None:
    head, behind = raw(server.url(fault))
    assert set(headers) <= set(head.decode().split("\r\n"))
    assert b"Connection" not in head
    assert behind == rest


def test_goes_on_after_the_content(server: FaultServer) -> None:
    answer = ask(server.url("endless-after-content"), max_bytes=2 * SIZE)
    assert answer.end == "too long"
    assert answer.body[:SIZE] == CONTENT


def test_a_head_request_is_lied_to_or_refused(server: FaultServer) -> None:
    assert ask(server.url("head-request-lied-to"), method="HEAD").headers["content-length"] == "7"
    assert ask(server.url("head-request-refused"), method="HEAD").status == 405


def test_there_are_many_faults() -> None:
    assert len(FAULTS) >= 36
    assert {fault.outcome for fault in FAULTS.values()} == {"succeeds", "fails", "either"}
    assert all(fault.name == name for name, fault in FAULTS.items())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_good_client_ends_as_the_table_says(server: FaultServer, fault: str) -> None:
    found = Download(server.url(fault), SIZE, SHA256, timeout_s=patience_s(fault)).run()
    ends: dict[str, list[bytes | None]] = {"succeeds": [CONTENT], "fails": [None]}
    assert found in ends.get(FAULTS[fault].outcome, [CONTENT, None])


def test_survives_clients_that_hang_up(server: FaultServer) -> None:
    parts = urlsplit(server.root)
    for said in (
        b"",
        b"GET",
        b"GET /endless/x HTTP/1.1\r\nHos",
        b"GET /endless/x HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.sendall(said)
    for said in (b"\r\n\r\n", b"\xff\x00 nonsense\r\n\r\n", b"GET\r\n\r\n"):
        with socket.create_connection((parts.hostname, parts.port)) as connection:
            connection.settimeout(5)
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(1)
    assert ask(server.url("none")).body == CONTENT


def test_sends_no_more_to_a_client_that_has_hung_up() -> None:
    with fault_server(CONTENT) as server:
        ask(server.url("endless"), max_bytes=SIZE)
        deadline = time.monotonic() + 5
        while server.n_connections and time.monotonic() < deadline:
            time.sleep(0.001)
        assert server.n_connections == 0
        assert server.sent > SIZE


@pytest.mark.parametrize(
    "fault",
    [
        "stall",
        "stall-before-answer",
        "drip-body",
        "drip-head",
        "endless",
        "100-continue-endless",
        "none",
    ],
)
def test_waits_for_nobody_when_it_is_closed(fault: str) -> None:
    with fault_server(CONTENT, drip_s=100) as server:
        parts = urlsplit(server.url(fault))
        connection = socket.create_connection((parts.hostname, parts.port))
        connection.sendall(f"GET {parts.path} HTTP/1.1\r\n\r\n".encode())
        while not server.requests:
            time.sleep(0.001)
        started = time.monotonic()
    assert time.monotonic() - started < 1
    connection.close()


def test_bytes_drip(server: FaultServer) -> None:
    with fault_server(CONTENT, drip_s=0.01) as fast:
        answer = ask(fast.url("drip-body"), timeout_s=SLOW_S)
    assert answer.end == "timeout"
    assert 1 < len(answer.body) <= 51
