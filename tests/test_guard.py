"""Who may ask a server of this machine: every Host by every Origin by every way to listen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import MutableMapping
from typing import Any

import pytest

from weightpkg.listening.gate import Gate, NotLetInError, is_loopback
from weightpkg.server import guard as guard_module
from weightpkg.server.counters import Counters
from weightpkg.server.guard import MAX_BODY, Guard

PORT = 8000
GATES = {
    "loopback": Gate(port=PORT),
    "behind a proxy": Gate(port=PORT, names=frozenset({"models.example"})),
    "open": Gate(port=PORT, names=frozenset({"box"}), is_open=True, key="k" * 16),
}
# Host: the gates that know it
HOSTS = {
    f"localhost:{PORT}": set(GATES),
    f"127.0.0.1:{PORT}": set(GATES),
    f"[::1]:{PORT}": set(GATES),
    f"LocalHost:{PORT}": set(GATES),
    "localhost": set(),
    f"localhost:{PORT + 1}": set(),
    f"evil.example:{PORT}": set(),
    f"localhost.evil.example:{PORT}": set(),
    f"192.168.1.7:{PORT}": {"open"},
    "models.example": {"behind a proxy"},
    f"box:{PORT}": {"open"},
    f"localhost:{PORT}@evil.example": set(),
    "": set(),
}
ORIGINS = {
    None: True,
    f"http://localhost:{PORT}": True,
    f"http://127.0.0.1:{PORT}": True,
    "http://localhost:3000": False,
    "https://evil.example": False,
    "null": False,
    f"http://localhost:{PORT}.evil.example": False,
    "file://": False,
    "http://[": False,
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("host", HOSTS)
def test_every_host_and_origin(gate: str, host: str, origin: str | None) -> None:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    if gate in HOSTS[host] and ORIGINS[origin]:
        GATES[gate].check(headers)
    else:
        with pytest.raises(NotLetInError) as caught:
            GATES[gate].check(headers)
        assert caught.value.status == 403


def test_no_host_two_hosts_and_other_sites_fetches() -> None:
    own = (b"host", f"localhost:{PORT}".encode())
    for headers in ([], [own, own], [own, (b"sec-fetch-site", b"cross-site")]):
        with pytest.raises(NotLetInError):
            GATES["loopback"].check(headers)
    GATES["loopback"].check([own, (b"sec-fetch-site", b"same-origin")])


def test_another_site_may_be_let_in() -> None:
    gate = Gate(port=PORT, origins=frozenset({"https://chat.example"}))
    own = (b"host", f"localhost:{PORT}".encode())
    gate.check([own, (b"origin", b"https://chat.example")])
    with pytest.raises(NotLetInError):
        gate.check([own, (b"origin", b"https://chat.example.org")])


@pytest.mark.parametrize(
    ("told", "is_known"),
    [
        (f"Bearer {'k' * 16}", True),
        (f"bearer {'k' * 16}", True),
        ("", False),
        (f"Bearer {'k' * 15}", False),
        (f"Basic {'k' * 16}", False),
        ("Basic dTpra2tra2tra2tra2tra2tr", True),  # u:kkkkkkkkkkkkkkkk
        ("Bearer \xff", False),
    ],
)
def test_the_key(told: str, *, is_known: bool) -> None:
    if is_known:
        GATES["open"].check_key({"authorization": told})
        return
    with pytest.raises(NotLetInError) as caught:
        GATES["open"].check_key({"authorization": told})
    assert caught.value.status == 401


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost", "127.8.9.1"])
def test_loopback_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "box", "10.0.0.1"])  # noqa: S104  nothing listens there
def test_other_addresses(address: str) -> None:
    assert not is_loopback(address)


Message = MutableMapping[str, Any]


def post(
    *parts: bytes, gate: Gate = GATES["loopback"], wait_s: float = 0, **headers: str
) -> tuple[int, dict[str, Any], list[str]]:
    """Send a body in parts; return status, body, and the lines that were logged."""
    told = {"host": f"localhost:{PORT}", "content-type": "application/json", **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/x",
        "headers": [
            (name.replace("_", "-").encode(), value.encode()) for name, value in told.items()
        ],
    }
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Message] = []
    lines: list[str] = []

    async def receive() -> Message:
        await asyncio.sleep(wait_s)
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    async def app(scope: Message, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        answer = json.dumps({"size": len(body)}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    guard = Guard(app, gate, Counters(), lines.append)
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"]), lines


def test_a_body_arrives_whole_and_is_not_logged() -> None:
    status, body, lines = post(b'{"secret":', b'"1234"}')
    assert (status, body["size"]) == (200, 17)
    assert "secret" not in lines[0]
    assert json.loads(lines[0])["status"] == 200


def test_bodies_that_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert post(b"{}", content_type="text/plain")[0] == 415
    assert post(b"{}", content_length=str(MAX_BODY + 1))[0] == 413
    assert post(b"{}", content_length="-1")[0] == 413
    assert post(*[bytes(1 << 20)] * 9)[0] == 413  # chunked, so that no length is told
    assert post(b"[" * 33 + b"]" * 33)[0] == 400
    assert post(b'["' + b"[{" * 500 + b'"]')[0] == 200  # within a text
    monkeypatch.setattr(guard_module, "BODY_TIMEOUT_S", 0.05)
    assert post(b"{", b"}", wait_s=0.04)[0] == 408


def test_refusals_are_in_openai_s_form_and_need_no_body() -> None:
    status, body, _ = post(b"{}", gate=GATES["open"])
    assert status == 401
    assert body["error"]["code"] == "invalid_api_key"
    assert post(b"{}", gate=GATES["open"], authorization="Bearer " + "k" * 16)[0] == 200
    assert post(b"{}", host="evil.example")[0] == 403
