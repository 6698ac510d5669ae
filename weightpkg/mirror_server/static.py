"""Our own protocol: the mirror's directory as any web server would serve it, and nothing else of it.

mirror.toml, index/..., locks/..., models/KEY/..., blobs/sha256/AB/HEX[.chunks]
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from weightpkg.digest import Digest
from weightpkg.document import MAX_DOCUMENT_SIZE
from weightpkg.mirror_server.checked import Shelf
from weightpkg.mirror_server.file_reply import content_reply, file_reply
from weightpkg.mirror_server.reply import RefusedError, Reply, Request
from weightpkg.package import RelativePath

FOLDERS = ("index", "locks", "models", "blobs")
_BLOB = re.compile(r"blobs/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})\Z")
_FOREVER = "max-age=31536000, immutable"
_TYPES = {".json": "application/json", ".toml": "application/toml", ".txt": "text/plain"}


class Static:
    """Answers for the files of a mirror."""

    def __init__(self, shelf: Shelf, digests: Mapping[str, Digest]) -> None:
        """Serve a directory.

        Args:
            shelf: opens its files.
            digests: those of converted models' files, by their paths.
        """
        self._shelf = shelf
        self._digests = digests

    def answer(self, request: Request) -> Reply:
        """Answer a request for a file by its path.

        Raises:
            RefusedError: there is none.
            DamagedError: it is not what it should be, as far as that can be told already.
        """
        try:
            path = RelativePath("/".join(request.segments))
            blob = _BLOB.match(path.text)
            if path.text.startswith("blobs/") and not blob:
                return self._document(request, _chunks_of_blob(path))
            if not blob and not path.text.startswith("models/"):
                return self._document(request, path)
            digest = Digest("sha256", blob[2]) if blob else self._digests.get(path.text)
            file = self._shelf.open(path, digest)
        except (ValueError, FileNotFoundError) as error:
            raise RefusedError(404, "there is no such file here") from error
        cache = _FOREVER if blob else "no-cache"
        told = {"Content-Type": "application/octet-stream", "Cache-Control": cache}
        return file_reply(request, file, etag=digest.hex if digest else file.state, headers=told)

    def _document(self, request: Request, path: RelativePath) -> Reply:
        """Answer with a file that is small, and may be another one tomorrow."""
        file = self._shelf.open(path)
        try:
            if file.size > MAX_DOCUMENT_SIZE:
                raise FileNotFoundError(path.text)
            content = file.read_whole()
        finally:
            file.close()
        told = {"Content-Type": _type_of(path), "Cache-Control": "no-cache"}
        etag = hashlib.sha256(content).hexdigest()
        return content_reply(request, content, etag=etag, headers=told)


def _type_of(path: RelativePath) -> str:
    return _TYPES.get(PurePosixPath(path.text).suffix, "application/octet-stream")


def _chunks_of_blob(path: RelativePath) -> RelativePath:
    if not path.text.endswith(".chunks") or not _BLOB.match(path.text.removesuffix(".chunks")):
        raise FileNotFoundError(path.text)
    return path
