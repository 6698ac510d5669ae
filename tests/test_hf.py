"""The `hf:` source, against a hub with a CDN at another origin, and beside the hub's own client."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants, snapshot_download

from factories import tiny_llama
from http_message import Reply, Request
from hub_server import Hub, serve_hub
from tiny_checkpoint import TinyCheckpoint
from weightpkg.adopt import Places
from weightpkg.digest import Digest
from weightpkg.errors import FetchError, IntegrityError, RequirementError
from weightpkg.fetch import Fetcher
from weightpkg.package import Resolved
from weightpkg.progress import Silence
from weightpkg.reference import resolve_reference
from weightpkg.settings import Settings
from weightpkg.sources.hf import HubOpener
from weightpkg.sources.openers import Openers
from weightpkg.sources.pip_config import PipConfig
from weightpkg.sources.transport import Transport, TransportSettings
from weightpkg.store import Store, placed_sources

MODEL = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(MODEL).hexdigest()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.gguf": MODEL,
    "below/it/q8.gguf": MODEL[:1000],
    "below/empty.txt": b"",
    "empty.bin": b"",
}
TOKEN = "hf_secret"
STRANGER = "hf_stranger"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(Transport, "sleep", lambda *_: None)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve_hub() as hub:
        hub.tokens = {TOKEN: {"acme/private", "acme/gated"}, STRANGER: set()}
        for access in ("public", "private", "gated"):
            hub.add(f"acme/{access}", FILES, access=access)
        yield hub


@pytest.fixture
def openers(hub: Hub, tmp_path: Path) -> Iterator[Openers]:
    with opened(hub, tmp_path) as openers:
        yield openers


def opened(hub: Hub, tmp_path: Path, token: str = "") -> Openers:
    config = PipConfig(index_urls=(), transport=TransportSettings(timeout_s=10, retries=1))
    environ = {"HF_ENDPOINT": hub.url, "HF_TOKEN": token}
    return Openers(config, environ, index_dir=tmp_path / "index", temp_dir=tmp_path)


def resolve(openers: Openers, text: str, **patterns: list[str]) -> Resolved:
    return resolve_reference(text, openers.list_repository, **patterns)


def fetch_all(
    openers: Openers, store: Store, resolved: Resolved, places: Places | None = None
) -> dict[str, bytes]:
    """Fetch all files of what was asked for, and return their bytes by path."""
    fetcher = Fetcher(openers, store, Silence(), places=places or Places())
    found = {}
    for file in resolved.variant.files:
        blob = store.blob(fetcher.fetch(file).sha256)
        assert blob is not None
        found[file.path.text] = blob.read_bytes()
    return found


def paths(resolved: Resolved) -> list[str]:
    return [file.path.text for file in resolved.variant.files]


def told(error: FetchError | IntegrityError) -> str:
    return f"{error.message}\n{error.hint}"


def main_of(hub: Hub, repo: str = "acme/public") -> str:
    return hub.repositories[repo].revisions["main"]


@pytest.mark.parametrize("has_resolve_cache", [False, True], ids=["direct", "resolve cache"])
@pytest.mark.parametrize("page_size", [1, 3, 1000])
def test_fetches_a_whole_repository(
    hub: Hub, openers: Openers, store: Store, page_size: int, *, has_resolve_cache: bool
) -> None:
    hub.page_size, hub.has_resolve_cache = page_size, has_resolve_cache
    resolved = resolve(openers, "hf:acme/public")
    assert fetch_all(openers, store, resolved) == FILES
    assert resolved.full_name == "public-files"


@pytest.mark.parametrize(
    ("include", "exclude", "chosen"),
    [
        (["*.gguf"], [], ["below/it/q8.gguf", "model.gguf"]),
        (["*.gguf"], ["below/*"], ["model.gguf"]),
        ([], ["*.gguf", "*.txt", "empty*"], ["config.json"]),
        (["config.json", "model.*"], [], ["config.json", "model.gguf"]),
    ],
)
def test_chooses_files_of_a_repository(
    openers: Openers, include: list[str], exclude: list[str], chosen: list[str]
) -> None:
    resolved = resolve(openers, "hf:acme/public", include=include, exclude=exclude)
    assert paths(resolved) == chosen


def test_says_that_nothing_is_left_to_choose(openers: Openers) -> None:
    with pytest.raises(FetchError, match="no file that `--include`") as caught:
        resolve(openers, "hf:acme/public", include=["*.onnx"])
    assert "`config.json`" in told(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", "@v1"])
def test_pins_a_revision_to_its_commit(
    hub: Hub, openers: Openers, store: Store, revision: str
) -> None:
    old = hub.commit("acme/public", {"model.gguf": b"old"}, revision="v1")
    new = main_of(hub)
    resolved = resolve(openers, f"hf:acme/public{revision}/model.gguf")
    commit = old if revision == "@v1" else new
    ((source,),) = resolved.variant.files[0].sources
    assert source.text == f"hf:acme/public@{commit}/model.gguf"
    assert str(resolved.release.version) == f"0+{commit[:12]}"
    hub.commit("acme/public", {"model.gguf": b"newer"})
    found = fetch_all(openers, store, resolved)
    assert found == {"model.gguf": b"old" if revision == "@v1" else MODEL}


MESSAGES = [
    ("hf:acme/none", "", ["no repository `acme/none`", "or private, and no token", "HF_TOKEN"]),
    ("hf:acme/none", TOKEN, ["no repository `acme/none`", "or not for this token"]),
    ("hf:acme/private", "", ["no repository `acme/private`", "or private, and no token"]),
    ("hf:acme/private", STRANGER, ["no repository `acme/private`", "not for this token"]),
    ("hf:acme/gated", "", ["is gated, and there is no token", "accept its license at", "/acme/gated"]),
    ("hf:acme/gated", STRANGER, ["the license of `acme/gated` was not accepted", "accept it at"]),
    ("hf:acme/public", "hf_wrong", ["the token is not accepted", "hf auth login"]),
    ("hf:acme/public@none", "", ["has no revision `none`", "branches and tags"]),
    ("hf:acme/public@" + "0" * 40, "", ["has no revision `0000"]),
    ("hf:acme/public/none.gguf", "", ["has no file `none.gguf`", "`config.json`"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "token", "parts"), MESSAGES)
def test_says_what_is_wrong(
    hub: Hub, store: Store, tmp_path: Path, text: str, token: str, parts: list[str]
) -> None:
    with opened(hub, tmp_path, token) as openers, pytest.raises(FetchError) as caught:
        fetch_all(openers, store, resolve(openers, text))
    assert all(part in told(caught.value) for part in parts), told(caught.value)
    assert not any(secret in told(caught.value) for secret in (TOKEN, STRANGER, "hf_wrong"))
    assert caught.value.exit_code == 5
    assert hub.cdn_requests == []


def test_names_a_file_that_has_gone_meanwhile(hub: Hub, openers: Openers, store: Store) -> None:
    resolved = resolve(openers, "hf:acme/public/model.gguf")
    del hub.repositories["acme/public"].commits[main_of(hub)]["model.gguf"]
    with pytest.raises(FetchError, match="has no such file"):
        fetch_all(openers, store, resolved)


@pytest.mark.parametrize("text", ["hf:acme", "hf:acme/", "hf:a/b@", "hf:a/b@x y", "hf:a/b//x"])
def test_refuses_what_is_no_reference(openers: Openers, hub: Hub, text: str) -> None:
    with pytest.raises(RequirementError):
        resolve(openers, text)
    assert hub.requests == []


@pytest.mark.parametrize("repo", ["acme/private", "acme/gated"])
def test_a_token_opens_what_it_may_read_and_goes_to_the_hub_alone(
    hub: Hub, store: Store, tmp_path: Path, repo: str
) -> None:
    with opened(hub, tmp_path, TOKEN) as openers:
        assert fetch_all(openers, store, resolve(openers, f"hf:{repo}")) == FILES
    assert {request.headers["Authorization"] for request in hub.requests} == {f"Bearer {TOKEN}"}
    assert hub.cdn_requests != []
    for request in hub.cdn_requests:
        assert TOKEN not in f"{request.path}\n{request.headers}"
    assert not is_kept(TOKEN, store)


def is_kept(secret: str, store: Store) -> bool:
    files = [path for path in store.root.rglob("*") if path.is_file()]
    return any(secret.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize("path", ["config.json", "model.gguf"])
def test_wrong_bytes_are_refused_whatever_kind_of_digest_there_is(
    hub: Hub, openers: Openers, store: Store, path: str
) -> None:
    resolved = resolve(openers, f"hf:acme/public/{path}")
    (file,) = resolved.variant.files
    assert (file.sha256 is None) == (path == "config.json") == (file.git_sha1 is not None)
    wrong = FILES[path].replace(b"l", b"L")
    files = hub.repositories["acme/public"].commits[main_of(hub)]
    files[path] = wrong if wrong != FILES[path] else FILES[path][::-1]
    with pytest.raises(IntegrityError):
        fetch_all(openers, store, resolved)
    assert list((store.root / "blobs").rglob("*")) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        b'{"sha": 5}',
        b'{"sha": "main"}',
        b'{"sha": "' + "ü".encode() * 40 + b'"}',
        b"[" * 100_000,
    ],
)
def test_a_commit_that_cannot_be_read_is_an_error(
    hub: Hub, openers: Openers, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    reply = Reply("HTTP/1.1 200 OK", {"Content-Length": str(len(answer))}, answer)
    monkeypatch.setattr(Hub, "_info", lambda *_: reply)
    with pytest.raises(FetchError, match="cannot be read"):
        resolve(openers, "hf:acme/public")


def row(**changes: object) -> dict[str, object]:
    return {"type": "file", "path": "m.gguf", "size": 5, "oid": "0" * 40} | changes


@pytest.mark.parametrize(
    "rows",
    [
        [5],
        ["file"],
        [{}],
        [row(size=-1)],
        [row(size="5")],
        [row(size=1e99)],
        [row(size=True)],
        [row(path=5)],
        [row(oid=5)],
        [row(oid="main")],
        [row(lfs=5)],
        [row(lfs="x")],
        [row(lfs={"size": 5})],
        [row(lfs={"size": -5, "oid": "0" * 64})],
        [row(lfs={"size": 5, "oid": "x"})],
        [row(lfs={"size": 5, "oid": None})],
    ],
    ids=str,
)
def test_a_list_that_cannot_be_read_is_an_error(
    hub: Hub, openers: Openers, monkeypatch: pytest.MonkeyPatch, rows: list[object]
) -> None:
    body = json.dumps(rows).encode()
    reply = Reply("HTTP/1.1 200 OK", {"Content-Length": str(len(body))}, body)
    monkeypatch.setattr(Hub, "_tree", lambda *_: reply)
    with pytest.raises(FetchError, match="cannot be read"):
        resolve(openers, "hf:acme/public")


@pytest.mark.parametrize("path", ["../m.gguf", "/m.gguf", "a//m.gguf", "con", "m\n.gguf", ""])
def test_leaves_out_what_could_be_no_file(
    hub: Hub, openers: Openers, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body = json.dumps([row(path=path), row()]).encode()
    reply = Reply("HTTP/1.1 200 OK", {"Content-Length": str(len(body))}, body)
    monkeypatch.setattr(Hub, "_tree", lambda *_: reply)
    assert paths(resolve(openers, "hf:acme/public")) == ["m.gguf"]


@pytest.mark.parametrize(
    "link", ["http://127.0.0.1:1/next", "https://huggingface.co/next", "//other/next", "file:///x"]
)
def test_follows_no_page_to_another_origin(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, link: str
) -> None:
    told = {"Content-Length": "2", "Link": f'<{link}>; rel="next"'}
    monkeypatch.setattr(Hub, "_tree", lambda *_: Reply("HTTP/1.1 200 OK", told, b"[]"))
    with opened(hub, tmp_path, TOKEN) as openers, pytest.raises(FetchError, match="elsewhere"):
        resolve(openers, "hf:acme/private")


def test_a_list_that_never_ends_is_an_error(
    hub: Hub, openers: Openers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpkg.sources.hf.MAX_PAGES", 5)
    following = f"{hub.url}/api/models/acme/public/tree/{main_of(hub)}"
    told = {"Content-Length": "2", "Link": f'<{following}>; rel="next"'}
    monkeypatch.setattr(Hub, "_tree", lambda *_: Reply("HTTP/1.1 200 OK", told, b"[]"))
    with pytest.raises(FetchError, match="more than 5 pages"):
        resolve(openers, "hf:acme/public")


def test_signed_addresses_that_expire_are_asked_for_again(
    hub: Hub, openers: Openers, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpkg.sources.remote.FIRST_RANGE", 64 * 1024)
    monkeypatch.setattr("weightpkg.transfer.PART_SIZE", 64 * 1024)
    answer = Hub.answer_of_cdn

    def expires_after(self: Hub, request: Request) -> Reply:
        reply = answer(self, request)
        self.expire()
        return reply

    monkeypatch.setattr(Hub, "answer_of_cdn", expires_after)
    resolved = resolve(openers, "hf:acme/public/model.gguf")
    assert fetch_all(openers, store, resolved) == {"model.gguf": MODEL}
    assert len(hub.cdn_requests) == 4


@pytest.fixture
def cache(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that the hub's own client has filled."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    close_session()
    snapshot_download("acme/public", cache_dir=tmp_path / "cache", endpoint=hub.url, token=False)
    close_session()
    return tmp_path / "cache"


def snapshot(cache: Path, hub: Hub) -> Path:
    return cache / "models--acme--public" / "snapshots" / main_of(hub)


def state(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What can be seen of files, but for how many names they have."""
    found = {}
    for path in sorted(folder.rglob("*")):
        entry = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (entry.st_mode, entry.st_mtime_ns, entry.st_ino, content)
    return found


