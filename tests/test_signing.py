"""The metadata that signs an index: who signs, what changes it, and keys; without commands."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot

from weightpkg.document import MAX_DOCUMENT_SIZE
from weightpkg.errors import DocumentError, SigningError, WeightpkgError
from weightpkg.requirement import NormalizedName
from weightpkg.signing import metadata as signing
from weightpkg.signing.keys import (
    MAX_KEY_SIZE,
    Keyring,
    PublicKey,
    generate_key,
    load_public,
    load_signer,
)
from weightpkg.signing.pages import check_names, describe, scan
from weightpkg.signing.plan import (
    ROOT,
    TARGETS,
    NamedKey,
    Namespace,
    Role,
    SigningPlan,
    add_key,
    new_plan,
    read_plan,
    set_role,
    without,
)

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile

EXPIRES = datetime(2030, 1, 1, tzinfo=UTC)
ACME = NormalizedName("acme")
KEYS = {name: CryptoSigner.generate_ed25519() for name in ("a", "b", "c", "pages", "online")}


def plan(threshold: int = 2, *, namespaces: tuple[str, ...] = ("acme",)) -> SigningPlan:
    """Three root keys, one for pages, one online."""
    keys = {
        name: NamedKey(PublicKey(str(signer.public_key.keyval["public"])))
        for name, signer in KEYS.items()
    }
    pages, online = Role(("pages",), 1), Role(("online",), 1)
    return SigningPlan(
        namespace=ACME,
        keys=keys,
        roles={"root": Role(("a", "b", "c"), threshold), "targets": pages, "snapshot": online, "timestamp": online},
        namespaces={NormalizedName(name): Namespace(pages) for name in namespaces},
    )  # fmt: skip


def signed(payload: Any, *names: str) -> Metadata[Any]:
    metadata: Metadata[Any] = Metadata(payload)
    for name in names:
        metadata.sign(KEYS[name], append=True)
    return metadata


def finder(*names: str) -> signing.SignerFor:
    keys = {KEYS[name].public_key.keyid: KEYS[name] for name in names}
    return keys.get


def entries(count: int, prefix: str = "") -> dict[str, TargetFile]:
    paths = [f"{prefix}models/m{i}.toml" for i in range(count)]
    return {path: signing.entry_of(path, path.encode(), {}) for path in paths}


def test_a_root_needs_as_many_signatures_as_it_says() -> None:
    root = signing.root_of(plan(2), EXPIRES)
    for names, is_complete in (((), False), (("a",), False), (("a", "c"), True), (("a", "online"), False)):  # fmt: skip
        found = signing.standing(ROOT, signed(root, *names), [root])
        assert (found.is_complete, found.threshold) == (is_complete, 2), names


def test_a_threshold_of_zero_is_never_complete() -> None:
    root = signing.root_of(plan(2), EXPIRES)
    root.roles[ROOT].threshold = 1
    metadata = signed(root)
    # python-tuf itself refuses to make a role with a threshold of 0
    object.__setattr__(root.roles[ROOT], "threshold", 0)
    assert not signing.standing(ROOT, metadata, [root]).is_complete
    assert not signing.counts(ROOT, metadata, root)


def test_a_new_root_needs_the_old_keys_and_the_new_ones() -> None:
    old, new = signing.root_of(plan(2), EXPIRES), signing.root_of(plan(1), EXPIRES)
    new.version = 2
    del new.roles[ROOT].keyids[:2]  # c alone
    for names, is_complete in ((("c",), False), (("a", "b"), False), (("a", "c"), True)):
        assert signing.standing(ROOT, signed(new, *names), [old, new]).is_complete is is_complete


def test_no_more_keys_sign_than_must() -> None:
    root = signing.root_of(plan(2), EXPIRES)
    metadata = signed(root)
    assert signing.add_signatures(ROOT, metadata, finder("a", "b", "c", "online"), [root]) == 2
    assert signing.add_signatures(ROOT, metadata, finder("a", "b", "c", "online"), [root]) == 0
    signing.add_named(ROOT, metadata, [KEYS["c"], KEYS["online"]], [root])
    assert len(metadata.signatures) == 3, "a key that is named signs, if it may"


def test_a_bad_signature_is_replaced() -> None:
    root = signing.root_of(plan(1), EXPIRES)
    metadata = signed(root, "a")
    root.expires += timedelta(days=1)
    assert not signing.standing(ROOT, metadata, [root]).is_complete
    assert signing.add_signatures(ROOT, metadata, finder("a"), [root]) == 1
    assert signing.standing(ROOT, metadata, [root]).is_complete


def test_signatures_of_another_content_are_not_merged() -> None:
    root = signing.root_of(plan(2), EXPIRES)
    mine, other = signed(root, "a"), signed(signing.root_of(plan(2), EXPIRES), "b", "online")
    assert signing.merge_signatures(ROOT, mine, other, [root]) == 1
    assert set(mine.signatures) == {KEYS[name].public_key.keyid for name in "ab"}
    other.signed.expires += timedelta(days=1)
    with pytest.raises(SigningError, match="is not what waits"):
        signing.merge_signatures(ROOT, mine, other, [root])


def test_each_namespace_owns_its_own_paths() -> None:
    both = plan(namespaces=("acme", "beta"))
    targets = signing.targets_of(both, b"", EXPIRES)
    assert targets.delegations is not None
    assert targets.delegations.roles is not None
    assert targets.delegations.roles["acme"].paths == ["models/*", "aliases/*", "licenses/*"]
    assert targets.delegations.roles["beta"].paths[0] == "beta/models/*"  # type: ignore[index]
    assert all(role.terminating for role in targets.delegations.roles.values())
    for path, owner in (("models/x.toml", "acme"), ("beta/models/x.toml", "beta"), ("beta/x.toml", None), ("models/a/b.toml", None)):  # fmt: skip
        owners = [name for name, role in targets.delegations.roles.items() if role.is_delegated_path(path)]  # fmt: skip
        assert owners == ([owner] if owner else [])


@pytest.mark.parametrize("bins", [0, 2, 16, 1024])
def test_every_page_is_in_one_role(bins: int) -> None:
    roles = signing.namespace_of(plan(), "acme", entries(300), bins, EXPIRES)
    assert len(roles) == 1 + bins
    found = [path for role in roles.values() for path in role.targets]
    assert sorted(found) == sorted(entries(300))
    assert signing.bins_of(roles["acme"]) == bins


def test_one_changed_page_changes_one_bin() -> None:
    old = signing.namespace_of(plan(), "acme", entries(300), 16, EXPIRES)
    changed = entries(300) | {"models/m7.toml": signing.entry_of("models/m7.toml", b"new", {})}
    new = signing.namespace_of(plan(), "acme", changed, 16, EXPIRES + timedelta(days=1))
    assert sum(not signing.says_the_same(old[role], new[role]) for role in old) == 1


@given(st.integers(0, 10**7), st.sampled_from([0, *(2**i for i in range(1, 17))]))
@settings(max_examples=200)
def test_bins_are_a_power_of_two_and_do_not_change_for_little(pages: int, present: int) -> None:
    bins = signing.number_of_bins(pages, present)
    assert bins == 0 or bins & (bins - 1) == 0
    assert signing.number_of_bins(pages, bins) == bins
    assert bins or pages <= signing.MAX_PAGES
    if bins:
        assert pages / bins < 10 * max(pages, 1) ** 0.5


def test_a_snapshot_forgets_no_role() -> None:
    old = signing.snapshot_of({"acme": 3, "gone": 9}, None, EXPIRES)
    new = signing.snapshot_of({"acme": 4}, old, EXPIRES)
    assert {name: meta.version for name, meta in new.meta.items()} == {
        "acme.json": 4, "gone.json": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not valid metadata"),
        (b"[]", "is not valid metadata"),
        (b"{}", "is not valid metadata"),
        (b'{"signed": {"_type": "chess"}, "signatures": []}', "is not valid metadata"),
        (100_000 * b"[", "is not valid metadata"),
        (b'{"signed": "' + 33 * 1024 * 1024 * b"x", "is larger than"),
        (Metadata(Snapshot(expires=EXPIRES)).to_bytes(), "is snapshot, not root"),
    ],
    ids=["empty", "array", "no keys", "kind", "deep", "large", "another role"],
)
def test_what_is_no_root_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(SigningError, match=reason):
        signing.parse(content, Root, "1.root.json")


def test_a_signer_is_shown_what_is_signed() -> None:
    shown = "\n".join(signing.summary(ROOT, signed(signing.root_of(plan(2), EXPIRES))))
    assert "root 1, until 2030-01-01" in shown
    assert f"root: 2 of {KEYS['a'].public_key.keyid}, " in shown
    shown = "\n".join(signing.summary(TARGETS, signed(signing.targets_of(plan(), b"", EXPIRES))))
    assert "acme: 1 of " in shown
    assert "models/*" in shown


# the plan


def test_a_plan_is_written_and_read() -> None:
    made = plan(2)
    text = new_plan(ACME, made.keys, {**made.roles, "pages": made.roles["targets"]}, title="Ac\nme")
    read = read_plan(text.encode())
    assert (read.keys, read.roles, read.namespaces) == (made.keys, made.roles, made.namespaces)
    assert (read.title, read.lifetime("acme")) == ("Ac\nme", timedelta(days=180))
    commented = text.replace("[roles.root]", "[roles.root]  # the three of us")
    edited = set_role(commented, "roles", "root", Role(("a", "b", "c"), 3))
    assert "# the three of us" in edited
    assert read_plan(edited.encode()).roles["root"].threshold == 3
    with pytest.raises(SigningError, match="at least 1"):
        set_role(text, "roles", "root", Role(("a",), 0))
    with pytest.raises(SigningError, match="is called `a` already"):
        add_key(text, "a", made.keys["b"])
    with pytest.raises(SigningError, match="same key as"):
        add_key(text, "d", made.keys["a"])
    with pytest.raises(SigningError, match="2 must sign"):
        without(Role(("a", "b"), 2), "a")


@pytest.mark.parametrize("content", [b"", b"\xff", b"schema = 1", b"x" * (MAX_DOCUMENT_SIZE + 1)])
def test_what_is_no_plan_is_refused(content: bytes) -> None:
    with pytest.raises(DocumentError):
        read_plan(content)


# keys


def test_a_key_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pem"
    public = generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.pem", "a.pub"]
    for each in (path, path.with_suffix(".pub")):
        assert load_public(each, _none) == public
    signer = load_signer(path, _none)
    assert signer.public_key.keyid == public.id
    public.tuf.verify_signature(signer.sign(b"x"), b"x")
    with pytest.raises(SigningError, match="is there already"):
        generate_key(path)


def test_a_passphrase_is_needed_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    public = generate_key(path, "right")
    assert load_signer(path, lambda _: "right").public_key.keyid == public.id
    assert load_public(path, _none) == public, "that of the file beside it"
    for wrong in ("wrong", "Right", "x" * 2000):
        with pytest.raises(SigningError, match="does not open with this passphrase"):
            load_signer(path, lambda _, wrong=wrong: wrong)  # type: ignore[misc]
    with pytest.raises(SigningError, match="no passphrase was given"):
        load_signer(path, lambda _: "")


def _strangers() -> Iterator[tuple[str, bytes]]:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    ours = ed25519.Ed25519PrivateKey.generate()
    pem = ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    yield "empty", b""
    yield "text", b"a key"
    yield "cut", pem[:60]
    yield "large", b"-----BEGIN PRIVATE KEY-----\n" + MAX_KEY_SIZE * b"A"
    yield "elliptic", elliptic.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    yield "public", ours.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    yield "elliptic public", elliptic.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)  # fmt: skip
    yield "openssh", ours.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


STRANGERS = dict(_strangers())


@pytest.mark.parametrize("kind", STRANGERS)
def test_what_is_no_key_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.pem"
    path.write_bytes(STRANGERS[kind])
    path.chmod(0o600)
    with pytest.raises(SigningError):
        load_signer(path, _none)
    if kind != "public":
        with pytest.raises(SigningError):
            load_public(path, _none)


def test_a_keyring_opens_a_file_when_its_key_is_needed(tmp_path: Path) -> None:
    one = generate_key(tmp_path / "one.pem", "x")
    two = generate_key(tmp_path / "two.pem", "x")
    asked: list[str] = []

    def passphrase(path: Path) -> str:
        asked.append(path.name)
        return "x"

    ring = Keyring(
        [], [(one.id, tmp_path / "one.pem"), (two.id, tmp_path / "none.pem")], passphrase
    )
    assert asked == []
    assert ring.find(two.id) is None
    assert ring.find("0" * 64) is None
    for _ in range(2):
        signer = ring.find(one.id)
        assert signer is not None
        assert signer.public_key.keyid == one.id
    assert asked == ["one.pem"]
    swapped = Keyring([], [(one.id, tmp_path / "two.pem")], passphrase)
    with pytest.raises(SigningError, match="another key than the plan says"):
        swapped.find(one.id)
    with pytest.raises(SigningError, match="cannot be read"):
        Keyring([tmp_path / "none.pem"], [], passphrase)


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        PublicKey(text)


# pages


def test_a_page_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    (tmp_path / "licenses").mkdir()
    (tmp_path / "licenses" / "MIT.txt").write_text("text")
    first = scan(tmp_path, "", {})
    assert scan(tmp_path, "", first)["licenses/MIT.txt"] is first["licenses/MIT.txt"]
    (tmp_path / "licenses" / "MIT.txt").write_text("tex2")
    assert scan(tmp_path, "", first)["licenses/MIT.txt"] != first["licenses/MIT.txt"]
    assert list(scan(tmp_path, "beta/", {})) == ["beta/licenses/MIT.txt"]


@given(st.binary(max_size=200), st.sampled_from(["models", "aliases", "licenses"]))
@settings(max_examples=200)
def test_any_bytes_are_a_page_or_one_error(content: bytes, kind: str) -> None:
    try:
        describe(kind, "x.toml" if kind != "licenses" else "x.txt", content)
    except WeightpkgError as error:
        assert error.message  # noqa: PT017  either is right


def test_names_are_checked_by_what_entries_say() -> None:
    def entry(path: str, **custom: object) -> TargetFile:
        return signing.entry_of(path, b"", custom)

    good = {
        "models/a.toml": entry("models/a.toml", variants=["q4", "q8"]),
        "aliases/b.toml": entry("aliases/b.toml", model="a"),
    }
    check_names(good)
    for path, custom in (
        ("models/a-q4.toml", {}),
        ("aliases/a-q8.toml", {"model": "a"}),
        ("aliases/c.toml", {"model": "nobody"}),
        ("aliases/c.toml", {"model": "c"}),
        ("models/b.toml", {}),
        ("aliases/d.toml", {}),
    ):
        with pytest.raises(DocumentError):
            check_names(good | {path: entry(path, **custom)})


def _none(_: Path) -> str:
    raise AssertionError("nobody should be asked")
