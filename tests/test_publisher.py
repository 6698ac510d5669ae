"""Publishers' signatures, made by the reference implementation: what is signed, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from factories import index_page, tiny_llama
from weightpkg.cli import cli
from weightpkg.digest import fingerprint_file
from weightpkg.errors import SignatureError, WeightpkgError
from weightpkg.publisher import MAX_SIGNATURE, check_publisher, read_publisher_key
from weightpkg.settings import Settings
from weightpkg.store import InstalledFile, Store

if TYPE_CHECKING:
    from click.testing import Result

signing = pytest.importorskip("model_signing.signing")
hashing = pytest.importorskip("model_signing.hashing")
serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
asymmetric = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
x509 = pytest.importorskip("cryptography.x509")
hashes = pytest.importorskip("cryptography.hazmat.primitives.hashes")

CURVES = {"P-256": "SECP256R1", "P-384": "SECP384R1", "P-521": "SECP521R1"}


def write_key(directory: Path, key: Any, name: str = "key") -> Path:
    """Write a private key and, beside it, its public half; return the latter's path."""
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (directory / f"{name}.private").write_bytes(private)
    path = directory / f"{name}.pub"
    path.write_bytes(public)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return write_key(tmp_path, asymmetric.generate_private_key(asymmetric.SECP256R1()))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory as a publisher has it."""
    directory = tmp_path / "model"
    (directory / "1_Pooling").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    return directory


def sign(directory: Path, key: Path, how: Any = None) -> None:
    """Sign a directory as its publisher would."""
    config = signing.Config().use_elliptic_key_signer(private_key=key.with_suffix(".private"))
    config.set_hashing_config(how or hashing.Config())
    config.sign(directory, directory / "model.sig")


def fetched(directory: Path, store: Store) -> list[InstalledFile]:
    """All files of a directory, as they are when they have come into a store."""
    found = []
    with store.use():
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            known = fingerprint_file(path)
            new = store.new_file()
            new.write(path.read_bytes())
            store.publish(new, known)
            name = path.relative_to(directory).as_posix()
            found.append(InstalledFile(name, known.size, known.sha256, known.blake3))
    return found


def check(directory: Path, store: Store, key: Path) -> None:
    check_publisher("tiny", fetched(directory, store), store, read_publisher_key(key))


@pytest.mark.parametrize("curve", CURVES)
def test_what_was_signed_is_taken(curve: str, model: Path, store: Store, tmp_path: Path) -> None:
    made = asymmetric.generate_private_key(getattr(asymmetric, CURVES[curve])())
    key = write_key(tmp_path, made)
    sign(model, key)
    check(model, store, key)


def test_the_fingerprint_is_the_public_key_s(key: Path) -> None:
    der = serialization.load_pem_public_key(key.read_bytes()).public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert read_publisher_key(key).fingerprint == hashlib.sha256(der).hexdigest()


@pytest.mark.parametrize(
    ("algorithm", "shard_size"),
    [
        *(("sha256", size) for size in (None, 1000, 4096, 10_240, 1_000_000)),
        *(("blake2", size) for size in (None, 1000, 4096, 10_240)),
        ("blake3", None),
    ],
)
def test_every_way_to_hash(
    algorithm: str, shard_size: int | None, model: Path, store: Store, key: Path
) -> None:
    if shard_size is None:
        how = hashing.Config().use_file_serialization(hashing_algorithm=algorithm)
    else:
        how = hashing.Config().use_shard_serialization(
            hashing_algorithm=algorithm, shard_size=shard_size
        )
    sign(model, key, how)
    check(model, store, key)
    content = bytearray((model / "model.safetensors").read_bytes())
    content[5000] ^= 1
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(SignatureError, match=r"`model\.safetensors` was changed"):
        check(model, store, key)


def change(directory: Path) -> None:
    (directory / "config.json").write_text('{"a": 1}')


def truncate(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 39)


def add(directory: Path) -> None:
    (directory / "more.json").write_text("{}")


def add_below_git(directory: Path) -> None:
    (directory / ".git" / "hooks").mkdir(parents=True)
    (directory / ".git" / "hooks" / "post-checkout").write_text("#!/bin/sh")


def add_git_attributes(directory: Path) -> None:
    (directory / ".gitattributes").write_text("*.json filter=evil")


def remove(directory: Path) -> None:
    (directory / "config.json").unlink()


def rename(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "weights.safetensors")


def move(directory: Path) -> None:
    (directory / "1_Pooling" / "config.json").rename(directory / "pooling.json")


def swap(directory: Path) -> None:
    one, other = directory / "config.json", directory / "1_Pooling" / "config.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


ATTACKS = {
    "changed": (change, "`config.json` was changed"),
    "truncated": (truncate, "`model.safetensors` was changed"),
    "an extra file": (add, "`more.json` was not signed"),
    "a file below .git": (add_below_git, "`.git/hooks/post-checkout` was not signed"),
    "a .gitattributes": (add_git_attributes, "`.gitattributes` was not signed"),
    "a missing file": (remove, "`config.json` was signed, and is missing"),
    "renamed": (rename, "`model.safetensors` was signed, and is missing"),
    "moved": (move, "`1_Pooling/config.json` was signed, and is missing"),
    "swapped": (swap, "was changed"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("shard_size", [None, 1000])
def test_what_was_not_signed_is_refused(
    name: str, shard_size: int | None, model: Path, store: Store, key: Path
) -> None:
    attack, message = ATTACKS[name]
    how = hashing.Config().use_shard_serialization(shard_size=shard_size) if shard_size else None
    sign(model, key, how)
    check(model, store, key)
    attack(model)
    with pytest.raises(SignatureError) as caught:
        check(model, store, key)
    assert message in caught.value.message
    assert caught.value.exit_code == 3


def test_what_the_signer_wants_ignored_is_not(model: Path, store: Store, key: Path) -> None:
    secret = model / "ignored.json"
    secret.write_text("{}")
    how = hashing.Config().set_ignored_paths(paths=[secret, model / "model.sig"])
    sign(model, key, how)
    with pytest.raises(SignatureError, match=r"`ignored\.json` was not signed"):
        check(model, store, key)


def test_a_file_that_was_signed_alone_has_no_name(store: Store, key: Path, tmp_path: Path) -> None:
    directory = tmp_path / "alone"
    directory.mkdir()
    (directory / "tiny.gguf").write_bytes(b"GGUF" * 100)
    config = signing.Config().use_elliptic_key_signer(private_key=key.with_suffix(".private"))
    config.sign(directory / "tiny.gguf", directory / "model.sig")
    check(directory, store, key)
    (directory / "tiny.gguf").write_bytes(b"GGUF" * 99)
    with pytest.raises(SignatureError, match=r"`tiny\.gguf` was changed"):
        check(directory, store, key)
    (directory / "tiny.gguf").write_bytes(b"GGUF" * 100)
    (directory / "more.gguf").write_bytes(b"GGUF" * 100)
    with pytest.raises(SignatureError, match=r"`\.` was signed, and is missing"):
        check(directory, store, key)


def test_a_signature_over_nothing_is_refused(store: Store, key: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    sign(empty, key)
    with pytest.raises(SignatureError, match="no file was signed"):
        check(empty, store, key)


def test_another_key_is_refused(model: Path, store: Store, key: Path, tmp_path: Path) -> None:
    other = write_key(tmp_path, asymmetric.generate_private_key(asymmetric.SECP256R1()), "other")
    sign(model, key)
    with pytest.raises(SignatureError, match="is not by the key"):
        check(model, store, other)


def test_another_key_with_the_right_hint_is_refused(
    model: Path, store: Store, key: Path, tmp_path: Path
) -> None:
    other = write_key(tmp_path, asymmetric.generate_private_key(asymmetric.SECP256R1()), "other")
    sign(model, key)
    path = model / "model.sig"
    bundle = json.loads(path.read_text())
    hint = hashlib.sha256(other.read_bytes()).hexdigest()
    bundle["verificationMaterial"]["publicKey"]["hint"] = hint
    path.write_text(json.dumps(bundle))
    with pytest.raises(SignatureError, match="is not by the key"):
        check(model, store, other)


def test_a_signature_of_another_model_is_refused(
    model: Path, store: Store, key: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    change(other)
    sign(other, key)
    shutil.copy(other / "model.sig", model / "model.sig")
    with pytest.raises(SignatureError, match=r"`config\.json` was changed"):
        check(model, store, key)


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """What changes the signed statement, and leaves the signature as it was."""

    def edit(path: Path) -> None:
        bundle = json.loads(path.read_text())
        envelope = bundle["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        path.write_text(json.dumps(bundle))

    return edit


def bundle_without(key: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        bundle = json.loads(path.read_text())
        del bundle[key]
        path.write_text(json.dumps(bundle))

    return edit


def unsigned(path: Path) -> None:
    bundle = json.loads(path.read_text())
    bundle["dsseEnvelope"]["signatures"] = []
    path.write_text(json.dumps(bundle))


SIGNATURES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "no JSON": lambda path: path.write_text("-----BEGIN PGP SIGNATURE-----"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "a list": lambda path: path.write_text("[]"),
    "null": lambda path: path.write_text("null"),
    "an empty bundle": lambda path: path.write_text("{}"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "no envelope": bundle_without("dsseEnvelope"),
    "no material": bundle_without("verificationMaterial"),
    "another media type": bundle_without("mediaType"),
    "no signatures": unsigned,
    "a resource less": edited(lambda s: s["predicate"]["resources"].pop()),
    "another name": edited(lambda s: s["predicate"]["resources"][0].update(name="../../x")),
    "another type": edited(lambda s: s.update(predicateType="https://example.com")),
}  # fmt: skip


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_bad_signature_is_one_clean_error(
    name: str, model: Path, store: Store, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sign(model, key)
    SIGNATURES[name](model / "model.sig")
    with pytest.raises(SignatureError, match="is not by the key"):
        check(model, store, key)
    assert capsys.readouterr().out == ""


def test_a_huge_signature_is_not_read(model: Path, store: Store, key: Path) -> None:
    with (model / "model.sig").open("wb") as stream:
        stream.truncate(MAX_SIGNATURE + 1)
    with pytest.raises(SignatureError, match="larger than"):
        check(model, store, key)


def test_no_signature_is_refused(model: Path, store: Store, key: Path) -> None:
    with pytest.raises(SignatureError, match=r"`tiny` has no `model\.sig`"):
        check(model, store, key)


def test_ed25519_keys_are_refused_with_what_there_is(tmp_path: Path) -> None:
    path = write_key(tmp_path, ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="Ed25519") as caught:
        read_publisher_key(path)
    assert caught.value.hint == "there are elliptic curves only: P-256, P-384 and P-521"


def test_rsa_and_other_curves_are_refused(tmp_path: Path) -> None:
    for made in (
        rsa.generate_private_key(65537, 2048),
        asymmetric.generate_private_key(asymmetric.SECP256K1()),
    ):
        with pytest.raises(SignatureError, match="which Model Signing does not have"):
            read_publisher_key(write_key(tmp_path, made))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no public key or certificate"),
        (b"ssh-ed25519 AAAA", "is no public key or certificate"),
        (b"\xff" * 300_000, "is no public key or certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is no public key"),
    ],
)
def test_what_is_no_key_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_bytes(content)
    with pytest.raises(SignatureError, match=message):
        read_publisher_key(tmp_path / "key.pub")


def test_a_private_key_is_refused(key: Path) -> None:
    with pytest.raises(SignatureError, match="is a private key"):
        read_publisher_key(key.with_suffix(".private"))


def certificate(key: Any, issuer: tuple[Any, Any] | None = None, *, can_sign: bool = True) -> Any:
    """Make a certificate of a key: its own, or an issuer's."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "leaf" if issuer else "root")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer[1].subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=can_sign, content_commitment=False, key_encipherment=False,
                data_encipherment=False, key_agreement=False, key_cert_sign=issuer is None,
                crl_sign=False, encipher_only=False, decipher_only=False,
            ),
            critical=True,
        )
    )  # fmt: skip
    return builder.sign(issuer[0] if issuer else key, hashes.SHA256())


