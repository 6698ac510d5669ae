"""The read API of Ollama's registry for models of one GGUF file, with a projector where there is one.

    GET HEAD  /v2/NAMESPACE/MODEL/manifests/TAG        `library` is the default index
    GET HEAD  /v2/NAMESPACE/MODEL/blobs/sha256:HEX

A tag is a variant, a version or, in a repository of the hub, a quantisation that stands in a file's
name; `latest` is the default variant. Manifest and configuration are made of the files alone: the same
files are the same digests in every mirror.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

from weightpkg.digest import Digest
from weightpkg.lockfile import DEFAULT_INDEX
from weightpkg.mirror_server.checked import Shelf
from weightpkg.mirror_server.file_reply import blob_reply, content_reply
from weightpkg.mirror_server.holdings import MAIN, Entry, Holdings, Repository
from weightpkg.mirror_server.reply import RefusedError, Reply, Request, json_reply

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.ollama.image."
_DIGEST = re.compile(r"sha256[:-](?P<hex>[0-9a-f]{64})\Z")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")
_PROJECTOR = re.compile(r"(?i)(?:\A|[-_./])mmproj")


class Registry:
    """Answers for the GGUF files of a mirror."""

    def __init__(self, holdings: Holdings, shelf: Shelf) -> None:
        self._holdings = holdings
        self._shelf = shelf
        self._configurations: dict[Digest, bytes] = {}

    def answer(self, request: Request) -> Reply:
        """Answer below `/v2`.

        Raises:
            RefusedError: there is nothing of that name.
            DamagedError: a blob is not what it should be.
        """
        match request.segments[1:]:
            case ():
                return json_reply({})
            case (namespace, model, "manifests", tag):
                return self._manifest(request, namespace, model, tag)
            case (namespace, model, "blobs", digest):
                return self._blob(request, namespace, model, digest)
        raise _unknown("NAME_UNKNOWN", "there is no such route")

    def _manifest(self, request: Request, namespace: str, model: str, tag: str) -> Reply:
        repository, files = self._find(namespace, model, tag)
        manifest = self._manifest_of(repository, files)
        digest = _sha256(manifest)
        told = {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": str(digest)}
        return content_reply(request, manifest, etag=digest.hex, headers=told)

    def _blob(self, request: Request, namespace: str, model: str, digest: str) -> Reply:
        found = _DIGEST.match(digest)
        if found is None:
            raise _unknown("DIGEST_INVALID", "not a digest", status=400)
        wanted = Digest("sha256", found["hex"])
        told = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": str(wanted)}
        if wanted in self._holdings.sizes:
            return blob_reply(self._shelf, request, wanted, etag=wanted.hex, headers=told)
        if wanted not in self._configurations:
            self._configure(namespace, model)
        if wanted not in self._configurations:
            raise _unknown("BLOB_UNKNOWN", "the mirror has no such blob")
        content = self._configurations[wanted]
        return content_reply(request, content, etag=wanted.hex, headers=told)

    def _configure(self, namespace: str, model: str) -> None:
        """Make all configurations of a model: who asks may have the manifest since long ago."""
        name = f"{_owner(namespace)}/{model}"
        for repository in self._holdings.repositories.values():
            if repository.id == name or repository.id.startswith(f"{name}-"):
                for files in repository.commits.values():
                    for ggufs in _models(list(files.values())):
                        self._manifest_of(repository, ggufs)

    def _manifest_of(self, repository: Repository, files: list[Entry]) -> bytes:
        manifest, configuration = _manifest(repository, files)
        self._configurations[_sha256(configuration)] = configuration
        return manifest

    def _find(self, namespace: str, model: str, tag: str) -> tuple[Repository, list[Entry]]:
        """Return the repository and the files that a tag means."""
        owner = _owner(namespace)
        repository = self._holdings.repositories.get(f"{owner}/{model}")
        variant = self._holdings.repositories.get(f"{owner}/{model}-{tag}")
        if repository is None:
            raise _unknown("NAME_UNKNOWN", "the mirror has no such model")
        if variant is not None:
            return variant, _only(_models(list(variant.commits[variant.revisions[MAIN]].values())))
        commit = repository.commit(MAIN if tag == "latest" else tag)
        files = list(repository.commits[commit or repository.revisions[MAIN]].values())
        found = _models(files)
        if commit is None:
            found = [each for each in found if _is_tagged(each[0].path, tag)]
        return repository, _only(found)


def _models(files: list[Entry]) -> list[list[Entry]]:
    """Return each GGUF file with the projector that goes with all of them."""
    ggufs = [entry for entry in files if entry.path.lower().endswith(".gguf")]
    projectors = [entry for entry in ggufs if _PROJECTOR.search(entry.path)]
    return [[entry, *projectors[:1]] for entry in ggufs if entry not in projectors]


def _is_tagged(path: str, tag: str) -> bool:
    name = PurePosixPath(path).name.lower()
    stem = name.removesuffix(".gguf")
    return tag.lower() in {name, stem} or re.search(rf"[-_.]{re.escape(tag.lower())}\Z", stem) is not None  # fmt: skip


def _only(found: list[list[Entry]]) -> list[Entry]:
    if not found:
        raise _unknown("MANIFEST_UNKNOWN", "the mirror has no such GGUF file")
    if any(_SPLIT.search(each[0].path) for each in found):
        raise _unknown("MANIFEST_INVALID", "GGUF files in parts are not supported", status=400)
    return found[0]


def _manifest(repository: Repository, files: list[Entry]) -> tuple[bytes, bytes]:
    """Return the manifest and the configuration of a model, each always the same bytes."""
    about = repository.about
    kinds = ["model", "projector"]
    layers = [
        {"mediaType": f"{_LAYER}{kind}", "digest": str(entry.sha256), "size": entry.size}
        for kind, entry in zip(kinds, files, strict=False)
    ]
    configuration = _dump(
        {
            "model_format": "gguf",
            "model_family": about.architecture,
            "model_families": [about.architecture],
            "file_type": about.quantization or "unknown",
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": {
            "mediaType": CONFIG_TYPE,
            "digest": str(_sha256(configuration)),
            "size": len(configuration),
        },
        "layers": layers,
    }
    return _dump(manifest), configuration


def _owner(namespace: str) -> str:
    return DEFAULT_INDEX if namespace == "library" else namespace


def _sha256(content: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(content).hexdigest())


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _unknown(code: str, message: str, *, status: int = 404) -> RefusedError:
    refused = RefusedError(status, message)
    value = {"errors": [{"code": code, "message": message, "detail": {}}]}
    refused.reply = json_reply(value, status=status)
    return refused
