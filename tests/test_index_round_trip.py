"""An index from its maintainers' hands to its users': made, signed, published, added, installed from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from factories import tiny_llama
from http_server import serve
from weightpkg.cli import cli

pytest.importorskip("weightpkg.signing.publishing")

Command = Callable[..., str]


@pytest.fixture
def weightpkg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        result = CliRunner().invoke(cli, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def site_of(directory: Path) -> dict[str, bytes]:
    return {
        f"/{path.relative_to(directory).as_posix()}": path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("bins", [0, 16])
def test_what_maintainers_sign_users_install(weightpkg: Command, tmp_path: Path, bins: int) -> None:
    weights = tiny_llama(tmp_path / "tiny-q4.gguf", weights="Q4_1")
    source = f"file://{tmp_path}/{{path}}"
    weightpkg("index", "init", "acme", "--namespace", "acme", "--keys", "keys")
    plan = tmp_path / "acme" / "signing.toml"
    plan.write_text(
        plan.read_text().replace("[namespaces.acme]", f"[namespaces.acme]\nbins = {bins}")
    )
    assert f"bins = {bins}" in plan.read_text()
    weightpkg(
        *("index", "add-model", weights.name, "-C", "acme", "--name", "tiny"),
        *("--summary", "Signed", "--license", "MIT", "--source", source),
    )
    weightpkg("index", "sign", "-C", "acme")
    weightpkg("index", "publish", "public", "-C", "acme")
    root = hashlib.sha256((tmp_path / "public" / "metadata" / "1.root.json").read_bytes())
    with serve() as site:
        site.files = site_of(tmp_path / "public")
        weightpkg("index", "add", site.url, "--sha256", root.hexdigest())
        assert "acme/tiny-q4" in weightpkg("search", "signed")
        assert "installed tiny-q4 1.0.0" in weightpkg("install", "acme/tiny-q4")
        weightpkg("index", "yank", "tiny", "1.0.0", "-C", "acme", "--reason", "it is too small")
        weightpkg("index", "sign", "-C", "acme")
        weightpkg("index", "publish", "public", "-C", "acme")
        site.files = site_of(tmp_path / "public")
        assert "models/tiny" in weightpkg("index", "update")
        assert "yanked: it is too small" in weightpkg("install", "--dry-run", "acme/tiny==1.0.0")
        weightpkg("index", "key", "generate", "new", "-o", "keys/new.pem")
        weightpkg("index", "key", "rotate", "timestamp", "--new", "keys/new.pem", "-C", "acme")
        weightpkg("index", "sign", "-C", "acme")
        weightpkg("index", "publish", "public", "-C", "acme")
        site.files = site_of(tmp_path / "public")
        assert weightpkg("index", "update", "acme").startswith("acme: ")
        rows = [line.split() for line in weightpkg("index", "status").splitlines()]
        assert ["acme", "root", "2"] in [row[:3] for row in rows]
