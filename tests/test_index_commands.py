"""A signed index from its key ceremony to its clients, by the commands that maintainers use.

The client is python-tuf's own, so that what is published is right by someone else's reading of the
specification, too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets

from factories import safetensors_bytes, tiny_llama
from tuf_client import Client
from weightpkg import files
from weightpkg.cli import cli
from weightpkg.errors import DocumentError, SigningError, StoreError, WeightpkgError
from weightpkg.files import Disk
from weightpkg.index import Index
from weightpkg.requirement import NormalizedName
from weightpkg.signing import publishing
from weightpkg.signing.keys import load_signer

if TYPE_CHECKING:
    from click.testing import Result

PAGE = """schema = 1
name = "{name}"
summary = "{summary}"
task = "text-generation"
architecture = "llama"
license = "MIT"
default-variant = "q4"

[[releases]]
version = "1.0"
date = 2026-01-02
changes = "first release"

[releases.variants.q4]
format = "gguf"

[[releases.variants.q4.files]]
path = "m.gguf"
size = 1
sha256 = "{zeros}"
sources = ["https://models.example/m.gguf"]
"""


def run(*words: object, stdin: str | None = None) -> Result:
    """Run a command; whatever it raises is raised."""
    result = CliRunner().invoke(cli, ["index", *map(str, words)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


class Desk:
    """A maintainers' directory with all its keys at hand, and where it publishes."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.work, self.keys, self.public = base / "work", base / "keys", base / "public"

    def init(self, *words: object) -> Desk:
        run("init", self.work, "--namespace", "acme", "--keys", self.keys, *words)
        return self

    def add(self, name: str, summary: str = "a model", *, below: str = "") -> None:
        place = self.work / below / "models"
        place.mkdir(parents=True, exist_ok=True)
        text = PAGE.format(name=name, summary=summary, zeros=64 * "0")
        (place / f"{name}.toml").write_text(text)

    def run(self, command: str, *words: object) -> Result:
        return run(*command.split(), *words, "-C", self.work)

    def sign(self, *words: object) -> Result:
        return self.run("sign", *words)

    def release(self) -> None:
        """Sign and publish."""
        self.sign()
        self.run("publish", self.public)

    def generate(self, name: str) -> Path:
        run("key", "generate", name, "-o", self.keys / f"{name}.pem")
        return self.keys / f"{name}.pem"

    def names(self) -> set[str]:
        return {path.name for path in (self.public / "metadata").iterdir()}

    def client(self, name: str = "client") -> Client:
        return Client(self.public, self.base / name)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """An index of two models that was published once."""
    desk = Desk(tmp_path).init()
    desk.add("one")
    desk.add("two")
    desk.release()
    return desk


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> datetime:
    """Let the commands be run in some days; return that time."""
    time = datetime.now(UTC) + timedelta(days=days)
    for command in ("sign", "publish"):
        monkeypatch.setattr(f"weightpkg.cli.index.{command}.now", lambda: time)
    return time


