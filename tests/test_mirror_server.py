"""A mirror over HTTP: our own protocol, the hub's routes, Ollama's, and how the server ends."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from hub_repository import git_oid
from mirrors import COMMIT, KEY, MirrorDirectory, Served, make_mirror, serve
from weightpkg.cli import cli
from weightpkg.digest import CHUNK_SIZE
from weightpkg.errors import RunError, StoreError
from weightpkg.listening.gate import Gate, NotLetInError
from weightpkg.listening.process import Listening, read_key
from weightpkg.mirror_server.conditions import Selection, select
from weightpkg.mirror_server.holdings import read_holdings
from weightpkg.mirror_server.listen import MirrorServer
from weightpkg.mirror_server.reply import RefusedError, parse_segments
from weightpkg.settings import Settings

SECRET = "a-key-of-sixteen-and-more"
CONFIG = b'{"model_type": "llama"}'


@pytest.fixture
def mirror(tmp_path: Path) -> MirrorDirectory:
    return make_mirror(tmp_path / "mirror")


@pytest.fixture
def served(mirror: MirrorDirectory) -> Iterator[Served]:
    with serve(mirror.root) as served:
        yield served


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def blob(content: bytes) -> str:
    return f"/blobs/sha256/{sha256(content)[:2]}/{sha256(content)}"


def as_json(served: Served, path: str) -> Any:
    answer = served.get(path)
    assert answer.status == 200, answer
    return json.loads(answer.body)


def big_mirror(root: Path, size: int) -> tuple[MirrorDirectory, bytes]:
    """Make a mirror of one blob of several chunks."""
    mirror = MirrorDirectory(root)
    content = random.Random(size).randbytes(size)
    mirror.model("big", {"q4": {"big.gguf": content}}, repo="acme/big")
    mirror.finish()
    return mirror, content


# ranges and validators


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("bytes=0-9", (206, 0, 10)),
        ("bytes=90-", (206, 90, 100)),
        ("bytes=-10", (206, 90, 100)),
        ("bytes=-1000", (206, 0, 100)),
        ("Bytes= 5-5 ", (206, 5, 6)),
        ("bytes=99-9999999999999999999999", (206, 99, 100)),
        ("bytes=100-", (416, 0, 0)),
        ("bytes=9999999999999999999999-", (416, 0, 0)),
        ("bytes=-0", (416, 0, 0)),
        ("bytes=9-5", (200, 0, 100)),
        ("bytes=-", (200, 0, 100)),
        ("bytes=0-1,5-6", (200, 0, 100)),
        ("bytes=0-50,25-75", (200, 0, 100)),
        ("bytes=" + "0-," * 5000 + "0-", (200, 0, 100)),
        ("bytes=" + "9" * 5000 + "-", (200, 0, 100)),
        ("items=0-9", (200, 0, 100)),
        ("bytes=-5-9", (200, 0, 100)),
        ("bytes=a-b", (200, 0, 100)),
        ("bytes=\u0661-\u0662", (200, 0, 100)),
        ("bytes=0x1-0x2", (200, 0, 100)),
        ("bytes=1 -2", (200, 0, 100)),
        ("", (200, 0, 100)),
    ],
)
def test_a_range_is_one_of_bytes_or_none(told: str, expected: tuple[int, int, int]) -> None:
    assert select("GET", {"range": told}, etag='"e"', size=100) == Selection(*expected)


@given(
    told=st.text(max_size=40) | st.from_regex(r"bytes=[0-9,-]{0,30}"), size=st.integers(0, 2**70)
)
def test_whatever_is_asked_for_lies_within_the_file(told: str, size: int) -> None:
    picked = select("GET", {"range": told}, etag='"e"', size=size)
    assert picked.status in {200, 206, 416}
    assert 0 <= picked.start <= picked.end <= size
    assert (picked.status == 206) <= (picked.start < picked.end)


@given(start=st.integers(0, 300), length=st.integers(1, 300), size=st.integers(1, 300))
def test_a_range_has_the_bytes_that_it_names(start: int, length: int, size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    told = {"range": f"bytes={start}-{start + length - 1}"}
    picked = select("GET", told, etag='"e"', size=size)
    expected = content[start : start + length]
    assert picked.status == (206 if expected else 416)
    assert content[picked.start : picked.end] == expected


@given(st.binary(max_size=60) | st.text("/.%25cef\\a", max_size=60).map(str.encode))
def test_no_part_of_a_path_is_another_path(raw: bytes) -> None:
    with suppress(RefusedError):
        for segment in parse_segments(raw):
            assert segment not in {"", ".", ".."}
            assert segment.isprintable()
            assert "\\" not in segment


@given(st.text("localhost127.0:[]@%evil", max_size=30))
def test_no_other_host_is_taken_for_this_one(host: str) -> None:
    with suppress(NotLetInError):
        Gate(port=80).check([(b"host", host.encode())])
        assert re.fullmatch(r"(?i)(localhost|127\.0\.0\.1|\[::1\])(:0*80)?", host)


def test_nothing_can_be_had_of_an_empty_file() -> None:
    assert select("GET", {"range": "bytes=0-"}, etag='"e"', size=0) == Selection(416, 0, 0)
    assert select("GET", {"range": "bytes=-1"}, etag='"e"', size=0) == Selection(416, 0, 0)
    assert select("GET", {}, etag='"e"', size=0) == Selection(200, 0, 0)


def test_a_head_request_has_no_range() -> None:
    assert select("HEAD", {"range": "bytes=0-9"}, etag='"e"', size=100).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if-none-match": '"e"'}, 304),
        ({"if-none-match": 'W/"e"'}, 304),
        ({"if-none-match": '"x", "e"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": "e"}, 200),
        ({"if-none-match": '"other"'}, 200),
        ({"if-none-match": '"e"', "range": "bytes=0-1"}, 304),
        ({"if-match": '"e"'}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": 'W/"e"'}, 412),
        ({"if-match": '"other"'}, 412),
        ({"if-range": '"e"', "range": "bytes=0-1"}, 206),
        ({"if-range": 'W/"e"', "range": "bytes=0-1"}, 200),
        ({"if-range": '"other"', "range": "bytes=0-1"}, 200),
        ({"if-range": "Sat, 01 Jan 2022 00:00:00 GMT", "range": "bytes=0-1"}, 200),
        ({"if-range": '"other"', "range": "bytes=900-"}, 200),
    ],
)
def test_validators_decide_before_ranges(headers: dict[str, str], status: int) -> None:
    assert select("GET", headers, etag='"e"', size=100).status == status


# our own protocol


def test_serves_the_directory_as_any_web_server_would(
    served: Served, mirror: MirrorDirectory
) -> None:
    paths = [path for path in mirror.root.rglob("*") if path.is_file()]
    names = [path.relative_to(mirror.root).as_posix() for path in paths]
    seen = 0
    for name, path in zip(names, paths, strict=True):
        if name.startswith(("blobs/", "index/", "models/", "mirror.toml")):
            answer = served.get(f"/{name}")
            assert (answer.status, answer.body) == (200, path.read_bytes()), name
            head = served.get(f"/{name}", method="HEAD")
            assert head.body == b""
            same = ("content-length", "etag", "accept-ranges", "content-type")
            assert [head.headers[key] for key in same] == [answer.headers[key] for key in same]
            seen += 1
    assert seen >= 12


def test_a_blob_has_its_digest_as_validator(served: Served) -> None:
    answer = served.get(blob(CONFIG))
    assert answer.headers["etag"] == f'"{sha256(CONFIG)}"'
    assert "immutable" in answer.headers["cache-control"]
    again = served.get(blob(CONFIG), {"If-None-Match": answer.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


def test_pages_are_asked_for_again_each_time(served: Served, mirror: MirrorDirectory) -> None:
    path = "index/default/models/tiny.toml"
    first = served.get(f"/{path}")
    assert first.headers["cache-control"] == "no-cache"
    assert served.get(f"/{path}", {"If-None-Match": first.headers["etag"]}).status == 304
    mirror.file(path, b"# another\n")
    assert served.get(f"/{path}", {"If-None-Match": first.headers["etag"]}).status == 200


def test_ranges_of_a_blob_of_several_chunks_are_its_bytes(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path / "big", 2 * CHUNK_SIZE + 1000)
    with serve(mirror.root) as served:
        size = len(content)
        for first, last in [(0, size - 1), (5, 5), (CHUNK_SIZE - 3, CHUNK_SIZE + 3), (size - 9, size - 1), (17, 2 * CHUNK_SIZE)]:  # fmt: skip
            answer = served.get(blob(content), {"Range": f"bytes={first}-{last}"})
            assert answer.status == 206
            assert answer.body == content[first : last + 1]
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{size}"
        assert served.get(blob(content)).body == content
        refused = served.get(blob(content), {"Range": f"bytes={size}-"})
        assert (refused.status, refused.body) == (416, b"")
        assert refused.headers["content-range"] == f"bytes */{size}"


def test_an_empty_blob_is_served(tmp_path: Path) -> None:
    mirror = MirrorDirectory(tmp_path)
    mirror.blob(b"")
    with serve(mirror.root) as served:
        answer = served.get(blob(b""))
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


def test_several_requests_go_over_one_connection(served: Served) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    for path in (blob(CONFIG), "/acme/tiny-GGUF/resolve/main/tiny-Q4_1.gguf", "/no", blob(CONFIG)):
        connection.request("GET", path)
        socket = connection.sock
        connection.getresponse().read()
        assert connection.sock is socket
    connection.close()


# damage


@pytest.mark.parametrize("with_chunks", [True, False], ids=["chunks", "no chunks"])
def test_a_damaged_blob_is_an_error(tmp_path: Path, *, with_chunks: bool) -> None:
    mirror = MirrorDirectory(tmp_path)
    path = mirror.path(mirror.blob(CONFIG, with_chunks=with_chunks))
    path.write_bytes(CONFIG.replace(b"llama", b"lLama"))
    with serve(mirror.root) as served:
        answer = served.get(blob(CONFIG))
        assert answer.status == 500
        assert str(tmp_path).encode() not in answer.body
        served.wait_for("error: `blobs/sha256/")
        assert "weightpkg_mirror_damaged_total 1" in served.get("/metrics").body.decode()
        path.write_bytes(CONFIG)
        assert served.get(blob(CONFIG)).body == CONFIG


def test_a_damaged_list_of_chunks_is_made_anew(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path, 3 * CHUNK_SIZE)
    path = mirror.path(sha256(content))
    chunks = path.with_name(f"{path.name}.chunks")
    chunks.chmod(0o644)
    chunks.write_bytes(chunks.read_bytes().replace(b"0", b"1"))
    with serve(mirror.root) as served:
        assert served.get(blob(content)).body == content


@pytest.mark.parametrize(
    "place", [CHUNK_SIZE, 2 * CHUNK_SIZE - 1, 2 * CHUNK_SIZE, 3 * CHUNK_SIZE - 1]
)
def test_a_damaged_blob_is_never_sent_whole(tmp_path: Path, place: int) -> None:
    mirror, content = big_mirror(tmp_path, 3 * CHUNK_SIZE)
    path = mirror.path(sha256(content))
    with path.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([content[place] ^ 1]))
    with serve(mirror.root) as served:
        with pytest.raises(http.client.IncompleteRead) as caught:
            served.get(blob(content))
        sent = caught.value.partial
        assert sent == content[: len(sent)], "a wrong byte went out"
        assert len(sent) <= place // CHUNK_SIZE * CHUNK_SIZE
        served.wait_for(f"chunk {place // CHUNK_SIZE} at byte")
        sound = served.get(blob(content), {"Range": "bytes=0-99"})
        assert (sound.status, sound.body) == (206, content[:100])
        bad = served.get(blob(content), {"Range": f"bytes={place}-{place}"})
        assert bad.status == 500


def test_a_blob_of_another_size_is_an_error(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path, CHUNK_SIZE)
    with mirror.path(sha256(content)).open("ab") as stream:
        stream.write(b"more")
    with serve(mirror.root) as served:
        assert any("another size" in line for line in served.log)
        assert served.get(blob(content)).status == 500
        assert served.get("/acme/big/resolve/main/big.gguf").status == 404


def test_converted_models_are_checked_by_the_list(served: Served, mirror: MirrorDirectory) -> None:
    path = mirror.root / "models" / KEY / "model.onnx"
    assert served.get(f"/models/{KEY}/model.onnx").body == path.read_bytes()
    path.write_bytes(b"Onnx" * 1000)
    assert served.get(f"/models/{KEY}/model.onnx").status == 500


def test_what_vanishes_is_not_found(served: Served, mirror: MirrorDirectory) -> None:
    mirror.path(sha256(CONFIG)).unlink()
    assert served.get(blob(CONFIG)).status == 404
    assert served.get("/acme/check/resolve/main/config.json").status == 404
    assert served.get("/api/models/acme/check").status == 200


def test_a_file_that_vanishes_while_it_is_sent_comes_whole(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path, 8 * CHUNK_SIZE)
    with serve(mirror.root) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.request("GET", blob(content))
        response = connection.getresponse()
        first = response.read(1000)
        mirror.path(sha256(content)).unlink()
        assert first + response.read() == content
        connection.close()


def test_a_file_that_is_cut_while_it_is_sent_breaks_off(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path, 16 * CHUNK_SIZE)
    with serve(mirror.root) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
        connection.request("GET", blob(content))
        response = connection.getresponse()
        first = response.read(1000)
        os.truncate(mirror.path(sha256(content)), CHUNK_SIZE)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            first += response.read()
        connection.close()
        served.wait_for("broken off")


def test_what_is_new_is_found_when_the_list_is_written(
    served: Served, mirror: MirrorDirectory
) -> None:
    assert served.get("/api/models/acme/new").status == 404
    mirror.model("new", {"q4": {"new.gguf": b"GGUFnew"}}, repo="acme/new")
    mirror.finish()
    for _ in range(100):
        if served.get("/api/models/acme/new").status == 200:
            break
        time.sleep(0.1)
    assert served.get("/acme/new/resolve/main/new.gguf").body == b"GGUFnew"


# the hub


def test_a_repository_of_the_hub_has_its_commit_and_digests(served: Served) -> None:
    info = as_json(served, "/api/models/acme/tiny-GGUF")
    assert (info["id"], info["sha"]) == ("acme/tiny-GGUF", COMMIT)
    assert [row["rfilename"] for row in info["siblings"]] == ["tiny-Q4_1.gguf", "tiny-Q8_0.gguf"]
    assert info["tags"]
    for revision in ("main", COMMIT):
        assert as_json(served, f"/api/models/acme/tiny-GGUF/revision/{revision}")["sha"] == COMMIT
    rows = as_json(served, f"/api/models/acme/tiny-GGUF/tree/{COMMIT}?recursive=true&expand=false")
    content = b"GGUF" + b"four" * 5000
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
    assert rows[0]["path"] == "tiny-Q4_1.gguf"
    assert rows[0]["lfs"] == lfs
    head = served.get(f"/acme/tiny-GGUF/resolve/{COMMIT}/tiny-Q4_1.gguf", method="HEAD")
    assert head.headers["x-repo-commit"] == COMMIT
    assert head.headers["etag"] == f'"{sha256(content)}"'
    assert head.headers["content-length"] == str(len(content))


def test_small_files_are_called_as_git_calls_them(served: Served) -> None:
    head = served.get("/acme/check/resolve/main/config.json", method="HEAD")
    assert head.headers["etag"] == f'"{git_oid(CONFIG)}"'
    rows = as_json(served, "/api/models/acme/check/tree/main?recursive=true")
    assert {row["path"]: row["oid"] for row in rows}["config.json"] == git_oid(CONFIG)
    assert rows[0] == {**rows[0], "type": "directory", "path": "1_Pooling"}
    flat = as_json(served, "/api/models/acme/check/tree/main")
    assert "1_Pooling/config.json" not in {row["path"] for row in flat}
    inside = as_json(served, "/api/models/acme/check/tree/main/1_Pooling")
    assert [row["path"] for row in inside] == ["1_Pooling/config.json"]


def test_without_a_pinned_commit_the_files_are_the_commit(tmp_path: Path) -> None:
    commits = []
    for name in ("one", "two"):
        mirror = make_mirror(tmp_path / name)
        holdings = read_holdings(mirror.root)
        commits.append(holdings.repositories["acme/check"].revisions["main"])
        assert holdings.repositories["acme/tiny-GGUF"].revisions["main"] == COMMIT
    assert commits[0] == commits[1]
    assert re.fullmatch("[0-9a-f]{40}", commits[0])
    mirror.model("check", {"f32": {"config.json": b"{}"}}, repo="acme/check", revision="main")
    assert read_holdings(mirror.root).repositories["acme/check"].revisions["main"] != commits[0]


@pytest.mark.parametrize("name", ["default/tiny", "default/tiny-q4", "default/check-f32"])
def test_a_model_answers_under_its_namespace(served: Served, name: str) -> None:
    info = as_json(served, f"/api/models/{name}")
    first = info["siblings"][0]["rfilename"]
    assert served.get(f"/{name}/resolve/1.0/{first}").status == 200
    assert [r["rfilename"] for r in info["siblings"]][:1] == (["tiny-Q4_1.gguf"] if "tiny" in name else ["1_Pooling/config.json"])  # fmt: skip


def test_never_a_word_of_xet(served: Served) -> None:
    for path in (
        "/api/models",
        "/api/models/acme/check?blobs=true",
        "/api/models/acme/check/tree/main?recursive=true",
        "/acme/check/resolve/main/model.safetensors",
    ):
        answer = served.get(path)
        assert answer.status == 200
        assert b"xet" not in answer.body.lower()
        assert "xet" not in json.dumps(dict(answer.headers)).lower()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/acme/none", "RepoNotFound"),
        ("/api/models/gpt2", "RepoNotFound"),
        ("/api/models/gpt2/revision/main", "RepoNotFound"),
        ("/acme/none/resolve/main/config.json", "RepoNotFound"),
        ("/api/models/acme/check/revision/none", "RevisionNotFound"),
        ("/api/models/acme/check/tree/refs%2Fpr%2F1", "RevisionNotFound"),
        (f"/acme/check/resolve/{COMMIT}/config.json", "RevisionNotFound"),
        ("/acme/check/resolve/main/none", "EntryNotFound"),
        ("/acme/check/resolve/main/1_Pooling", "EntryNotFound"),
        ("/api/models/acme/check/tree/main/none", "EntryNotFound"),
        ("/api/agent-harnesses", None),
        ("/api/telemetry/x", None),
        ("/api/datasets/acme/x", None),
        ("/", None),
        ("/nothing", None),
    ],
)
def test_what_is_not_there_is_said_as_the_hub_says_it(
    served: Served, path: str, code: str | None
) -> None:
    for method in ("GET", "HEAD"):
        answer = served.get(path, method=method)
        assert answer.status in ({404, 400} if path == "/" else {404})
        assert answer.headers.get("x-error-code") == code


def test_lists_in_pages(served: Served) -> None:
    everything = [row["id"] for row in as_json(served, "/api/models")]
    assert everything == sorted(everything)
    assert {"acme/check", "acme/tiny-GGUF", "default/tiny", "default/tiny-q8"} <= set(everything)
    found, path = [], "/api/models?limit=2&search="
    while path:
        answer = served.get(path)
        found += [row["id"] for row in json.loads(answer.body)]
        link = re.match(r'<(.*)>; rel="next"', answer.headers.get("link", ""))
        assert link is None or link[1].startswith(served.url)
        path = link[1].removeprefix(served.url) if link else ""
    assert found == everything
    assert [row["id"] for row in as_json(served, "/api/models?author=acme&search=TINY")] == ["acme/tiny-GGUF"]  # fmt: skip
    for bad in ("limit=-1", "limit=x", "cursor=1e9", "limit=99999999999", "cursor=%D9%A1"):
        assert served.get(f"/api/models?{bad}").status == 400


def test_links_name_the_url_that_clients_use(mirror: MirrorDirectory) -> None:
    with serve(mirror.root, url="https://mirror.example.org") as served:
        answer = served.get("/api/models?limit=1", {"Host": "mirror.example.org"})
        assert answer.headers["link"].startswith("<https://mirror.example.org/api/models?")


def signed(mirror: MirrorDirectory, folder: str, name: str, versions: dict[int, bytes]) -> None:
    """Let the newest of a role's metadata sign the last of some pages, all of which are there."""
    role = folder.partition("/")[0] if "/" in folder else "site"
    for version, page in versions.items():
        row = {"hashes": {"sha256": sha256(page)}, "length": len(page)}
        told = {"signed": {"targets": {f"{folder}/{name}": row}}}
        mirror.file(f"index/site/metadata/{version}.{role}.json", json.dumps(told).encode())
        mirror.file(f"index/site/targets/{folder}/{sha256(page)}.{name}", page)


