"""What a repository of a model hub has, and how the hub lists it (as JSON values)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

Access = Literal["public", "private", "gated"]
Files = Mapping[str, bytes]
_LFS = {".bin", ".gguf", ".onnx", ".safetensors"}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_oid(content: bytes) -> str:
    """Return the name that git gives a file."""
    whole = b"blob %d\0" % len(content) + content
    return hashlib.sha1(whole, usedforsecurity=False).hexdigest()


def lfs_pointer(content: bytes) -> bytes:
    """Return what git has in place of a file in LFS."""
    lines = ("version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256(content)}")
    return "\n".join([*lines, f"size {len(content)}", ""]).encode()


@dataclass
class Repository:
    """What has been committed, and the branches and tags that name it.

    Files whose paths are in `lfs` are in LFS; where it is None, suffixes decide.
    """

    id: str
    access: Access = "public"
    lfs: frozenset[str] | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, revision: str) -> str:
        """Let a branch or tag name these files, all that it has; return the commit, 40 hex."""
        listed = {path: git_oid(content) for path, content in sorted(files.items())}
        told = json.dumps([self.id, len(self.commits), listed])
        commit = git_oid(told.encode())
        self.commits[commit] = dict(files)
        self.revisions[revision] = commit
        return commit

    def is_lfs(self, path: str) -> bool:
        return PurePosixPath(path).suffix in _LFS if self.lfs is None else path in self.lfs

    def info(self, commit: str, *, has_blobs: bool) -> dict[str, Any]:
        """Return what the hub says of a commit; with sizes and digests where those are wanted."""
        return {
            "id": self.id,
            "modelId": self.id,
            "sha": commit,
            "private": self.access == "private",
            "gated": "manual" if self.access == "gated" else False,
            "disabled": False,
            "tags": [],
            "siblings": [
                {"rfilename": path} | (self._blob(path, content) if has_blobs else {})
                for path, content in sorted(self.commits[commit].items())
            ],
        }

    def tree(self, commit: str, folder: str, *, is_recursive: bool) -> list[dict[str, Any]]:
        """Return a row for each file and folder in a folder, which is "" for all of it."""
        rows = {
            **dict(_folder_rows(self.commits[commit])),
            **{path: self._row(path, content) for path, content in self.commits[commit].items()},
        }
        inside = folder or "."
        return [
            row
            for path, row in sorted(rows.items())
            if inside in _folders(path)[: None if is_recursive else 1]
        ]

    def _row(self, path: str, content: bytes) -> dict[str, Any]:
        blob = self._blob(path, content)
        row = {"type": "file", "path": path, "size": blob["size"], "oid": blob["blobId"]}
        if lfs := blob.get("lfs"):
            row["lfs"] = {
                "oid": lfs["sha256"],
                "size": lfs["size"],
                "pointerSize": lfs["pointerSize"],
            }
        return row

    def _blob(self, path: str, content: bytes) -> dict[str, Any]:
        if not self.is_lfs(path):
            return {"size": len(content), "blobId": git_oid(content)}
        pointer = lfs_pointer(content)
        lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": len(pointer)}
        return {"size": len(content), "blobId": git_oid(pointer), "lfs": lfs}


def _folders(path: str) -> list[str]:
    """Return the folders that a path is in, the nearest first; the outermost is `.`."""
    return [str(parent) for parent in PurePosixPath(path).parents]


def _folder_rows(files: Files) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in files:
        for folder in _folders(path)[:-1]:
            row = {"type": "directory", "path": folder, "size": 0, "oid": git_oid(folder.encode())}
            yield folder, row