def test_has_the_same_bytes_as_the_hubs_own_client(
    hub: Hub, openers: Openers, store: Store, cache: Path
) -> None:
    found = fetch_all(openers, store, resolve(openers, "hf:acme/public"))
    folder = snapshot(cache, hub)
    assert found == {path: (folder / path).read_bytes() for path in FILES} == FILES


def is_asked_for(hub: Hub, path: str) -> bool:
    return any(path in request.path for request in hub.requests) or bool(hub.cdn_requests)


def test_takes_a_file_from_the_cache_of_the_hubs_own_client(
    hub: Hub, openers: Openers, store: Store, cache: Path
) -> None:
    before = state(cache)
    resolved = resolve(openers, "hf:acme/public/model.gguf")
    hub.requests.clear()
    hub.cdn_requests.clear()
    assert fetch_all(openers, store, resolved, Places(hubs=(cache,))) == {"model.gguf": MODEL}
    assert not is_asked_for(hub, "model.gguf")
    assert state(cache) == before


def test_a_changed_file_of_a_cache_is_left_alone(
    hub: Hub, openers: Openers, store: Store, cache: Path
) -> None:
    blob = cache / "models--acme--public" / "blobs" / SHA256
    blob.chmod(0o644)
    blob.write_bytes(MODEL[::-1])
    before = state(cache)
    resolved = resolve(openers, "hf:acme/public/model.gguf")
    assert fetch_all(openers, store, resolved, Places(hubs=(cache,))) == {"model.gguf": MODEL}
    assert state(cache) == before
    assert list(store.temporary.iterdir()) == []