@pytest.mark.parametrize(("folder", "owner"), [("models", "site"), ("acme/models", "acme")])
def test_pages_of_a_signed_index_are_those_of_its_newest_metadata(
    mirror: MirrorDirectory, folder: str, owner: str
) -> None:
    new = (mirror.root / "index" / "default" / "models" / "tiny.toml").read_bytes()
    old = new.replace(b'version = "1.0"', b'version = "0.9"')
    signed(mirror, folder, "tiny.toml", {9: old, 10: new})
    holdings = read_holdings(mirror.root)
    assert set(holdings.repositories[f"{owner}/tiny"].revisions) == {"main", "1.0"}
    path = mirror.root / "index" / "site" / "targets" / folder / f"{sha256(new)}.tiny.toml"
    path.write_bytes(old)
    holdings = read_holdings(mirror.root)
    assert f"{owner}/tiny" not in holdings.repositories
    assert any("is not what the index signs" in fault for fault in holdings.faults)


# Ollama


def pull(served: Served, name: str, tag: str) -> dict[str, bytes]:
    """Pull a model as Ollama does: manifest, HEAD of each layer, ranges of it, digest."""
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    answer = served.get(f"/v2/{name}/manifests/{tag}", accept)
    assert answer.status == 200, answer
    manifest = json.loads(answer.body)
    assert manifest["schemaVersion"] == 2
    assert answer.headers["content-type"] == manifest["mediaType"] == accept["Accept"]
    assert served.get(f"/v2/{name}/manifests/{tag}", method="HEAD").headers["content-length"] == str(len(answer.body))  # fmt: skip
    found = {}
    for layer in [*manifest["layers"], manifest["config"]]:
        path = f"/v2/{name}/blobs/{layer['digest']}"
        head = served.get(path, method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(layer["size"]))
        half = layer["size"] // 2
        parts = [served.get(path, {"Range": f"bytes={a}-{b}"}) for a, b in [(0, half), (half + 1, layer["size"] - 1)]]  # fmt: skip
        assert {part.status for part in parts} == {206}
        content = b"".join(part.body for part in parts)
        assert layer["digest"] == f"sha256:{sha256(content)}"
        found[layer["mediaType"]] = content
    return found


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("library/tiny", "latest", b"GGUF" + b"four" * 5000),
        ("library/tiny", "q8", b"GGUF8" * 99),
        ("default/tiny", "1.0", b"GGUF" + b"four" * 5000),
        ("acme/tiny-GGUF", "Q8_0", b"GGUF8" * 99),
        ("acme/tiny-GGUF", "q4_1", b"GGUF" + b"four" * 5000),
        ("default/tiny-q8", "latest", b"GGUF8" * 99),
    ],
)
def test_ollama_pulls(served: Served, name: str, tag: str, expected: bytes) -> None:
    found = pull(served, name, tag)
    assert found["application/vnd.ollama.image.model"] == expected
    config = json.loads(found["application/vnd.docker.container.image.v1+json"])
    assert config["model_format"] == "gguf"
    assert config["rootfs"]["diff_ids"] == [f"sha256:{sha256(expected)}"]


