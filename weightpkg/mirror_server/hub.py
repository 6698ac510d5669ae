"""The read API of the Hugging Face hub, as far as its clients use it to list and to download.

    GET       /api/models                                 all repositories, in pages
    GET       /api/models/ORG/NAME[/revision/REVISION]    what a commit has
    GET       /api/models/ORG/NAME/refs                   branches
    GET       /api/models/ORG/NAME/tree/REVISION[/PATH]   its files, with digests
    GET HEAD  /ORG/NAME/resolve/REVISION/PATH             a file

Never is there a word of Xet, so clients speak plain HTTP. As on the hub, large files and those of
binary formats are in LFS and have their SHA-256 as `ETag`; others have the SHA-1 that git names them by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from weightpkg.contents import blob_name
from weightpkg.digest import Digest
from weightpkg.mirror_server.checked import Shelf
from weightpkg.mirror_server.file_reply import blob_reply
from weightpkg.mirror_server.holdings import (
    MAIN,
    Entry,
    Files,
    Holdings,
    Repository,
)
from weightpkg.mirror_server.reply import RefusedError, Reply, Request, json_reply
from weightpkg.package import RelativePath

MAX_PAGE = 1000
_NEVER = "1970-01-01T00:00:00.000Z"
_MAX_PLAIN = 10 * 1024 * 1024  # the hub takes no larger file outside of LFS
# what the hub's own .gitattributes of a new repository name, and GGUF
_LFS = {
    ".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gguf", ".gz", ".h5", ".joblib", ".mlmodel",
    ".model", ".msgpack", ".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl",
    ".pt", ".pth", ".rar", ".safetensors", ".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst",
}  # fmt: skip


class Hub:
    """Answers for the repositories of a mirror."""

    def __init__(self, holdings: Holdings, shelf: Shelf) -> None:
        self._holdings = holdings
        self._shelf = shelf
        self._oids: dict[Digest, str] = {}

    def api(self, request: Request, base_url: str) -> Reply:
        """Answer below `/api`.

        Raises:
            RefusedError: there is nothing of that name.
        """
        match request.segments[1:]:
            case ("models",):
                return self._list(request, base_url)
            case ("models", org, name):
                return self._info(self._repository(org, name), MAIN, request)
            case ("models", org, name, "revision", revision):
                return self._info(self._repository(org, name), revision, request)
            case ("models", org, name, "refs"):
                return self._refs(self._repository(org, name))
            case ("models", org, name, "tree", revision, *folder):
                return self._tree(self._repository(org, name), revision, folder, request)
            case ("models", org) | ("models", org, "revision" | "tree", *_):
                raise _unknown_repository(org)
        raise RefusedError(404, "there is no such route")

    def resolve(self, request: Request) -> Reply:
        """Answer `/ORG/NAME/resolve/REVISION/PATH`.

        Raises:
            RefusedError: there is no such file.
            DamagedError: there is, and it is not what it should be.
        """
        org, name, _, revision, *path = request.segments
        repository = self._repository(org, name)
        commit = _commit(repository, revision)
        entry = repository.commits[commit].get("/".join(path))
        if entry is None:
            raise _unknown_entry(commit)
        told = {"X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
        etag = self._oid(entry)
        return blob_reply(self._shelf, request, entry.sha256, etag=etag, headers=told)

    def _repository(self, org: str, name: str) -> Repository:
        repository = self._holdings.repositories.get(f"{org}/{name}")
        if repository is None:
            raise _unknown_repository(f"{org}/{name}")
        return repository

    def _list(self, request: Request, base_url: str) -> Reply:
        query = request.query
        limit, start = (
            _natural(query, "limit", MAX_PAGE) or MAX_PAGE,
            _natural(query, "cursor", 0),
        )
        found = [r for _, r in sorted(self._holdings.repositories.items()) if _is_meant(r, query)]
        end = start + min(limit, MAX_PAGE)
        headers = {}
        if end < len(found):
            following = urlencode({**query, "cursor": end})
            headers["Link"] = f'<{base_url}/api/models?{following}>; rel="next"'
        rows = [_facts(repository, _main(repository)) for repository in found[start:end]]
        return json_reply(rows, headers=headers)

    def _info(self, repository: Repository, revision: str, request: Request) -> Reply:
        commit = _commit(repository, revision)
        has_blobs = request.query.get("blobs", "").lower() in {"true", "1"}
        siblings = [
            {"rfilename": path} | (self._blob(entry) if has_blobs else {})
            for path, entry in repository.commits[commit].items()
        ]
        return json_reply({**_facts(repository, commit), "siblings": siblings})

    def _refs(self, repository: Repository) -> Reply:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
            for name, commit in repository.revisions.items()
        ]
        return json_reply({"branches": branches, "converts": [], "tags": []})

    def _tree(
        self, repository: Repository, revision: str, folder: list[str], request: Request
    ) -> Reply:
        commit = _commit(repository, revision)
        inside = "/".join(folder)
        is_recursive = request.query.get("recursive", "").lower() in {"true", "1"}
        rows = [
            row
            for path, row in sorted(self._rows(repository.commits[commit]))
            if _is_in(path, inside, is_recursive=is_recursive)
        ]
        if inside and not rows:
            raise _unknown_entry(commit)
        return json_reply(rows, headers={"X-Repo-Commit": commit})

    def _rows(self, files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
        for folder in folders - {"."}:
            oid = hashlib.sha1(folder.encode(), usedforsecurity=False).hexdigest()
            yield folder, {"type": "directory", "path": folder, "size": 0, "oid": oid}
        for path, entry in files.items():
            blob = self._blob(entry)
            row = {"type": "file", "path": path, "size": entry.size, "oid": blob["blobId"]}
            if lfs := blob.get("lfs"):
                row["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}  # fmt: skip
            yield path, row

    def _blob(self, entry: Entry) -> dict[str, Any]:
        if not is_lfs(entry):
            return {"size": entry.size, "blobId": self._oid(entry)}
        pointer = _pointer(entry)
        lfs = {"sha256": entry.sha256.hex, "size": entry.size, "pointerSize": len(pointer)}
        return {"size": entry.size, "blobId": _git_oid(pointer), "lfs": lfs}

    def _oid(self, entry: Entry) -> str:
        """Return what a file's `ETag` is: its SHA-256 in LFS, what git calls it elsewhere."""
        if is_lfs(entry):
            return entry.sha256.hex
        if entry.sha256 not in self._oids:
            self._oids[entry.sha256] = _git_oid(self._content(entry))
        return self._oids[entry.sha256]

    def _content(self, entry: Entry) -> bytes:
        path = RelativePath(blob_name(entry.sha256))
        try:
            file = self._shelf.open(path, entry.sha256)
        except FileNotFoundError as error:
            raise RefusedError(404, "the file is no longer here", code="EntryNotFound") from error
        try:
            return file.read_whole()
        finally:
            file.close()


