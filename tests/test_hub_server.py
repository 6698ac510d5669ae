"""The hub is asked by the Hugging Face hub's own client, which must find nothing amiss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi, close_session, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from http_message import Request
from hub_server import Hub, serve_hub
from plain_client import ask

MODEL = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(MODEL).hexdigest()
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.gguf": MODEL,
    "a folder/q4 (ü).gguf": MODEL[:1000],
    "a folder/below/notes.txt": b"",
}
TOKEN = "hf_secret"
STRANGER = "hf_stranger"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub() as hub:
        hub.tokens = {TOKEN: {"acme/private", "acme/gated"}, STRANGER: set()}
        settings = {
            # for requests that take no `endpoint`: none may leave this machine
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        for access in ("public", "private", "gated"):
            hub.add(f"acme/{access}", FILES, access=access)
        close_session()
        yield hub
        close_session()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def download(
    hub: Hub,
    cache: Path,
    path: str,
    *,
    repo: str = "acme/public",
    revision: str | None = None,
    token: str | None = None,
) -> bytes:
    found = hf_hub_download(
        repo, path, revision=revision, token=token, cache_dir=cache, endpoint=hub.url
    )
    return Path(found).read_bytes()


def snapshot(hub: Hub, cache: Path, repo: str, token: str | None = None) -> dict[str, bytes]:
    folder = Path(snapshot_download(repo, token=token, cache_dir=cache, endpoint=hub.url))
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def sent(requests: list[Request], name: str) -> set[str | None]:
    return {request.headers.get(name) for request in requests}


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("has_resolve_cache", [False, True], ids=["direct", "resolve cache"])
def test_a_file_has_its_bytes(hub: Hub, cache: Path, path: str, *, has_resolve_cache: bool) -> None:
    hub.has_resolve_cache = has_resolve_cache
    assert download(hub, cache, path) == FILES[path]


def test_only_files_in_lfs_come_from_the_cdn(hub: Hub, cache: Path) -> None:
    download(hub, cache, "config.json")
    assert hub.cdn_requests == []
    download(hub, cache, "model.gguf")
    assert [request.method for request in hub.cdn_requests] == ["GET"]
    assert hub.cdn_requests[0].path.startswith(f"/{SHA256}?")


def test_which_files_are_in_lfs_can_be_said(hub: Hub, cache: Path) -> None:
    hub.add("acme/said", FILES, lfs=frozenset({"config.json"}))
    assert snapshot(hub, cache, "acme/said") == FILES
    assert len(hub.cdn_requests) == 1


def test_a_snapshot_has_all_files(hub: Hub, cache: Path) -> None:
    assert snapshot(hub, cache, "acme/public") == FILES


def test_a_repository_may_have_no_namespace(hub: Hub, cache: Path) -> None:
    hub.add("tiny", FILES)
    assert snapshot(hub, cache, "tiny") == FILES


def test_a_commit_stays_what_it_is(hub: Hub, cache: Path) -> None:
    old = hub.repositories["acme/public"].revisions["main"]
    new = hub.commit("acme/public", FILES | {"model.gguf": b"new"})
    hub.commit("acme/public", {"model.gguf": b"branch"}, revision="refs/pr/1")
    assert old != new
    expected = {old: MODEL, new: b"new", "main": b"new", "refs/pr/1": b"branch"}
    for revision, content in expected.items():
        assert download(hub, cache, "model.gguf", revision=revision) == content
    assert {path.name for path in cache.glob("*/snapshots/*")} >= {old, new}


@pytest.mark.parametrize("n_rows", [1, 2, 1000])
def test_lists_files_in_pages(hub: Hub, n_rows: int) -> None:
    hub.page_size = n_rows
    api = HfApi(endpoint=hub.url, token=False)
    rows = list(api.list_repo_tree("acme/public", recursive=True))
    assert [row.path for row in rows] == sorted([*FILES, "a folder", "a folder/below"])
    assert len(hub.requests) == -(-len(rows) // n_rows)


def test_lists_one_folder(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    top = [row.path for row in api.list_repo_tree("acme/public")]
    assert top == ["a folder", "config.json", "model.gguf"]
    below = [row.path for row in api.list_repo_tree("acme/public", "a folder")]
    assert below == ["a folder/below", "a folder/q4 (ü).gguf"]
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree("acme/public", "no folder"))


def test_tells_sizes_and_digests(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info("acme/public", files_metadata=True)
    assert info.sha == hub.repositories["acme/public"].revisions["main"]
    files = {file.rfilename: file for file in info.siblings or []}
    assert {path: file.size for path, file in files.items()} == {
        path: len(content) for path, content in FILES.items()
    }
    assert files["config.json"].lfs is None
    assert files["model.gguf"].lfs is not None
    assert files["model.gguf"].lfs.sha256 == SHA256


def test_answers_head_with_what_clients_need(hub: Hub) -> None:
    commit = hub.repositories["acme/public"].revisions["main"]
    small = ask(f"{hub.url}/acme/public/resolve/main/config.json", method="HEAD")
    assert (small.status, small.headers["x-repo-commit"]) == (200, commit)
    # as `git hash-object config.json` has it
    assert small.headers["etag"] == '"230d5f4da0da586aad26ead694ea67cd15bd6df1"'
    assert small.headers["content-length"] == str(len(FILES["config.json"]))
    large = ask(f"{hub.url}/acme/public/resolve/main/model.gguf", method="HEAD")
    assert (large.status, large.headers["x-repo-commit"]) == (302, commit)
    assert large.headers["x-linked-etag"] == f'"{SHA256}"'
    assert large.headers["x-linked-size"] == str(len(MODEL))
    assert large.headers["etag"] != large.headers["x-linked-etag"]
    assert large.headers["location"].startswith(hub.cdn_url + "/")


@pytest.mark.parametrize("path", ["config.json", "model.gguf"])
def test_answers_ranges_of_the_same_file_only(hub: Hub, path: str) -> None:
    url = f"{hub.url}/acme/public/resolve/main/{path}"
    first = requests.get(url, headers={"Range": "bytes=0-4"}, timeout=5)
    assert (first.status_code, first.content) == (206, FILES[path][:5])
    wanted = {"Range": "bytes=5-9", "If-Range": first.headers["ETag"]}
    second = requests.get(url, headers=wanted, timeout=5)
    assert (second.status_code, second.content) == (206, FILES[path][5:10])
    other = requests.get(url, headers=wanted | {"If-Range": '"other"'}, timeout=5)
    assert (other.status_code, other.content) == (200, FILES[path])
    beyond = requests.get(url, headers={"Range": f"bytes={len(FILES[path])}-"}, timeout=5)
    assert beyond.status_code == 416


@pytest.mark.parametrize("repo", ["acme/private", "acme/gated"])
def test_a_token_opens_what_it_may_read(hub: Hub, cache: Path, repo: str) -> None:
    assert snapshot(hub, cache, repo, TOKEN) == FILES


def test_a_token_never_reaches_the_cdn(hub: Hub, cache: Path) -> None:
    snapshot(hub, cache, "acme/private", TOKEN)
    assert sent(hub.requests, "Authorization") == {f"Bearer {TOKEN}"}
    assert len(hub.cdn_requests) == 2
    assert sent(hub.cdn_requests, "Authorization") == {None}
    assert TOKEN not in "".join(f"{r.path}\n{r.headers}" for r in hub.cdn_requests)


def test_the_cdn_refuses_a_token_and_what_is_not_signed(hub: Hub) -> None:
    hidden = {"Authorization": f"Bearer {TOKEN}"}
    answer = ask(f"{hub.url}/acme/private/resolve/main/model.gguf", headers=hidden)
    signed = answer.headers["location"]
    assert requests.get(signed, timeout=5).content == MODEL
    assert requests.get(signed, headers=hidden, timeout=5).status_code == 400
    assert requests.get(signed.partition("?")[0], timeout=5).status_code == 403
    hub.expire()
    assert requests.get(signed, timeout=5).status_code == 403


@pytest.mark.parametrize(
    ("repo", "token", "status", "kind"),
    [
        pytest.param("acme/none", None, 401, RepositoryNotFoundError, id="none"),
        pytest.param("acme/none", TOKEN, 404, RepositoryNotFoundError, id="none, known"),
        pytest.param("acme/private", None, 401, RepositoryNotFoundError, id="private"),
        pytest.param("acme/private", STRANGER, 404, RepositoryNotFoundError, id="private, known"),
        pytest.param("acme/gated", None, 401, GatedRepoError, id="gated"),
        pytest.param("acme/gated", STRANGER, 403, GatedRepoError, id="gated, known"),
        pytest.param("acme/public", "hf_wrong", 401, HfHubHTTPError, id="wrong token"),
    ],
)
def test_refuses_whom_it_does_not_know(
    hub: Hub, cache: Path, repo: str, token: str | None, status: int, kind: type[HfHubHTTPError]
) -> None:
    with pytest.raises(HfHubHTTPError) as of_file:
        download(hub, cache, "model.gguf", repo=repo, token=token)
    with pytest.raises(HfHubHTTPError) as of_all:
        snapshot(hub, cache, repo, token)
    for caught in (of_file, of_all):
        assert type(caught.value) is kind
        assert caught.value.response.status_code == status
    assert hub.cdn_requests == []


def test_what_is_hidden_may_be_404_for_everybody(hub: Hub, cache: Path) -> None:
    hub.hidden_status = 404
    with pytest.raises(RepositoryNotFoundError) as caught:
        download(hub, cache, "model.gguf", repo="acme/private")
    assert caught.value.response.status_code == 404
    assert caught.value.response.headers["X-Error-Code"] == "RepoNotFound"


def test_lists_of_a_gated_repository_are_public(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    assert set(api.list_repo_files("acme/gated")) == set(FILES)
    assert api.model_info("acme/gated").gated == "manual"


@pytest.mark.parametrize("revision", ["none", "0" * 40])
def test_names_a_revision_that_is_not_there(hub: Hub, cache: Path, revision: str) -> None:
    with pytest.raises(RevisionNotFoundError, match=f"Invalid rev id: {revision}"):
        download(hub, cache, "model.gguf", revision=revision)


@pytest.mark.parametrize("path", ["none", "a folder", "a folder/none"])
def test_names_a_file_that_is_not_there(hub: Hub, cache: Path, path: str) -> None:
    with pytest.raises(EntryNotFoundError, match="Entry Not Found"):
        download(hub, cache, path)


def test_knows_no_other_routes(hub: Hub) -> None:
    answer = ask(f"{hub.url}/api/agent-harnesses")
    assert answer.status == 404
    assert "x-error-code" not in answer.headers