def test_a_manifest_is_the_same_in_every_process(mirror: MirrorDirectory) -> None:
    manifests = []
    for _ in range(2):
        with serve(mirror.root) as served:
            manifests.append(served.get("/v2/library/tiny/manifests/q4").body)
    assert manifests[0] == manifests[1]
    digest = json.loads(manifests[0])["config"]["digest"]
    with serve(mirror.root) as served:  # asked for without its manifest
        assert sha256(served.get(f"/v2/library/tiny/blobs/{digest}").body) == digest[7:]


def test_a_projector_goes_with_its_model(tmp_path: Path) -> None:
    mirror = MirrorDirectory(tmp_path)
    files = {"see-Q4_K_M.gguf": b"GGUFsee", "mmproj-see-f16.gguf": b"GGUFeye"}
    mirror.model("see", {"q4": files}, repo="acme/see")
    parts = {f"p-0000{i}-of-00002.gguf": b"GGUF%d" % i for i in (1, 2)}
    mirror.model("parts", {"q4": parts}, repo="acme/parts")
    with serve(mirror.root) as served:
        found = pull(served, "library/see", "latest")
        assert found["application/vnd.ollama.image.projector"] == b"GGUFeye"
        assert found["application/vnd.ollama.image.model"] == b"GGUFsee"
        assert served.get("/v2/library/parts/manifests/latest").status == 400


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/library/none/manifests/latest", 404),
        ("/v2/library/tiny/manifests/none", 404),
        ("/v2/library/check/manifests/latest", 404),
        (f"/v2/library/tiny/blobs/sha256:{64 * '0'}", 404),
        ("/v2/library/tiny/blobs/sha256:xyz", 400),
        ("/v2/library/tiny/blobs/..%2f..%2fetc%2fpasswd", 400),
        ("/v2/library/tiny/tags/list", 404),
    ],
)
def test_what_ollama_asks_for_in_vain(served: Served, path: str, status: int) -> None:
    answer = served.get(path)
    assert answer.status == status
    assert json.loads(answer.body)["errors"][0]["code"]


