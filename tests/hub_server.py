"""A model hub on the loopback interface: the HTTP routes of the Hugging Face hub, and its CDN.

Small files come from the hub itself, those in LFS by a redirect to another origin, whose URLs are
signed and which refuses whoever brings a token along. What a client may see depends on its token:

- public: everything, to everybody; a token that the hub does not know is refused all the same;
- private: nothing, as if there were no such repository, but for tokens that may read it;
- gated: lists for everybody, files only for tokens that may read it.

There are no Xet headers, so clients speak plain HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, cast
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from http_message import OK, Reply, Request, right
from hub_repository import Access, Files, Repository, git_oid, lfs_pointer, sha256

_ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
_INFO = re.compile(rf"/api/models/{_ID}(?:/revision/(?P<revision>[^/]+))?\Z")
_TREE = re.compile(rf"/api/models/{_ID}/tree/(?P<revision>[^/]+)(?P<path>/.*)?\Z")
_RESOLVE = re.compile(rf"/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)\Z")
_CACHED = re.compile(
    rf"/api/resolve-cache/models/{_ID}/(?P<revision>[0-9a-f]{{40}})/(?P<path>.+)\Z"
)


class RefusedError(Exception):
    """The answer to a request is an error, which `reply` says."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        told = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self.reply = _json({"error": message}, status_line=f"HTTP/1.1 {status} Refused").but(told)


