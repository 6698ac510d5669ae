"""The answer that carries a file, or a range of it, or says that the client has it."""

from __future__ import annotations

from collections.abc import Mapping

from weightpkg.contents import blob_name
from weightpkg.digest import CHUNK_SIZE, Digest
from weightpkg.mirror_server.checked import CheckedFile, DamagedError, Shelf
from weightpkg.mirror_server.conditions import Selection, select
from weightpkg.mirror_server.reply import RefusedError, Reply, Request, Stretch
from weightpkg.package import RelativePath


def blob_reply(
    shelf: Shelf, request: Request, digest: Digest, *, etag: str, headers: Mapping[str, str]
) -> Reply:
    """Answer a request for a blob, or a range of it.

    Args:
        shelf: opens it.
        request: has the conditions and the range.
        digest: the SHA-256 that it is named by.
        etag: its validator, without quotes.
        headers: what is told beside that.

    Raises:
        RefusedError: it is no longer there.
        DamagedError: it is not what it should be, as far as that can be told already.
    """
    try:
        file = shelf.open(RelativePath(blob_name(digest)), digest)
    except FileNotFoundError as error:
        raise RefusedError(404, "the file is no longer here", code="EntryNotFound") from error
    return file_reply(request, file, etag=etag, headers=headers)


def file_reply(
    request: Request, file: CheckedFile, *, etag: str, headers: Mapping[str, str]
) -> Reply:
    """Answer with an open file, which is closed by whoever sends it, or here.

    The first chunk of what will go out is checked before anything does, so that damage there is an
    error that says so, and not a connection that breaks.

    Raises:
        DamagedError: that chunk is damaged.
    """
    picked = select(request.method, request.headers, etag=f'"{etag}"', size=file.size)
    told = {**headers, **_told(picked, etag, file.size)}
    try:
        if picked.start == picked.end or request.method == "HEAD":
            file.close()
        else:
            file.check(picked.start // CHUNK_SIZE)
    except DamagedError:
        file.close()
        raise
    if picked.start == picked.end:
        return Reply(picked.status, told)
    return Reply(picked.status, told, Stretch(file, picked.start, picked.end))


def content_reply(
    request: Request, content: bytes, *, etag: str, headers: Mapping[str, str]
) -> Reply:
    """Answer with bytes."""
    picked = select(request.method, request.headers, etag=f'"{etag}"', size=len(content))
    told = {**headers, **_told(picked, etag, len(content))}
    return Reply(picked.status, told, content[picked.start : picked.end])


def _told(picked: Selection, etag: str, size: int) -> dict[str, str]:
    told = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
    if picked.status == 206:
        told["Content-Range"] = f"bytes {picked.start}-{picked.end - 1}/{size}"
    if picked.status == 416:
        told["Content-Range"] = f"bytes */{size}"
    return told