# who may ask


HOSTS = {
    "127.0.0.1:{port}": True, "localhost:{port}": True, "LocalHost:{port}": True, "[::1]:{port}": True,
    "127.0.0.1": False, "localhost:1": False, "evil.example:{port}": False, "127.0.0.1.evil.example:{port}": False,
    "localhost.evil.example:{port}": False, "192.168.0.1:{port}": False, "": False, "evil@localhost:{port}": False,
    "localhost:{port}:{port}": False, "localhost:{port}/": False, "0.0.0.0:{port}": False, "[::]:{port}": False,
}  # fmt: skip


@pytest.mark.parametrize(("host", "is_ours"), HOSTS.items())
def test_only_names_of_this_server_are_answered(
    served: Served, host: str, *, is_ours: bool
) -> None:
    named = host.format(port=served.port)
    for path in ("/healthz", "/api/models", blob(CONFIG), "/nothing"):
        status = served.get(path, {"Host": named}).status
        assert (status != 403) == is_ours, (path, status)


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}])  # fmt: skip
def test_pages_of_other_sites_may_not_ask(served: Served, headers: dict[str, str]) -> None:
    answer = served.get("/api/models", headers)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("10.0.0.7:80", True), ("mirror.example.org", True), ("mirror.example.org:8443", True), ("[fe80::1]:80", True), ("evil.example", False), ("10.0.0.7.evil.example", False)],
)  # fmt: skip
def test_an_open_server_has_addresses_for_names(host: str, *, is_ours: bool) -> None:
    gate = Gate(port=80, names=frozenset({"mirror.example.org"}), is_open=True)
    headers = [(b"host", host.encode())]
    if is_ours:
        gate.check(headers)
    else:
        with pytest.raises(NotLetInError):
            gate.check(headers)


