"""The keys that sign an index: ed25519, private ones in PEM files (PKCS #8) that only their owner reads.

A private key never leaves its file but for the moment of signing, and never lies in a directory
that is published. Beside `NAME.pem` lies `NAME.pub`, the public key, which may be given to anybody.
https://datatracker.ietf.org/doc/html/rfc8032, https://datatracker.ietf.org/doc/html/rfc5958
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightpkg import files
from weightpkg.errors import SigningError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from securesystemslib.signer import CryptoSigner, SSlibKey

MAX_KEY_SIZE = 64 * 1024
PRIVATE, PUBLIC = ".pem", ".pub"
_OURS = "make one with `weightpkg index key generate NAME`"

Passphrase = Callable[[Path], str]
"""Asks for the passphrase of a key's file."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key, and the key id by which metadata names it: the SHA-256 of its description."""

    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != 64 or set(self.hex) - set("0123456789abcdef"):
            raise ValueError("must be the 64 hexadecimal digits of an ed25519 key")

    @property
    def tuf(self) -> SSlibKey:
        """The key as metadata has it."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  slow to import
        from securesystemslib.signer import SSlibKey  # noqa: PLC0415  slow to import

        return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.hex)))

    @property
    def id(self) -> str:
        """The key id."""
        return self.tuf.keyid


def generate_key(path: Path, passphrase: str | None = None) -> PublicKey:
    """Make a key: the private one in `path`, the public one beside it; both must be new.

    Args:
        path: of the private key.
        passphrase: encrypts the file.

    Raises:
        SigningError: there is such a file, or it would lie in a published directory.
        StoreError: it cannot be written.
    """
    from cryptography.hazmat.primitives import serialization as form  # noqa: PLC0415  slow to import
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  slow to import

    check_place(path)
    public_path = path.with_suffix(PUBLIC)
    for each in (path, public_path):
        if each.exists() or each.is_symlink():
            raise SigningError(f"`{each}` is there already", hint="keys are never overwritten")
    key = Ed25519PrivateKey.generate()
    encryption = (
        form.BestAvailableEncryption(passphrase.encode()) if passphrase else form.NoEncryption()
    )
    content = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(
        form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo
    )
    files.write_file(path, content, temporary=path.parent, mode=0o600)
    files.write_file(public_path, public, temporary=path.parent)
    return _public(key)


def check_place(path: Path) -> None:
    """Refuse a private key's place in a directory that is published.

    Raises:
        SigningError: it lies there.
    """
    for parent in path.absolute().parents:
        if (parent / "metadata" / "timestamp.json").exists() and (parent / "targets").exists():
            raise SigningError(
                f"`{path}` is inside the published directory `{parent}`",
                hint="keep keys where no web server looks, as on a USB stick",
            )


def load_signer(path: Path, passphrase: Passphrase) -> CryptoSigner:
    """Open a private key.

    Args:
        path: its file.
        passphrase: asked only where the file is encrypted.

    Raises:
        SigningError: it cannot be read, others can read it, or the passphrase is wrong.
    """
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415  slow to import

    content = _read(path)
    if os.name != "nt" and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SigningError(f"`{path}` can be read by others", hint=f"`chmod 600 {path}`")
    key = _private(path, content, None)
    if key is None:
        key = _private(path, content, passphrase(path))
    if key is None:
        raise SigningError(f"`{path}` is encrypted, and no passphrase was given")
    return CryptoSigner(key, _public(key).tuf)


def _private(path: Path, content: bytes, passphrase: str | None) -> Ed25519PrivateKey | None:
    """Read a private key; None where it is encrypted and no passphrase was given."""
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  slow to import
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  slow to import
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415  slow to import

    try:
        key = load_pem_private_key(content, passphrase.encode() if passphrase else None)
    except TypeError:  # encrypted
        return None
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "is no private key" if passphrase is None else "does not open with this passphrase"
        raise SigningError(
            f"`{path}` {reason}", hint=_OURS if passphrase is None else None
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningError(f"`{path}` is a private key of another kind than ed25519", hint=_OURS)
    return key


def load_public(path: Path, passphrase: Passphrase) -> PublicKey:
    """Read a public key, of its own file or, where none lies beside it, of the private key's.

    Raises:
        SigningError: it cannot be read, or is none.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  slow to import
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  slow to import
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415  slow to import

    beside = path.with_suffix(PUBLIC)
    content = _read(beside if beside.is_file() else path)
    if b"PRIVATE KEY" in content:
        return PublicKey(str(load_signer(path, passphrase).public_key.keyval["public"]))
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SigningError(f"`{path}` is no public key", hint=_OURS) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SigningError(f"`{path}` is a key of another kind than ed25519", hint=_OURS)
    return PublicKey(key.public_bytes_raw().hex())


def _public(key: Ed25519PrivateKey) -> PublicKey:
    return PublicKey(key.public_key().public_bytes_raw().hex())


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_KEY_SIZE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SigningError(f"the key `{path}` cannot be read: {reason}") from error


class Keyring:
    """Private keys that are at hand: those that were named, and those whose places are known.

    Files of the latter are opened when a signature of theirs is needed, and not before, so nobody is
    asked for a passphrase for nothing.
    """

    def __init__(
        self,
        named: Iterable[Path],
        places: Iterable[tuple[str, Path]],
        passphrase: Passphrase,
    ) -> None:
        """Open the named keys.

        Args:
            named: files of keys.
            places: ids and files of others.
            passphrase: asks for a file's passphrase.

        Raises:
            SigningError: a named key cannot be opened.
        """
        signers = [load_signer(path, passphrase) for path in named]
        self.named = {signer.public_key.keyid: signer for signer in signers}
        self._open = dict(self.named)
        self._places = dict(places)
        self._passphrase = passphrase

    def find(self, key_id: str) -> CryptoSigner | None:
        """Return the private key of an id, None where it is not at hand.

        Raises:
            SigningError: its file is there and cannot be opened, or has another key.
        """
        if key_id not in self._open:
            path = self._places.get(key_id)
            if path is None or not path.is_file():
                return None
            signer = load_signer(path, self._passphrase)
            if signer.public_key.keyid != key_id:
                raise SigningError(f"`{path}` has another key than the plan says")
            self._open[key_id] = signer
        return self._open[key_id]