def ollama(folder: Path) -> Places:
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / f"sha256-{SHA256}").write_bytes(MODEL)
    return Places(ollama=(folder,))


def directory(folder: Path) -> Places:
    (folder / "deep" / "below").mkdir(parents=True)
    (folder / "deep" / "below" / "model.gguf").write_bytes(MODEL)
    (folder / "model.gguf").write_bytes(MODEL[::-1])
    return Places(directories=(folder,))


@pytest.mark.parametrize("make", [ollama, directory])
def test_takes_a_file_of_another_tool(
    hub: Hub, openers: Openers, store: Store, tmp_path: Path, make: Callable[[Path], Places]
) -> None:
    places = make(tmp_path / "other")
    before = state(tmp_path / "other")
    resolved = resolve(openers, "hf:acme/public/model.gguf")
    hub.requests.clear()
    assert fetch_all(openers, store, resolved, places) == {"model.gguf": MODEL}
    assert (hub.requests, hub.cdn_requests) == ([], [])
    assert state(tmp_path / "other") == before
    (store.blob_path(Digest("sha256", SHA256))).unlink()
    assert state(tmp_path / "other") == before


def test_finds_endpoint_and_token_as_the_hubs_own_client_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: Hub
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    opener = HubOpener.from_environment(TransportSettings(), {"HF_ENDPOINT": hub.url + "/"})
    assert opener.list("acme/private", "main").commit == main_of(hub, "acme/private")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    opener = HubOpener.from_environment(TransportSettings(), {"HF_ENDPOINT": hub.url})
    with pytest.raises(FetchError, match="no token"):
        opener.list("acme/private", "main")