GATES = {
    "loopback": Gate(port=80),
    "named": Gate(port=80, names=frozenset({"mirror.example.org"})),
    "open": Gate(port=80, names=frozenset({"mirror.example.org"}), is_open=True),
}
MATRIX_HOSTS = {
    # which gates let a host in
    "localhost:80": {"loopback", "named", "open"}, "localhost": {"loopback", "named", "open"},
    "127.0.0.1": {"loopback", "named", "open"}, "[::1]:80": {"loopback", "named", "open"},
    "mirror.example.org": {"named", "open"}, "mirror.example.org:443": {"named", "open"},
    "10.0.0.7": {"open"}, "[fe80::1]:80": {"open"}, "10.0.0.7:81": set(), "localhost:81": set(),
    "evil.example": set(), "mirror.example.org.evil.example": set(),
}  # fmt: skip
ORIGINS: list[tuple[dict[str, str], bool]] = [
    ({}, True),
    ({"sec-fetch-site": "none"}, True),
    ({"sec-fetch-site": "same-origin"}, True),
    ({"origin": "null"}, False),
    ({"origin": "http://localhost"}, True),
    ({"origin": "http://localhost:3000"}, False),
    ({"origin": "https://evil.example"}, False),
    ({"sec-fetch-site": "cross-site"}, False),
    ({"sec-fetch-site": "same-site"}, False),
]


