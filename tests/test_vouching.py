"""Who signed a model's page, as an audit has it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from securesystemslib.signer import CryptoSigner

from signed_repository import Repository, page
from weightpkg.cli import cli
from weightpkg.settings import Settings

TOP = ["root", "timestamp", "snapshot", "targets"]


@pytest.fixture(params=[0, 16], ids=["one role", "bins"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """An index that is signed today."""
    pages = {"models/tiny.toml": page("tiny")}
    now = datetime.now(UTC).replace(microsecond=0)
    return Repository.make(tmp_path / "repository", pages, bins=request.param, now=now)


@pytest.fixture
def project(
    repository: Repository, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A project that has locked a model of a signed index."""
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    settings.home.mkdir(exist_ok=True)
    config = f'url = "{repository.directory}"\nroot-sha256 = "{repository.root_sha256}"\n'
    (settings.home / "config.toml").write_text(f"[indexes.acme]\n{config}")
    Path("weights.toml").write_text('[models]\nchat = "acme/tiny"\n')
    result = CliRunner().invoke(cli, ["lock"])
    assert result.exit_code == 0, result.exception
    return tmp_path / "project"


def signatures() -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["audit", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["models"][0]["signatures"]
    assert isinstance(found, dict)
    return found


def keys_of(repository: Repository, role: str) -> list[str]:
    return sorted(signer.public_key.keyid for signer in repository.signers[role])


def test_all_roles_from_the_root_down_are_named(project: Path, repository: Repository) -> None:
    found = signatures()
    assert found["root"] == f"sha256:{repository.root_sha256}"
    names = [role["name"] for role in found["roles"]]
    assert names[:5] == [*TOP, "acme"]
    assert len(names) == (6 if repository.bins else 5)  # with bins, the one that has the page
    for role in found["roles"]:
        assert role["keys"] == keys_of(repository, role["name"])
        assert role["version"] == repository.roles[role["name"]].version
        assert datetime.fromisoformat(role["expires"]) == repository.roles[role["name"]].expires
    text = CliRunner().invoke(cli, ["audit"]).stdout
    assert f"the index acme, root sha256:{repository.root_sha256}: root 1 by " in text


def test_the_index_is_not_needed_for_that(project: Path, repository: Repository) -> None:
    before = signatures()
    shutil.rmtree(repository.directory)
    assert signatures() == before


def test_a_stranger_s_signature_is_not_named(project: Path, repository: Repository) -> None:
    stranger = CryptoSigner.generate_ed25519()
    repository.signers["acme"].append(stranger)
    repository.add("models/tiny.toml", page("tiny", summary="newer"))
    repository.publish("acme", *[role for role in repository.roles if "-bin-" in role])
    assert CliRunner().invoke(cli, ["index", "update"]).exit_code == 0
    (own,) = [role for role in signatures()["roles"] if role["name"] == "acme"]
    assert own["version"] == 2
    assert stranger.public_key.keyid not in own["keys"]
    assert len(own["keys"]) == 1


def test_an_index_without_signatures_has_none(
    project: Path, settings: Settings, tmp_path: Path
) -> None:
    Path("weights.toml").write_text('[models]\nchat = "tiny"\n')
    assert CliRunner().invoke(cli, ["lock"]).exit_code == 0
    result = CliRunner().invoke(cli, ["audit", "--json"])
    assert json.loads(result.stdout)["models"][0]["signatures"] is None


def test_an_index_that_is_gone_stops_no_audit(
    project: Path, repository: Repository, settings: Settings
) -> None:
    shutil.rmtree(repository.directory)
    shutil.rmtree(settings.home / "indexes")
    result = CliRunner().invoke(cli, ["audit", "--json"])
    assert result.exit_code == 0, result.exception
    model = json.loads(result.stdout)["models"][0]
    assert "index-unreadable" in [finding["rule"] for finding in model["findings"]]
    assert model["signatures"]["roles"] == []
