"""URLs and their bytes over HTTP; knows nothing of packages or models.

Invariants:
- A request carries our own few headers. Credentials are looked up for the exact origin of each
  hop (scheme, host, port), cookies are never kept, so nothing secret follows a redirect.
- At most five redirects, by hand; https never becomes http, and nothing becomes another scheme.
- Bytes are taken as the server stores them: a `Content-Encoding` is refused.
- A range is either answered by that range, or the beginning of it, or by the whole, and the reader
  knows which.
- Nothing waits for ever: whoever sends less than `MIN_SPEED` for a time-out's length, in headers
  too, is cut off.
- No message shows what a URL may hide: user, password, query and fragment are left out.

Proxies, `.netrc` and certificate bundles are those that requests finds, where the settings name
none.
"""

from __future__ import annotations

import random
import re
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from threading import Event
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.parse import unquote, urljoin

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.structures import CaseInsensitiveDict
from urllib3 import disable_warnings
from urllib3.exceptions import (
    HTTPError,
    InsecureRequestWarning,
    LocationParseError,
    ReadTimeoutError,
)
from urllib3.util import parse_url

import weightpkg
from weightpkg.errors import FetchError
from weightpkg.sources import PIECE_SIZE
from weightpkg.sources.watchdog import Watchdog, WatchedAdapter

if TYPE_CHECKING:
    from urllib3.util import Url

MAX_REDIRECTS = 5
MIN_SPEED = 1024
"""Bytes a second."""
MAX_CONNECTIONS = 64
MAX_DELAY_S = 60.0
_FIRST_DELAY_S = 0.5
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {429, 503}
_PASSING = {408, 500, 502, 504} | _BUSY
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class PassingError(FetchError):
    """Something went wrong that may go right next time; `retry_after_s` is what the server asks."""

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        retry_after_s: float | None = None,
        is_busy: bool = False,
    ) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s
        self.is_busy = is_busy