@pytest.mark.parametrize("mode", GATES)
@pytest.mark.parametrize("host", MATRIX_HOSTS)
def test_host_and_origin_decide_together(mode: str, host: str) -> None:
    for told, is_own in ORIGINS:
        headers = [
            (name.encode(), value.encode()) for name, value in {"host": host, **told}.items()
        ]
        expected = 200 if is_own and mode in MATRIX_HOSTS[host] else 403
        assert status_at(GATES[mode], headers) == expected, (told, host)


def status_at(gate: Gate, headers: list[tuple[bytes, bytes]]) -> int:
    try:
        gate.check(headers)
    except NotLetInError as refused:
        return refused.status
    return 200


@pytest.mark.parametrize("headers", [[], [(b"host", b"localhost:80"), (b"host", b"evil")]])
def test_a_request_has_one_host(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(NotLetInError):
        Gate(port=80).check(headers)


def test_with_a_key_only_who_has_it_reads(mirror: MirrorDirectory) -> None:
    basic = base64.b64encode(f"x:{SECRET}".encode()).decode()
    right = [f"Bearer {SECRET}", f"bearer {SECRET}", f"Basic {basic}"]
    wrong = ["", "Bearer", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", f"Token {SECRET}", "Basic !", "Basic eA==", "Bearer \xff"]  # fmt: skip
    with serve(mirror.root, key=SECRET) as served:
        for path in ("/api/models", blob(CONFIG), "/metrics", "/mirror.toml", "/v2/", "/nothing"):
            answers = [served.get(path, {"Authorization": told}) for told in wrong]
            answers.append(served.get(path))
            assert {answer.status for answer in answers} <= (
                {401} if path != "/v2/" else {401, 400}
            )
        for told in right:
            assert served.get(blob(CONFIG), {"Authorization": told}).body == CONFIG
        assert served.get("/healthz").body == b"ok\n"
        assert not [line for line in served.log if SECRET in line]


def test_the_log_has_no_secrets(served: Served) -> None:
    secret = "hf_verysecret"
    headers = {"Authorization": f"Bearer {secret}", "Cookie": secret, "User-Agent": secret}
    assert served.get(f"/acme/check/resolve/main/config.json?token={secret}", headers).status == 200
    assert served.get(f"/nothing?{secret}", headers).status == 404
    line = served.wait_for("/acme/check/resolve/main/config.json 200 23")
    assert line.startswith("127.0.0.1 GET ")
    served.wait_for("/nothing 404")
    assert secret not in "".join(served.log)
    assert secret not in served.get("/metrics").body.decode()


def test_metrics_are_counted(served: Served) -> None:
    served.get(blob(CONFIG))
    served.get(blob(CONFIG), method="HEAD")
    served.wait_for("HEAD")
    text = served.get("/metrics").body.decode()
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['weightpkg_mirror_requests_total{route="blobs",method="GET",status="200"}'] == "1"
    assert lines['weightpkg_mirror_requests_total{route="blobs",method="HEAD",status="200"}'] == "1"
    assert lines['weightpkg_mirror_sent_bytes_total{route="blobs"}'] == str(len(CONFIG))
    assert lines["weightpkg_mirror_active_requests"] == "1"
    assert int(lines["weightpkg_mirror_connections"]) >= 1
    assert lines["weightpkg_mirror_request_seconds_count"] == lines['weightpkg_mirror_request_seconds_bucket{le="+Inf"}']  # fmt: skip
    for line in text.splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [0-9.]+', line), line


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "::", "192.168.1.7", "mirror.example.org", "10.0.0.1"],  # noqa: S104  refused
)
def test_beyond_loopback_somebody_must_have_said_so(mirror: MirrorDirectory, address: str) -> None:
    with pytest.raises(RunError, match="no key was given"):
        MirrorServer(mirror.root, Listening(address=address, port=0), print)
    done = CliRunner().invoke(cli, ["mirror", "serve", str(mirror.root), "--address", address])
    assert isinstance(done.exception, RunError)


