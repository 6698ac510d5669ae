"""`weightpkg index add, remove, list, update, status`, and what else asks a configured index."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from http_server import Site, serve
from signed_repository import Repository, alias, page
from weightpkg.cli import cli
from weightpkg.config import load_config
from weightpkg.errors import (
    DocumentError,
    FetchError,
    NamespaceNotFoundError,
    ProjectError,
    TrustError,
    WeightpkgError,
)
from weightpkg.settings import Settings

Command = Callable[..., Result]
PAGES = {
    "models/support.toml": page("support"),
    "aliases/help.toml": alias("support"),
    "licenses/LicenseRef-tests.txt": "be good",
}


@pytest.fixture
def weightpkg(settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return lambda *words: CliRunner().invoke(cli, words)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.make(tmp_path / "acme", PAGES, now=datetime.now(UTC))


@pytest.fixture
def root(tmp_path: Path, repository: Repository) -> str:
    """The first root, as it was given to the user."""
    path = tmp_path / "given.root.json"
    path.write_bytes(repository.first_root)
    return str(path)


@pytest.fixture
def site(repository: Repository) -> Iterator[Site]:
    with serve() as site:
        site.files = repository.site()
        yield site


def refused(result: Result, error: type[WeightpkgError] = TrustError) -> str:
    assert isinstance(result.exception, error), (result.exception, result.output)
    return result.exception.message


def done(result: Result) -> str:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_an_index_is_added_used_and_removed(
    weightpkg: Command, root: str, site: Site, settings: Settings
) -> None:
    assert "the index `acme` is at http" in done(
        weightpkg("index", "add", site.url, "--root", root)
    )
    assert "acme" in done(weightpkg("index", "list"))
    assert done(weightpkg("resolve", "acme/help")).endswith("acme/support-q4==1.0\n")
    assert "LicenseRef-tests" in done(weightpkg("show", "acme/support"))
    assert "support-q8 1.0" in done(weightpkg("install", "--dry-run", "acme/support-q8"))
    found = done(weightpkg("search", "tests"))
    assert "acme/support-q4" in found
    assert "tiny-q4" in found
    assert done(weightpkg("index", "update", "ACME")).startswith("acme: up to date, snapshot 1")
    done(weightpkg("index", "remove", "acme"))
    assert not (settings.home / "indexes" / "acme").exists()
    refused(weightpkg("resolve", "acme/support"), NamespaceNotFoundError)
    refused(weightpkg("index", "remove", "acme"), NamespaceNotFoundError)


def test_nothing_is_trusted_on_first_use(
    weightpkg: Command, site: Site, settings: Settings
) -> None:
    message = refused(weightpkg("index", "add", site.url))
    assert "`--root` is missing: the index is signed, and it is not asked itself" in message
    refused(weightpkg("index", "add", site.url, "--allow-unsigned-index"))
    assert load_config(settings.home).indexes == ()
    assert not (settings.home / "indexes").exists()


def test_a_digest_will_do(weightpkg: Command, site: Site, repository: Repository) -> None:
    done(weightpkg("index", "add", site.url, "--sha256", repository.root_sha256.upper()))
    done(weightpkg("resolve", "acme/support"))


@pytest.mark.parametrize(
    "words", [["--sha256", "ab" * 32], ["--sha256", "ab"], ["--max-staleness", "-1"]]
)
def test_what_does_not_fit_is_refused(
    weightpkg: Command, site: Site, root: str, settings: Settings, words: list[str]
) -> None:
    assert weightpkg("index", "add", site.url, "--root", root, *words).exit_code == 2
    assert load_config(settings.home).indexes == ()


def test_another_digest_than_the_root_has_is_refused(
    weightpkg: Command, site: Site, settings: Settings
) -> None:
    message = refused(weightpkg("index", "add", site.url, "--sha256", "ab" * 32))
    assert "`1.root.json` has another digest" in message
    assert load_config(settings.home).indexes == ()


@pytest.mark.parametrize("name", ["bigco", "acrne"])
def test_an_index_that_offers_the_namespace_of_another_is_refused(
    weightpkg: Command, site: Site, root: str, settings: Settings, name: str
) -> None:
    message = refused(weightpkg("index", "add", site.url, "--root", root, "--name", name))
    assert f"says that this is the index of `acme`, which does not have `{name}`" in message
    assert load_config(settings.home).indexes == ()
    assert not (settings.home / "indexes" / name).exists()


def test_a_name_that_could_be_taken_for_another_is_refused(
    weightpkg: Command, site: Site, root: str, tmp_path: Path, settings: Settings
) -> None:
    done(weightpkg("index", "add", site.url, "--root", root))
    thief = Repository.make(tmp_path / "acrne", PAGES, namespace="acrne", now=datetime.now(UTC))
    digest = thief.root_sha256
    message = refused(weightpkg("index", "add", str(thief.directory), "--sha256", digest))
    assert "`acrne` could be taken for `acme`" in message
    message = refused(
        weightpkg(
            "index", "add", str(thief.directory), "--sha256", digest, "--name", "d\u0435fault"
        ),
        DocumentError,
    )
    assert "U+0435 CYRILLIC SMALL LETTER IE" in message
    assert [index.name for index in load_config(settings.home).indexes] == ["acme"]


def test_no_cleaning_takes_what_is_remembered(
    weightpkg: Command, root: str, repository: Repository, settings: Settings
) -> None:
    old = repository.site()
    done(weightpkg("index", "add", str(repository.directory), "--root", root))
    repository.publish(repository.add("models/support.toml", page("support", summary="released")))
    done(weightpkg("index", "update"))
    done(weightpkg("search", "released"))
    state = settings.home / "indexes" / "acme"
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    done(weightpkg("gc", "--unused-for", "0d", "--max-size", "0B", "--sources", "--yes"))
    shutil.rmtree(settings.home / "cache")
    shutil.rmtree(settings.home / "tmp", ignore_errors=True)
    assert {path: path.read_bytes() for path in state.rglob("*") if path.is_file()} == before
    assert "what is held of signed indexes" in done(weightpkg("cache", "size"))
    for path, content in old.items():
        (repository.directory / path[1:]).write_bytes(content)
    assert "is not the version that it must be" in refused(weightpkg("index", "update", "acme"))


def test_an_index_keeps_its_root_until_it_is_removed(
    weightpkg: Command, root: str, repository: Repository, tmp_path: Path, settings: Settings
) -> None:
    words = ("index", "add", str(repository.directory), "--root", root)
    done(weightpkg(*words))
    done(weightpkg(*words, "--max-staleness", "5"))
    before = load_config(settings.home).indexes
    assert before[0].max_staleness_days == 5
    other = Repository.make(tmp_path / "other", PAGES, now=datetime.now(UTC))
    again = ("index", "add", str(other.directory), "--sha256", other.root_sha256)
    assert "`--root` is not the one that this index has here" in refused(weightpkg(*again))
    unsigned = ("index", "add", str(settings.index_dir), "--name", "acme", "--allow-unsigned-index")
    assert "`--root` is not the one that this index has here" in refused(weightpkg(*unsigned))
    assert load_config(settings.home).indexes == before
    done(weightpkg("index", "remove", "acme"))
    done(weightpkg(*again))


def test_an_expired_index_cannot_be_added_unless_that_is_granted(
    weightpkg: Command, tmp_path: Path
) -> None:
    old = Repository.make(tmp_path / "old", PAGES, now=datetime.now(UTC) - timedelta(days=20))
    words = ("index", "add", str(old.directory), "--sha256", old.root_sha256)
    assert "`timestamp.json` has expired" in refused(weightpkg(*words))
    done(weightpkg(*words, "--max-staleness", "30"))
    done(weightpkg("resolve", "acme/support"))
    assert json.loads(done(weightpkg("index", "list", "--json")))[0]["max-staleness"] == 30
    done(weightpkg("index", "status"))


def test_a_url_without_signatures_needs_to_be_allowed(
    weightpkg: Command, tmp_path: Path, settings: Settings
) -> None:
    with serve() as site:
        site.files = {"/models/support.toml": page("support").encode()}
        assert "whose signatures count?" in refused(
            weightpkg("index", "add", site.url, "--name", "acme")
        )
        words = ("index", "add", site.url, "--allow-unsigned-index")
        assert "`--name` is missing" in refused(weightpkg(*words))
        done(weightpkg(*words, "--name", "acme"))
        assert done(weightpkg("resolve", "acme/support-q8")).endswith("acme/support-q8==1.0\n")
        found = done(weightpkg("search", "tests"))
        assert "left out" in found
        assert done(weightpkg("index", "update")).startswith("acme: has no signatures")
        assert json.loads(done(weightpkg("index", "list", "--json")))[0]["allow-unsigned"]


def test_a_signed_index_is_not_read_as_a_directory(
    weightpkg: Command, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPKG_INDEX", str(repository.directory))
    result = weightpkg("search", "tests")
    assert "is not a directory" in refused(result, DocumentError)
    assert isinstance(result.exception, DocumentError)
    assert "it is a signed index: `weightpkg index add" in str(result.exception.hint)


def test_a_directory_given_by_path_is_the_users_own(weightpkg: Command, settings: Settings) -> None:
    done(weightpkg("index", "add", str(settings.index_dir), "--name", "ours"))
    assert done(weightpkg("resolve", "ours/tiny")).endswith("ours/tiny-q4==1.0\n")


def test_status_says_what_is_held_and_what_has_expired(
    weightpkg: Command, root: str, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(weightpkg("index", "add", str(repository.directory), "--root", root))
    roles = {
        role["name"]: role
        for role in json.loads(done(weightpkg("index", "status", "--json")))["acme"]
    }
    assert set(roles) >= {"root", "timestamp", "snapshot", "targets", "acme"}
    assert roles["acme"]["keys"] == [repository.signers["acme"][0].public_key.keyid]
    assert [role["threshold"] for role in roles.values()] == [1] * 5
    assert [role["is-expired"] for role in roles.values()] == [False] * 5
    path = repository.directory.parent / "store" / "indexes" / "acme" / "memory.toml"
    later = (datetime.now(UTC) + timedelta(days=8)).isoformat()
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(f'seen = "{later}"' if line.startswith("seen") else line for line in lines)
    )
    result = weightpkg("index", "status", "acme")
    assert result.exit_code == TrustError.exit_code
    assert [line.split()[1] for line in result.output.splitlines() if "expired" in line] == [
        "timestamp"
    ]
    refused(weightpkg("index", "status", "other"), NamespaceNotFoundError)


def test_one_index_that_is_refused_keeps_no_other_from_its_update(
    weightpkg: Command, root: str, repository: Repository, tmp_path: Path
) -> None:
    other = Repository.make(tmp_path / "other", PAGES, namespace="other", now=datetime.now(UTC))
    done(weightpkg("index", "add", str(repository.directory), "--root", root))
    done(weightpkg("index", "add", str(other.directory), "--sha256", other.root_sha256))
    (repository.directory / "metadata" / "timestamp.json").write_text("{}")
    other.publish(other.add("models/support.toml", page("support", summary="released")))
    result = weightpkg("index", "update")
    assert result.exit_code == TrustError.exit_code
    assert "error: index `acme`: `timestamp.json` cannot be read" in result.output
    assert "other: snapshot 2, it was 1" in result.output
    assert "cannot be read" in refused(weightpkg("index", "update", "acme"))
    refused(weightpkg("index", "update", "nobody"), NamespaceNotFoundError)


def test_the_default_index_can_be_a_signed_one(
    weightpkg: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = Repository.make(tmp_path / "ours", PAGES, namespace="default", now=datetime.now(UTC))
    done(weightpkg("index", "add", str(ours.directory), "--sha256", ours.root_sha256))
    assert done(weightpkg("resolve", "tiny")).endswith(
        "tiny-q4==1.0\n"
    )  # WEIGHTPKG_INDEX is nearer
    monkeypatch.delenv("WEIGHTPKG_INDEX")
    assert done(weightpkg("resolve", "support")).endswith("support-q4==1.0\n")


def manifest(location: str) -> None:
    text = f'[indexes]\nacme = "{location}"\n[models]\nhelper = "acme/support-q4"\n'
    Path("weights.toml").write_text(text)


def test_a_lockfile_has_the_digest_of_the_first_root(
    weightpkg: Command, root: str, site: Site, repository: Repository
) -> None:
    manifest(site.url)
    error = refused(weightpkg("lock"), ProjectError)
    assert f"index `acme` is at `{site.url}`, and nothing says whose signatures count" in error
    done(weightpkg("index", "add", site.url, "--root", root))
    done(weightpkg("lock"))
    assert f'root = "sha256:{repository.root_sha256}"' in Path("weights.lock").read_text()
    manifest("https://elsewhere.example/index")
    assert "and config.toml has it at" in refused(weightpkg("lock"), ProjectError)
    manifest("../acme")
    assert "and config.toml has it at" in refused(weightpkg("lock"), ProjectError)


def test_a_configured_index_need_not_be_in_the_manifest(
    weightpkg: Command, root: str, repository: Repository
) -> None:
    done(weightpkg("index", "add", str(repository.directory), "--root", root))
    Path("weights.toml").write_text('[models]\nhelper = "acme/support-q4"\n')
    done(weightpkg("lock"))
    assert 'name = "acme"' in Path("weights.lock").read_text()
    error = refused(weightpkg("add", "acrne/support"), NamespaceNotFoundError)
    assert "it looks like `acme`, and is not" in error


def test_what_is_locked_is_installed_though_its_index_has_expired(
    weightpkg: Command, root: str, repository: Repository, settings: Settings
) -> None:
    text = (settings.index_dir / "models" / "tiny.toml").read_text()
    text = text.replace("file:", f"file://{settings.index_dir.absolute()}/")
    repository.publish(repository.add("models/tiny.toml", text))
    done(weightpkg("index", "add", str(repository.directory), "--root", root))
    Path("weights.toml").write_text('[models]\nhelper = "acme/tiny-q4"\n')
    done(weightpkg("lock"))
    memory = settings.home / "indexes" / "acme" / "memory.toml"
    lines = memory.read_text().splitlines()
    later = (datetime.now(UTC) + timedelta(days=8)).isoformat()
    memory.write_text(
        "\n".join(f'seen = "{later}"' if line.startswith("seen") else line for line in lines)
    )
    output = done(weightpkg("sync", "--frozen"))
    assert "warning: acme/tiny-q4 1.0: whether it was yanked cannot be told: index `acme`" in output
    assert "installed acme/tiny-q4 1.0" in output
    refused(weightpkg("lock", "--upgrade"))


def test_a_server_that_is_gone_is_no_matter_for_what_is_held(
    weightpkg: Command, root: str, site: Site
) -> None:
    done(weightpkg("index", "add", site.url, "--root", root))
    done(weightpkg("show", "acme/support"))
    del site.requests[:]
    site.files.clear()
    done(weightpkg("show", "acme/support"))
    assert site.requests == []
    refused(weightpkg("index", "update", "acme"))


def test_the_shim_is_hidden(weightpkg: Command) -> None:
    assert "conformance" not in done(weightpkg("index", "--help"))
    assert (
        weightpkg("index", "conformance-shim", "--metadata-dir", "x", "frobnicate").exit_code == 2
    )


def test_the_shim_speaks_the_protocol(
    weightpkg: Command, site: Site, root: str, tmp_path: Path
) -> None:
    metadata, targets = str(tmp_path / "metadata"), tmp_path / "targets"
    shim = ("index", "conformance-shim", "--metadata-dir", metadata)
    done(weightpkg(*shim, "init", root))
    assert site.requests == []
    done(weightpkg(*shim, "--metadata-url", f"{site.url}/metadata", "refresh"))
    names = sorted(path.name for path in Path(metadata).glob("*.json"))
    assert names == ["root.json", "snapshot.json", "targets.json", "timestamp.json"]
    urls = ("--metadata-url", f"{site.url}/metadata", "--target-base-url", f"{site.url}/targets")
    wanted = ("--target-name", "models/support.toml", "--target-dir", str(targets))
    done(weightpkg(*shim, *urls, *wanted, "download"))
    count = len(site.requests)
    done(weightpkg(*shim, *urls, *wanted, "download"))
    assert [path for path in site.paths()[count:] if "/targets/" in path] == []
    assert [path.read_text() for path in targets.iterdir()] == [PAGES["models/support.toml"]]
    missing = ("--target-name", "models/other.toml", "--target-dir", str(targets))
    assert weightpkg(*shim, *urls, *missing, "download").exit_code == 1


def test_an_index_that_cannot_be_reached_is_no_matter_of_trust(
    weightpkg: Command, root: str
) -> None:
    refused(weightpkg("index", "add", "/nowhere/index", "--root", root), FetchError)
    assert weightpkg("index", "add", "http://acme.example/", "--root", root).exit_code == 2
