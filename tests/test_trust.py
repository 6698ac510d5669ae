"""A signed index: what is right is read, all else is one clear error, and nothing has changed after it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from http_server import Site, serve
from signed_repository import NOW, Repository, alias, page
from weightpkg import files
from weightpkg.config import IndexConfig
from weightpkg.digest import Digest
from weightpkg.errors import FetchError, ModelNotFoundError, StoreError, TrustError
from weightpkg.requirement import NormalizedName, Requirement
from weightpkg.resolve import resolve
from weightpkg.sources.transport import Transport, TransportSettings
from weightpkg.trust.client import Client
from weightpkg.trust.index import SignedIndex
from weightpkg.trust.memory import load_memory
from weightpkg.trust.origin import BundleOrigin, DirectoryOrigin, NoOrigin, Origin, WebOrigin
from weightpkg.trust.pages import Surroundings

PAGES = {
    "models/tiny.toml": page("tiny"),
    "models/small.toml": page("small", summary="Another one"),
    "aliases/little.toml": alias("tiny"),
    "licenses/LicenseRef-tests.txt": "be good",
}
TINY, SMALL, LITTLE = (NormalizedName(name) for name in ("tiny", "small", "little"))


@dataclass
class User:
    """Somebody who has configured an index."""

    state: Path
    repository: Repository
    now: datetime = NOW
    days: int = 0
    root: str = ""
    name: str = "acme"

    def open(self, origin: Origin | None = None) -> SignedIndex:
        """The index, as a new process has it."""
        config = IndexConfig(
            name=NormalizedName(self.name),
            url=str(self.repository.directory),
            root_sha256=Digest("sha256", self.root or self.repository.root_sha256),
            max_staleness_days=self.days,
        )
        given = Surroundings(
            state=self.state, cache=self.state.parent / "cache", now=lambda: self.now
        )
        return SignedIndex(config, origin or DirectoryOrigin(self.repository.directory), given)

    def offline(self) -> SignedIndex:
        return self.open(NoOrigin("nowhere"))

    def refused(self, origin: Origin | None = None, error: type[Exception] = TrustError) -> str:
        """Update, which must fail; what is held must be as it was."""
        before = self.answers()
        with pytest.raises(error) as caught:
            self.open(origin).update()
        assert self.answers() == before
        return str(caught.value)

    def answers(self) -> object:
        """What is held says."""
        try:
            index = self.offline()
            return index.names(), index.model(TINY).summary, index.pages.client.memory().held
        except (FetchError, TrustError, ModelNotFoundError) as error:
            return type(error)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository.make(tmp_path / "repository", PAGES)


@pytest.fixture
def user(tmp_path: Path, repository: Repository) -> User:
    """One who has read `tiny`."""
    user = User(tmp_path / "home" / "indexes" / "acme", repository)
    user.open().model(TINY)
    return user


def released(repository: Repository, summary: str = "released") -> None:
    """Publish another page of `tiny`."""
    repository.publish(repository.add("models/tiny.toml", page("tiny", summary=summary)))


def copied(repository: Repository, name: str) -> Repository:
    """The same as it is now, elsewhere."""
    directory = repository.directory.parent / name
    shutil.copytree(repository.directory, directory)
    return replace(repository, directory=directory)


@pytest.mark.parametrize("bins", [0, 16])
def test_a_signed_index_answers_as_any_index(tmp_path: Path, bins: int) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES, bins=bins)
    index = User(tmp_path / "state", repository).open()
    assert index.names() == ["small", "tiny"]
    assert index.aliases() == ["little"]
    assert index.model(LITTLE).name == "tiny"
    assert index.target(LITTLE) == "tiny"
    assert TINY in index
    assert NormalizedName("other") not in index
    assert [hit.listing.full_name for hit in index.search(["another"])] == ["small-q4"]
    assert index.faulty() == []
    assert index.root == f"sha256:{repository.root_sha256}"
    assert (index.directory / "licenses" / "LicenseRef-tests.txt").read_text() == "be good"
    with pytest.raises(ModelNotFoundError, match="no model is called `smal`") as caught:
        index.model(NormalizedName("smal"))
    assert caught.value.nearest == (() if bins else ("small",))


def test_a_file_is_found_by_its_digest_in_pages_that_were_read(user: User) -> None:
    digest = Digest("sha256", hashlib.sha256(b"weights").hexdigest())
    found = {resolved.full_name for resolved, _ in user.offline().find(digest)}
    assert found == {"tiny-q4", "tiny-q8"}
    assert list(user.offline().find(Digest("sha256", "ab" * 32))) == []


def test_what_is_held_needs_nothing_else(user: User) -> None:
    index = user.offline()
    assert index.model(TINY).name == "tiny"
    assert index.names() == ["small", "tiny"]
    assert [hit.listing.name for hit in index.search(["tests"])] == ["tiny", "small"]
    with pytest.raises(FetchError, match="is not held here"):
        index.model(SMALL)


def test_nothing_is_fetched_that_is_held(user: User) -> None:
    with serve() as site:
        site.files = user.repository.site()
        origin = WebOrigin(site.url, Transport)
        index = user.open(origin)
        assert index.model(TINY).name == "tiny"
        assert site.paths() == []
        index.update()
        assert site.paths() == ["/metadata/2.root.json", "/metadata/timestamp.json"]
        released(user.repository)
        site.files = user.repository.site()
        del site.requests[:]
        assert index.update().pages == ("models/tiny",)
        assert [path.rpartition("/")[2][-20:] for path in site.paths()] == [
            "2.root.json",
            "timestamp.json",
            "2.snapshot.json",
            "2.acme.json",
            site.paths()[-1][-20:],
        ]
    assert user.offline().model(TINY).summary == "released"


def test_only_bins_that_are_held_and_changed_are_updated(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES, bins=16)
    user = User(tmp_path / "state", repository)
    user.open().names()
    with serve() as site:
        role = repository.add("models/tiny.toml", page("tiny", summary="released"))
        repository.publish(role)
        site.files = repository.site()
        user.open(WebOrigin(site.url, Transport)).update()
        names = [path.removeprefix("/metadata/") for path in site.paths()]
    assert names == ["2.root.json", "timestamp.json", "2.snapshot.json", f"2.{role}.json"]


def test_a_search_reads_only_roles_that_changed(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES, bins=16)
    user = User(tmp_path / "state", repository)
    assert len(user.open().search(["tests"])) == 2
    role = repository.add("models/new.toml", page("new"))
    repository.publish(role)
    index = user.open()
    index.update()
    index = user.offline()
    assert {hit.listing.name for hit in index.search(["tests"])} == {"new", "small", "tiny"}


def test_an_old_mirror_is_refused(user: User) -> None:
    old = copied(user.repository, "old")
    released(user.repository)
    user.open().update()
    message = user.refused(DirectoryOrigin(old.directory))
    assert message.startswith("index `acme`: `timestamp.json` is not the version that it must be")


def test_an_old_mirror_is_refused_though_what_was_held_is_gone(user: User) -> None:
    old = copied(user.repository, "old")
    released(user.repository)
    user.open().update()
    for name in ("held", "update", "roles", "pages"):
        shutil.rmtree(user.state / name)
    message = user.refused(DirectoryOrigin(old.directory))
    assert "is version 1, and 2 was seen here before" in message
    assert user.open().model(TINY).summary == "released"


def test_a_mix_of_two_snapshots_is_refused(user: User) -> None:
    old = copied(user.repository, "old")
    released(user.repository)
    mixed = copied(user.repository, "mixed")
    snapshot = old.directory / "metadata" / "1.snapshot.json"
    shutil.copy(snapshot, mixed.directory / "metadata" / "2.snapshot.json")
    assert "`2.snapshot.json` is not the file that was signed" in user.refused(
        DirectoryOrigin(mixed.directory)
    )
    role = old.directory / "metadata" / "1.acme.json"
    shutil.copy(
        user.repository.directory / "metadata" / "2.snapshot.json", mixed.directory / "metadata"
    )
    shutil.copy(role, mixed.directory / "metadata" / "2.acme.json")
    assert "`acme.json`" in user.refused(DirectoryOrigin(mixed.directory))


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "acme"])
def test_each_role_that_has_expired_is_refused(user: User, role: str) -> None:
    repository = user.repository
    repository.roles[role].expires = NOW - timedelta(days=1)
    if role == "root":
        repository.roles["root"].version += 1
        repository.write("root")
    repository.publish(*{role} & {"targets", "acme"})
    if role == "root":  # a new root counts, whatever it says
        with pytest.raises(TrustError, match=r"`root.json` has expired"):
            user.open().update()
    else:
        assert f"`{role}.json` has expired" in user.refused()
    user.days = 2
    user.open().update()


def test_what_was_held_expires_and_an_update_is_what_helps(user: User) -> None:
    user.now = NOW + timedelta(days=8)
    with pytest.raises(
        TrustError, match=r"`timestamp.json` has expired, and what is new cannot be had"
    ):
        user.offline().model(TINY)
    user.repository.now = user.now
    user.repository.roles["timestamp"].expires = user.repository.expiry("timestamp")
    released(user.repository)
    assert user.open().model(TINY).summary == "released"


def test_staleness_is_days_after_the_expiry_and_no_more(user: User) -> None:
    user.days = 5
    user.now = NOW + timedelta(days=12, hours=-1)
    assert user.offline().model(TINY).name == "tiny"
    user.now = NOW + timedelta(days=12, hours=1)
    with pytest.raises(TrustError, match="has expired"):
        user.offline().model(TINY)


def test_staleness_is_by_the_time_that_the_updater_goes_by(user: User) -> None:
    user.days = 5
    session = user.open().pages.session()
    assert session.updater._trusted_set.reference_time == NOW - timedelta(days=5)


def test_a_clock_set_back_does_not_bring_back_what_has_expired(user: User) -> None:
    user.now = NOW + timedelta(days=8)
    with pytest.raises(TrustError, match="has expired"):
        user.offline().model(TINY)
    user.now = NOW
    with pytest.raises(TrustError, match="has expired"):
        user.offline().model(TINY)
    assert load_memory(user.state).seen == NOW + timedelta(days=8)


def test_time_that_was_seen_is_remembered_without_an_expiry(user: User) -> None:
    user.now = NOW + timedelta(days=6)
    user.offline().model(TINY)
    user.now = NOW - timedelta(days=365)
    user.offline().model(TINY)
    assert load_memory(user.state).seen == NOW + timedelta(days=6)


def test_a_revoked_key_signs_nothing_more(user: User) -> None:
    repository = user.repository
    stolen = repository.signers["timestamp"]
    repository.rotate_root("timestamp")
    repository.publish()
    user.open().update()
    repository.signers["timestamp"] = stolen
    released(repository, "by a thief")
    message = user.refused()
    assert "`timestamp.json` is not signed by those who must sign it" in message
    assert user.offline().model(TINY).summary != "by a thief"


def test_a_root_that_revokes_counts_also_where_all_else_fails(user: User) -> None:
    user.repository.rotate_root("timestamp")  # and the timestamp is signed by the old key still
    with pytest.raises(TrustError, match=r"`timestamp.json` is not signed"):
        user.open().update()
    with pytest.raises(TrustError, match=r"`timestamp.json` is not signed"):
        user.offline().model(TINY)


def test_a_root_signed_by_a_revoked_key_is_refused(user: User) -> None:
    repository = user.repository
    old = repository.signers["root"]
    repository.rotate_root("root")
    repository.publish()
    user.open().update()
    repository.roles["root"].version += 1
    repository.write("root", signers=old)
    assert "`3.root.json` is not signed by those who must sign it" in user.refused()


def test_fifty_rotations_of_the_root_are_walked_offline(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES)
    for _ in range(50):
        repository.rotate_root("root")
    repository.publish()
    members = {path[1:]: content for path, content in repository.site().items()}
    user = User(tmp_path / "state", repository)
    index = user.open(BundleOrigin("site.wpk", members.__getitem__))
    assert index.model(TINY).name == "tiny"
    assert index.pages.session().root.version == 51
    assert dict(index.published([LITTLE])).keys() >= {
        f"metadata/{n + 1}.root.json" for n in range(51)
    }
    assert user.offline().model(TINY).name == "tiny"


def test_versions_begin_anew_when_the_keys_are_others(user: User) -> None:
    repository = user.repository
    for role in ("snapshot", "timestamp"):
        repository.roles[role].version = 1_000_000
    repository.publish()
    user.open().update()
    for role in ("snapshot", "timestamp"):
        repository.rotate_root(role)
        repository.roles[role].version = 2
    repository.publish()
    user.open().update()
    assert user.offline().pages.session().timestamp.version == 3


def changed(content: bytes) -> bytes:
    return content.replace(b"A model for tests", b"A model for thefs")


def test_a_tampered_page_of_the_same_length_is_refused(user: User) -> None:
    path = user.repository.target_path("models/small.toml")
    path.write_bytes(path.read_bytes().replace(b"Another one", b"Another two"))
    with pytest.raises(TrustError, match=r"`models/small.toml` is not the file that was signed"):
        user.open().model(SMALL)
    assert not (user.state / "pages" / "models" / "small.toml").exists()


def test_a_swapped_page_is_refused(user: User) -> None:
    tiny, small = (user.repository.target_path(f"models/{n}.toml") for n in ("tiny", "small"))
    small.write_bytes(tiny.read_bytes())
    with pytest.raises(TrustError, match=r"`models/small.toml` is"):
        user.open().model(SMALL)


def test_a_page_is_verified_before_it_is_read(user: User) -> None:
    path = user.repository.target_path("models/small.toml")
    path.write_bytes(b"[" * path.stat().st_size)
    with pytest.raises(TrustError, match="is not the file that was signed"):
        user.open().model(SMALL)


def test_a_page_that_was_changed_where_it_is_held_is_fetched_again(user: User) -> None:
    held = user.state / "pages" / "models" / "tiny.toml"
    held.write_bytes(changed(held.read_bytes()))
    with pytest.raises(FetchError, match="is not held here"):
        user.offline().model(TINY)
    assert user.open().model(TINY).summary == "A model for tests"
    assert held.read_bytes() == PAGES["models/tiny.toml"].encode()


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_threshold_of_zero_is_refused(user: User, role: str) -> None:
    """go-tuf took it to mean that no signature is needed: GHSA-fphv-w9fq-2525."""
    repository = user.repository
    if role == "root":
        repository.roles["root"].version += 1
        repository.roles["root"].roles["timestamp"].threshold = 0
        repository.write("root")
        what = "2.root.json"
    else:
        repository.roles["targets"].delegations.roles["acme"].threshold = 0
        repository.publish("targets")
        what = "2.targets.json"
    message = user.refused()
    assert f"`{what}` cannot be read: threshold should be at least 1!" in message


def test_a_first_root_with_a_threshold_of_zero_is_refused(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES)
    path = repository.directory / "metadata" / "1.root.json"
    path.write_bytes(path.read_bytes().replace(b'"threshold":1', b'"threshold":0'))
    with pytest.raises(TrustError, match="threshold should be at least 1"):
        User(tmp_path / "state", repository).open().model(TINY)


def hosted(repository: Repository) -> None:
    repository.delegate("other", [f"other/{kind}/*" for kind in ("models", "aliases", "licenses")])
    repository.add("other/models/tiny.toml", page("tiny", summary="the other's"), role="other")


def test_a_publisher_that_is_hosted_has_a_namespace_of_its_own(tmp_path: Path, user: User) -> None:
    hosted(user.repository)
    user.repository.publish("targets", "other")
    other = User(tmp_path / "other", user.repository, name="other")
    assert other.open().model(TINY).summary == "the other's"
    assert other.open().names() == ["tiny"]
    user.open().update()
    assert user.open().model(TINY).summary == "A model for tests"


def test_a_role_cannot_sign_the_pages_of_another_namespace(tmp_path: Path, user: User) -> None:
    hosted(user.repository)
    user.repository.add("models/tiny.toml", page("tiny", summary="stolen"), role="other")
    user.repository.publish("targets", "other")
    user.open().update()
    assert user.open().model(TINY).summary == "A model for tests"
    with pytest.raises(
        TrustError, match=r"`other.json` signs `models/tiny.toml`, which is not its own"
    ):
        User(tmp_path / "other", user.repository, name="other").open().names()


STOLEN: dict[str, Callable[[Repository], None]] = {
    "was given `models/*`, which is of another namespace": lambda r: r.delegate("b", ["models/*"]),
    "was given `*`, which is of": lambda r: r.delegate("b", ["*"]),
    "was given `acme/models/*`": lambda r: r.delegate("b", ["b/models/*", "acme/models/*"]),
    "leaves its names to other roles": lambda r: r.delegate("b", ["b/models/*"], terminating=False),
    "is called by no name": lambda r: r.delegate("B/../acme", ["models/*"]),
    "signs `models/tiny.toml` itself": lambda r: r.put(
        "targets", "models/tiny.toml", page("tiny", summary="stolen").encode()
    ),
    "says that this is the index of `bigco`": lambda r: r.sign_index_page("bigco"),
    "is not valid: index.toml: `namespace`: is missing": lambda r: r.put(
        "targets", "index.toml", b"schema = 1\n"
    ),
    "is not signed by anybody": lambda r: r.roles["targets"].targets.clear(),
}  # fmt: skip


@pytest.mark.parametrize("reason", STOLEN)
def test_an_index_that_gives_away_a_namespace_is_refused(user: User, reason: str) -> None:
    STOLEN[reason](user.repository)
    extra = [n for n in user.repository.roles if n in ("b", "B/../acme")]
    for name in extra:
        if "/" in name:  # as TUF calls its file
            user.repository.roles["snapshot"].meta.pop(f"{name}.json", None)
    user.repository.publish("targets", *(name for name in extra if "/" not in name))
    assert reason in user.refused()


def test_a_namespace_that_delegates_on_is_refused(user: User) -> None:
    repository = user.repository
    repository.signers["thief"] = [CryptoSigner.generate_ed25519()]
    targets = repository.roles["targets"]
    repository.roles["targets"] = repository.roles["acme"]
    repository.roles["acme"].delegations = type(targets.delegations)({}, {})
    repository.delegate("thief", ["models/*"])
    repository.roles["targets"] = targets
    repository.publish("acme", "thief")
    with pytest.raises(TrustError, match=r"`acme.json` delegates to others"):
        user.open().update()


def test_a_bin_that_signs_what_belongs_to_another_bin_is_refused(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES, bins=4)
    right = repository.roles["acme"].delegations.succinct_roles.get_role_for_target("models/x.toml")
    wrong = next(n for n in repository.roles if "-bin-" in n and n != right)
    repository.put(wrong, "models/x.toml", page("x").encode())
    repository.publish(wrong)
    index = User(tmp_path / "state", repository).open()
    assert NormalizedName("x") not in index
    with pytest.raises(TrustError, match=r"signs `models/x.toml`, which is not its own"):
        index.names()


def test_another_root_than_the_one_that_is_configured_is_refused(
    tmp_path: Path, user: User
) -> None:
    other = Repository.make(tmp_path / "other", PAGES)
    message = user.refused(DirectoryOrigin(other.directory))
    assert "`timestamp.json` is not signed by those who must sign it" in message
    stranger = User(tmp_path / "stranger", user.repository, root=other.root_sha256)
    with pytest.raises(TrustError, match=r"`1.root.json` has another digest") as caught:
        stranger.open().model(TINY)
    assert "--root FILE" in str(caught.value.hint)


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def nested(content: bytes) -> bytes:
    return b"[" * 10_000


DAMAGE: dict[str, Callable[[bytes], bytes]] = {"truncated": truncated, "empty": lambda _: b"", "nested": nested, "html": lambda _: b"<html>"}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("role", ["timestamp", "2.snapshot", "2.targets", "2.acme"])
def test_damaged_metadata_is_refused(user: User, role: str, kind: str) -> None:
    user.repository.publish("targets", "acme")
    path = user.repository.directory / "metadata" / f"{role}.json"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    message = user.refused()
    assert f"`{role.removeprefix('2.')}" in message or f"`{role}" in message


@pytest.mark.parametrize("role", ["timestamp", "2.root"])
def test_oversized_metadata_is_refused(user: User, role: str) -> None:
    path = user.repository.directory / "metadata" / f"{role}.json"
    path.write_bytes(b" " * 600_000)
    assert f"`{role}.json` is larger than it can be" in user.refused()


def test_a_page_that_is_longer_than_was_signed_is_refused(user: User) -> None:
    path = user.repository.target_path("models/small.toml")
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(TrustError, match=r"`models/small.toml` is larger than it can be"):
        user.open().model(SMALL)


def test_a_page_too_large_to_be_one_is_not_fetched(user: User) -> None:
    info = TargetFile(17_000_000, {"sha256": "ab" * 32}, "models/huge.toml")
    user.repository.roles["acme"].targets[info.path] = info
    user.repository.publish("acme")
    index = user.open()
    index.update()
    with pytest.raises(TrustError, match=r"`models/huge.toml` is larger than 16,777,216 bytes"):
        index.model(NormalizedName("huge"))


@pytest.mark.parametrize("name", ["2.snapshot.json", "2.acme.json", "timestamp.json"])
def test_a_mirror_that_lacks_a_file_is_refused(user: User, name: str) -> None:
    released(user.repository)
    (user.repository.directory / "metadata" / name).unlink()
    message = user.refused()
    assert f"{name.removeprefix('2.')}` is not to be had" in message


def test_an_index_that_has_moved_on_is_asked_again(user: User) -> None:
    before = copied(user.repository, "before")
    fresh = User(user.state.parent / "fresh", user.repository)
    fresh.open(DirectoryOrigin(before.directory)).names()
    user.repository.target_path("models/small.toml").unlink()
    user.repository.publish(user.repository.add("models/small.toml", page("small", summary="new")))
    assert fresh.open().model(SMALL).summary == "new"


def test_a_directory_that_is_not_there_is_no_matter_of_trust(user: User) -> None:
    message = user.refused(DirectoryOrigin(user.state / "usb"), FetchError)
    assert message == f"`{user.state / 'usb'}` is not a directory"


@pytest.fixture
def site(user: User) -> Iterator[Site]:
    with serve() as site:
        released(user.repository)
        site.files = user.repository.site()
        yield site


def test_ranges_do_not_matter_and_redirects_are_followed(user: User, site: Site) -> None:
    site.has_ranges = False
    site.answers["/metadata/timestamp.json"] = lambda handler: handler.reply(
        302, headers={"Location": "/elsewhere"}
    )
    site.files["/elsewhere"] = site.files["/metadata/timestamp.json"]
    user.open(WebOrigin(f"{site.url}/", Transport)).update()
    assert user.offline().model(TINY).summary == "released"


def test_who_asks_is_not_told(user: User, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = user.state / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    settings = TransportSettings(is_anonymous=True)
    user.open(WebOrigin(site.url, lambda: Transport(settings))).update()
    assert [r for r in site.requests if "Authorization" in r.headers] == []


@pytest.mark.parametrize("status", [206, 500])
def test_wrong_answers_are_refused(user: User, site: Site, status: int) -> None:
    content = site.files["/metadata/timestamp.json"]
    site.answers["/metadata/timestamp.json"] = lambda handler: handler.reply(
        status, content[:100], {"Content-Range": f"bytes 0-99/{len(content)}"}
    )
    quick = TransportSettings(retries=0)
    message = user.refused(WebOrigin(site.url, lambda: Transport(quick)), FetchError)
    assert f"HTTP {status}" in message


def test_a_connection_that_ends_too_early_is_refused(user: User, site: Site) -> None:
    content = site.files["/metadata/timestamp.json"]
    site.answers["/metadata/timestamp.json"] = lambda handler: handler.reply(
        200, content[:100], length=len(content)
    )
    quick = TransportSettings(retries=0)
    message = user.refused(WebOrigin(site.url, lambda: Transport(quick)), FetchError)
    assert "timestamp.json`: the connection broke" in message


def test_a_slow_mirror_has_a_deadline(user: User, site: Site) -> None:
    def drip(handler: object) -> None:
        reply = handler
        reply.send_response(200)  # type: ignore[attr-defined]
        reply.send_header("Connection", "close")  # type: ignore[attr-defined]
        reply.end_headers()  # type: ignore[attr-defined]
        for _ in range(400):
            reply.wfile.write(b" ")  # type: ignore[attr-defined]
            reply.wfile.flush()  # type: ignore[attr-defined]
            time.sleep(0.02)

    site.answers["/metadata/timestamp.json"] = drip
    start = time.monotonic()
    origin = WebOrigin(site.url, Transport, deadline_s=0.5)
    assert "took longer than 0.5 seconds" in user.refused(origin, FetchError)
    assert time.monotonic() - start < 5


def test_a_server_that_cannot_be_reached_is_no_matter_of_trust(user: User, site: Site) -> None:
    quick = TransportSettings(retries=0)
    url = site.url.replace(str(site.port), "1")
    user.refused(WebOrigin(url, lambda: Transport(quick)), FetchError)


def _update(directory: Path, state: Path, root: str, times: int) -> None:
    repository = Repository(directory)
    user = User(state, repository, root=root)
    for _ in range(times):
        index = user.open()
        index.update()
        index.search(["tests"])
        assert index.model(TINY).name == "tiny"


@pytest.mark.parametrize("count", [2, 8])
def test_processes_update_at_once_and_none_fails(tmp_path: Path, count: int) -> None:
    """python-tuf alone: 381 of 2,400 refreshes of eight processes failed."""
    repository = Repository.make(tmp_path / "repository", PAGES, bins=4)
    context = multiprocessing.get_context("fork")
    arguments = (repository.directory, tmp_path / "state", repository.root_sha256, 5)
    workers = [context.Process(target=_update, args=arguments) for _ in range(count)]
    for worker in workers:
        worker.start()
    for i in range(5):
        released(repository, f"release {i}")
        time.sleep(0.2)
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * count
    user = User(tmp_path / "state", repository)
    user.open().update()
    assert user.offline().model(TINY).summary == "release 4"


def test_a_kill_during_an_update_loses_nothing(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES)
    user = User(tmp_path / "state", repository)
    user.open().model(TINY)
    for i in range(12):
        released(repository, f"release {i}")
        child = os.fork()
        if child == 0:
            _update(repository.directory, user.state, repository.root_sha256, 1000)
            os._exit(0)
        time.sleep(0.01 * i)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert user.offline().names() == ["small", "tiny"]
        user.open().update()
        assert user.offline().model(TINY).summary == f"release {i}"


def test_removing_the_cache_leaves_the_memory(user: User) -> None:
    old = copied(user.repository, "old")
    released(user.repository)
    user.open().update()
    user.open().search(["tests"])
    shutil.rmtree(user.state.parent / "cache")
    assert "is not the version that it must be" in user.refused(DirectoryOrigin(old.directory))


@pytest.mark.parametrize(
    "name", ["update", "roles", "pages", "held", "first.root.json", "memory.toml", "tmp"]
)
def test_a_missing_part_of_the_state_is_had_again(user: User, name: str) -> None:
    path = user.state / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    assert user.open().model(TINY).name == "tiny"
    assert user.offline().model(TINY).name == "tiny"


@pytest.mark.parametrize(
    "content", [b"", b"seen = 1", b"schema = 2", b"\xff", b'schema=1\nseen="x"']
)
def test_a_memory_that_cannot_be_read_is_not_passed_over(user: User, content: bytes) -> None:
    (user.state / "memory.toml").write_bytes(content)
    with pytest.raises(StoreError, match=r"memory.toml") as caught:
        user.open().model(TINY)
    assert "weightpkg index remove" in str(caught.value.hint)


def test_metadata_that_was_emptied_where_it_is_held_is_had_again(user: User) -> None:
    for path in [*(user.state / "update").glob("*.json"), *(user.state / "roles").glob("*.json")]:
        if not path.is_symlink():
            path.write_bytes(b"")
    user.open().update()
    assert user.offline().model(TINY).name == "tiny"


def test_what_is_published_is_a_mirror(tmp_path: Path, user: User) -> None:
    user.repository.rotate_root("timestamp")
    user.repository.publish()
    index = user.open()
    index.update()
    mirror = tmp_path / "mirror"
    for path, content in index.published([LITTLE]):
        (mirror / path).parent.mkdir(parents=True, exist_ok=True)
        (mirror / path).write_bytes(content)
    reader = User(tmp_path / "reader", user.repository).open(DirectoryOrigin(mirror))
    assert reader.model(LITTLE).name == "tiny"
    assert (reader.directory / "licenses" / "LicenseRef-tests.txt").read_text() == "be good"
    with pytest.raises(TrustError, match="is not to be had"):
        reader.model(SMALL)
    with pytest.raises(ModelNotFoundError):
        list(index.published([NormalizedName("other")]))


def test_a_mirror_of_bins_has_those_that_are_asked(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES, bins=64)
    index = User(tmp_path / "state", repository).open()
    index.names()
    members = dict(index.published([TINY]))
    roles = [path for path in members if "-bin-" in path]
    assert 1 <= len(roles) <= 7
    reader = User(tmp_path / "reader", repository).open(BundleOrigin("b.wpk", members.__getitem__))
    assert resolve(Requirement.parse("tiny-q8"), reader).full_name == "tiny-q8"


def test_the_first_root_need_not_be_the_first_of_all(tmp_path: Path) -> None:
    repository = Repository.make(tmp_path / "repository", PAGES)
    repository.rotate_root("root")
    repository.rotate_root("root")
    repository.publish()
    root = (repository.directory / "metadata" / "2.root.json").read_bytes()
    user = User(tmp_path / "state", repository, root=hashlib.sha256(root).hexdigest())
    user.state.mkdir()
    (user.state / "first.root.json").write_bytes(root)
    index = user.open()
    assert index.model(TINY).name == "tiny"
    assert "metadata/1.root.json" in dict(index.published([TINY]))


def test_a_client_says_what_it_waits_for(tmp_path: Path, user: User) -> None:
    notes: list[str] = []
    index = user.open()
    index.pages._given = replace(
        index.pages._given,
        progress=type("Told", (), {"note": lambda _, text: notes.append(text)})(),
    )
    context = multiprocessing.get_context("fork")
    holder = context.Process(target=_hold, args=(user.state / "lock", user.state / "is-held"))
    holder.start()
    while not (user.state / "is-held").exists():
        time.sleep(0.01)
    assert index.model(TINY).name == "tiny"
    holder.join(30)
    assert notes[:1] == ["waiting for another update of acme"]


def _hold(path: Path, told: Path) -> None:
    with files.lock(path):
        told.touch()
        time.sleep(1)


def test_python_tuf_has_the_private_names_that_are_used(user: User) -> None:
    client: Client = user.open().pages.client
    session = client.open()
    assert session.updater._trusted_set is session._trusted
    assert session.updater._load_targets("acme", "targets").version == 1
    assert Metadata.from_bytes(user.repository.first_root).signed.version == 1
