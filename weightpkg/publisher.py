"""A publisher's own signature over a model's files: `model.sig`, as OpenSSF Model Signing has it.

https://github.com/ossf/model-signing-spec. It says that whoever has a key signed these files, and
nothing of which release is the newest, or whether the key is still good: names and digests come from an
index, and this is looked at beside it, with a key that the user brings.

What was signed is a list of names and digests. The library checks the signature and hands out the list;
the list is held against the files' own, whose bytes were checked when they came. Nothing looks through
a directory, so that nothing in one can be overlooked: the library's own way leaves `.git` out.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpkg import files
from weightpkg.convert import SIGNATURE
from weightpkg.digest import READ_SIZE, Digest
from weightpkg.errors import SignatureError, StoreError, WeightpkgError, shown

if TYPE_CHECKING:
    from weightpkg.store import Installed, InstalledFile, Store

MAX_SIGNATURE = 16 * 1024 * 1024
_MAX_KEY = 256 * 1024
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_EXTRA = "pip install 'weightpkg[model-signing]'"
_ITSELF = "."  # what a file is called in the list where it was signed alone, and in no directory
_SHARD = re.compile(r"(?P<path>[^:]+):(?P<start>[0-9]{1,19}):(?P<end>[0-9]{1,19})\Z")


@dataclass(frozen=True, slots=True)
class PublisherKey:
    """What a user says a publisher's signatures are made with.

    is_certificate: whether it is one that the signer's certificate comes from, or a public key.
    fingerprint: of the key or the first certificate, SHA-256 of its DER.
    """

    path: Path
    is_certificate: bool
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _Resource:
    """Something that was signed: a file, or a part of one."""

    name: str
    algorithm: str
    hex: str


def has_signature(installed: Installed) -> bool:
    """Whether its publisher signed a model's files."""
    return any(file.path == SIGNATURE for file in installed.files)


def read_publisher_key(path: Path) -> PublisherKey:
    """Read a public key, or certificates, in PEM.

    Raises:
        SignatureError: it is neither, or of a kind that the specification does not have.
        StoreError: it cannot be read.
    """
    with files.mapped(path), path.open("rb") as stream:
        content = stream.read(_MAX_KEY + 1)
    with _library():
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  of an extra

        if b"PRIVATE KEY" in content:
            raise _bad_key(
                path, "is a private key", "give its public half, and keep this one apart"
            )
        if b"BEGIN CERTIFICATE" in content:
            return PublisherKey(
                path, is_certificate=True, fingerprint=_of_certificate(path, content)
            )
        try:
            key = serialization.load_pem_public_key(content)
        except (ValueError, TypeError) as error:
            raise _bad_key(path, "is no public key or certificate in PEM") from error
        _check_curve(path, key)
        der = key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return PublisherKey(path, is_certificate=False, fingerprint=hashlib.sha256(der).hexdigest())


def _of_certificate(path: Path, content: bytes) -> str:
    from cryptography import x509  # noqa: PLC0415  of an extra
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    try:
        certificates = x509.load_pem_x509_certificates(content)
        return hashlib.sha256(certificates[0].public_bytes(Encoding.DER)).hexdigest()
    except ValueError as error:
        raise _bad_key(path, "has a certificate that cannot be read") from error


def _check_curve(path: Path, key: object) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  of an extra

    curve = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    if curve not in _CURVES:
        kind = curve.removesuffix("PublicKey").removeprefix("_")
        reason = f"is a key of the kind {kind}, which Model Signing does not have"
        raise _bad_key(path, reason, "there are elliptic curves only: P-256, P-384 and P-521")


def _bad_key(path: Path, reason: str, hint: str | None = None) -> SignatureError:
    return SignatureError(f"`{path}` {reason}", hint=hint)


@contextmanager
def _library() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise WeightpkgError(
            f"`{error.name}` is not installed, which checks publishers' signatures", hint=_EXTRA
        ) from error


def check_publisher(
    name: str, signed: Sequence[InstalledFile], store: Store, key: PublisherKey
) -> None:
    """Refuse files that are not exactly those that a publisher signed.

    Args:
        name: the model's, for errors.
        signed: its files, whose bytes are what their digests say; the signature among them.
        store: where they are.
        key: the publisher's.

    Raises:
        SignatureError: there is no signature, it is not the key's, or a file is not as it was signed,
            was not signed, or is missing.
        StoreError: a blob that is needed is not there.
    """
    own = {file.path: file for file in signed if file.path != SIGNATURE}
    signature = next((file for file in signed if file.path == SIGNATURE), None)
    if signature is None:
        raise SignatureError(
            f"`{name}` has no `{SIGNATURE}`: its publisher did not sign it",
            hint="what an index says of it is checked without one",
        )
    resources = _signed_list(name, _blob(signature, store), key)
    if not resources:  # the specification wants one, and the library does not
        raise _mismatch(name, "no file was signed")
    by_path = _by_path(name, resources)
    if by_path.keys() == {_ITSELF} and len(own) == 1:
        by_path = dict.fromkeys(own, by_path[_ITSELF])
    if missing := sorted(by_path.keys() - own.keys()):
        raise _mismatch(name, f"{_some(missing)} was signed, and is missing")
    if extra := sorted(own.keys() - by_path.keys()):
        raise _mismatch(name, f"{_some(extra)} was not signed")
    for path, parts in by_path.items():
        _check_file(name, own[path], parts, store)