def refusal(call: Callable[[], object], kind: type[WeightpkgError] = SigningError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return f"{caught.value.message} ({caught.value.hint})"


def test_a_key_ceremony_of_three_people_and_a_model(tmp_path: Path) -> None:
    people = ["alice", "bob", "carol"]
    for name in (*people, "pages", "online"):
        run("key", "generate", name, "-o", tmp_path / name / f"{name}.pem")
    work, public, stick = tmp_path / "work", tmp_path / "public", tmp_path / "stick"
    roots = [word for name in people for word in ("--root-key", tmp_path / name / f"{name}.pub")]
    run("init", work, "--namespace", "acme", *roots,
        "--pages-key", tmp_path / "pages" / "pages.pem", "--online-key", tmp_path / "online" / "online.pem")  # fmt: skip
    model = tiny_llama(tmp_path / "tiny-Q4_1.gguf")
    run("add-model", model, "-C", work, "--name", "Tiny", "--summary", "a tiny one",
        "--license", "MIT", "--source", f"file:{tmp_path}/{{path}}", "--tag", "small")  # fmt: skip

    out = run("sign", "-C", work, "--export", stick).output
    assert re.search(r"root 1 +0 of 2", out)
    assert [path.name for path in stick.iterdir()] == ["1.root.json"], "only what is not signed"
    assert "waits for alice, bob, carol" in out
    assert "root" in refusal(lambda: run("publish", public, "-C", work))
    assert not public.exists()

    first = run("sign", "--file", stick / "1.root.json", "--key", tmp_path / "alice" / "alice.pem")
    assert "root: 2 of " in first.output, "a signer sees what is signed"
    waiting = run("sign", "-C", work, "--import", stick / "1.root.json", "--json")
    rows = {row["role"]: row for row in json.loads(waiting.stdout)}
    assert (rows["root"]["signatures"], rows["root"]["threshold"]) == (1, 2)
    assert rows["root"]["missing"] == ["bob", "carol"]
    run("sign", "--file", stick / "1.root.json", "--key", tmp_path / "carol" / "carol.pem")
    run("sign", "-C", work, "--import", stick)
    run("publish", public, "-C", work)

    page = Client(public, tmp_path / "client").page("models/tiny.toml")
    assert page == (work / "models" / "tiny.toml").read_text()
    entry = Client(public, tmp_path / "client").find("models/tiny.toml")
    assert entry is not None
    assert entry.custom == {
        "name": "Tiny", "summary": "a tiny one", "task": "text-generation", "architecture": "llama",
        "license": "MIT", "tags": ["small"], "variant": "q4", "size": model.stat().st_size,
        "variants": ["q4"],
    }  # fmt: skip
    found = Index(work).model(NormalizedName("tiny"))
    file = found.releases[0].variants[0].files[0]
    assert file.sha256 is not None
    assert file.sha256.hex == hashlib.sha256(model.read_bytes()).hexdigest()
    assert (found.context_length, found.parameters) == (128, 81_088)
    assert file.blake3 is not None
    assert not any(b"PRIVATE" in content for content in tree(public).values())
    assert not any(b"PRIVATE" in content for content in tree(work).values())


def test_publishing_again_changes_no_byte(desk: Desk) -> None:
    before = tree(desk.public)
    assert "everything is signed" in desk.sign().output
    desk.run("publish", desk.public)
    assert tree(desk.public) == before
    desk.run("publish", desk.base / "other")
    assert tree(desk.base / "other") == before


def test_one_changed_page_signs_one_role_a_snapshot_and_a_timestamp(desk: Desk) -> None:
    before = tree(desk.public)
    desk.add("one", "another summary")
    desk.release()
    changed = {name for name, content in tree(desk.public).items() if before.get(name) != content}
    assert {name for name in changed if name.startswith("metadata")} == {
        "metadata/2.acme.json", "metadata/2.snapshot.json", "metadata/timestamp.json",
    }  # fmt: skip
    assert len(changed) == 4
    assert set(before) < set(tree(desk.public)), "nothing that was published is removed"


def with_bins(desk: Desk, bins: int) -> None:
    plan = desk.work / "signing.toml"
    plan.write_text(
        re.sub(r"\nbins = \d+", "", plan.read_text()).replace(
            "[namespaces.acme]", f"[namespaces.acme]\nbins = {bins}"
        )
    )


def test_one_changed_page_signs_one_bin(desk: Desk) -> None:
    with_bins(desk, 16)
    for i in range(40):
        desk.add(f"model-{i}")
    desk.release()
    client = desk.client()
    assert client.find("models/model-7.toml") is not None
    before = desk.names()
    desk.add("model-7", "changed")
    desk.release()
    new = desk.names() - before
    assert len(new) == 2
    assert len([name for name in new if re.fullmatch(r"3\.acme-bin-[0-9a-f]\.json|2\.acme-bin-[0-9a-f]\.json", name)]) == 1  # fmt: skip
    assert "changed" in client.page("models/model-7.toml")
    assert client.find("models/model-8.toml") is not None
    assert client.find("models/nobody.toml") is None


def test_bins_can_grow_shrink_and_go(desk: Desk) -> None:
    client = desk.client()
    for bins in (16, 64, 4, 0, 32):
        with_bins(desk, bins)
        desk.release()
        assert "a model" in client.page("models/one.toml"), bins
        assert Client(desk.public, desk.base / f"new-{bins}").find("models/two.toml"), bins


def test_a_root_key_is_replaced_and_old_clients_follow(desk: Desk) -> None:
    client = desk.client()
    client.refresh()
    desk.run("key rotate", "root", "--old", "root-1", "--new", desk.generate("dora"))
    desk.sign()
    root = Metadata[Root].from_file(str(desk.work / "metadata" / "2.root.json"))
    old = Metadata[Root].from_file(str(desk.work / "metadata" / "1.root.json"))
    for each in (old, root):
        each.verify_delegate("root", root)
    desk.run("publish", desk.public)
    assert client.find("models/one.toml") is not None
    assert client.refresh()._trusted_set.root.version == 2


def test_a_lost_root_key_can_be_replaced_by_the_two_others(desk: Desk) -> None:
    (desk.keys / "root-2.pem").unlink()
    client = desk.client()
    client.refresh()
    desk.run("key rotate", "root", "--old", "root-2", "--new", desk.generate("root-4"))
    desk.release()
    assert client.find("models/one.toml") is not None


def test_with_two_of_three_keys_lost_nothing_can_be_replaced(desk: Desk) -> None:
    for name in ("root-1", "root-2"):
        (desk.keys / f"{name}.pem").unlink()
    desk.run("key rotate", "root", "--old", "root-1", "--new", desk.generate("root-4"))
    assert re.search(r"root 2 +1 of 2", desk.sign().output)
    assert "`root`" in refusal(lambda: desk.run("publish", desk.public))


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "acme"])
def test_any_role_gets_another_key(desk: Desk, role: str) -> None:
    client = desk.client()
    client.refresh()
    desk.run("key rotate", role, "--new", desk.generate("fresh"))
    desk.release()
    assert client.find("models/one.toml") is not None
    assert Client(desk.public, desk.base / "new").find("models/one.toml") is not None