Result = subprocess.CompletedProcess[str]


@pytest.fixture
def weightpkg(settings: Settings, hub: Hub, tmp_path: Path) -> Callable[..., Result]:
    """Run the command line with the hub, and the store of `settings`."""
    kept = {
        key: os.environ[key] for key in ("PATH", "VIRTUAL_ENV", "PYTHONPATH") if key in os.environ
    }
    home = {"HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}

    def run(*words: str, **changes: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "weightpkg", *words],
            env={**kept, **settings.environ, **home, **changes},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_reference_is_installed_and_runs_when_the_hub_is_gone(
    weightpkg: Callable[..., Result], settings: Settings, hub: Hub, tmp_path: Path
) -> None:
    content = tiny_llama(tmp_path / "tiny.gguf").read_bytes()
    commit = hub.commit("acme/private", {"tiny.gguf": content})
    name = "hf:acme/private@main/tiny.gguf"
    done = weightpkg("install", name)
    assert done.returncode == 0, done.stderr
    assert f"0+{commit[:12]}" in done.stderr
    (listed,) = json.loads(weightpkg("list", "--json").stdout)
    assert listed["version"] == f"0+{commit[:12]}"
    asked = len(hub.requests)
    gone = {"HF_ENDPOINT": "http://127.0.0.1:1"}
    answer = weightpkg("run", name, "Hi", "--max-tokens", "3", "--json", **gone)
    assert answer.returncode == 0, answer.stderr
    assert len(json.loads(answer.stdout)["tokens"]) <= 3
    verified = weightpkg("verify", **gone)
    assert verified.returncode == 0, verified.stderr
    assert len(hub.requests) == asked
    assert not any(TOKEN in run.stderr + run.stdout for run in (done, answer, verified))
    assert not is_kept(TOKEN, settings.store())


def test_a_gated_repository_is_explained_on_the_command_line(
    weightpkg: Callable[..., Result], settings: Settings
) -> None:
    done = weightpkg("install", "hf:acme/gated/model.gguf", "--no-convert", HF_TOKEN=STRANGER)
    assert (done.returncode, done.stdout) == (5, "")
    assert "the license of `acme/gated` was not accepted" in done.stderr
    assert "hint: accept it at" in done.stderr
    assert STRANGER not in done.stderr
    assert not is_kept(STRANGER, settings.store())


def test_a_whole_repository_is_installed_as_it_is(
    weightpkg: Callable[..., Result], settings: Settings
) -> None:
    words = ["install", "hf:acme/public", "--no-convert", "--exclude", "*.txt"]
    done = weightpkg(*words)
    assert done.returncode == 0, done.stderr
    (record,) = settings.store().installed()
    assert sorted(file.path for file in record.files) == sorted({*FILES} - {"below/empty.txt"})
    assert weightpkg("verify", HF_ENDPOINT="http://127.0.0.1:1").returncode == 0


def test_the_checkpoint_of_a_repository_is_installed_and_nothing_else(
    weightpkg: Callable[..., Result], settings: Settings, hub: Hub, tmp_path: Path
) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source", n_shards=2)
    of_it = {p.relative_to(source).as_posix(): p.read_bytes() for p in source.rglob("*.*")}
    beside = {"README.md": b"#", "pytorch_model.bin": pickle.dumps({}), "onnx/model.onnx": b"x"}
    commit = hub.commit("acme/public", {**of_it, **beside})
    name = f"hf:acme/public@{commit}"
    done = weightpkg("install", name)
    assert done.returncode == 0, done.stderr
    (record,) = settings.store().installed()
    assert {file.path for file in record.files} == of_it.keys()
    directory = settings.store().model(record.conversion or "")
    assert directory is not None
    assert len(placed_sources(directory)) == 2
    assert weightpkg("verify", HF_ENDPOINT="http://127.0.0.1:1").returncode == 0


def test_what_is_asked_for_of_a_repository_with_a_checkpoint_comes(
    openers: Openers, hub: Hub
) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"x", "pytorch_model.bin": b"y"}
    hub.commit("acme/public", files)
    assert paths(resolve(openers, "hf:acme/public")) == ["config.json", "model.safetensors"]
    assert paths(resolve(openers, "hf:acme/public", include=["*"])) == sorted(files)
    assert paths(resolve(openers, "hf:acme/public", exclude=["m*"])) == [
        "config.json",
        "pytorch_model.bin",
    ]
    assert paths(resolve(openers, "hf:acme/public/pytorch_model.bin")) == ["pytorch_model.bin"]


def test_find_links_are_looked_at_first(
    weightpkg: Callable[..., Result], hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "model.gguf").write_bytes(MODEL)
    words = ["install", "hf:acme/public/model.gguf", "--no-convert"]
    done = weightpkg(*words, "--find-links", str(tmp_path / "links"))
    assert done.returncode == 0, done.stderr
    assert "took model.gguf from" in done.stderr
    assert hub.cdn_requests == []
    assert (tmp_path / "links" / "model.gguf").read_bytes() == MODEL
