"""Who may ask: names of this server in `Host`, nobody sent by another site, and who has the key.

A page of any site can have its name lead to 127.0.0.1 (DNS rebinding) and so read what is served to
this machine alone; so `Host` must be a name that is known to be ours.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightpkg.mirror_server.reply import RefusedError

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?\Z", re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gate:
    """What requests are let in.

    names: what the server is called beside loopback names, at any port (a proxy may have another).
    is_open: whether it listens beyond loopback, so that any IP address may be its name: no site can
        have a browser send one that is not the address that it connects to.
    key: what clients must know; None where nobody needs one.
    """

    port: int
    names: frozenset[str] = frozenset()
    is_open: bool = False
    key: str | None = None

    def check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Raise RefusedError for a request that must not be let in.

        Args:
            headers: all of them, names in lower case.
        """
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise RefusedError(403, "the request's Host is not a name of this server")
        told = {name: value.decode("latin-1") for name, value in headers}
        if b"origin" in told or told.get(b"sec-fetch-site") in {"cross-site", "same-site"}:
            raise RefusedError(403, "requests of other sites' pages are refused")

    def _is_ours(self, host: str) -> bool:
        match = _HOST.match(host)
        if match is None:
            return False
        name, port = match["name"].lower(), int(match["port"] or 80)
        if name in self.names:
            return True
        return port == self.port and (name in _LOOPBACK or (self.is_open and _is_address(name)))

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Raise RefusedError unless the request has the key, if there is one.

        It comes as `Authorization: Bearer KEY`, as clients of the hub send tokens, or as the
        password of `Basic`.
        """
        if self.key is None:
            return
        told = headers.get("authorization", "")
        if not hmac.compare_digest(_key_of(told).encode(), self.key.encode()):
            raise RefusedError(
                401,
                "Invalid credentials in Authorization header",
                headers={"WWW-Authenticate": 'Bearer realm="mirror"'},
            )


def _key_of(told: str) -> str:
    scheme, _, text = told.partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(text.strip(), validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def is_loopback(address: str) -> bool:
    """Whether an address is reached from this machine alone; a name is not, but for `localhost`."""
    try:
        return address == "localhost" or ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