def test_what_a_revoked_key_signs_counts_no_more(desk: Desk) -> None:
    client = desk.client()
    client.refresh()
    stolen = desk.base / "stolen"
    shutil.copytree(desk.work, stolen)
    desk.run("key rotate", "root", "--old", "root-1", "--new", desk.generate("dora"))
    desk.release()
    client.refresh()
    # who has the old keys makes a root 3, with a key of their own
    thief = desk.base / "thief"
    shutil.copytree(desk.public, thief)
    root = Metadata[Root].from_file(str(thief / "metadata" / "2.root.json"))
    root.signed.version = 3
    root.signatures.clear()
    root.sign(load_signer(desk.keys / "root-1.pem", lambda _: ""))
    root.sign(load_signer(desk.keys / "root-2.pem", lambda _: ""), append=True)
    root.to_file(str(thief / "metadata" / "3.root.json"))
    with pytest.raises(UnsignedMetadataError):
        Client(thief, desk.base / "client").refresh()


def test_a_revoked_key_leaves_every_role(desk: Desk) -> None:
    desk.run("key rotate", "root", "--old", "root-3", "--new", desk.generate("dora"))
    rows = json.loads(desk.run("key list", "--json").stdout)
    key_id = next(row["keyid"] for row in rows if row["name"] == "root-1")
    assert "would revoke" in desk.run("key revoke", key_id, "--dry-run").output
    assert "revoked `root-1`" in desk.run("key revoke", key_id).output
    names = {row["name"] for row in json.loads(desk.run("key list", "--json").stdout)}
    assert "root-1" not in names
    text = refusal(lambda: desk.run("key revoke", "root-2"))
    assert "without `root-2` there are 1 keys, and 2 must sign" in text
    assert "key rotate" in text


def test_a_yanked_release_says_why(desk: Desk) -> None:
    desk.run("yank", "one", "1.0", "--reason", "the tokenizer was wrong")
    desk.release()
    assert 'yanked = "the tokenizer was wrong"' in desk.client().page("models/one.toml")
    assert "yanked already" in refusal(lambda: desk.run("yank", "one", "1", "--reason", "x"))
    assert "no release 2.0" in refusal(lambda: desk.run("yank", "one", "2.0", "--reason", "x"))
    assert "no page" in refusal(lambda: desk.run("yank", "three", "1", "--reason", "x"))
    refusal(lambda: desk.run("yank", "two", "1.0", "--reason", "a\nb"), DocumentError)


def test_nothing_expired_is_published_and_a_refresh_renews_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = desk.client()
    client.refresh()
    time = later(monkeypatch, 8)
    with pytest.raises(ExpiredMetadataError):
        client.refresh(time)
    assert "must be signed first" in refusal(lambda: desk.run("publish", desk.public))
    text = refusal(lambda: desk.run("publish", desk.public, "--leave-waiting"))
    assert "`timestamp` expired on" in text
    desk.sign("--refresh")
    desk.run("publish", desk.public)
    assert desk.names() >= {"1.snapshot.json"}
    assert "2.snapshot.json" not in desk.names(), "the snapshot has time"
    assert client.find("models/one.toml", time) is not None
    time = later(monkeypatch, 20)
    desk.sign("--refresh")
    desk.run("publish", desk.public)
    assert "2.snapshot.json" in desk.names(), "half its time was over"
    assert client.find("models/one.toml", time) is not None


@pytest.mark.parametrize("role", ["root", "targets", "acme"])
def test_each_role_that_expires_is_renewed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    time = later(monkeypatch, 400 if role == "root" else 181)
    desk.release()
    assert any(re.fullmatch(rf"2\.{role}\.json", name) for name in desk.names())
    assert desk.client().find("models/one.toml", time) is not None


def test_a_refresh_of_a_role_waits_until_half_its_time_is_over(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bins(desk, 4)
    desk.release()
    assert "everything is signed" in desk.sign("--refresh", "--role", "acme").output
    later(monkeypatch, 91)
    out = desk.sign("--refresh", "--role", "acme").output
    assert len(re.findall(r"^acme", out, re.MULTILINE)) == 5, "the role and its four bins"
    assert "targets" not in out
    desk.release()


def test_a_role_that_clients_would_not_read_is_not_published(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(publishing.MAX_SIZES, "targets", 1000)
    for i in range(10):
        desk.add(f"model-{i}")
    desk.sign()
    assert "more than clients read" in refusal(lambda: desk.run("publish", desk.public))


@pytest.mark.parametrize("threshold", [0, 4, -1])
def test_a_threshold_that_is_none_is_refused(tmp_path: Path, threshold: int) -> None:
    desk = Desk(tmp_path)
    assert "cannot be the threshold" in refusal(lambda: desk.init("--threshold", threshold))
    assert not desk.work.exists()
    assert not desk.keys.exists()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("threshold = 2", "threshold = 0", "must be at least 1"),
        ("threshold = 2", "threshold = 4", "is 4, and there are 3 keys"),
        ("threshold = 2", "threshold = -1", "must be at least 1"),
        ("threshold = 2", "threshold = true", "must be a whole number"),
        ('keys = ["root-1", "root-2", "root-3"]', 'keys = ["root-1", "root-1"]', "is there twice"),
        ('keys = ["root-1", "root-2", "root-3"]', "keys = []", "there are 0 keys"),
        ('keys = ["root-1", "root-2", "root-3"]', 'keys = ["root-1", "eve"]', "no key is called `eve`"),
        ("[namespaces.acme]", "[namespaces.timestamp]", "has a meaning of its own"),
        ("[namespaces.acme]", "[namespaces.acme-bin-0f]", "has a meaning of its own"),
        ("[namespaces.acme]", "[namespaces.other]", "must have `acme`"),
        ("[namespaces.acme]", "[namespaces.acme]\nbins = 3", "power of two"),
        ("[namespaces.acme]", '[namespaces."../x"]\nkeys = ["pages"]\nthreshold = 1\n[namespaces.acme]', "not a name"),
        ("root = 365", "root = 0", "between 1 and 3650"),
        ("schema = 1", "schema = 2", "is 2, and this version reads 1"),
    ],
)  # fmt: skip
def test_a_plan_that_cannot_be_is_refused(desk: Desk, old: str, new: str, reason: str) -> None:
    plan = desk.work / "signing.toml"
    assert old in plan.read_text()
    plan.write_text(plan.read_text().replace(old, new, 1))
    before = tree(desk.work / "metadata")
    assert reason in refusal(desk.sign, DocumentError)
    assert tree(desk.work / "metadata") == before