class HTTPStatusError(FetchError):
    """The answer is an error; `code` is what the server calls it in `X-Error-Code`, or empty."""

    def __init__(self, message: str, *, hint: str | None, status: int, code: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code


class Origin(NamedTuple):
    """What credentials are bound to."""

    scheme: str
    host: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportSettings:
    """How to reach servers; None is what requests does by itself.

    credentials: user and password by origin.
    tokens: bearer tokens by origin.
    is_anonymous: whether nobody is told who asks, whatever `.netrc` has.
    """

    timeout_s: float = 30.0
    retries: int = 3
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = field(default=None, repr=False)
    trusted_hosts: frozenset[str] = frozenset()
    credentials: Mapping[Origin, tuple[str, str]] = field(default_factory=dict, repr=False)
    tokens: Mapping[Origin, str] = field(default_factory=dict, repr=False)
    is_anonymous: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes `start` up to but not including `end` of something that has `total`."""

    start: int
    end: int
    total: int


@dataclass(frozen=True, slots=True)
class Body:
    """An open answer.

    size: bytes that will come, None where the server does not say.
    range: which of the whole they are, None where all of it comes.
    etag: the server's name for these very bytes, None where it gives none.
    is_strong: whether the same `etag` means the same bytes.
    next_url: where it says that more of it is (RFC 8288, `rel="next"`).
    pieces: raises `PassingError` when the connection fails in the middle.
    """

    url: str
    size: int | None
    range: Range | None
    etag: str | None
    is_strong: bool
    content_type: str
    next_url: str | None
    pieces: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Document:
    """A small answer, read whole.

    url: where it was found after redirects.
    next_url: where it says that more of it is, None where it says nothing.
    """

    url: str
    content_type: str
    content: bytes
    next_url: str | None = None


class _Session(requests.Session):
    """Leaves redirects alone: requests reads their bodies whole, also when told not to follow."""

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 part of the signature
        return None


class _Bearer(AuthBase):
    """Sets a token's header; as an `auth`, it keeps requests from looking into `.netrc`."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = f"Bearer {self._token}"
        return r


class _Nobody(AuthBase):
    """Sets nothing; as an `auth`, it keeps requests from looking into `.netrc`."""

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        return r


class Transport:
    """Opens URLs, one session for all threads; close it, or use it in a `with` statement."""

    def __init__(self, settings: TransportSettings | None = None) -> None:
        self.settings = settings or TransportSettings()
        self._closing = Event()
        self._watchdog = Watchdog()
        self._session = _Session()
        adapter = WatchedAdapter(self._watchdog, self.settings.timeout_s, MAX_CONNECTIONS)
        for scheme in _DEFAULT_PORTS:
            self._session.mount(f"{scheme}://", adapter)
        self._session.headers = CaseInsensitiveDict(
            {"User-Agent": f"weightpkg/{weightpkg.__version__}", "Accept-Encoding": "identity"}
        )
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        if self.settings.trusted_hosts:
            # asked for by name in the configuration; a warning at each request helps nobody
            disable_warnings(InsecureRequestWarning)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections, and wake who waits for another attempt."""
        self._closing.set()
        self._watchdog.close()
        self._session.close()

    def document(self, url: str, *, max_bytes: int, accept: str = "*/*") -> Document:
        """Read a small document whole, in as many attempts as the settings allow.

        Raises:
            FetchError: it cannot be had, or is larger than `max_bytes`.
        """
        patience = Patience(self)
        while True:
            try:
                return self._document(url, max_bytes, accept)
            except PassingError as error:
                patience.wait(error)

    def _document(self, url: str, max_bytes: int, accept: str) -> Document:
        with self.get(url, accept=accept) as body:
            content = bytearray()
            for piece in body.pieces:
                content += piece
                if len(content) > max_bytes:
                    raise _error(body.url, f"the answer is larger than {max_bytes:,} bytes")
            return Document(body.url, body.content_type, bytes(content), body.next_url)

    def sleep(self, seconds: float) -> None:
        """Wait before another attempt; not after `close`.

        Raises:
            FetchError: the transport was closed meanwhile.
        """
        if self._closing.wait(seconds):
            raise FetchError("interrupted")

    @contextmanager
    def get(
        self,
        url: str,
        *,
        start: int = 0,
        end: int | None = None,
        accept: str = "*/*",
    ) -> Iterator[Body]:
        """Open a URL, or ask for a range of it, once.

        A server may answer a range with less of it, or with the whole.

        Args:
            url: an http or https URL; user and password in it are used for its origin only.
            start: the first byte.
            end: the byte after the last; all that follow, if not given.
            accept: the types that will do.

        Raises:
            PassingError: it may work another time.
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
            etag = response.headers.get("ETag")
            yield Body(
                url=where,
                size=size,
                range=found,
                etag=etag.removeprefix("W/") if etag else None,
                is_strong=bool(etag) and not str(etag).startswith("W/"),
                content_type=response.headers.get("Content-Type", ""),
                next_url=_next_url(where, response),
                pieces=self._pieces(where, response, size),
            )

    def _follow(self, url: str, headers: Mapping[str, str]) -> tuple[str, requests.Response]:
        where, own_credentials = split_credentials(url)
        own_origin = origin(where)
        for _ in range(MAX_REDIRECTS + 1):
            credentials = self.settings.credentials.get(origin(where))
            if own_credentials and origin(where) == own_origin:
                credentials = own_credentials
            response = self._request(where, headers, credentials)
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

    def _request(
        self, url: str, headers: Mapping[str, str], credentials: tuple[str, str] | None
    ) -> requests.Response:
        settings = self.settings
        there = origin(url)
        trusted = settings.trusted_hosts & {there.host, f"{there.host}:{there.port}"}
        auth: AuthBase | None = _Nobody() if settings.is_anonymous else None
        if settings.is_anonymous:
            pass
        elif credentials:
            auth = HTTPBasicAuth(*(part.encode() for part in credentials))
        elif token := settings.tokens.get(there):
            auth = _Bearer(token)
        try:
            return self._session.get(
                url,
                headers=headers,
                auth=auth,
                timeout=settings.timeout_s,
                verify=False if trusted else settings.cert,
                cert=settings.client_cert,
                proxies=dict.fromkeys(_DEFAULT_PORTS, settings.proxy) if settings.proxy else None,
                allow_redirects=False,
                stream=True,
            )
        except OSError as error:  # of which requests' errors are a kind
            raise self._mapped(url, error) from error

    def _pieces(self, url: str, response: requests.Response, size: int | None) -> Iterator[bytes]:
        received = 0
        sock = self._watchdog.sockets.get(response.raw)
        with self._watchdog.watch(sock, self.settings.timeout_s) as fed:
            while size is None or received < size:
                try:
                    left = PIECE_SIZE if size is None else min(PIECE_SIZE, size - received)
                    piece = response.raw.read1(left, decode_content=False)
                except (HTTPError, OSError) as error:
                    if fed.is_cut:
                        raise self._too_slow(url) from error
                    raise self._mapped(url, error) from error
                if not piece:
                    break
                received += len(piece)
                fed.feed(len(piece), least=int(MIN_SPEED * self.settings.timeout_s))
                yield piece
            if fed.is_cut:
                raise self._too_slow(url)
        if size is not None and received != size:
            reason = f"the connection ended after {received:,} of {size:,} bytes"
            raise PassingError(f"`{redacted(url)}`: {reason}")

    def _too_slow(self, url: str) -> PassingError:
        return PassingError(
            f"`{redacted(url)}`: less than {MIN_SPEED:,} bytes a second came for "
            f"{self.settings.timeout_s:g} seconds"
        )

    def _mapped(self, url: str, error: OSError | HTTPError) -> FetchError:
        reason, hint = _explain(error, self.settings.timeout_s)
        kind = PassingError if _may_pass(error) else FetchError
        return kind(f"`{redacted(url)}`: {reason}", hint=hint)


class Patience:
    """Decides whether and when to try again: exponential backoff with jitter, or what a server asks."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._attempt = 0
        self._is_free = False

    def renew(self) -> None:
        """Forget the failures so far, since there was progress: the next attempt follows at once."""
        self._attempt = 0
        self._is_free = True

    def wait(self, error: PassingError) -> None:
        """Wait until it is time to try again.

        Raises:
            PassingError: the same, where it is not worth another attempt.
        """
        asked = error.retry_after_s
        if asked is None and self._is_free:
            self._is_free = False
            return
        if self._attempt >= self._transport.settings.retries:
            raise error
        if asked is not None and asked > MAX_DELAY_S:
            asks = f"asks to wait {asked:,.0f} seconds"
            raise PassingError(f"{error.message}, and {asks}", hint=error.hint) from error
        delay = min(_FIRST_DELAY_S * 2**self._attempt, MAX_DELAY_S)
        self._attempt += 1
        # many clients that failed together must not come back together
        self._transport.sleep(delay * random.uniform(0.5, 1) if asked is None else asked)  # noqa: S311  no secret


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


def _next_url(url: str, response: requests.Response) -> str | None:
    following = response.links.get("next", {}).get("url")
    return urljoin(url, following) if following else None


def _content_range(
    url: str, response: requests.Response, start: int, end: int | None
) -> Range | None:
    if response.status_code == 200:
        return None
    text = response.headers.get("Content-Range", "")
    if match := _CONTENT_RANGE.match(text):
        found = Range(int(match[1]), int(match[2]) + 1, int(match[3]))
        last = found.total if end is None else min(end, found.total)
        if found.start == start < found.end <= last:
            return found
    raise _error(url, f"asked for bytes from {start:,}, the answer is for `{text[:100]}`")


def _error(url: str, reason: str, *, hint: str | None = None) -> FetchError:
    return FetchError(f"`{redacted(url)}`: {reason}", hint=hint)


def _status_error(url: str, response: requests.Response) -> FetchError:
    status = response.status_code
    message = f"`{redacted(url)}`: HTTP {status} {response.reason or ''}".rstrip()
    if status in _PASSING:
        return PassingError(
            message,
            hint="the server is overloaded or out of order; try again later",
            retry_after_s=_retry_after(response.headers.get("Retry-After", "")),
            is_busy=status in _BUSY,
        )
    hint = None
    if status in (401, 403, 407):
        hint = "credentials may be missing: write them in `.netrc` or in pip's configuration"
    code = response.headers.get("X-Error-Code", "")
    return HTTPStatusError(message, hint=hint, status=status, code=code)


def _retry_after(text: str) -> float | None:
    """Return the seconds of a `Retry-After`, which are a number or a date (RFC 9110, 10.2.3)."""
    if re.match(r"\d{1,12}\Z", text):
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        inner = next((arg for arg in cause.args if isinstance(arg, BaseException)), None)
        cause = cause.__cause__ or cause.__context__ or inner


def _may_pass(error: OSError | HTTPError) -> bool:
    if not isinstance(error, requests.ConnectionError | requests.Timeout | HTTPError):
        return False
    causes = tuple(_causes(error))
    if any(isinstance(cause, ssl.SSLEOFError) for cause in causes):
        return True  # it was cut off, not refused
    return not any(isinstance(cause, ssl.SSLError | socket.gaierror) for cause in causes)


def _explain(error: OSError | HTTPError, timeout_s: float) -> tuple[str, str | None]:
    """Say what went wrong and what to do about it, from the most telling of the causes."""
    causes = tuple(_causes(error))

    def is_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if not isinstance(error, requests.RequestException | HTTPError):
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
    if is_by(requests.ConnectionError, HTTPError):
        system = (cause.strerror for cause in causes if isinstance(cause, OSError))
        told = next(filter(None, system), "it was closed too early")
        return f"the connection broke: {told}", network
    return "it is not a URL that can be fetched, or the answer is not HTTP", None