@pytest.mark.parametrize("option", [{"key": SECRET}, {"is_public": True}], ids=["key", "public"])
def test_beyond_loopback_with_a_key_or_in_public(
    mirror: MirrorDirectory, option: dict[str, Any]
) -> None:
    options = Listening(address="0.0.0.0", port=0, **option)  # noqa: S104  closed at once
    server = MirrorServer(mirror.root, options, print)
    server.close()


@pytest.mark.parametrize(
    "text", ["", "short", "with a space in the middle", "ключ-ключ-ключ-ключ", "x" * 15]
)
def test_a_key_that_can_be_guessed_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "key").write_text(text)
    with pytest.raises(RunError):
        read_key(tmp_path / "key", None)
    with pytest.raises(RunError):
        read_key(None, text)


def test_a_key_file_comes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    assert read_key(tmp_path / "key", "another-key-of-16-letters") == SECRET
    assert read_key(None, None) is None
    with pytest.raises(RunError, match="cannot be read"):
        read_key(tmp_path / "none", SECRET)


def test_what_is_no_mirror_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no directory"):
        MirrorServer(tmp_path / "none", Listening(address=None, port=0), print)
    with serve(tmp_path) as served:
        assert any("was not finished" in line for line in served.log)
        assert as_json(served, "/api/models") == []


