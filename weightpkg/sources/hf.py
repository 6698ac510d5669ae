"""`hf:` sources: a file of a Hugging Face repository, on the hub or on whatever stands in for it.

Where the hub is, which token there is and what a file's URL is are huggingface_hub's to say, so
`HF_ENDPOINT`, `HF_TOKEN` and a login with `hf auth` all count. Requests go through our own
transport, so that its rules hold for them too: a token goes to the hub's origin and to no other
(also not to the servers that it redirects to), every wait ends, proxies and certificates are those
that requests uses, and nothing is told to anyone.
https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Self
from urllib.parse import quote, urlsplit

from weightpkg.errors import FetchError
from weightpkg.package import HfSource, RelativePath
from weightpkg.sources import Content
from weightpkg.sources.remote import open_remote
from weightpkg.sources.transport import HTTPStatusError, Transport, TransportSettings, origin

MAX_ANSWER = 64 * 1024 * 1024
MAX_PAGES = 1000
_HEX = re.compile(r"[0-9a-f]+\Z")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository. `sha256` for large ones, and else only git's own SHA-1."""

    path: RelativePath
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository has at a commit; names that cannot be file names are left out."""

    repo: str
    commit: str
    files: tuple[HubFile, ...]


class HubOpener:
    """Opens files of repositories, and lists them.

    Args:
        settings: how servers are reached.
        endpoint: the hub's URL.
        token: for that URL's origin, None where there is none.
    """

    def __init__(self, settings: TransportSettings, *, endpoint: str, token: str | None) -> None:
        tokens = {origin(endpoint): token} if token else {}
        self._transport = Transport(replace(settings, tokens=tokens))
        self._endpoint = endpoint.rstrip("/")
        self._has_token = token is not None

    @classmethod
    def from_environment(cls, settings: TransportSettings, environ: Mapping[str, str]) -> Self:
        """Find endpoint and token as huggingface_hub does."""
        from huggingface_hub import constants, get_token  # noqa: PLC0415  slow to import

        is_implicit = not constants.HF_HUB_DISABLE_IMPLICIT_TOKEN
        token = environ.get("HF_TOKEN") or (get_token() if is_implicit else None)
        return cls(
            settings, endpoint=environ.get("HF_ENDPOINT") or constants.ENDPOINT, token=token or None
        )

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()

    @contextmanager
    def open(self, source: HfSource, start: int = 0, end: int | None = None) -> Iterator[Content]:
        """Open a file.

        Raises:
            FetchError: it cannot be had, and why.
        """
        from huggingface_hub import hf_hub_url  # noqa: PLC0415  slow to import

        url = hf_hub_url(
            source.repo, source.path, revision=source.revision, endpoint=self._endpoint
        )
        # only the first request's errors are about the repository; a body may raise its own
        opened = open_remote(self._transport, url, source.text, start, end)
        try:
            content = opened.__enter__()
        except HTTPStatusError as error:
            self._explain(error, source.repo, source.revision, source.text)
        try:
            yield content
        finally:
            opened.__exit__(None, None, None)

    def list(self, repo: str, revision: str) -> Listing:
        """Return the commit that a revision is now, and the files there.

        Raises:
            FetchError: they cannot be had, and why.
        """
        base = f"{self._endpoint}/api/models/{repo}"
        try:
            found = self._json(f"{base}/revision/{quote(revision, safe='')}")[0]
            commit = _commit(found)
            rows: list[Any] = []
            url = f"{base}/tree/{commit}?recursive=true&expand=false"
            for _ in range(MAX_PAGES):
                page, following = self._json(url)
                rows += page if isinstance(page, list) else []
                if following is None:
                    return Listing(repo, commit, tuple(_files(rows)))
                url = following
        except HTTPStatusError as error:
            self._explain(error, repo, revision, f"hf:{repo}@{revision}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FetchError(f"`hf:{repo}@{revision}`: the hub's answer cannot be read") from error
        raise FetchError(f"`hf:{repo}@{revision}`: has more than {MAX_PAGES:,} pages of files")

    def _json(self, url: str) -> tuple[Any, str | None]:
        """Return an answer, and where the next page of it is."""
        document = self._transport.document(url, max_bytes=MAX_ANSWER, accept="application/json")
        following = document.next_url
        if following and urlsplit(following)[:2] != urlsplit(self._endpoint)[:2]:
            raise FetchError(f"`{self._endpoint}`: the next page is said to be elsewhere")
        return json.loads(document.content), following

    def _explain(self, error: HTTPStatusError, repo: str, revision: str, what: str) -> NoReturn:
        """Raise what the hub's answer means: no token, a license to accept, or not there."""
        page = f"{self._endpoint}/{repo}"
        if error.code == "GatedRepo" and (error.status == 401 or not self._has_token):
            raise FetchError(
                f"`{what}`: `{repo}` is gated, and there is no token",
                hint=f"accept its license at {page}, then `hf auth login`, or set HF_TOKEN",
            ) from error
        if error.code == "GatedRepo":
            raise FetchError(
                f"`{what}`: the license of `{repo}` was not accepted by the token's account",
                hint=f"accept it at {page}, then run the same command again",
            ) from error
        if error.code == "RevisionNotFound":
            raise FetchError(
                f"`{what}`: `{repo}` has no revision `{revision}`",
                hint=f"{page} shows its branches and tags; `main` is the usual one",
            ) from error
        if error.code == "EntryNotFound":
            raise FetchError(
                f"`{what}`: `{repo}` has no such file", hint=f"{page}/tree/{revision} lists them"
            ) from error
        if error.status == 401 and self._has_token:
            raise FetchError(
                f"`{what}`: the token is not accepted, or may not see `{repo}`",
                hint="`hf auth login` makes a new one; HF_TOKEN may be an old one",
            ) from error
        if error.code == "RepoNotFound" or error.status in (401, 404):
            private = "or not for this token" if self._has_token else "or private, and no token"
            raise FetchError(
                f"`{what}`: there is no repository `{repo}`, {private}",
                hint="check the name; for a private one, `hf auth login`, or set HF_TOKEN",
            ) from error
        raise error


def _commit(found: Any) -> str:
    return _hex(found["sha"], 40)


def _files(rows: list[Any]) -> Iterator[HubFile]:
    for row in rows:
        if row["type"] == "file":
            lfs = row.get("lfs")
            size = _size(row["size"] if lfs is None else lfs["size"])
            sha256 = None if lfs is None else _hex(lfs["oid"].removeprefix("sha256:"), 64)
            git_sha1 = _hex(row["oid"], 40) if lfs is None else None
            with suppress(ValueError):  # no name of ours, so nothing that could be asked for
                yield HubFile(RelativePath(_text(row["path"])), size, sha256, git_sha1)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= sys.maxsize:
        raise ValueError("not a size")
    return value


def _hex(value: object, n_digits: int) -> str:
    text = _text(value)
    if len(text) != n_digits or not _HEX.match(text):
        raise ValueError("not a digest")
    return text