@dataclass
class Hub:
    """A hub's repositories and tokens, and what it and its CDN were asked, in order.

    `tokens` has, by token, the repositories that it may read though they are private or gated.
    `hidden_status` is what a request without a token gets where nothing is to be seen: 401 as from
    huggingface.co (with a token it is always 404). `has_resolve_cache` sends clients to another
    path of the same origin for small files, as huggingface.co does. A tree comes in pages of
    `page_size` rows.
    """

    url: str = ""
    cdn_url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cdn_requests: list[Request] = field(default_factory=list)
    hidden_status: int = 401
    has_resolve_cache: bool = False
    page_size: int = 1000
    _n_expired: int = 0

    def add(
        self,
        repo_id: str,
        files: Files,
        *,
        access: Access = "public",
        lfs: frozenset[str] | None = None,
    ) -> str:
        """Make a repository, and return the commit that `main` names."""
        self.repositories[repo_id] = Repository(repo_id, access, lfs)
        return self.commit(repo_id, files)

    def commit(self, repo_id: str, files: Files, *, revision: str = "main") -> str:
        """Let a branch or tag name these files, all that it has; return the commit."""
        return self.repositories[repo_id].commit(files, revision)

    def expire(self) -> None:
        """Let the CDN refuse the URLs that were signed until now."""
        self._n_expired += 1

    def answer(self, request: Request) -> Reply:
        """Answer a request to the hub."""
        self.requests.append(request)
        path = urlsplit(request.path).path
        for route, answer in (
            (_INFO, self._info),
            (_TREE, self._tree),
            (_RESOLVE, self._resolve),
            (_CACHED, self._file),
        ):
            if found := route.match(path):
                asked = {name: unquote(told or "") for name, told in found.groupdict().items()}
                return answer(request, asked)
        raise RefusedError(404, "", "Sorry, we can't find the page you are looking for.")

    def answer_of_cdn(self, request: Request) -> Reply:
        """Answer a request to the CDN; it knows files by digest, and no repositories."""
        self.cdn_requests.append(request)
        if "Authorization" in request.headers:
            raise RefusedError(400, "", "Only one auth mechanism allowed")
        parts = urlsplit(request.path)
        digest = parts.path.removeprefix("/")
        if parse_qs(parts.query).get("Signature") != [self._signature(digest)]:
            raise RefusedError(403, "", "Request has expired")
        content = next(found for found in self._contents() if sha256(found) == digest)
        # an ETag of its own, as object stores have
        return right(request, content, f'"{git_oid(content)}-1"')

    def _info(self, request: Request, asked: dict[str, str]) -> Reply:
        repository = self._visible(request, asked["id"])
        commit = _commit(repository, asked["revision"] or "main")
        return _json(repository.info(commit, has_blobs="blobs" in _query(request)))

    def _tree(self, request: Request, asked: dict[str, str]) -> Reply:
        repository = self._visible(request, asked["id"])
        commit = _commit(repository, asked["revision"])
        query = _query(request)
        is_recursive = query.get("recursive", "").lower() in {"true", "1"}
        rows = repository.tree(commit, asked["path"].strip("/"), is_recursive=is_recursive)
        if asked["path"].strip("/") and not rows:
            raise _entry_not_found(commit)
        start = int(query.get("cursor", "0"))
        end = start + self.page_size
        following = (
            self.url + urlsplit(request.path).path + "?" + urlencode(query | {"cursor": end})
        )
        link = f'<{following}>; rel="next"' if end < len(rows) else None
        return _json(rows[start:end]).but({"Link": link})

    def _resolve(self, request: Request, asked: dict[str, str]) -> Reply:
        repository, commit, content = self._found(request, asked)
        told = {"X-Repo-Commit": commit, "Content-Length": "0"}
        if repository.is_lfs(asked["path"]):
            linked = {
                "Location": self._signed(sha256(content)),
                "ETag": f'"{git_oid(lfs_pointer(content))}"',
                "X-Linked-ETag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
            }
            return Reply("HTTP/1.1 302 Found", told | linked)
        if self.has_resolve_cache:
            cached = f"/api/resolve-cache/models/{asked['id']}/{commit}/{quote(asked['path'])}"
            return Reply("HTTP/1.1 307 Temporary Redirect", told | {"Location": cached})
        return self._file(request, asked)

    def _file(self, request: Request, asked: dict[str, str]) -> Reply:
        _, commit, content = self._found(request, asked)
        return right(request, content, f'"{git_oid(content)}"').but({"X-Repo-Commit": commit})

    def _found(self, request: Request, asked: dict[str, str]) -> tuple[Repository, str, bytes]:
        repository = self._visible(request, asked["id"])
        self._check_gate(request, repository)
        commit = _commit(repository, asked["revision"])
        content = repository.commits[commit].get(asked["path"])
        if content is None:
            raise _entry_not_found(commit)
        return repository, commit, content

    def _visible(self, request: Request, repo_id: str) -> Repository:
        readable = self._readable(request)
        repository = self.repositories.get(repo_id)
        if repository is None or (
            repository.access == "private" and repo_id not in (readable or ())
        ):
            status = self.hidden_status if readable is None else 404
            raise RefusedError(status, "RepoNotFound", "Repository not found")
        return repository

    def _check_gate(self, request: Request, repository: Repository) -> None:
        readable = self._readable(request)
        if repository.access == "gated" and repository.id not in (readable or ()):
            restricted = f"Access to model {repository.id} is restricted"
            if readable is None:
                why = "You must have access to it and be authenticated to access it"
                raise RefusedError(401, "GatedRepo", f"{restricted}. {why}. Please log in.")
            why = f"Visit {self.url}/{repository.id} to ask for access."
            raise RefusedError(
                403, "GatedRepo", f"{restricted} and you are not in the authorized list. {why}"
            )

    def _readable(self, request: Request) -> set[str] | None:
        """Return what the token of a request may read; None where it has none."""
        told = request.headers.get("Authorization")
        if told is None:
            return None
        scheme, _, token = told.partition(" ")
        if scheme != "Bearer" or token not in self.tokens:
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        return self.tokens[token]

    def _contents(self) -> Iterator[bytes]:
        for repository in self.repositories.values():
            for files in repository.commits.values():
                yield from files.values()

    def _signed(self, digest: str) -> str:
        return f"{self.cdn_url}/{digest}?Signature={self._signature(digest)}"

    def _signature(self, digest: str) -> str:
        return hashlib.sha256(f"{self._n_expired} {digest}".encode()).hexdigest()


def _commit(repository: Repository, revision: str) -> str:
    commit = repository.revisions.get(revision, revision)
    if commit not in repository.commits:
        raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


def _entry_not_found(commit: str) -> RefusedError:
    return RefusedError(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})


def _query(request: Request) -> dict[str, str]:
    return {name: told[-1] for name, told in parse_qs(urlsplit(request.path).query).items()}


def _json(value: Any, status_line: str = OK) -> Reply:
    body = json.dumps(value).encode()
    told = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(body))}
    return Reply(status_line, told, body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, answer: Callable[[Request], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 the base class calls it so
        """Stay silent."""

    def do_GET(self) -> None:
        request = Request(self.command, self.path, self.headers)
        try:
            reply = cast("_Server", self.server).answer(request)
        except RefusedError as refused:
            reply = refused.reply
        self.wfile.write(reply.head() + (reply.body if self.command == "GET" else b""))

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub and its CDN until the block ends."""
    hub = Hub()
    servers = [_Server(hub.answer), _Server(hub.answer_of_cdn)]
    hub.url, hub.cdn_url = (server.url for server in servers)
    threads = [Thread(target=server.serve_forever, args=(0.01,)) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
