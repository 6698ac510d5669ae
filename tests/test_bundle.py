"""A mirror in one file: written, split, told by another one, checked, imported, and lied about."""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import tomli
import tomli_w
from blake3 import blake3
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from durability import add_checkpoint
from factories import edit_gguf, index_page
from test_full_disk import enlarge, mounted
from test_mirror import (
    blob_of,
    configuration,
    flipped,
    installed_in,
    lock_tree,
    lose_sources,
    refused,
    signed_for,
    weightpkg,
)
from weightpkg import files as durable
from weightpkg.cli import cli
from weightpkg.contents import CONTENTS, Contents, Entry, dump_contents, entry_of, read_contents
from weightpkg.digest import Digest, fingerprint_file
from weightpkg.errors import DocumentError, IntegrityError, StoreError, WeightpkgError
from weightpkg.mirror.bundle import import_bundle, verify_bundle
from weightpkg.mirror.bundle_file import (
    LIST,
    Bundle,
    Listing,
    Patch,
    dump_listing,
    header,
    padding,
)
from weightpkg.mirror.directory import Mirror, verify
from weightpkg.mirror.patching import apply_patch, make_patch
from weightpkg.progress import Silence
from weightpkg.project import Project, lock
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings
from weightpkg.store import Store

BLOCK = 512


def bundled(project: Project, path: Path, *more: str | Path) -> Path:
    weightpkg("bundle", "create", project.lockfile_path, "-o", path, *more)
    return path


def test_a_bundle_is_the_same_bytes_each_time_and_becomes_a_mirror(
    locked: Project, tmp_path: Path
) -> None:
    one = bundled(locked, tmp_path / "one.wpk")
    other = bundled(locked, tmp_path / "other.wpk")
    assert one.read_bytes() == other.read_bytes()
    assert verify_bundle([one], Silence()).listing.base is None
    weightpkg("bundle", "verify", one)
    weightpkg("bundle", "import", one, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []
    weightpkg("mirror", "create", tmp_path / "created", "--lock", locked.lockfile_path)
    written = (tmp_path / "created" / "mirror.toml").read_bytes()
    assert (tmp_path / "mirror" / "mirror.toml").read_bytes() == written


def test_two_stores_write_the_same_bytes(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bundled(locked, tmp_path / "one.wpk")
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "another"))
    assert one.read_bytes() == bundled(locked, tmp_path / "other.wpk").read_bytes()


def test_any_tar_can_read_it(locked: Project, tmp_path: Path) -> None:
    path = bundled(locked, tmp_path / "site.wpk")
    with tarfile.open(path) as archive, Bundle([path]) as bundle:
        names = archive.getnames()
        assert names == [LIST, *(entry.path for entry in bundle.carried)]
        assert all(member.isreg() for member in archive.getmembers())