def _facts(repository: Repository, commit: str) -> dict[str, Any]:
    about = repository.about
    tags = [*about.tags, *([about.task] if about.task else []), f"license:{about.license.lower()}"]
    facts = {
        "_id": hashlib.sha1(repository.id.encode(), usedforsecurity=False).hexdigest()[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.id.partition("/")[0],
        "sha": commit,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "createdAt": _NEVER,
        "lastModified": _NEVER,
    }
    return facts | ({"pipeline_tag": about.task} if about.task else {})


def _is_meant(repository: Repository, query: Mapping[str, str]) -> bool:
    words = query.get("search", "").lower().split()
    author = query.get("author")
    task = query.get("pipeline_tag")
    return (
        all(word in repository.id.lower() for word in words)
        and author in {None, repository.id.partition("/")[0]}
        and task in {None, repository.about.task}
    )


def _natural(query: Mapping[str, str], name: str, otherwise: int) -> int:
    told = query.get(name, str(otherwise))
    if not (told.isascii() and told.isdigit() and len(told) < 10):
        raise RefusedError(400, f"`{name}` is no number")
    return int(told)


def _commit(repository: Repository, revision: str) -> str:
    commit = repository.commit(revision)
    if commit is None:
        raise RefusedError(404, "there is no such revision here", code="RevisionNotFound")
    return commit


def _main(repository: Repository) -> str:
    return repository.revisions[MAIN]


def _unknown_repository(repo: str) -> RefusedError:
    message = f"the mirror has no repository {quote(repo[:200])}"
    return RefusedError(404, message, code="RepoNotFound")


def _unknown_entry(commit: str) -> RefusedError:
    told = {"X-Repo-Commit": commit}
    return RefusedError(404, "there is no such file here", code="EntryNotFound", headers=told)


def _is_in(path: str, folder: str, *, is_recursive: bool) -> bool:
    parents = [str(parent) for parent in PurePosixPath(path).parents]
    return (folder or ".") in (parents if is_recursive else parents[:1])


def is_lfs(entry: Entry) -> bool:
    """Whether the hub would have a file in LFS, as far as its name and size tell."""
    return PurePosixPath(entry.path).suffix in _LFS or entry.size > _MAX_PLAIN


def _pointer(entry: Entry) -> bytes:
    """Return what git has in place of a file in LFS."""
    version = "version https://git-lfs.github.com/spec/v1"
    return f"{version}\noid {entry.sha256}\nsize {entry.size}\n".encode()


def _git_oid(content: bytes) -> str:
    whole = b"blob %d\0" % len(content) + content
    return hashlib.sha1(whole, usedforsecurity=False).hexdigest()