def _blob(file: InstalledFile, store: Store) -> Path:
    path = store.blob(file.sha256)
    if path is None:
        raise StoreError(f"`{file.path}`: its blob is missing", hint="weightpkg verify --repair")
    return path


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"`{shown(name)}`" for name in names[:3]) + more


def _mismatch(name: str, reason: str) -> SignatureError:
    return SignatureError(
        f"`{name}` is not what its publisher signed: {reason}",
        hint="do not use it before its publisher has explained that",
    )


def _signed_list(name: str, signature: Path, key: PublisherKey) -> list[_Resource]:
    """Return what was signed, once the library has found the signature to be the key's."""
    if signature.stat().st_size > MAX_SIGNATURE:
        raise SignatureError(f"the signature of `{name}` is larger than {MAX_SIGNATURE:,} bytes")
    with _library():
        return _ask_library(name, signature, key)


def _ask_library(name: str, signature: Path, key: PublisherKey) -> list[_Resource]:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.x509 import DuplicateExtension, InvalidVersion  # noqa: PLC0415
    from model_signing import verifying  # noqa: PLC0415  of an extra, and slow to import
    from OpenSSL.crypto import Error, X509StoreContextError  # noqa: PLC0415

    listener = _Listener()
    config = verifying.Config().set_hashing_config(listener)
    if key.is_certificate:
        config.use_certificate_verifier(certificate_chain=[key.path])
    else:
        config.use_elliptic_key_verifier(public_key=key.path)
    foreign = (
        InvalidSignature, UnsupportedAlgorithm, X509StoreContextError, Error, InvalidVersion,
        DuplicateExtension, ValueError, TypeError, LookupError, AttributeError, RecursionError,
    )  # fmt: skip
    try:
        with redirect_stdout(io.StringIO()):  # it prints warnings there
            config.verify(signature.parent, signature)
        return listener.resources()
    except foreign as error:
        raise SignatureError(
            f"the signature of `{name}` is not by the key `{key.path}`, or is none: "
            f"{shown(str(error).strip() or type(error).__name__)}",
            hint="get the publisher's key from the publisher, and not from where the model is",
        ) from error


class _Listener:
    """Takes the place of what hashes a directory for the library, and hears what was signed.

    The library asks for the directory's list once the signature was found to be good, and compares
    what it gets with the signed one. It gets this, which is equal to anything, and remembers it.
    """

    def __init__(self) -> None:
        self._signed: Any = None

    def add_ignored_paths(self, **_: object) -> None:
        """Ignore nothing, whatever the signer wants ignored."""

    def hash(self, *_: object, **__: object) -> _Listener:
        """Return what takes the place of the list."""
        return self

    def __eq__(self, other: object) -> bool:
        self._signed = other
        return True

    __hash__ = None  # type: ignore[assignment]

    def resources(self) -> list[_Resource]:
        """Return what was signed."""
        return [
            _Resource(str(row.identifier), str(row.digest.algorithm), str(row.digest.digest_hex))
            for row in self._signed.resource_descriptors()
        ]


def _by_path(name: str, resources: Iterable[_Resource]) -> Mapping[str, list[_Resource]]:
    """Bring together the parts of each file; a file that was signed as a whole has one."""
    found: dict[str, list[_Resource]] = {}
    for resource in resources:
        is_part = "-sharded-" in resource.algorithm
        match = _SHARD.match(resource.name) if is_part else None
        if is_part and match is None:
            raise _mismatch(name, f"`{shown(resource.name)}` is no part of a file")
        found.setdefault(match["path"] if match else resource.name, []).append(resource)
    return found


def _check_file(name: str, file: InstalledFile, parts: Sequence[_Resource], store: Store) -> None:
    whole = parts[0]
    known: dict[str, Digest] = {"sha256": file.sha256, "blake3": file.blake3}
    if whole.algorithm in known:
        is_same = len(parts) == 1 and whole.hex == known[whole.algorithm].hex
    else:
        is_same = _is_same_in_parts(name, file, parts, _blob(file, store))
    if not is_same:
        raise _mismatch(name, f"`{shown(file.path)}` was changed")


def _is_same_in_parts(
    name: str, file: InstalledFile, parts: Sequence[_Resource], path: Path
) -> bool:
    """Hash a file as its publisher did; the parts must be all of it, each once."""
    expected = sorted((*_range(part, file.size), part) for part in parts)
    end = 0
    for start, stop, part in expected:
        if start != end or stop < start:
            return False
        end = stop
        if _hash(name, path, start, stop, part.algorithm) != part.hex:
            return False
    return end == file.size


def _range(part: _Resource, size: int) -> tuple[int, int]:
    match = _SHARD.match(part.name) if "-sharded-" in part.algorithm else None
    return (int(match["start"]), int(match["end"])) if match else (0, size)


def _hash(name: str, path: Path, start: int, stop: int, algorithm: str) -> str:
    hasher = _hasher(name, algorithm.partition("-sharded-")[0])
    with files.mapped(path), path.open("rb") as stream:
        stream.seek(start)
        while start < stop and (piece := stream.read(min(READ_SIZE, stop - start))):
            hasher.update(piece)
            start += len(piece)
    return str(hasher.hexdigest())


def _hasher(name: str, algorithm: str) -> Any:
    match algorithm:
        case "sha256":
            return hashlib.sha256()
        case "blake2b":
            return hashlib.blake2b()
        case "blake3":
            from blake3 import blake3  # noqa: PLC0415  rarely needed here

            return blake3()
        case _:
            raise _mismatch(name, f"it was hashed by `{shown(algorithm)}`, which is not known here")