@pytest.mark.parametrize("size", [1024, 70_000, 10**9])
def test_volumes_are_the_same_bytes(locked: Project, tmp_path: Path, size: int) -> None:
    whole = bundled(locked, tmp_path / "whole.wpk")
    bundled(locked, tmp_path / "site.wpk", "--volume-size", str(size))
    volumes = sorted(tmp_path.glob("site.wpk.*"))
    assert all(volume.stat().st_size <= size for volume in volumes)
    assert b"".join(volume.read_bytes() for volume in volumes) == whole.read_bytes()
    weightpkg("bundle", "import", *reversed(volumes), "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []
    if len(volumes) > 1:
        assert refused("bundle", "verify", *volumes[:-1]).exit_code in (3, 7)
        assert refused("bundle", "verify", *volumes[1:]).exit_code in (3, 7)


def test_an_imported_bundle_is_all_that_a_frozen_sync_needs(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock_tree(locked, settings)
    bundle = bundled(locked, tmp_path / "site.wpk")
    lose_sources(settings)
    home = tmp_path / "site"
    monkeypatch.setenv("WEIGHTPKG_HOME", str(home))
    weightpkg("bundle", "import", bundle)
    weightpkg("bundle", "import", bundle)
    monkeypatch.setattr("weightpkg.install.convert_blobs", _fail)
    [record] = installed_in(home, locked)
    assert record.tree is not None
    assert verify(Mirror(home / "imported"), Silence()) == []


def _fail(*_: object) -> None:
    raise AssertionError("converted")


def test_the_round_trip_without_any_network(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    """Real processes in a namespace that has no network: bundle, import, sync, run."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no `unshare` here")
    bare = ["unshare", "-r", "-n"]
    if subprocess.run([*bare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace without network cannot be made here")
    lock_tree(locked, settings)
    bundle, home = tmp_path / "site.wpk", tmp_path / "site"
    _run(bare, settings.environ, "bundle", "create", locked.lockfile_path, "-o", bundle)
    lose_sources(settings)
    environ = {**settings.environ, "WEIGHTPKG_HOME": str(home)}
    _run(bare, environ, "bundle", "verify", bundle)
    _run(bare, environ, "bundle", "import", bundle)
    _run(bare, environ, "sync", "--frozen")
    answer = _run(
        bare, environ, "run", "chat", "Hello", "--raw", "--max-tokens", "2", "--no-install"
    )
    assert answer
    _run(bare, environ, "mirror", "verify", home / "imported")


def _run(before: Sequence[str], environ: object, *words: str | Path) -> bytes:
    line = [*before, sys.executable, "-m", "weightpkg", *map(str, words)]
    assert isinstance(environ, dict)
    done = subprocess.run(
        line, capture_output=True, env={**os.environ, **environ}, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_fifty_roots_are_walked_from_a_bundle(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acme = signed_for(locked, settings, tmp_path)
    project = Project(locked.manifest_path)
    home = tmp_path / "site"
    home.mkdir()
    (home / "config.toml").write_text(configuration(acme, "https://models.example/index"))
    for _ in range(50):
        acme.rotate_root()
    acme.publish("timestamp")
    weightpkg("index", "update", "acme")
    bundle = bundled(project, tmp_path / "site.wpk")
    shutil.rmtree(acme.directory)
    monkeypatch.setenv("WEIGHTPKG_HOME", str(home))
    weightpkg("bundle", "import", bundle)
    where = ("--mirror", home / "imported", "--mirror-only")
    weightpkg("sync", "--frozen", *where)
    weightpkg("lock", "--check", *where)
    environ = {"WEIGHTPKG_HOME": str(home), "WEIGHTPKG_MIRROR": str(home / "imported")}
    there = Settings.from_environment(environ | {"WEIGHTPKG_MIRROR_ONLY": "1"})
    index = there.namespaces()[NormalizedName("acme")]
    assert index.model(NormalizedName("tiny")).name == "tiny"
    assert (home / "imported" / "index" / "acme" / "metadata" / "51.root.json").is_file()


@pytest.mark.network
def test_a_real_model_crosses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "outside"))
    (tmp_path / "weights.toml").write_text('[models]\nchat = "smollm2-135m-q4"\n')
    weightpkg("sync")
    weightpkg("bundle", "create", "weights.lock", "-o", "site.wpk")
    environ = {"WEIGHTPKG_HOME": str(tmp_path / "inside"), "WEIGHTPKG_NO_ADOPT": "1"}
    bare = ["unshare", "-r", "-n"]
    if subprocess.run([*bare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace without network cannot be made here")
    _run(bare, environ, "bundle", "import", "site.wpk")
    _run(bare, environ, "sync", "--frozen")
    ask = ("run", "chat", "What is the capital of France?", "--max-tokens", "20")
    inside = _run(bare, environ, *ask)
    assert inside == _run([], {"WEIGHTPKG_HOME": str(tmp_path / "outside")}, *ask)
    assert b"France" in inside


# --- only what is new


def _with_template(locked: Project, settings: Settings, template: str) -> Project:
    """A release 1.1 of `tiny`, which differs in its chat template only, locked."""
    path = settings.index_dir / "tiny-q4.gguf"
    new = settings.index_dir / "new" / "tiny-q4.gguf"
    new.parent.mkdir()
    shutil.copy(path, new)
    edit_gguf(new, {"tokenizer.chat_template": template})
    page = index_page("tiny", {"q4": [new]}).replace('"1.0"', '"1.1"').replace("file:", "file:new/")
    (settings.index_dir / "models" / "tiny.toml").write_text(page)
    (locked.root / "weights.lock").unlink()
    project = Project(locked.manifest_path)
    project.write_lockfile(lock(project, settings, print).lockfile)
    return project


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" + "{# longer #}" * 50
)


def test_weights_that_a_model_uses_as_they_are_come_once(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    add_checkpoint(settings)
    locked.manifest_path.write_text('[models]\nembed = "vectors"\n')
    (locked.root / "weights.lock").unlink()
    project = Project(locked.manifest_path)
    project.write_lockfile(lock(project, settings, print).lockfile)
    bundle = bundled(project, tmp_path / "site.wpk")
    with Bundle([bundle]) as opened:
        [(path, base)] = opened.listing.copies
    assert path.endswith("/model.safetensors")
    assert base.startswith("blobs/")
    weightpkg("bundle", "import", bundle, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []
    again = bundled(project, tmp_path / "delta.wpk", "--delta-from", bundle)
    assert again.stat().st_size < bundle.stat().st_size / 3
    weightpkg("bundle", "import", again, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []


def test_a_new_chat_template_is_little(locked: Project, settings: Settings, tmp_path: Path) -> None:
    old = bundled(locked, tmp_path / "old.wpk")
    project = _with_template(locked, settings, TEMPLATE)
    delta = bundled(project, tmp_path / "delta.wpk", "--delta-from", old)
    assert bundled(project, tmp_path / "again.wpk", "--delta-from", old).read_bytes() == (
        delta.read_bytes()
    )
    whole = bundled(project, tmp_path / "whole.wpk")
    with Bundle([delta]) as bundle:
        assert bundle.listing.patches
        assert bundle.listing.copies
    assert delta.stat().st_size < whole.stat().st_size / 4
    into = ("--into", tmp_path / "mirror")
    error = refused("bundle", "import", delta, *into)
    assert "import the bundle before it first" in (error.hint or "")
    weightpkg("bundle", "import", old, *into)
    weightpkg("bundle", "import", delta, *into)
    mirror = Mirror(tmp_path / "mirror")
    assert verify(mirror, Silence()) == []
    with Bundle([whole]) as bundle:
        assert bundle.contents.files.items() <= mirror.contents().files.items()


def test_a_damaged_base_is_found(locked: Project, settings: Settings, tmp_path: Path) -> None:
    old = bundled(locked, tmp_path / "old.wpk")
    project = _with_template(locked, settings, TEMPLATE)
    delta = bundled(project, tmp_path / "delta.wpk", "--delta-from", old)
    weightpkg("bundle", "import", old, "--into", tmp_path / "mirror")
    blob = blob_of(Mirror(tmp_path / "mirror"))
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[-100] ^= 1
    blob.write_bytes(content)
    error = refused("bundle", "import", delta, "--into", tmp_path / "mirror")
    assert isinstance(error, IntegrityError)


@given(
    st.binary(max_size=20_000), st.integers(0, 20_000), st.binary(max_size=200), st.integers(0, 300)
)
@hypothesis_settings(max_examples=60)
def test_a_patch_makes_what_it_was_made_of(base: bytes, at: int, more: bytes, less: int) -> None:
    new = base[:at] + more + base[at + less :]
    patch = make_patch(io.BytesIO(base), len(base), io.BytesIO(new), len(new))
    if patch is not None:
        made = b"".join(apply_patch(patch, io.BytesIO(base), len(base), len(new)))
        assert made == new


def test_several_edits_far_apart_are_little() -> None:
    base = random.Random(1).randbytes(3_000_000)
    new = (
        b"x" + base[:1_000_000] + b"yy" * 100 + base[1_000_100:2_000_000] + base[2_000_007:] + b"z"
    )
    patch = make_patch(io.BytesIO(base), len(base), io.BytesIO(new), len(new))
    assert patch is not None
    assert len(patch) < 50_000
    assert b"".join(apply_patch(patch, io.BytesIO(base), len(base), len(new))) == new


PATCHES = {
    "nothing": b"",
    "another magic": b"WPKP2\n",
    "an unknown step": b"WPKP1\nX" + bytes(16),
    "a step cut off": b"WPKP1\nC" + bytes(15),
    "a copy behind the end": b"WPKP1\nC" + (90).to_bytes(8, "little") + (20).to_bytes(8, "little"),
    "a copy of 16 EiB": b"WPKP1\nC" + bytes(8) + b"\xff" * 8,
    "too few bytes": b"WPKP1\nL" + (3).to_bytes(8, "little") + b"abc",
    "bytes that are not there": b"WPKP1\nL" + (99).to_bytes(8, "little") + b"abc",
    "too many bytes": b"WPKP1\n" + 3 * (b"C" + bytes(8) + (100).to_bytes(8, "little")),
}


@pytest.mark.parametrize("patch", PATCHES.values(), ids=PATCHES)
def test_a_hostile_patch_is_refused(patch: bytes) -> None:
    with pytest.raises(DocumentError):
        list(apply_patch(patch, io.BytesIO(bytes(100)), 100, 50))


# --- cut, changed, made to harm


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A bundle without a model: a blob, a page, a lockfile."""
    blob = random.Random(5).randbytes(3000)
    digest = Digest("sha256", hashlib.sha256(blob).hexdigest())
    store = Store(tmp_path_factory.mktemp("store"))
    with store.use(), store.new_file() as new:
        new.write(blob)
        store.publish(new, fingerprint_file(new.path))
    path = f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"
    files = {
        path: blob,
        f"{path}.chunks": store.chunks_path(digest).read_bytes(),
        "index/default/models/tiny.toml": b"page\n",
        f"locks/{hashlib.sha256(b'lock').hexdigest()}.lock": b"lock",
    }
    entries = {name: entry_of(name, content) for name, content in files.items()}
    return packed(entries, files)


def packed(
    entries: dict[str, Entry],
    files: dict[str, bytes],
    *,
    listing: Callable[[Listing], Listing] = lambda listing: listing,
) -> bytes:
    """A bundle of such files, or of such entries, whatever is wrong with them."""
    document = dump_contents(Contents((), entries))
    listed = listing(Listing(entry_of(CONTENTS, document), tuple(entries.values())))
    content = dump_listing(listed)
    parts = [header(LIST, len(content)) + content + padding(len(content))]
    for entry in listed.carried():
        data = document if entry.path == CONTENTS else files.get(entry.path, b"")
        parts.append(header(entry.path, entry.size) + data + padding(len(data)))
    return b"".join(parts) + bytes(2 * BLOCK)


def check_refused(tmp_path: Path, content: bytes) -> WeightpkgError:
    """Nothing of a bad bundle is believed, by a check or by an import, and nothing is left of it."""
    canary = tmp_path / "canary"
    canary.write_text("as it was")
    path, into = tmp_path / "bad.wpk", tmp_path / "inside" / "mirror"
    path.write_bytes(content)
    before = {p for p in tmp_path.rglob("*") if "inside" not in p.parts}
    with pytest.raises(WeightpkgError) as verified:
        verify_bundle([path], Silence())
    with pytest.raises(WeightpkgError):
        import_bundle([path], Mirror(into), None, Silence())
    assert not (into / "mirror.toml").exists()
    assert {p for p in tmp_path.rglob("*") if "inside" not in p.parts} == before
    assert canary.read_text() == "as it was"
    for blob in into.glob("blobs/sha256/*/*"):
        if blob.suffix != ".chunks":
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    assert "Traceback" not in str(verified.value)
    return verified.value


def test_the_small_one_is_good(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.wpk"
    path.write_bytes(small)
    import_bundle([path], Mirror(tmp_path / "mirror"), None, Silence())
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []


def cuts(content: bytes) -> Iterator[int]:
    """Every boundary of a block and its neighbours, and places by chance."""
    for boundary in range(0, len(content), BLOCK):
        yield from (boundary - 1, boundary, boundary + 1)
    yield from random.Random(3).sample(range(len(content)), 40)


def test_a_bundle_that_is_cut_anywhere_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.wpk"
    places = sorted({cut for cut in cuts(small) if 0 <= cut < len(small)})
    assert len(places) > 60
    for cut in places:
        path.write_bytes(small[:cut])
        with pytest.raises((IntegrityError, DocumentError)):
            verify_bundle([path], Silence())
        with pytest.raises((IntegrityError, DocumentError)):
            import_bundle([path], Mirror(tmp_path / "mirror"), None, Silence())
    assert not (tmp_path / "mirror" / "mirror.toml").exists()


def test_a_byte_that_is_changed_anywhere_is_found(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "changed.wpk"
    for place in sorted({cut for cut in cuts(small) if 0 <= cut < len(small)}):
        changed = bytearray(small)
        changed[place] ^= 0x21
        path.write_bytes(changed)
        with pytest.raises(WeightpkgError):
            verify_bundle([path], Silence())


@pytest.mark.parametrize("more", [b"\0", b"x", bytes(512), bytes(10240)])
def test_anything_behind_the_end_is_refused(small: bytes, tmp_path: Path, more: bytes) -> None:
    check_refused(tmp_path, small + more)


NAMES = [
    "../x", "../../etc/passwd", "blobs/../../x", "/etc/passwd", "//server/x", "./x", "a/./b",
    "a/../b", "..", ".", "", "a//b", "a/", "/", "~/x", "~root/x", "C:/x", "C:x", "c:\\x", "..\\x",
    "a\\..\\b", "\\\\server\\x", "con", "CON.txt", "aux", "nul", "com1", "lpt9.x", "a.", "a ",
    "a/b.", "a\0b", "a\nb", "a\rb", "a\tb", "a\x1bb", "a:b", "a*b", "a?b", 'a"b', "a<b", "a>b",
    "a|b", "é", "e\u0301", "\u202egnp.exe", "\ufeffa", "%2e%2e/x", "..%2fx", "a" * 300, "a/" * 600,
    "mirror.toml", "bundle.toml", ".weightpkg/sealed.json", ".weightpkg/locks/mirror.lock",
    "blobs/sha256/aa/bb", "blobs/sha512/aa/aa", "models/key/model.onnx", "models/../x",
    "locks/x.lock", "index/a", "installed/tiny/1.0/q4.toml", "layout", "wheels/../x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_hostile_name_is_refused(small: bytes, tmp_path: Path, name: str) -> None:
    """By name in the lists, where all else is right; 60 and more of them."""
    row = {"path": name, "size": 4, "blake3": blake3(b"evil").hexdigest()}
    row["sha256"] = hashlib.sha256(b"evil").hexdigest()
    check_refused(tmp_path, relisted(small, row))


def relisted(content: bytes, row: dict[str, object]) -> bytes:
    """A bundle whose two lists have a row more, and their right checks."""
    size = int(content[124:135], 8)
    contents_at = BLOCK + size + len(padding(size)) + BLOCK
    length = int(content[contents_at - BLOCK + 124 : contents_at - BLOCK + 135], 8)
    document = _with_row(content[contents_at : contents_at + length], row, "files")
    rest = content[contents_at + length + len(padding(length)) :]
    listing = content[BLOCK : BLOCK + size]
    listing = _with_row(listing, row, "members", contents=document)
    own = tar_header(str(row["path"]), 4) + b"evil" + padding(4)
    return (
        header(LIST, len(listing)) + listing + padding(len(listing))
        + header(CONTENTS, len(document)) + document + padding(len(document))
        + rest[: -2 * BLOCK] + own + rest[-2 * BLOCK :]
    )  # fmt: skip


def _with_row(
    text: bytes, row: dict[str, object], key: str, *, contents: bytes | None = None
) -> bytes:
    head, _, body = text.partition(b'check = "')
    document = tomli.loads(body.partition(b"\n")[2].decode())
    document[key] = [*document[key], row]
    if contents is not None:
        document["contents"] |= {
            "size": len(contents),
            "blake3": blake3(contents).hexdigest(),
            "sha256": hashlib.sha256(contents).hexdigest(),
        }
    new = tomli_w.dumps(document).encode()
    return head + f'check = "{hashlib.sha256(new).hexdigest()}"\n'.encode() + new


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """What another program writes before a member."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    try:
        return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    except ValueError:
        return header("x", size)


KINDS = {
    "a symbolic link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a character device": tarfile.CHRTYPE,
    "a block device": tarfile.BLKTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a directory": tarfile.DIRTYPE,
    "a contiguous file": tarfile.CONTTYPE,
    "a long name": tarfile.GNUTYPE_LONGNAME,
    "a long link": tarfile.GNUTYPE_LONGLINK,
    "a sparse file": tarfile.GNUTYPE_SPARSE,
    "pax records": tarfile.XHDTYPE,
    "global pax records": tarfile.XGLTYPE,
    "an old regular file": tarfile.AREGTYPE,
    "a kind that nobody knows": b"?",
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_member_that_is_no_plain_file_is_refused(
    small: bytes, tmp_path: Path, kind: bytes
) -> None:
    place = small.index(b"index/default/models/tiny.toml", len(small) // 2)
    name, size = "index/default/models/tiny.toml", 5
    evil = tar_header(name, size, kind, link="../../../../etc/passwd")[:BLOCK]
    assert len(evil) == BLOCK
    check_refused(tmp_path, small[:place] + evil + small[place + BLOCK :])


def test_a_member_twice_is_refused(small: bytes, tmp_path: Path) -> None:
    row: dict[str, object] = {"path": "index/default/models/tiny.toml", "size": 4}
    row |= {"blake3": blake3(b"evil").hexdigest(), "sha256": hashlib.sha256(b"evil").hexdigest()}
    check_refused(tmp_path, relisted(small, row))
    row["path"] = "index/default/models/TINY.toml"
    check_refused(tmp_path, relisted(small, row))
    row["path"] = "index/default/models/tiny.toml/below"
    check_refused(tmp_path, relisted(small, row))


def _one(content: bytes, **changes: object) -> tuple[dict[str, Entry], dict[str, bytes]]:
    digest = Digest("sha256", hashlib.sha256(content).hexdigest())
    name = f"blobs/sha256/{digest.hex[:2]}/{digest.hex}"
    return {name: replace(entry_of(name, content), **changes)}, {name: content}  # type: ignore[arg-type]


LIES: dict[str, dict[str, object]] = {
    "one byte more": {"size": 1001},
    "one byte less": {"size": 999},
    "nothing": {"size": 0},
    "a bomb of 8 GiB": {"size": 8 * 2**30},
    "a bomb of 8 EiB": {"size": 2**63 - 1},
    "another blake3": {"blake3": Digest("blake3", 64 * "0")},
    "another sha256": {"sha256": Digest("sha256", 64 * "0")},
    "no sha256": {"sha256": None},
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_lie_about_a_blob_is_refused(tmp_path: Path, lie: dict[str, object]) -> None:
    entries, files = _one(bytes(1000), **lie)
    path, mirror = tmp_path / "lie.wpk", Mirror(tmp_path / "mirror")
    path.write_bytes(packed(entries, files))
    with pytest.raises((IntegrityError, DocumentError)):
        import_bundle([path], mirror, None, Silence())
    assert not (mirror.directory / "mirror.toml").exists()
    assert not list(mirror.directory.glob("blobs/*/*/*"))


def test_a_blob_under_another_name_is_refused(tmp_path: Path) -> None:
    """All digests of the lists are right for the bytes, but for the name that they would get."""
    evil = b"evil"
    name = f"blobs/sha256/{'ab'}/{'ab' * 32}"
    entry = replace(entry_of(name, evil), sha256=Digest("sha256", "ab" * 32))
    check = packed({name: entry}, {name: evil})
    path, mirror = tmp_path / "evil.wpk", Mirror(tmp_path / "mirror")
    path.write_bytes(check)
    with pytest.raises(IntegrityError):
        import_bundle([path], mirror, None, Silence())
    assert not list(mirror.directory.glob("blobs/*/*/*"))


def test_a_model_of_a_bundle_counts_only_by_its_tree(
    locked: Project, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a bundle calls the result of a conversion is no result of it in the store."""
    bundle = bundled(locked, tmp_path / "site.wpk")
    home = tmp_path / "site"
    monkeypatch.setenv("WEIGHTPKG_HOME", str(home))
    weightpkg("bundle", "import", bundle)
    assert not list(home.glob("models/*"))
    assert list(home.glob("blobs/sha256/*/*"))
    assert settings.home != home


@pytest.mark.parametrize(
    "edit",
    [
        lambda one: replace(one, members=()),
        lambda one: replace(one, members=(*one.members, *one.members[:1])),
        lambda one: replace(one, copies=((one.members[0].path, "locks/x"),)),
        lambda one: replace(one, members=one.members[1:], copies=((one.members[0].path, "a"),)),
        lambda one: replace(
            one,
            members=one.members[1:],
            patches=(
                Patch(entry_of(f"patches/{one.members[0].path}", b""), one.members[0].path, "a"),
            ),
        ),
        lambda one: replace(one, contents=entry_of("index/a/b", b"")),
        lambda one: replace(one, members=(entry_of("index/default/x", b"x"), *one.members)),
    ],
    ids=["nothing", "twice", "in two ways", "no base", "a patch without base", "contents", "more"],
)
def test_lists_that_do_not_fit_are_refused(
    tmp_path: Path, edit: Callable[[Listing], Listing]
) -> None:
    entries, files = _one(b"some bytes")
    check_refused(tmp_path, packed(entries, files, listing=edit))


@pytest.mark.parametrize(
    "content", [b"", b"x", bytes(512), bytes(10240), b"PK\x03\x04" * 512, b"GGUF" * 512]
)
def test_what_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    assert isinstance(check_refused(tmp_path, content), DocumentError | IntegrityError)


def test_a_tar_of_another_program_is_refused(small: bytes, tmp_path: Path) -> None:
    (tmp_path / "good.wpk").write_bytes(small)
    with tarfile.open(tmp_path / "good.wpk") as good, tarfile.open(tmp_path / "tar", "w") as other:
        for member in good.getmembers():
            other.addfile(member, good.extractfile(member))
    check_refused(tmp_path, (tmp_path / "tar").read_bytes())


# --- ends at any point


@pytest.mark.parametrize("moment", range(0, 40, 4))
def test_an_import_that_ends_anywhere_is_gone_on_with(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    bundle, count = bundled(locked, tmp_path / "site.wpk"), 0
    rename = durable.disk.rename

    class Ended(BaseException):
        pass

    def breaking(path: Path, new: Path) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise Ended
        rename(path, new)

    mirror = Mirror(tmp_path / "mirror")
    monkeypatch.setattr(durable.disk, "rename", breaking)
    with suppress(Ended):
        import_bundle([bundle], mirror, None, Silence())
    if (mirror.directory / CONTENTS).exists():  # it is written last
        assert verify(mirror, Silence()) == []
    monkeypatch.setattr(durable.disk, "rename", rename)
    import_bundle([bundle], Mirror(tmp_path / "mirror"), None, Silence())
    assert verify(mirror, Silence()) == []


@pytest.mark.parametrize("after_s", [0.2, 0.35, 0.5])
def test_a_killed_import_is_gone_on_with(locked: Project, tmp_path: Path, after_s: float) -> None:
    bundle = bundled(locked, tmp_path / "site.wpk")
    line = [sys.executable, "-m", "weightpkg", "-q", "bundle", "import", str(bundle)]
    process = subprocess.Popen([*line, "--into", str(tmp_path / "mirror")])
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    weightpkg("bundle", "import", bundle, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []


def test_a_create_that_fails_leaves_no_file(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    lose_sources(settings)
    error = refused("bundle", "create", locked.lockfile_path, "-o", tmp_path / "site.wpk")
    assert error.exit_code != 0
    assert not list(tmp_path.glob("site.wpk*"))


def test_a_damaged_store_is_not_carried(
    locked: Project, settings: Settings, tmp_path: Path
) -> None:
    [record] = installed_in(settings.home, locked)
    path = settings.store().blob_path(record.files[0].sha256)
    path.chmod(0o644)
    path.write_bytes(flipped(path.read_bytes()))
    error = refused("bundle", "create", locked.lockfile_path, "-o", tmp_path / "site.wpk")
    assert isinstance(error, IntegrityError)
    assert not list(tmp_path.glob("site.wpk*"))


def test_a_full_disk_is_one_clean_error(locked: Project, tmp_path: Path) -> None:
    bundle, directory = bundled(locked, tmp_path / "site.wpk"), tmp_path / "mirror"
    with mounted(directory, "size=160k"):
        assert isinstance(refused("bundle", "import", bundle, "--into", directory), StoreError)
        assert not (directory / "mirror.toml").exists()
        error = refused("bundle", "create", locked.lockfile_path, "-o", directory / "a.wpk")
        assert isinstance(error, StoreError)
        enlarge(directory)
        weightpkg("bundle", "import", bundle, "--into", directory)
        assert verify(Mirror(directory), Silence()) == []


# --- headers


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("a", 0),
        ("a/" + "b" * 98, 1),
        ("models/" + "a" * 64 + "/model.onnx.data", 8**11 - 1),
        ("index/default/targets/models/" + "a" * 64 + ".name.toml", 5),
        ("a" * 60 + "/" + "b" * 150, 7),
        ("a/" * 200 + "b", 7),
        ("blobs/x", 8**11),
        ("blobs/x", 2**40),
        ("c" * 180, 2**40),
    ],
)
def test_headers_are_what_tar_reads(path: str, size: int) -> None:
    with tarfile.open(fileobj=io.BytesIO(header(path, size) + bytes(2 * BLOCK))) as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.mtime, member.isreg()) == (path, size, 0, True)


def test_the_contents_that_are_read_are_those_that_were_written(
    small: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "small.wpk"
    path.write_bytes(small)
    with Bundle([path]) as bundle:
        document = dump_contents(bundle.contents)
    assert read_contents(document, source="x") == bundle.contents


def test_weightpkg_itself_comes_along(
    locked: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "weightpkg-1-py3-none-any.whl"
    wheel.write_bytes(b"a wheel")
    monkeypatch.setattr("weightpkg.cli.bundle.create.gather_wheels", lambda *_: [wheel])
    path = bundled(locked, tmp_path / "site.wpk", "--with-wheels")
    with tarfile.open(path) as archive:
        assert f"wheels/{wheel.name}" in archive.getnames()
    weightpkg("bundle", "import", path, "--into", tmp_path / "mirror")
    assert verify(Mirror(tmp_path / "mirror"), Silence()) == []


def test_sizes_are_read(locked: Project, tmp_path: Path) -> None:
    words = ["bundle", "create", str(locked.lockfile_path), "-o", str(tmp_path / "a")]
    for text in ("", "x", "-1", "10", "1.5G", "9" * 30):
        assert CliRunner().invoke(cli, [*words, "--volume-size", text]).exit_code == 2
