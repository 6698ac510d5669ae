"""URLs and their bytes over HTTP; knows nothing of packages or models.

Invariants:
- A request carries our own few headers. Credentials are looked up for the exact origin of each
  hop (scheme, host, port), cookies are never kept, so nothing secret follows a redirect.
- At most five redirects, by hand; https never becomes http, and nothing becomes another scheme.
- Bytes are taken as the server stores them: a `Content-Encoding` is refused.
- A range is either answered by exactly that range or by the whole, and the reader knows which.
- No message shows what a URL may hide: user, password, query and fragment are left out.

Proxies, `.netrc` and certificate bundles are those that requests finds, where the settings name
none.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Self
from urllib.parse import unquote, urljoin

import requests
from requests.auth import HTTPBasicAuth
from requests.structures import CaseInsensitiveDict
from urllib3 import disable_warnings
from urllib3.exceptions import InsecureRequestWarning, LocationParseError, ReadTimeoutError
from urllib3.util import parse_url

import weightpkg
from weightpkg.errors import FetchError

if TYPE_CHECKING:
    from urllib3.util import Url

PIECE_SIZE = 256 * 1024
MAX_REDIRECTS = 5
_MAX_DELAY_S = 8.0
_REDIRECTS = {301, 302, 303, 307, 308}
_PASSING = {502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """What credentials are bound to."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportSettings:
    """How to reach servers; None is what requests does by itself."""

    timeout_s: float = 30.0
    retries: int = 3
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = field(default=None, repr=False)
    trusted_hosts: frozenset[str] = frozenset()
    credentials: Mapping[Origin, tuple[str, str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` up to but not including `end` of something that has `total`."""

    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class Body:
    """An open answer. `range` is None where the whole comes, `size` None where none is given.

    Iterating over `pieces` raises `FetchError` when the connection fails in the middle.
    """

    url: str
    size: int | None
    range: Range | None
    content_type: str
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Document:
    """A small answer, read whole; `url` is where it was found after redirects."""

    url: str
    content_type: str
    content: bytes


class _Session(requests.Session):
    """Leaves redirects alone: requests reads their bodies whole, also when told not to follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 part of the signature
        return None


class Transport:
    """Opens URLs, one session for all; close it, or use it in a `with` statement."""

    def __init__(
        self,
        settings: TransportSettings | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings = settings or TransportSettings()
        self._sleep = sleep
        self._session = _Session()
        self._session.headers = CaseInsensitiveDict(
            {"User-Agent": f"weightpkg/{weightpkg.__version__}", "Accept-Encoding": "identity"}
        )
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if self._settings.trusted_hosts:
            # asked for by name in the configuration; a warning at each request helps nobody
            disable_warnings(InsecureRequestWarning)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def document(self, url: str, *, max_bytes: int, accept: str = "*/*") -> Document:
        """Read a small document whole.

        Raises:
            FetchError: it cannot be had, or is larger than `max_bytes`.
        """
        with self.get(url, accept=accept) as body:
            content = bytearray()
            for piece in body.pieces:
                content += piece
                if len(content) > max_bytes:
                    raise _error(body.url, f"the answer is larger than {max_bytes:,} bytes")
            return Document(body.url, body.content_type, bytes(content))

    @contextmanager
    def get(
        self, url: str, *, start: int = 0, end: int | None = None, accept: str = "*/*"
    ) -> Iterator[Body]:
        """Open a URL, or ask for a range of it; a server may answer with the whole all the same.

        Raises:
            FetchError: it cannot be reached, is not there, or answers out of order.
        """
        headers = {"Accept": accept}
        if start or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        where, response = self._follow(url, headers)
        with response:
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _error(where, "the answer is compressed, though that was not asked for")
            found = _content_range(where, response, start, end) if "Range" in headers else None
            size = found.end - found.start if found else _content_length(response)
            content_type = response.headers.get("Content-Type", "")
            yield Body(where, size, found, content_type, self._pieces(where, response, size))

    def _follow(self, url: str, headers: Mapping[str, str]) -> tuple[str, requests.Response]:
        where, own_credentials = split_credentials(url)
        own_origin = origin(where)
        for _ in range(MAX_REDIRECTS + 1):
            credentials = self._settings.credentials.get(origin(where))
            if own_credentials and origin(where) == own_origin:
                credentials = own_credentials
            response = self._open(where, headers, credentials)
            if response.status_code not in _REDIRECTS:
                break
            response.close()
            where = _redirected(where, response.headers.get("Location", ""))
        else:
            raise _error(url, f"more than {MAX_REDIRECTS} redirects")
        if response.status_code not in ((200, 206) if "Range" in headers else (200,)):
            response.close()
            raise _status_error(where, response)
        return where, response

    def _open(
        self, url: str, headers: Mapping[str, str], credentials: tuple[str, str] | None
    ) -> requests.Response:
        attempt = 0
        while True:
            last = attempt == self._settings.retries
            try:
                response = self._request(url, headers, credentials)
            except OSError as error:  # of which requests' errors are a kind
                if last or not _may_pass(error):
                    self._raise(url, error)
            else:
                if last or response.status_code not in _PASSING:
                    return response
                response.close()
            self._sleep(min(0.5 * 2**attempt, _MAX_DELAY_S))
            attempt += 1

    def _request(
        self, url: str, headers: Mapping[str, str], credentials: tuple[str, str] | None
    ) -> requests.Response:
        settings = self._settings
        _, host, port = origin(url)
        trusted = settings.trusted_hosts & {host, f"{host}:{port}"}
        return self._session.get(
            url,
            headers=headers,
            auth=HTTPBasicAuth(*(part.encode() for part in credentials)) if credentials else None,
            timeout=settings.timeout_s,
            verify=False if trusted else settings.cert,
            cert=settings.client_cert,
            proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else None,
            allow_redirects=False,
            stream=True,
        )

    def _pieces(self, url: str, response: requests.Response, size: int | None) -> Iterator[bytes]:
        received = 0
        try:
            for piece in response.iter_content(PIECE_SIZE):
                received += len(piece)
                yield piece
        except requests.RequestException as error:
            self._raise(url, error)
        if size is not None and received != size:
            raise _error(url, f"the connection ended after {received:,} of {size:,} bytes")

    def _raise(self, url: str, error: OSError) -> NoReturn:
        reason, hint = _explain(error, self._settings.timeout_s)
        raise _error(url, reason, hint=hint) from error


def origin(url: str) -> Origin:
    """Return what credentials for this URL are bound to; `FetchError` where it is no web URL."""
    parts = _parse(url)
    if parts.scheme not in _DEFAULT_PORTS or not parts.host:
        raise FetchError(f"`{redacted(url)}` is not an http or https URL")
    return Origin(parts.scheme, parts.host.strip("[]"), parts.port or _DEFAULT_PORTS[parts.scheme])


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Part `https://user:password@host/` into the URL without them and the two, if given.

    Raises:
        FetchError: it is not a URL.
    """
    parts = _parse(url)
    if parts.auth is None:
        return url, None
    user, _, password = parts.auth.partition(":")
    return parts._replace(auth=None).url, (unquote(user), unquote(password))


def redacted(url: str) -> str:
    """Return the URL without user, password, query and fragment, for messages.

    >>> redacted("https://user:secret@example.org/m.gguf?token=secret")
    'https://example.org/m.gguf'
    """
    return _parse(url)._replace(auth=None, query=None, fragment=None).url


def _parse(url: str) -> Url:
    # the parser that requests uses: two parsers that disagree are a way around the rules above
    try:
        return parse_url(url)
    except LocationParseError as error:
        raise FetchError("there is a URL that cannot be read") from error


def _redirected(url: str, location: str) -> str:
    try:
        target, _ = split_credentials(urljoin(url, location))
        there = origin(target)
    except (ValueError, FetchError) as error:
        raise _error(url, "redirected to what is not a web address") from error
    if not location or (origin(url).scheme == "https" and there.scheme != "https"):
        raise _error(url, f"redirected to `{redacted(target)}`, which is not safe to follow")
    return target


def _content_length(response: requests.Response) -> int | None:
    if "Transfer-Encoding" in response.headers:
        return None  # it overrides any length: RFC 9112, 6.3
    text = response.headers.get("Content-Length", "")
    return int(text) if re.match(r"\d{1,19}\Z", text) else None


def _content_range(
    url: str, response: requests.Response, start: int, end: int | None
) -> Range | None:
    if response.status_code == 200:
        return None
    text = response.headers.get("Content-Range", "")
    if match := _CONTENT_RANGE.match(text):
        found = Range(int(match[1]), int(match[2]) + 1, int(match[3]))
        wanted_end = found.total if end is None else min(end, found.total)
        if found.start == start < found.end == wanted_end:
            return found
    raise _error(url, f"asked for bytes from {start:,}, the answer is for `{text[:100]}`")


def _error(url: str, reason: str, *, hint: str | None = None) -> FetchError:
    return FetchError(f"`{redacted(url)}`: {reason}", hint=hint)


def _status_error(url: str, response: requests.Response) -> FetchError:
    status = response.status_code
    hint = None
    if status in (401, 403, 407):
        hint = "credentials may be missing: write them in `.netrc` or in pip's configuration"
    return _error(url, f"HTTP {status} {response.reason or ''}".rstrip(), hint=hint)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        inner = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = cause.__cause__ or cause.__context__ or inner


def _may_pass(error: OSError) -> bool:
    lasting = (ssl.SSLError, socket.gaierror)
    passing = isinstance(error, requests.ConnectionError | requests.Timeout)
    return passing and not any(isinstance(cause, lasting) for cause in _causes(error))


def _explain(error: OSError, timeout_s: float) -> tuple[str, str | None]:
    """Say what went wrong and what to do about it, from the most telling of the causes."""
    causes = tuple(_causes(error))

    def is_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if not isinstance(error, requests.RequestException):
        return str(error), "`cert` and `client-cert` in pip's configuration may name no file"
    network = "check the network connection, and the proxy if there is one"
    if is_by(requests.exceptions.ProxyError):
        return "the proxy cannot be reached or refused", network
    if is_by(socket.gaierror):
        return "the name of the host cannot be resolved", network
    if is_by(ssl.SSLError, requests.exceptions.SSLError):
        told = next((str(cause) for cause in causes if isinstance(cause, ssl.SSLError)), "")
        hint = "if the network has its own certificate authority, name it in pip's `cert`"
        return f"no secure connection (TLS): {told}".rstrip(": "), hint
    if is_by(ConnectionRefusedError):
        return "the connection was refused", network
    if is_by(requests.Timeout, TimeoutError, ReadTimeoutError):
        return f"no answer within {timeout_s:g} seconds", network
    if is_by(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        system = (cause.strerror for cause in causes if isinstance(cause, OSError))
        told = next(filter(None, system), "it was closed too early")
        return f"the connection broke: {told}", network
    return "it is not a URL that can be fetched, or the answer is not HTTP", None
