"""A signed index, made with python-tuf's metadata API as its maintainers would, and published as files.

A test changes what it wants (keys, versions, dates, pages), calls `publish`, and has the new files.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from weightpkg.document import parse_document
from weightpkg.listing import Listing
from weightpkg.page import read_model

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
LIFE = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7}
TOP = ("root", "timestamp", "snapshot", "targets")


def page(name: str, *, summary: str = "A model for tests", content: bytes = b"weights") -> str:
    """The page of a model that has one file, in variants `q4` and `q8`."""
    variants = "".join(
        f"""
[releases.variants.{variant}]
format = "gguf"
[[releases.variants.{variant}.files]]
path = "{name}-{variant}.gguf"
size = {len(content)}
sha256 = "{hashlib.sha256(content).hexdigest()}"
sources = ["https://models.example/{name}-{variant}.gguf"]
"""
        for variant in ("q4", "q8")
    )
    return f"""schema = 1
name = "{name}"
summary = "{summary}"
task = "text-generation"
architecture = "llama"
license = "LicenseRef-tests"
tags = ["tests"]
default-variant = "q4"

[[releases]]
version = "1.0"
date = 2026-01-02
changes = "first release"
{variants}"""


def alias(name: str) -> str:
    return f'schema = 1\nmodel = "{name}"\n'


@dataclass
class Repository:
    """An index that is published to a directory.

    files: by role and path, what each delegated role signs.
    """

    directory: Path
    namespace: str = "acme"
    now: datetime = NOW
    bins: int = 0
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    signers: dict[str, list[CryptoSigner]] = field(default_factory=dict)
    roles: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(
        cls,
        directory: Path,
        pages: Mapping[str, str] | None = None,
        *,
        namespace: str = "acme",
        bins: int = 0,
        now: datetime = NOW,
    ) -> Repository:
        """Publish an index: pages by path, such as `models/tiny.toml`."""
        self = cls(directory, namespace, now, bins)
        for name in TOP:
            self.signers[name] = [CryptoSigner.generate_ed25519()]
        root = Root(expires=self.expiry("root"), consistent_snapshot=True)
        for name in TOP:
            root.add_key(self.signers[name][0].public_key, name)
        targets = Targets(expires=self.expiry("targets"))
        targets.delegations = Delegations({}, {})
        snapshot = Snapshot(expires=self.expiry("snapshot"))
        timestamp = Timestamp(expires=self.expiry("timestamp"))
        self.roles = {
            "root": root,
            "targets": targets,
            "snapshot": snapshot,
            "timestamp": timestamp,
        }
        self.delegate(namespace, [f"{kind}/*" for kind in ("models", "aliases", "licenses")])
        self.sign_index_page(namespace)
        for path, text in (
            pages if pages is not None else {"models/tiny.toml": page("tiny")}
        ).items():
            self.add(path, text)
        self.publish("root", "targets", namespace)
        return self

    def expiry(self, role: str) -> datetime:
        return self.now + timedelta(days=LIFE.get(role, 180))

    def delegate(self, name: str, paths: list[str], *, terminating: bool = True) -> None:
        """Give paths to a new role."""
        self.signers[name] = [CryptoSigner.generate_ed25519()]
        role = Targets(expires=self.expiry(name))
        key = self.signers[name][0].public_key
        if self.bins and name == self.namespace:
            succinct = SuccinctRoles([], 1, self.bins.bit_length() - 1, f"{name}-bin")
            role.delegations = Delegations({}, succinct_roles=succinct)
            role.add_key(key)
            for each in succinct.get_roles():
                self.signers[each] = self.signers[name]
                self.roles[each] = Targets(expires=self.expiry(name))
        self.roles[name] = role
        delegations = self.roles["targets"].delegations
        delegations.roles[name] = DelegatedRole(name, [], 1, terminating, paths)
        self.roles["targets"].add_key(key, name)

    def sign_index_page(self, namespace: str) -> None:
        self.put("targets", "index.toml", f'schema = 1\nnamespace = "{namespace}"\n'.encode())

    def add(self, path: str, text: str, *, role: str | None = None) -> str:
        """Have the namespace's role, or a bin of it, or another one, sign a page."""
        role = role or self.namespace
        delegations = self.roles[role].delegations
        if delegations and delegations.succinct_roles:
            role = delegations.succinct_roles.get_role_for_target(path)
        self.put(role, path, text.encode())
        return role

    def put(self, role: str, path: str, content: bytes) -> None:
        info = TargetFile.from_data(path, content, ["sha256"])
        if "models/" in path:
            listing = Listing.of(read_model(parse_document(content, source=path)))
            info.unrecognized_fields["custom"] = listing.as_custom()
        self.roles[role].targets[path] = info
        self.write_target(info, content)

    def write_target(self, info: TargetFile, content: bytes) -> Path:
        folder, _, name = info.path.rpartition("/")
        place = self.directory / "targets" / folder / f"{info.hashes['sha256']}.{name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def target_path(self, path: str, role: str | None = None) -> Path:
        """Where a page is published."""
        info = self.roles[role or self.namespace].targets[path]
        folder, _, name = path.rpartition("/")
        return self.directory / "targets" / folder / f"{info.hashes['sha256']}.{name}"

    def publish(self, *changed: str) -> None:
        """Sign roles that have changed, and snapshot and timestamp, and write them."""
        bins = [name for name in self.roles if "-bin-" in name and name not in self.written]
        for name in [*changed, *bins]:
            self.roles[name].version += name in self.written
            self.write(name)
        snapshot, timestamp = self.roles["snapshot"], self.roles["timestamp"]
        for name, role in self.roles.items():
            if name not in ("root", "snapshot", "timestamp"):
                snapshot.meta[f"{name}.json"] = MetaFile(role.version)
        snapshot.version += "snapshot" in self.written
        timestamp.version += "timestamp" in self.written
        content = self.write("snapshot")
        digest = hashlib.sha256(content).hexdigest()
        timestamp.snapshot_meta = MetaFile(snapshot.version, len(content), {"sha256": digest})
        self.write("timestamp")

    @property
    def written(self) -> set[str]:
        metadata = self.directory / "metadata"
        return {path.name.split(".")[-2] for path in metadata.glob("*.json")}

    def write(self, name: str, *, signers: Iterable[CryptoSigner] | None = None) -> bytes:
        """Sign a role as it is, and write it."""
        metadata: Metadata[Any] = Metadata(copy.deepcopy(self.roles[name]))
        for signer in self.signers[name] if signers is None else signers:
            metadata.sign(signer, append=True)
        content = metadata.to_bytes(JSONSerializer(compact=True))
        prefix = "" if name == "timestamp" else f"{self.roles[name].version}."
        path = self.directory / "metadata" / f"{prefix}{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")  # who reads meanwhile sees the old or the new
        partial.write_bytes(content)
        partial.replace(path)
        return content

    def rotate_root(self, role: str = "timestamp") -> None:
        """Give a role, or the root itself, another key; sign the root with all that must."""
        root: Root = self.roles["root"]
        old, new = self.signers[role][0], CryptoSigner.generate_ed25519()
        root.revoke_key(old.public_key.keyid, role)
        root.add_key(new.public_key, role)
        self.signers[role] = [new]
        root.version += 1
        signers = {s.public_key.keyid: s for s in [*self.signers["root"], old]}
        self.write("root", signers=list(signers.values()) if role == "root" else None)

    @property
    def first_root(self) -> bytes:
        return (self.directory / "metadata" / "1.root.json").read_bytes()

    @property
    def root_sha256(self) -> str:
        return hashlib.sha256(self.first_root).hexdigest()

    def site(self) -> dict[str, bytes]:
        """All files, as a server has them."""
        return {
            f"/{path.relative_to(self.directory).as_posix()}": path.read_bytes()
            for path in sorted(self.directory.rglob("*"))
            if path.is_file()
        }
