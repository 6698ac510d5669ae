"""Digests, and hashing while bytes go by.

SHA-256 is a blob's identity, because that is what upstreams publish. BLAKE3 is computed in the
same pass, over the whole and over every `CHUNK_SIZE` bytes, so that later checks are fast and a
damaged range can be told from the rest (https://github.com/BLAKE3-team/BLAKE3-specs, 2020).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blake3 import blake3

Algorithm = Literal["sha256", "blake3"]

CHUNK_SIZE = 4 * 1024 * 1024
READ_SIZE = 1024 * 1024

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
    """All that one pass over some bytes tells: size, both digests, and BLAKE3 of each chunk."""

    size: int
    sha256: Digest
    blake3: Digest
    chunks: tuple[str, ...]


class Hasher:
    """Takes bytes in order and gives their `Fingerprint`."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._blake3 = blake3()
        self._chunk = blake3()
        self._chunk_size = 0
        self._chunks: list[str] = []

    def update(self, data: bytes | memoryview) -> None:
        """Add the next bytes."""
        view = memoryview(data)
        self.size += view.nbytes
        self._sha256.update(view)
        self._blake3.update(view)
        while view.nbytes:
            taken = view[: CHUNK_SIZE - self._chunk_size]
            self._chunk.update(taken)
            self._chunk_size += taken.nbytes
            view = view[taken.nbytes :]
            if self._chunk_size == CHUNK_SIZE:
                self._end_chunk()

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
            Digest("sha256", self._sha256.hexdigest()),
            Digest("blake3", self._blake3.hexdigest()),
            tuple(self._chunks),
        )


def hash_file(
    path: Path, algorithm: Algorithm, *, advance: Callable[[int], None] = lambda _: None
) -> Digest:
    """Return the digest of a whole file, reading it in pieces; OSError as the system gives it."""
    hasher = hashlib.sha256() if algorithm == "sha256" else blake3()
    with path.open("rb") as stream:
        while piece := stream.read(READ_SIZE):
            hasher.update(piece)
            advance(len(piece))
    return Digest(algorithm, hasher.hexdigest())