def sign_with_certificate(directory: Path, tmp_path: Path, *, can_sign: bool = True) -> Path:
    """Sign with a key that a root vouches for; return the root's certificate."""
    root_key, leaf_key = (asymmetric.generate_private_key(asymmetric.SECP256R1()) for _ in "12")
    root = certificate(root_key)
    leaf = certificate(leaf_key, (root_key, root), can_sign=can_sign)
    write_key(tmp_path, leaf_key, "leaf")
    for name, made in (("root", root), ("leaf", leaf)):
        (tmp_path / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    signing.Config().use_certificate_signer(
        private_key=tmp_path / "leaf.private",
        signing_certificate=tmp_path / "leaf.pem",
        certificate_chain=[tmp_path / "root.pem"],
    ).sign(directory, directory / "model.sig")
    return tmp_path / "root.pem"


def test_a_certificate_vouches(model: Path, store: Store, tmp_path: Path) -> None:
    root = sign_with_certificate(model, tmp_path)
    check(model, store, root)
    assert read_publisher_key(root).is_certificate
    change(model)
    with pytest.raises(SignatureError, match="was changed"):
        check(model, store, root)


def test_a_certificate_of_another_root_is_refused(
    model: Path, store: Store, tmp_path: Path
) -> None:
    sign_with_certificate(model, tmp_path)
    stranger = certificate(asymmetric.generate_private_key(asymmetric.SECP256R1()))
    (tmp_path / "other.pem").write_bytes(stranger.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(SignatureError, match="is not by the key"):
        check(model, store, tmp_path / "other.pem")


def test_a_certificate_that_is_not_for_signing_is_refused(
    model: Path, store: Store, tmp_path: Path
) -> None:
    root = sign_with_certificate(model, tmp_path, can_sign=False)
    with pytest.raises(SignatureError, match="is not by the key"):
        check(model, store, root)


def test_a_missing_library_names_the_extra(
    model: Path, store: Store, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(model, key)
    for name in [n for n in sys.modules if n.split(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(WeightpkgError) as caught:
        check(model, store, key)
    assert caught.value.hint == "pip install 'weightpkg[model-signing]'"


@pytest.fixture
def weightpkg(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: Path
) -> Callable[..., Result]:
    """Commands with an index that has `signed`, a GGUF file with its publisher's signature."""
    publisher = tmp_path / "publisher"
    publisher.mkdir()
    tiny_llama(publisher / "signed-q4.gguf", weights="Q4_1")
    sign(publisher, key)
    paths = []
    for name in ("signed-q4.gguf", "model.sig"):
        paths.append(settings.index_dir / name)
        shutil.copy(publisher / name, paths[-1])
    page = index_page("signed", {"q4": paths})
    (settings.index_dir / "models" / "signed.toml").write_text(page)
    for name, value in settings.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> Result:
        return CliRunner().invoke(cli, words)

    return run


def test_a_signed_model_is_installed_and_is_the_same_conversion(
    weightpkg: Callable[..., Result], settings: Settings, key: Path
) -> None:
    result = weightpkg("install", "signed", "--publisher-key", str(key))
    assert result.exit_code == 0, result.exception
    assert "signed-q4: signed by its publisher, key sha256:" in result.stderr
    assert weightpkg("install", "tiny-q4").exit_code == 0
    one, other = settings.store().installed()
    assert one.conversion == other.conversion  # the same weights, signed or not
    assert weightpkg("verify", "signed-q4", "--publisher-key", str(key)).exit_code == 0
    model = json.loads(weightpkg("audit", "signed-q4", "--json").stdout)["models"][0]
    assert [f["rule"] for f in model["findings"]] == ["publisher-not-checked"]
    text = weightpkg("audit", "signed-q4", "--json", "--publisher-key", str(key)).stdout
    assert json.loads(text)["models"][0]["findings"] == []
    assert weightpkg("verify", "signed-q4", "--repair").exit_code == 0


def test_nothing_is_installed_that_is_not_signed(
    weightpkg: Callable[..., Result], settings: Settings, key: Path, tmp_path: Path
) -> None:
    other = write_key(tmp_path, asymmetric.generate_private_key(asymmetric.SECP256R1()), "other")
    for name, path in (("signed", other), ("tiny", key)):
        result = weightpkg("install", name, "--publisher-key", str(path))
        assert isinstance(result.exception, SignatureError)
        assert settings.store().installed() == []
        assert not list((settings.home / "models").glob("*"))


def test_verify_and_audit_refuse_another_key(
    weightpkg: Callable[..., Result], key: Path, tmp_path: Path
) -> None:
    assert weightpkg("install", "signed").exit_code == 0
    other = write_key(tmp_path, asymmetric.generate_private_key(asymmetric.SECP256R1()), "other")
    result = weightpkg("verify", "signed-q4", "--publisher-key", str(other))
    assert isinstance(result.exception, SignatureError)
    result = weightpkg("audit", "signed-q4", "--json", "--publisher-key", str(other))
    assert result.exit_code == 1
    (finding,) = json.loads(result.stdout)["models"][0]["findings"]
    assert (finding["level"], finding["rule"]) == ("error", "publisher")


def test_a_converted_model_runs_with_a_signature_beside_it(
    weightpkg: Callable[..., Result], settings: Settings
) -> None:
    assert weightpkg("install", "signed").exit_code == 0
    (record,) = settings.store().installed()
    assert record.conversion is not None
    names = {p.name for p in settings.store().model_path(record.conversion).iterdir()}
    assert "model.sig" not in names