def test_a_port_that_is_taken_is_said(mirror: MirrorDirectory, served: Served) -> None:
    with pytest.raises(RunError, match=f"port {served.port}"):
        MirrorServer(mirror.root, Listening(address="127.0.0.1", port=served.port), print)


def test_without_the_libraries_the_extra_is_named(mirror: MirrorDirectory, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    parts = ("weightpkg.listening", "weightpkg.mirror_server")
    for name in [n for n in sys.modules if n.startswith(parts)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = CliRunner().invoke(cli, ["mirror", "serve", str(mirror.root)])
    assert isinstance(done.exception, RunError)
    assert "weightpkg[serve]" in str(done.exception.hint)


# the process


def start(root: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    """Start the command; return it and its first URL."""
    line = [sys.executable, "-m", "weightpkg", "mirror", "serve", str(root), "--port", "0", *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:"), process.communicate(timeout=10)
    return process, url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_it_is_told_to(mirror: MirrorDirectory, number: signal.Signals) -> None:
    process, url = start(mirror.root)
    curl(url + "/healthz")
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_what_is_being_sent_is_sent_to_the_end(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path, 12 * CHUNK_SIZE)
    process, url = start(mirror.root)
    connection = http.client.HTTPConnection("127.0.0.1", int(url.rpartition(":")[2]), timeout=20)
    connection.request("GET", blob(content))
    response = connection.getresponse()
    first = response.read(1000)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    assert sha256(first + response.read()) == sha256(content)
    connection.close()
    process.communicate(timeout=20)
    assert process.returncode == 0


# curl


def curl(*words: str | Path, code: int = 0) -> bytes:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    line = ["curl", "-sS", "--max-time", "30", *map(str, words)]
    done = subprocess.run(line, capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def test_curl_goes_on_where_it_stopped(tmp_path: Path) -> None:
    mirror, content = big_mirror(tmp_path / "mirror", CHUNK_SIZE + 77)
    with serve(mirror.root) as served:
        for url in (served.url + blob(content), f"{served.url}/acme/big/resolve/main/big.gguf"):
            target = tmp_path / "file"
            target.write_bytes(content[:1234])
            curl("-f", "-C", "-", "-o", target, url)
            assert target.read_bytes() == content
            assert curl("-r", "100-199", url) == content[100:200]
            assert curl("-r", "-5", url) == content[-5:]
            etag = tmp_path / "etag"
            curl("--etag-save", etag, "-o", target, url)
            told = curl("--etag-compare", etag, "-o", target, "-w", "%{http_code}", url)
            assert told == b"304"
            assert b"content-length: %d" % len(content) in curl("-I", url).lower()
        assert b"accept-ranges: bytes" in curl("-I", served.url + blob(content)).lower()


def test_curl_over_both_kinds_of_loopback(mirror: MirrorDirectory) -> None:
    log: list[str] = []
    server = MirrorServer(mirror.root, Listening(address=None, port=0), log.append)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for url in server.urls:
            assert curl(f"{url}/healthz") == b"ok\n"
        assert curl(f"http://localhost:{server.port}/healthz") == b"ok\n"
    finally:
        server.stop()
        thread.join(30)


# what `mirror create` makes


def test_serves_what_mirror_create_made(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    for name in ("WEIGHTPKG_HOME", "WEIGHTPKG_INDEX"):
        monkeypatch.setenv(name, settings.environ[name])
    target = tmp_path / "made"
    done = CliRunner().invoke(cli, ["-q", "mirror", "create", str(target), "tiny-q4"])
    assert done.exit_code == 0, (done.output, done.exception)
    content = (settings.index_dir / "tiny-q4.gguf").read_bytes()
    with serve(target) as served:
        assert not [line for line in served.log if "warning" in line]
        assert served.get("/default/tiny-q4/resolve/main/tiny-q4.gguf").body == content
        assert served.get(blob(content)).body == content
        for path in target.glob("models/*/*"):
            if path.is_file():
                name = path.relative_to(target).as_posix()
                assert served.get(f"/{name}").body == path.read_bytes()
        assert served.get("/.weightpkg/sealed.json").status == 404
