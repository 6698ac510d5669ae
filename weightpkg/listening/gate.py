"""Who may ask: only by a name of this server, not for another site's page, and with the key.

A page of any site can have its name lead to 127.0.0.1 (DNS rebinding) and so read what is served to
this machine alone; so `Host` must be a name that is known to be ours.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::(?P<port>\d{1,5}))?\Z", re.IGNORECASE)  # fmt: skip


class NotLetInError(Exception):
    """A request that is not let in; `status` of HTTP, and headers that belong to it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Gate:
    """What requests are let in.

    names: what the server is called beside loopback names, at any port (a proxy may have another).
    is_open: whether it listens beyond loopback, so that any IP address may be its name.
    key: what clients must know; None where nobody needs one.
    origins: of other sites whose pages may ask, such as `https://chat.example`.
    """

    port: int
    names: frozenset[str] = frozenset()
    is_open: bool = False
    key: str | None = None
    origins: frozenset[str] = frozenset()

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Refuse what a page of another site could have a browser send.

        Raises:
            NotLetInError: 403.
        """
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            raise NotLetInError(403, "the request's Host is not a name of this server")
        told = {name: value.decode("latin-1") for name, value in headers}
        origin = told.get(b"origin")
        if origin in self.origins:
            return
        is_cross = told.get(b"sec-fetch-site") in {"cross-site", "same-site"}
        if is_cross or (origin is not None and not self._is_own_origin(origin)):
            raise NotLetInError(403, "requests of other sites' pages are refused")

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse who does not have the key, if there is one.

        It comes as `Authorization: Bearer KEY`, or as the password of `Basic`.

        Raises:
            NotLetInError: 401.
        """
        if self.key is None:
            return
        told = _key_of(headers.get("authorization", ""))
        if not hmac.compare_digest(told.encode(), self.key.encode()):
            headers = {"WWW-Authenticate": 'Bearer realm="weightpkg"'}
            raise NotLetInError(401, "the key is missing or wrong", headers)

    def _is_own_origin(self, origin: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in {"http", "https"} and self._is_ours(parts.netloc)

    def _is_ours(self, host: str) -> bool:
        match = _HOST.match(host)
        if match is None:
            return False
        name, port = match["name"].lower(), int(match["port"] or 80)
        if name in self.names:
            return True
        return port == self.port and (name in _LOOPBACK or (self.is_open and _is_address(name)))


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