def test_one_key_under_two_names_counts_once(desk: Desk) -> None:
    plan = desk.work / "signing.toml"
    public = re.search(r'keys.root-1\]\npublic = "(\w+)"', plan.read_text())
    assert public
    plan.write_text(f'{plan.read_text()}\n[keys.twin]\npublic = "{public[1]}"\n')
    assert "is the same key as `root-1`" in refusal(desk.sign, DocumentError)


class Killed(BaseException):
    """The process ends here."""


class StoppingDisk(Disk):
    """Ends the process at the nth rename."""

    def __init__(self, n: int) -> None:
        self.left = n

    def rename(self, path: Path, new: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        super().rename(path, new)


class FullDisk(Disk):
    """Has no space left from the nth write on."""

    def __init__(self, n: int) -> None:
        self.left = n

    def write(self, descriptor: int, data: memoryview) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(descriptor, data)


@pytest.mark.parametrize("command", ["sign", "publish"])
def test_a_full_disk_is_one_error_wherever_it_comes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    desk.add("three")
    words: tuple[object, ...] = (command,)
    if command == "publish":
        desk.sign()
        words = (command, desk.public)
    n = 0
    while True:
        with monkeypatch.context() as patch:
            patch.setattr(files, "disk", FullDisk(n))
            try:
                desk.run(*words)  # type: ignore[arg-type]
            except StoreError as error:
                assert "no space left" in error.message  # noqa: PT017  until there is none
            else:
                break
        assert desk.client(f"client-{command}-{n}").find("models/one.toml") is not None
        n += 1
    assert n
    desk.release()
    assert desk.client().find("models/three.toml") is not None


def test_a_publication_that_is_killed_anywhere_leaves_clients_whole(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.client().refresh()
    desk.run("key rotate", "timestamp", "--new", desk.generate("fresh"))
    desk.add("one", "second summary")
    desk.add("three")
    desk.sign()
    before, n = tree(desk.public), 0
    while True:
        shutil.rmtree(desk.public)
        for name, content in before.items():
            path = desk.public / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        with monkeypatch.context() as patch:
            patch.setattr(files, "disk", StoppingDisk(n))
            try:
                desk.run("publish", desk.public)
            except Killed:
                n += 1
            else:
                break
        shutil.copytree(desk.base / "client", desk.base / f"old-{n}")
        for client in (desk.client(f"old-{n}"), desk.client(f"new-{n}")):
            if "2.root.json" in desk.names():
                # the new root comes right before the timestamp that its key signs
                with pytest.raises(UnsignedMetadataError):
                    client.refresh()
                assert n == 6
            else:
                assert "a model" in client.page("models/one.toml")
    assert n == 6
    desk.run("publish", desk.public)
    for k in range(1, n + 1):
        assert "second summary" in desk.client(f"old-{k}").page("models/one.toml")


def test_a_publication_that_is_killed_shows_the_old_index(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.client().refresh()
    desk.add("one", "second summary")
    desk.sign()
    for n in range(3):  # each goes on where the one before was killed
        with monkeypatch.context() as patch:
            patch.setattr(files, "disk", StoppingDisk(1))
            with pytest.raises(Killed):
                desk.run("publish", desk.public)
        assert "a model" in desk.client("client").page("models/one.toml")
        assert "a model" in desk.client(f"new-{n}").page("models/one.toml")
    desk.run("publish", desk.public)
    assert "second summary" in desk.client("client").page("models/one.toml")


def test_a_wrong_passphrase_signs_nothing(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text("correct horse\n")
    wrong.write_text("battery staple\n")
    desk = Desk(tmp_path).init("--passphrase-file", right)
    assert b"ENCRYPTED PRIVATE KEY" in (desk.keys / "root-1.pem").read_bytes()
    text = refusal(lambda: desk.sign("--passphrase-file", wrong))
    assert "does not open with this passphrase" in text
    assert not (desk.work / "metadata").exists()
    assert "cannot be read" in refusal(lambda: desk.sign("--passphrase-file", tmp_path / "none"))
    desk.sign("--passphrase-file", right)
    desk.run("publish", desk.public, "--leave-waiting")


def test_a_passphrase_is_asked_for_twice_when_a_key_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    run("key", "generate", "a", "-o", path, "--passphrase", stdin="secret\nsecret\n")
    assert b"ENCRYPTED" in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert "is there already" in refusal(lambda: run("key", "generate", "a", "-o", path))


def test_a_key_that_others_can_read_is_refused(desk: Desk) -> None:
    (desk.keys / "pages.pem").chmod(0o644)
    desk.add("one", "new")
    text = refusal(desk.sign)
    assert "can be read by others" in text
    assert "chmod 600" in text


def test_no_key_is_published(desk: Desk) -> None:
    text = refusal(lambda: run("key", "generate", "x", "-o", desk.public / "keys" / "x.pem"))
    assert "inside the published directory" in text
    assert not (desk.public / "keys").exists()
    for place in (desk.base, desk.work, desk.keys):
        text = refusal(lambda place=place: desk.run("publish", place))  # type: ignore[misc]
        assert "inside the directory that is published" in text or "own directory" in text
    shutil.copy(desk.keys / "root-1.pem", desk.public / "root-1.pem")
    assert "private key" in refusal(lambda: desk.run("publish", desk.public))


def test_a_directory_that_cannot_be_written_is_one_error(desk: Desk) -> None:
    (desk.base / "file").write_text("")
    text = refusal(lambda: desk.run("publish", desk.base / "file" / "public"), StoreError)
    assert "a file is where a directory should be" in text
    if os.geteuid() != 0:
        (desk.base / "locked").mkdir(mode=0o500)
        text = refusal(lambda: desk.run("publish", desk.base / "locked" / "public"), StoreError)
        assert "permission denied" in text


HOSTILE = [
    "One.toml", "one_two.toml", "a--b.toml", ".toml", "-a.toml", "a.toml.bak", "a", "con txt.toml",
    "öne.toml", "\N{CYRILLIC SMALL LETTER O}ne.toml", "a\nb.toml", "a%2fb.toml", "..toml", "a..toml", f"{101 * 'a'}.toml",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["models", "aliases"])
def test_a_page_that_no_name_leads_to_is_refused(desk: Desk, name: str, kind: str) -> None:
    (desk.work / kind).mkdir(exist_ok=True)
    page = desk.work / "models" / "one.toml"
    (desk.work / kind / name).write_bytes(page.read_bytes())
    before = tree(desk.work / "metadata")
    refusal(desk.sign, DocumentError)
    refusal(lambda: desk.run("publish", desk.public), DocumentError)
    assert tree(desk.work / "metadata") == before


def test_a_page_that_is_a_link_or_a_directory_is_refused(desk: Desk) -> None:
    (desk.work / "models" / "link.toml").symlink_to(desk.keys / "root-1.pem")
    assert "is not a regular file" in refusal(desk.sign, DocumentError)
    (desk.work / "models" / "link.toml").unlink()
    (desk.work / "models" / "dir.toml").mkdir()
    assert "is not a regular file" in refusal(desk.sign, DocumentError)


@pytest.mark.parametrize(
    ("page", "text", "reason"),
    [
        ("models/one.toml", "schema = 1", "is missing"),
        ("models/three.toml", PAGE.format(name="four", summary="x", zeros=64 * "0"), "belongs on the page four.toml"),
        ("models/one-q4.toml", PAGE.format(name="one-q4", summary="x", zeros=64 * "0"), "is ambiguous"),
        ("aliases/first.toml", 'schema = 1\nmodel = "nobody"', "no model is called `nobody`"),
        ("aliases/one.toml", 'schema = 1\nmodel = "two"', "is a model, too"),
        ("aliases/a.toml", 'schema = 1\nmodel = "a"', "in a circle"),
        ("aliases/one-q4.toml", 'schema = 1\nmodel = "two"', "is ambiguous"),
        ("licenses/MIT", "text", "SPDX name"),
        ("licenses/..txt", "text", "SPDX name"),
        ("licenses/MIT.txt", "\udcff", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_page_with_a_fault_is_not_signed(desk: Desk, page: str, text: str, reason: str) -> None:
    path = desk.work / page
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))
    before = tree(desk.work / "metadata")
    assert reason in refusal(desk.sign, DocumentError)
    assert tree(desk.work / "metadata") == before


def test_aliases_and_licenses_are_signed(desk: Desk) -> None:
    for name, text in (("aliases/first.toml", 'schema = 1\nmodel = "one"\n'), ("licenses/LicenseRef-x.txt", "Be nice.\n")):  # fmt: skip
        (desk.work / name).parent.mkdir()
        (desk.work / name).write_text(text)
    desk.release()
    assert desk.client().page("aliases/first.toml") == 'schema = 1\nmodel = "one"\n'
    assert desk.client().page("licenses/LicenseRef-x.txt") == "Be nice.\n"
    assert 'namespace = "acme"' in desk.client().page("index.toml")


def test_a_page_that_is_gone_is_gone(desk: Desk) -> None:
    (desk.work / "models" / "two.toml").unlink()
    desk.release()
    assert desk.client().find("models/two.toml") is None
    assert desk.client().find("models/one.toml") is not None


def test_a_page_that_changed_since_it_was_signed_is_not_published(desk: Desk) -> None:
    desk.add("one", "second")
    desk.sign()
    desk.add("one", "third")
    before = tree(desk.public)
    assert "must be signed first" in refusal(lambda: desk.run("publish", desk.public))
    text = refusal(lambda: desk.run("publish", desk.public, "--leave-waiting"))
    assert "is not what was signed" in text
    assert tree(desk.public) == before


def test_a_dry_run_changes_nothing(desk: Desk) -> None:
    desk.add("three")
    before = tree(desk.base)
    assert re.search(r"acme 2 +0 of 1", desk.sign("--dry-run").output)
    assert tree(desk.base) == before
    desk.sign()
    before = tree(desk.base)
    out = desk.run("publish", desk.public, "--dry-run").output
    assert "metadata/timestamp.json" in out
    assert "would write 4 files" in out
    desk.run("publish", desk.base / "elsewhere", "--dry-run")
    assert tree(desk.base) == before


def test_what_waits_holds_nothing_else_up(desk: Desk) -> None:
    client = desk.client()
    client.refresh()
    for name in ("root-1", "root-2"):
        (desk.keys / f"{name}.pem").rename(desk.base / f"{name}.pem")
    desk.run("key rotate", "root", "--old", "root-3", "--new", desk.generate("dora"))
    desk.add("three")
    assert re.search(r"root 2 +1 of 2 .* waits for root-1, root-2\n", desk.sign().output)
    assert "`root`" in refusal(lambda: desk.run("publish", desk.public))
    desk.run("publish", desk.public, "--leave-waiting")
    assert client.find("models/three.toml") is not None
    assert client.refresh()._trusted_set.root.version == 1
    desk.sign("--key", desk.base / "root-1.pem", "--key", desk.base / "root-2.pem")
    desk.run("publish", desk.public)
    client.refresh()
    assert client.refresh()._trusted_set.root.version == 2


def test_signatures_of_strangers_and_of_other_content_count_for_nothing(desk: Desk) -> None:
    desk.run("key rotate", "root", "--old", "root-3", "--new", desk.generate("dora"))
    stranger = desk.generate("eve")
    for name in ("root-1", "root-2", "dora"):
        (desk.keys / f"{name}.pem").rename(desk.base / f"{name}.pem")
    stick = desk.base / "stick"
    desk.sign("--export", stick)
    exported = stick / "2.root.json"
    run("sign", "--file", exported, "--key", stranger)
    assert "root: 0 new" in desk.sign("--import", exported).output
    metadata = Metadata[Root].from_file(str(exported))
    metadata.signed.roles["timestamp"].threshold = 1
    metadata.signed.expires += timedelta(days=1)
    metadata.to_file(str(exported))
    text = refusal(lambda: desk.sign("--import", exported))
    assert "is not what waits for signatures here" in text
    exported.rename(stick / "9.root.json")
    assert "is not waiting" in refusal(lambda: desk.sign("--import", stick / "9.root.json"))
    (stick / "9.root.json").write_text("{")
    text = refusal(lambda: run("sign", "--file", stick / "9.root.json", "--key", stranger))
    assert "is not valid metadata" in text


def test_a_publisher_that_is_hosted_signs_its_own_pages_and_no_others(desk: Desk) -> None:
    desk.add("their", below="beta")
    assert "namespace that this index does not have" in refusal(desk.sign)
    key = desk.generate("beta-key")
    desk.run("delegate", "beta", "--key", key.with_suffix(".pub"))
    assert "waits for beta-key" in desk.sign().output
    desk.sign("--key", key)
    desk.run("publish", desk.public)
    client = desk.client()
    assert "a model" in client.page("beta/models/their.toml")
    assert client.find("models/their.toml") is None
    # its key signs a page of ours
    path = desk.work / "metadata" / "1.beta.json"
    role = Metadata[Targets].from_file(str(path))
    entry = role.signed.targets["beta/models/their.toml"]
    role.signed.targets["models/one.toml"] = entry
    role.sign(load_signer(key, lambda _: ""))
    role.to_file(str(path))
    text = refusal(lambda: desk.run("publish", desk.base / "forged", "--leave-waiting"))
    assert "`beta` signs `models/one.toml`, which is not in its namespace" in text


def test_an_old_copy_of_the_directory_cannot_be_published(desk: Desk) -> None:
    shutil.copytree(desk.work, desk.base / "copy")
    desk.add("three")
    desk.release()
    before = tree(desk.public)
    text = refusal(lambda: run("publish", desk.public, "-C", desk.base / "copy"))
    assert "old copy" in text
    other = Desk(desk.base / "other").init()
    other.add("one")
    other.sign()
    text = refusal(lambda: run("publish", desk.public, "-C", other.work))
    assert "with other content" in text
    assert tree(desk.public) == before


def test_a_client_walks_fifty_root_rotations(desk: Desk) -> None:
    client = desk.client()
    client.refresh()
    for i in range(50):
        old = f"turn-{i - 1}" if i else "root-1"
        desk.run("key rotate", "root", "--old", old, "--new", desk.generate(f"turn-{i}"))
        desk.sign("--role", "root")
    desk.release()
    assert client.find("models/one.toml") is not None
    assert client.refresh()._trusted_set.root.version == 51


def test_metadata_that_was_tampered_with_is_not_published(desk: Desk) -> None:
    path = desk.work / "metadata" / "1.acme.json"
    path.write_bytes(path.read_bytes().replace(b"a model", b"a thief"))
    (desk.public / "metadata" / "1.acme.json").unlink()
    text = refusal(lambda: desk.run("publish", desk.public, "--leave-waiting"))
    assert "`acme` has 0 of 1 signatures" in text
    path.write_bytes(b"[]")
    assert "not valid metadata" in refusal(lambda: desk.run("publish", desk.public))


def test_a_mix_of_two_versions_is_not_published(desk: Desk) -> None:
    old = (desk.work / "metadata" / "1.snapshot.json").read_bytes()
    desk.add("three")
    desk.sign()
    (desk.work / "metadata" / "2.snapshot.json").unlink()
    (desk.work / "metadata" / "1.snapshot.json").write_bytes(old)
    text = refusal(lambda: desk.run("publish", desk.public, "--leave-waiting"))
    assert "another snapshot" in text


def test_releases_and_variants_are_added_to_a_page(tmp_path: Path) -> None:
    desk = Desk(tmp_path).init()
    q4, q8 = tiny_llama(tmp_path / "t-Q4_1.gguf"), tiny_llama(tmp_path / "t-Q8_0.gguf", seed=1)
    source = ("--source", "https://models.example/{sha256}/{path}")
    words = ("--name", "t", "--summary", "tiny", "--license", "MIT")
    text = refusal(lambda: desk.run("add-model", q4, *words))
    assert "nobody could fetch the files" in text
    desk.run("add-model", q4, *words, *source)
    assert "is there already" in refusal(lambda: desk.run("add-model", q4, *words, *source))
    desk.run("release", "t", "1.0.0", q8, *source)
    assert "has a variant `q8`" in refusal(lambda: desk.run("release", "t", "1.0", q8, *source))
    assert "what is new" in refusal(lambda: desk.run("release", "t", "1.1", q8, *source))
    desk.run("release", "t", "1.1", q8, *source, "--changes", "better")
    refusal(lambda: desk.run("release", "t", "1.0.5", q8, *source, "--changes", "x"), DocumentError)
    assert "is not a PEP 440" in refusal(lambda: desk.run("release", "t", "x", q8, *source))
    model = Index(desk.work).model(NormalizedName("t"))
    assert [str(release.version) for release in model.releases] == ["1.1", "1.0.0"]
    assert [variant.name for variant in model.releases[1].variants] == ["q4", "q8"]
    assert model.default_variant == "q8", "the newest release has no other"
    digest = hashlib.sha256(q8.read_bytes()).hexdigest()
    file = model.releases[0].variants[0].files[0]
    assert file.sources[0][0].text == f"https://models.example/{digest}/t-Q8_0.gguf"
    desk.release()


def test_a_checkpoint_becomes_an_entry(tmp_path: Path) -> None:
    desk = Desk(tmp_path).init()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(safetensors_bytes({"w": ("F16", (2, 3), bytes(12))}))
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama", "max_position_embeddings": 99}')
    words = ("--name", "c", "--summary", "s", "--license", "MIT")
    text = refusal(
        lambda: desk.run("add-model", weights, config, *words, "--source", "https://a.example/x")
    )
    assert "`{path}`" in text
    text = refusal(lambda: desk.run("add-model", weights, *words, "--source", "hf:a/b@c/{path}"))
    assert "which architecture" in text
    desk.run("add-model", weights, config, *words, "--source", "hf:a/b@c/{path}")
    model = Index(desk.work).model(NormalizedName("c"))
    variant = model.releases[0].variants[0]
    assert (model.parameters, model.context_length, model.architecture) == (6, 99, "llama")
    assert (variant.name, variant.format, variant.quantization) == ("f16", "safetensors", "F16")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--name", "../x"), "not a name"),
        (("--name", "x", "--license", "Nonsense!"), "is not an SPDX expression"),
        (("--name", "x", "--summary", "a\nb"), "must be one line"),
        (("--name", "x", "--source", "ftp://a/b"), "is none of hf:"),
        (("--name", "x", "--variant", "../q"), "not a name"),
        (("--name", "x", "--task", "chess"), "is none of"),
        (("--name", "x", "--release", "new"), "PEP 440"),
        (("--name", "x", "--namespace", "beta"), "no namespace `beta`"),
    ],
)
def test_what_cannot_be_an_entry_is_refused(
    tmp_path: Path, words: tuple[str, ...], reason: str
) -> None:
    desk = Desk(tmp_path).init()
    file = tiny_llama(tmp_path / "t.gguf")
    whole = ("--summary", "s", "--license", "MIT", "--source", "https://a.example/{path}")
    text = refusal(lambda: desk.run("add-model", file, *whole, *words), WeightpkgError)
    assert reason in text
    assert not list((desk.work / "models").iterdir())


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    desk = Desk(tmp_path).init()
    words = ("--name", "x", "--summary", "s", "--license", "MIT", "--source", "https://a.example/{path}")  # fmt: skip
    (tmp_path / "x.gguf").write_bytes(b"GGUF but no more")
    refusal(lambda: desk.run("add-model", tmp_path / "x.gguf", *words), WeightpkgError)
    (tmp_path / "x.bin").write_bytes(b"")
    assert "no model" in refusal(lambda: desk.run("add-model", tmp_path / "x.bin", *words))
    refusal(lambda: desk.run("add-model", tmp_path / "none.gguf", *words), WeightpkgError)


def test_a_directory_that_is_no_maintainers_is_refused(tmp_path: Path) -> None:
    for words in (("sign",), ("publish", tmp_path / "x"), ("key", "list")):
        text = refusal(lambda words=words: run(*words, "-C", tmp_path))  # type: ignore[misc]
        assert "has no signing.toml" in text
    desk = Desk(tmp_path).init()
    assert "is there already" in refusal(desk.init)
    assert "no key is given" in refusal(
        lambda: run("init", tmp_path / "other", "--namespace", "acme")
    )
    for name in ("root", "a/b", "timestamp", "..", "x-bin-0"):
        refusal(
            lambda name=name: run(
                "init", tmp_path / "o", "--namespace", name, "--keys", tmp_path / "k"
            )  # type: ignore[misc]
        )
        assert not (tmp_path / "k").exists()


def test_an_index_is_served_for_trying_out(desk: Desk) -> None:
    assert "is not a published index" in refusal(lambda: run("serve", desk.work))
    process = subprocess.Popen(
        [sys.executable, "-m", "weightpkg", "index", "serve", str(desk.public), "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{url}metadata/timestamp.json") as answer:  # noqa: S310  our own
            assert answer.read() == (desk.public / "metadata" / "timestamp.json").read_bytes()
        for path in ("metadata/", "../work/signing.toml", "%2e%2e/work/signing.toml"):
            with pytest.raises(urllib.error.HTTPError):
                urllib.request.urlopen(f"{url}{path}")  # noqa: S310  our own
    finally:
        process.terminate()
        process.communicate(timeout=10)


def test_a_client_refuses_what_was_published_before(desk: Desk) -> None:
    shutil.copytree(desk.public, desk.base / "replayed")
    desk.add("three")
    desk.release()
    desk.client().refresh()
    with pytest.raises(RepositoryError):
        Client(desk.base / "replayed", desk.base / "client").refresh()


def test_the_directory_can_be_made_again_of_what_was_published(desk: Desk) -> None:
    with_bins(desk, 4)
    desk.run("key rotate", "root", "--old", "root-1", "--new", desk.generate("dora"))
    desk.release()
    new = desk.base / "again"
    (new / "metadata").mkdir(parents=True)
    (new / "models").mkdir()
    shutil.copy(desk.work / "signing.toml", new)
    for path in (desk.public / "metadata").iterdir():
        version = json.loads(path.read_bytes())["signed"]["version"]
        name = f"{version}.timestamp.json" if path.name == "timestamp.json" else path.name
        shutil.copy(path, new / "metadata" / name)
    for path in (desk.public / "targets" / "models").iterdir():
        shutil.copy(path, new / "models" / path.name.partition(".")[2])
    assert "everything is signed" in run("sign", "-C", new).output
    before = tree(desk.public)
    run("publish", desk.public, "-C", new)
    assert tree(desk.public) == before


@pytest.mark.parametrize(
    ("command", "words", "reason"),
    [
        ("key rotate", ("chess", "--new", "{key}"), "there is no role `chess`"),
        ("key rotate", ("root", "--new", "{key}"), "`root` has several keys"),
        (
            "key rotate",
            ("root", "--old", "eve", "--new", "{key}"),
            "`eve` does not sign for `root`",
        ),
        ("key rotate", ("root", "--old", "root-1", "--new", "{none}"), "cannot be read"),
        ("key rotate", ("root", "--old", "root-1", "--new", "{root-2}"), "is there twice"),
        ("key revoke", ("eve",), "no key is called `eve`"),
        ("key revoke", ("online",), "0 keys, and 1 must sign"),
        ("delegate", ("root", "--key", "{key}"), "has a meaning of its own"),
        ("delegate", ("acme", "--key", "{key}"), "is there already"),
        ("delegate", ("../beta", "--key", "{key}"), "not a name"),
        ("delegate", ("beta", "--key", "{key}", "--threshold", "0"), "must be at least 1"),
        ("delegate", ("beta", "--key", "{key}", "--threshold", "2"), "there are 1 keys"),
        ("sign", ("--role", "chess"), "there is no role `chess`"),
        ("sign", ("--key", "{none}"), "cannot be read"),
        ("key generate", ("../x",), "is not a name"),
        ("key generate", ("x", "-o", "{none}.txt"), "must be called"),
    ],
)
def test_what_cannot_be_is_one_error_and_changes_nothing(
    desk: Desk, command: str, words: tuple[str, ...], reason: str
) -> None:
    places = {"{key}": desk.generate("fresh"), "{none}": desk.base / "none.pem", "{root-2}": desk.keys / "root-2.pem"}  # fmt: skip
    filled = [str(places.get(word, word)).replace("{none}", str(desk.base / "none")) for word in words]  # fmt: skip
    where = () if command == "key generate" else ("-C", desk.work)
    before = tree(desk.base)
    assert reason in refusal(lambda: run(*command.split(), *filled, *where))
    assert tree(desk.base) == before
