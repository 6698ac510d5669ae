"""Digests, and hashing while bytes go by.

SHA-256 is a blob's identity, because that is what upstreams publish. BLAKE3 is computed in the
same pass, over the whole and over every `CHUNK_SIZE` bytes, so that later checks are fast and a
damaged range can be told from the rest (https://github.com/BLAKE3-team/BLAKE3-specs, 2020).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal

from blake3 import blake3

Algorithm = Literal["sha256", "blake3"]

CHUNK_SIZE = 4 * 1024 * 1024
READ_SIZE = 1024 * 1024
_BUFFER_SIZE = 4 * 1024 * 1024  # enough for every core to have its part

_HEX = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class Digest:
    """A 256-bit digest with its algorithm; only 64 lower-case hex digits can become one.

    >>> str(Digest.parse("sha256:" + 64 * "0"))[:12]
    'sha256:00000'
    """

    algorithm: Algorithm
    hex: str

    def __post_init__(self) -> None:
        if self.algorithm not in ("sha256", "blake3") or not _HEX.match(self.hex):
            raise ValueError(f"not a digest: {self.algorithm}:{self.hex}")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read `algorithm:hex`; ValueError if it is anything else."""
        algorithm, _, hex_digits = text.partition(":")
        if algorithm == "sha256":
            return cls("sha256", hex_digits)
        if algorithm == "blake3":
            return cls("blake3", hex_digits)
        raise ValueError(f"not a digest: {text}")

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that is known of some bytes: size, both digests, and BLAKE3 of each chunk."""

    size: int
    sha256: Digest
    blake3: Digest
    chunks: tuple[str, ...]


class Hasher:
    """Takes bytes in order and gives their `Fingerprint`.

    Args:
        sha256: what the SHA-256 is if BLAKE3 says that the bytes are right; computed if None.
    """

    def __init__(self, sha256: Digest | None = None) -> None:
        self.size = 0
        self._known = sha256
        self._sha256 = hashlib.sha256()
        self._blake3 = blake3()
        self._chunk = blake3()
        self._chunk_size = 0
        self._chunks: list[str] = []

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        view = memoryview(data)
        while view.nbytes:
            taken = view[: CHUNK_SIZE - self._chunk_size]
            self._chunk.update(taken)
            self._add(taken)
            self._chunk_size += taken.nbytes
            view = view[taken.nbytes :]
            if self._chunk_size == CHUNK_SIZE:
                self._end_chunk()

    def add_chunk(self, data: memoryview, digest: str) -> None:
        """Add a whole chunk, or a last shorter one, whose BLAKE3 is known."""
        self._add(data)
        self._chunks.append(digest)

    def _add(self, data: memoryview) -> None:
        self.size += data.nbytes
        self._blake3.update(data)
        if self._known is None:
            self._sha256.update(data)

    def _end_chunk(self) -> None:
        self._chunks.append(self._chunk.hexdigest())
        self._chunk = blake3()
        self._chunk_size = 0

    def finish(self) -> Fingerprint:
        """Return what the bytes were; no more may follow."""
        if self._chunk_size:
            self._end_chunk()
        return Fingerprint(
            self.size,
            self._known or Digest("sha256", self._sha256.hexdigest()),
            Digest("blake3", self._blake3.hexdigest()),
            tuple(self._chunks),
        )


def hash_file(
    path: Path,
    algorithm: Algorithm,
    *,
    advance: Callable[[int], None] = lambda _: None,
    all_cores: bool = False,
) -> Digest:
    """Return the digest of a whole file, read in pieces; OSError as the system gives it.

    Args:
        path: the file.
        algorithm: which digest.
        advance: called with the bytes of each piece.
        all_cores: hash with all of them, which BLAKE3 can and SHA-256 cannot.
    """
    threads = blake3.AUTO if all_cores else 1
    hasher = hashlib.sha256() if algorithm == "sha256" else blake3(max_threads=threads)
    with path.open("rb", buffering=0) as stream:
        for piece in _read_ahead(stream) if all_cores else read_pieces(stream):
            hasher.update(piece)
            advance(piece.nbytes)
    return Digest(algorithm, hasher.hexdigest())


def read_pieces(stream: FileIO) -> Iterator[memoryview]:
    """Yield all that is left of a file; each piece takes the place of the one before."""
    view = _buffer(READ_SIZE)
    while size := stream.readinto(view):
        yield view[:size]


def _buffer(size: int) -> memoryview:
    """Make room that begins on a page boundary.

    The system copies from pages of its own; to a place some bytes behind the start of a page, as
    `bytearray` has it, that took five times as long on an AMD EPYC (2 GB/s and not 12), where stores
    hold up loads whose addresses differ from them in the upper bits only.
    """
    return memoryview(mmap.mmap(-1, size))


def _read_ahead(stream: FileIO) -> Iterator[memoryview]:
    """Yield pieces while the next one is being read.

    A mapping of the file would save the copy, and end the process where a disk cannot be read.
    """
    here, there = _buffer(_BUFFER_SIZE), _buffer(_BUFFER_SIZE)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  slow to import

    with ThreadPoolExecutor(1) as reader:
        size = stream.readinto(here)
        while size:
            following = reader.submit(stream.readinto, there)
            yield here[:size]
            size = following.result()
            here, there = there, here


def sound_chunks(
    path: Path,
    chunks: Mapping[int, str],
    *,
    advance: Callable[[int], None] = lambda _: None,
) -> set[int]:
    """Return which of a file's chunks have the BLAKE3 that they should have; OSError as it comes.

    Every core takes chunks by itself and reads them in pieces that stay in its cache: about twice as
    fast as one hash of the whole file on all cores (`scripts/bench/verify.py`).

    Args:
        path: the file; chunks beyond its end are not sound.
        chunks: the hex digits of each chunk to check, by its number.
        advance: called with the bytes of each piece, by any thread.
    """
    rest = deque(chunks.items())
    n_workers = min(len(chunks), os.cpu_count() or 1)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  slow to import

    with ThreadPoolExecutor(max(1, n_workers)) as pool:
        found = [pool.submit(_sound_chunks, path, rest, advance) for _ in range(n_workers)]
        return {i for each in found for i in each.result()}


def _sound_chunks(
    path: Path, rest: deque[tuple[int, str]], advance: Callable[[int], None]
) -> list[int]:
    """Take chunks from what is left until nothing is."""
    found = []
    view = _buffer(READ_SIZE)
    with path.open("rb", buffering=0) as stream:
        while rest:
            with suppress(IndexError):  # another thread has taken the last one
                i, digest = rest.popleft()
                if _hash_chunk(stream, i, view, advance) == digest:
                    found.append(i)
    return found


def _hash_chunk(
    stream: FileIO, i: int, view: memoryview, advance: Callable[[int], None]
) -> str | None:
    """Return the digest of a chunk, None if the file ends before it begins."""
    hasher, left = blake3(), CHUNK_SIZE
    stream.seek(i * CHUNK_SIZE)
    while left and (size := stream.readinto(view[:left])):
        hasher.update(view[:size])
        advance(size)
        left -= size
    return hasher.hexdigest() if left < CHUNK_SIZE else None


def git_sha1(path: Path, size: int) -> str:
    """Return what git calls a file's bytes: SHA-1 of `blob <size>`, a zero byte, and the bytes.

    https://git-scm.com/book/en/v2/Git-Internals-Git-Objects; not a proof against an attacker, and
    all that a hub says of its small files.
    """
    hasher = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb", buffering=0) as stream:
        for piece in read_pieces(stream):
            hasher.update(piece)
    return hasher.hexdigest()


def fingerprint_file(path: Path) -> Fingerprint:
    """Return all that is to be known of a file's bytes; OSError as the system gives it."""
    hasher = Hasher()
    with path.open("rb", buffering=0) as stream:
        for piece in read_pieces(stream):
            hasher.update(piece)
    return hasher.finish()
