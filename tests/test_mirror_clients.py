"""Clients that were not written for mirrors: the hub's, of two generations, transformers, nginx, our own."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import HfApi, close_session, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from factories import tiny_llama
from mirrors import COMMIT, MirrorDirectory, Served, make_mirror, serve
from weightpkg.cli import cli
from weightpkg.digest import CHUNK_SIZE
from weightpkg.settings import Settings

SECRET = "a-key-of-sixteen-and-more"
Q4 = b"GGUF" + b"four" * 5000


@pytest.fixture
def mirror(tmp_path: Path) -> MirrorDirectory:
    return make_mirror(tmp_path / "mirror")


@pytest.fixture
def served(mirror: MirrorDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:  # fmt: skip
    with serve(mirror.root) as served:
        point_hub_at(served, monkeypatch, tmp_path)
        yield served
        close_session()


def point_hub_at(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no request of the hub's client leave this machine; Xet stays as it is by default."""
    settings = {
        "ENDPOINT": served.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": served.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    close_session()


def files_in(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def n_asked(served: Served, text: str) -> int:
    return sum(text in line for line in served.log)


@pytest.mark.parametrize("name", ["acme/check", "default/check", "default/check-f32"])
def test_a_snapshot_has_all_files(served: Served, tmp_path: Path, name: str) -> None:
    folder = snapshot_download(name, cache_dir=tmp_path / "cache", endpoint=served.url)
    found = files_in(Path(folder))
    assert sorted(found) == ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"]  # fmt: skip
    assert found["model.safetensors"] == b"\0" * 70_000


def test_a_pinned_commit_is_the_hubs_own(served: Served, tmp_path: Path) -> None:
    for revision in (None, COMMIT):
        path = hf_hub_download(
            "acme/tiny-GGUF", "tiny-Q4_1.gguf", revision=revision, cache_dir=tmp_path, endpoint=served.url
        )  # fmt: skip
        assert Path(path).read_bytes() == Q4
        assert COMMIT in path
    blobs = list((tmp_path / "models--acme--tiny-GGUF" / "blobs").iterdir())
    assert len(blobs) == 1
    assert re.fullmatch("[0-9a-f]{64}", blobs[0].name), "the ETag is not the SHA-256"


def test_what_is_cached_is_not_sent_again(served: Served, tmp_path: Path) -> None:
    snapshot_download("acme/tiny-GGUF", cache_dir=tmp_path, endpoint=served.url)
    served.wait_for("GET /acme/tiny-GGUF/resolve")
    asked = n_asked(served, " GET /acme/tiny-GGUF/resolve")
    assert asked == 2
    snapshot_download("acme/tiny-GGUF", cache_dir=tmp_path, endpoint=served.url)
    hf_hub_download("acme/tiny-GGUF", "tiny-Q8_0.gguf", cache_dir=tmp_path, endpoint=served.url)
    assert n_asked(served, " GET /acme/tiny-GGUF/resolve") == asked


def test_a_download_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = MirrorDirectory(tmp_path / "mirror")
    content = os.urandom(5 * CHUNK_SIZE)  # the client keeps what it has in steps of 10 MiB
    sha256 = mirror.blob(content)
    mirror.model("big", {"q4": {"big.gguf": content}}, repo="acme/big")
    with mirror.path(sha256).open("r+b") as stream:
        stream.seek(4 * CHUNK_SIZE)
        stream.write(b"damaged")
    with serve(mirror.root) as served:
        point_hub_at(served, monkeypatch, tmp_path)

        def mend(_: float) -> None:
            mirror.path(sha256).write_bytes(content)

        monkeypatch.setattr("time.sleep", mend)  # before it tries again, the client waits
        path = hf_hub_download(
            "acme/big", "big.gguf", cache_dir=tmp_path / "c", endpoint=served.url
        )
        monkeypatch.undo()
        assert Path(path).read_bytes() == content
        assert served.wait_for("/big.gguf 206 10485760")
        close_session()


def test_models_are_listed(served: Served) -> None:
    api = HfApi(endpoint=served.url, token=False)
    names = {model.id for model in api.list_models()}
    assert {"acme/check", "acme/tiny-GGUF", "default/tiny", "default/tiny-q4"} <= names
    assert [m.id for m in api.list_models(search="check", author="acme")] == ["acme/check"]
    info = api.model_info("acme/tiny-GGUF", files_metadata=True)
    assert info.sha == COMMIT
    assert info.siblings is not None
    assert info.siblings[0].lfs is not None
    assert info.siblings[0].size == len(Q4)
    assert [ref.name for ref in api.list_repo_refs("acme/check").branches] == ["main"]
    assert api.file_exists("acme/check", "config.json")
    assert not api.file_exists("acme/check", "none.json")
    assert not api.repo_exists("acme/none")
    rows = list(api.list_repo_tree("acme/check", "1_Pooling"))
    assert [row.path for row in rows] == ["1_Pooling/config.json"]


def test_what_is_not_there_is_the_clients_own_error(served: Served, tmp_path: Path) -> None:
    def get(repo: str, name: str = "config.json", revision: str | None = None) -> str:
        return hf_hub_download(
            repo, name, revision=revision, cache_dir=tmp_path, endpoint=served.url
        )

    with pytest.raises(RepositoryNotFoundError):
        get("acme/none")
    with pytest.raises(RevisionNotFoundError):
        get("acme/check", revision="none")
    with pytest.raises(EntryNotFoundError):
        get("acme/check", "none.json")


def test_the_hubs_client_sends_the_key_as_its_token(
    mirror: MirrorDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(mirror.root, key=SECRET) as served:
        point_hub_at(served, monkeypatch, tmp_path)
        folder = snapshot_download("acme/check", token=SECRET, cache_dir=tmp_path / "c", endpoint=served.url)  # fmt: skip
        assert len(files_in(Path(folder))) == 4
        with pytest.raises(HfHubHTTPError, match="401"):
            HfApi(endpoint=served.url, token="hf_another").model_info("acme/check")
        close_session()


def environment(served: Served, home: Path) -> dict[str, str]:
    """Return an environment in which the hub is the mirror."""
    names = ("PATH", "LANG", "SYSTEMROOT", "PYTHONPATH")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {**kept, "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": served.url}


def test_hf_download(served: Served, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("hf")
    if not command.is_file():
        pytest.skip("`hf` is not installed")
    target = tmp_path / "target"
    line = [str(command), "download", "acme/check", "--local-dir", str(target)]
    done = subprocess.run(line, env=environment(served, tmp_path), capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (target / "model.safetensors").read_bytes() == b"\0" * 70_000


def test_weightpkg_takes_the_mirror_for_the_hub(tmp_path: Path) -> None:
    mirror = MirrorDirectory(tmp_path / "mirror")
    content = tiny_llama(tmp_path / "tiny.gguf", weights="Q4_1").read_bytes()
    mirror.model("tiny", {"q4": {"tiny-Q4_1.gguf": content}}, repo="acme/tiny-GGUF")
    with serve(mirror.root) as served:
        environ = environment(served, tmp_path) | {"WEIGHTPKG_HOME": str(tmp_path / "store")}
        line = [sys.executable, "-m", "weightpkg", "install", "--no-convert", "hf:acme/tiny-GGUF"]
        done = subprocess.run(line, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = [path.read_bytes() for path in (tmp_path / "store" / "blobs").rglob("*") if path.is_file()]  # fmt: skip
        assert content in found


def test_weightpkg_syncs_from_a_mirror_alone(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WEIGHTPKG_HOME", "WEIGHTPKG_INDEX"):
        monkeypatch.setenv(name, settings.environ[name])
    monkeypatch.chdir(tmp_path)
    for words in (
        ["init"],
        ["add", "tiny-q4"],
        ["mirror", "create", "made", "--lock", "weights.lock"],
    ):
        done = CliRunner().invoke(cli, ["-q", *words])
        assert done.exit_code == 0, (words, done.output, done.exception)
    for path in settings.index_dir.glob("*.gguf"):
        path.unlink()
    with serve(tmp_path / "made") as served:
        assert not [line for line in served.log if "warning" in line], served.log
        monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "another"))
        monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
        monkeypatch.setenv("WEIGHTPKG_MIRROR", served.url)
        monkeypatch.setenv("WEIGHTPKG_MIRROR_ONLY", "1")
        done = CliRunner().invoke(cli, ["-q", "sync", "--frozen"])
        assert done.exit_code == 0, (done.output, done.exception, served.log)
        served.wait_for(" /blobs/sha256/")
        assert Settings.from_environment().store().installed()


# what has to be fetched first


CLIENT = """
import json, sys
from huggingface_hub import snapshot_download, HfApi, __version__
from transformers import AutoConfig, AutoTokenizer
folder = snapshot_download("acme/llama")
config = AutoConfig.from_pretrained("acme/llama")
tokenizer = AutoTokenizer.from_pretrained("acme/llama")
names = [model.id for model in HfApi().list_models()]
print(json.dumps({"hub": __version__, "folder": folder, "hidden": config.hidden_size,
                  "ids": tokenizer("hello world")["input_ids"], "names": names}))
"""
TOKENIZER: dict[str, object] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"hello": 0, "world": 1, "?": 2}, "unk_token": "?"},
}


@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("hub", "transformers"),
    [("huggingface_hub==0.36.0", "transformers>=4.57,<5"), ("huggingface_hub>=2,<3", "transformers>=5")],
    ids=["hub 0.36", "hub 2"],
)  # fmt: skip
def test_transformers_loads_config_and_tokenizer(
    tmp_path: Path, hub: str, transformers: str
) -> None:
    mirror = MirrorDirectory(tmp_path / "mirror")
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "architectures": ["LlamaForCausalLM"],
    }
    files = {
        "config.json": config,
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    contents = {name: json.dumps(value).encode() for name, value in files.items()}
    mirror.model("llama", {"f32": contents}, repo="acme/llama", revision="main", form="safetensors")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        hub,
        transformers,
    ]
    subprocess.run(pip, check=True)
    with serve(mirror.root) as served:
        environ = environment(served, tmp_path)
        environ.pop("PYTHONPATH", None)
        done = subprocess.run([str(python), "-c", CLIENT], env=environ, capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr + "\n".join(served.log)
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["hub"].split(".")[0] == re.sub(r"\D*(\d+).*", r"\1", hub)
        assert (told["hidden"], told["ids"]) == (64, [0, 1])
        assert "acme/llama" in told["names"]
        assert sorted(files_in(Path(told["folder"]))) == sorted(files)


def nginx(tmp_path: Path) -> Path:
    """Return nginx, of this machine or of Debian's package, which leaves nothing behind."""
    if found := shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return Path(found)
    download, unpack = shutil.which("apt-get"), shutil.which("dpkg")
    if download is None or unpack is None:
        pytest.skip("neither nginx nor Debian's packages are to be had")
    subprocess.run([download, "download", "-q", "nginx"], cwd=tmp_path, check=True)
    for package in tmp_path.glob("nginx*.deb"):
        subprocess.run([unpack, "-x", str(package), str(tmp_path / "nginx")], check=True)
    return tmp_path / "nginx" / "usr" / "sbin" / "nginx"


@contextmanager
def serve_by_nginx(root: Path, work: Path) -> Iterator[str]:
    """Serve a directory by nginx as a web server that knows nothing of mirrors."""
    program = nginx(work)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {work}/ng-{kind};" for kind in kinds)
    configuration = work / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {work}/ng.pid; error_log {work}/ng.err;\n"
        "events {}\n"
        f"http {{ access_log {work}/ng.log; sendfile on; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    process = subprocess.Popen([str(program), "-c", str(configuration), "-e", f"{work}/ng.err"])
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.network
def test_weightpkg_reads_a_mirror_from_nginx(tmp_path: Path) -> None:
    root = tmp_path / "site"
    mirror = MirrorDirectory(root)
    content = tiny_llama(tmp_path / "tiny.gguf", weights="Q4_1").read_bytes()
    sha256 = mirror.blob(content)
    mirror.model("tiny", {"q4": {"tiny-Q4_1.gguf": content}})
    mirror.finish()
    with serve_by_nginx(mirror.root, tmp_path) as url:
        environ = {
            **os.environ,
            "WEIGHTPKG_HOME": str(tmp_path / "store"),
            "WEIGHTPKG_NO_ADOPT": "1",
        }
        line = [sys.executable, "-m", "weightpkg", "install", "--no-convert"]
        blob = f"{url}/blobs/sha256/{sha256[:2]}/{sha256}"
        done = subprocess.run(
            [*line, blob], env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        stored = tmp_path / "store" / "blobs" / "sha256" / sha256[:2] / sha256
        assert stored.read_bytes() == content
        assert sha256 in (tmp_path / "ng.log").read_text()
