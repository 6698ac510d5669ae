"""Small mirrors as `mirror create` lays them out, made here, and one being served."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from weightpkg.contents import CONTENTS, Contents, dump_contents, entry_of
from weightpkg.digest import fingerprint_file
from weightpkg.listening.process import Listening
from weightpkg.mirror_server.listen import MirrorServer
from weightpkg.store import Store

KEY = 64 * "5"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class MirrorDirectory:
    """A mirror's directory, and what was put into it by name."""

    root: Path
    contents: dict[str, bytes] = field(default_factory=dict)

    def blob(self, content: bytes, *, with_chunks: bool = True) -> str:
        """Put a blob; return its SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        path = self.path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        if with_chunks:
            Store(self.root).write_chunks(fingerprint_file(path))
        self.contents[sha256] = content
        return sha256

    def path(self, sha256: str) -> Path:
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def model(
        self,
        name: str,
        variants: Mapping[str, Mapping[str, bytes]],
        *,
        repo: str | None = None,
        revision: str = COMMIT,
        namespace: str = "default",
        form: str = "gguf",
    ) -> None:
        """Put a model whose variants have these files; its sources are of a repository of the hub."""
        page = _head(name, next(iter(variants)))
        for variant, files in variants.items():
            page += f'\n[releases.variants.{variant}]\nformat = "{form}"\nquantization = "Q4_1"\n'
            for path, content in files.items():
                source = f"hf:{repo}@{revision}/{path}" if repo else f"https://host/{name}/{path}"
                page += f"""
[[releases.variants.{variant}.files]]
path = "{path}"
size = {len(content)}
sha256 = "{self.blob(content)}"
sources = ["{source}"]
"""
        self.file(f"index/{namespace}/models/{name}.toml", page.encode())

    def file(self, path: str, content: bytes) -> None:
        """Put any other file."""
        whole = self.root / path
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.write_bytes(content)

    def finish(self) -> None:
        """Write the list of what is here."""
        paths = [path for path in sorted(self.root.rglob("*")) if path.is_file()]
        entries = []
        for path in paths:
            name = path.relative_to(self.root).as_posix()
            if name.startswith(("blobs/", "index/", "models/", "locks/")):
                entries.append(entry_of(name, path.read_bytes()))
        contents = Contents((), {entry.path: entry for entry in entries})
        self.file(CONTENTS, dump_contents(contents))


def _head(name: str, default: str) -> str:
    return f"""schema = 1
name = "{name}"
summary = "A model for tests"
task = "text-generation"
architecture = "llama"
license = "MIT"
tags = ["tests"]
default-variant = "{default}"

[[releases]]
version = "1.0"
date = 2026-01-02
changes = "first release"
"""


def make_mirror(root: Path) -> MirrorDirectory:
    """Make a mirror of a model of two GGUF files and a checkpoint, both in repositories of the hub."""
    mirror = MirrorDirectory(root)
    mirror.model(
        "tiny",
        {
            "q4": {"tiny-Q4_1.gguf": b"GGUF" + b"four" * 5000},
            "q8": {"tiny-Q8_0.gguf": b"GGUF8" * 99},
        },
        repo="acme/tiny-GGUF",
    )
    files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "model.safetensors": b"\0" * 70_000,
        "1_Pooling/config.json": b'{"pooling": true}',
    }
    mirror.model("check", {"f32": files}, repo="acme/check", revision="main", form="safetensors")
    mirror.file(f"models/{KEY}/model.onnx", b"onnx" * 1000)
    mirror.finish()
    return mirror


@dataclass
class Served:
    """A mirror that is being served."""

    server: MirrorServer
    log: list[str]

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None) -> Answer:  # fmt: skip
        """Ask for a path, exactly as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            told = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, told, response.read())
        finally:
            connection.close()

    def wait_for(self, text: str) -> str:
        """Return the line of the log that has a text, which may come a moment later."""
        for _ in range(600):
            if found := [line for line in self.log if text in line]:
                return found[0]
            time.sleep(0.02)
        raise AssertionError(f"`{text}` is not in the log: {self.log}")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def serve(root: Path, *, key: str | None = None, url: str | None = None) -> Iterator[Served]:
    """Serve a mirror's directory until the block ends."""
    log: list[str] = []
    options = Listening(address="127.0.0.1", port=0, key=key, url=url)
    server = MirrorServer(root, options, log.append)
    thread = Thread(target=server.run)
    thread.start()
    try:
        yield Served(server, log)
    finally:
        server.stop()
        thread.join(40)
