"""The store: complete or not there at all, whatever happens."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.version import Version

from weightpkg import files
from weightpkg.digest import CHUNK_SIZE, Digest, Fingerprint, Hasher
from weightpkg.errors import StoreError
from weightpkg.requirement import normalize_name
from weightpkg.retention import Policy, collect, plan_collection, uninstall
from weightpkg.store import Installed, InstalledFile, Store, disk_usage, tree_digest

CONTENT = b"weights" * 1000


def fingerprint(content: bytes) -> Fingerprint:
    hasher = Hasher()
    hasher.update(content)
    return hasher.finish()


def put(store: Store, content: bytes) -> Fingerprint:
    with store.use(), store.new_file() as new:
        new.write(content)
        store.publish(new, fingerprint(content))
    return fingerprint(content)


def installed(store: Store, name: str, content: bytes, key: str | None = None) -> Installed:
    found = put(store, content)
    tree = None
    if key is not None:
        if store.model(key) is None:
            with store.new_model(key) as directory:
                (directory / "weightpkg.toml").write_text("schema = 1\n")
        tree = tree_digest(store.model_path(key))
    record = Installed(
        name=normalize_name(name),
        version=Version("1.0"),
        variant=normalize_name("q4"),
        files=(InstalledFile("m.gguf", found.size, found.sha256, found.blake3),),
        conversion=key,
        tree=tree,
    )
    store.record(record)
    return record


def everything(store: Store) -> list[str]:
    """All files but the marker and the locks."""
    paths = (path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file())
    return sorted(str(path) for path in paths if path.parts[0] not in {"layout", "locks"})


def test_a_blob_is_read_only_and_known_by_its_parts(store: Store) -> None:
    content = os.urandom(CHUNK_SIZE + 1)
    found = put(store, content)
    path = store.blob(found.sha256)
    assert path is not None
    assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o444
    assert len(found.chunks) == 2
    assert store.fingerprint(found.sha256) == found == fingerprint(content)


def test_what_is_not_committed_leaves_nothing(store: Store) -> None:
    with store.new_file() as new:
        new.write(CONTENT)
    assert everything(store) == []


def test_a_lost_chunk_list_makes_the_blob_unknown_and_not_wrong(store: Store) -> None:
    found = put(store, CONTENT)
    path = store.blob_path(found.sha256)
    path.with_name(path.name + ".chunks").unlink()
    assert store.fingerprint(found.sha256) is None
    assert put(store, CONTENT) == found == store.fingerprint(found.sha256)


def commit_many(root: Path, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    for i in range(20):
        put(Store(root), b"%d" % i * 1000)


def test_eight_processes_may_make_the_same_blobs(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(8)
    processes = [context.Process(target=commit_many, args=(tmp_path, barrier)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert len(everything(Store(tmp_path))) == 40


def stop(writer: int) -> None:
    """Say that this process is where it shall be, and wait to be killed."""
    os.write(writer, b"x")
    signal.pause()


@pytest.mark.parametrize("place", ["write", "publish"])
def test_a_kill_leaves_a_store_that_works(store: Store, place: str) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with store.new_file() as new:
            new.write(CONTENT)
            if place == "publish":
                setattr(files.NewFile, "publish", lambda *_, **__: stop(writer))  # noqa: B010  as a type checker would have it
                store.publish(new, fingerprint(CONTENT))
            stop(writer)
    os.read(reader, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    os.close(writer)
    assert store.blob(fingerprint(CONTENT).sha256) is None
    assert put(store, CONTENT) == fingerprint(CONTENT)


def test_leavings_are_swept_by_whoever_is_alone(tmp_path: Path) -> None:
    left = tmp_path / "tmp" / "left"
    left.mkdir(parents=True)
    with Store(tmp_path).use():
        assert not left.exists()
        left.mkdir()
        put(Store(tmp_path), CONTENT)
        assert left.exists()
    with Store(tmp_path).use_alone():
        assert not left.exists()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    program = """
        import resource, signal, sys
        from pathlib import Path
        from weightpkg.errors import StoreError
        from weightpkg.store import Store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        store = Store(Path(sys.argv[1]))
        store.temporary
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            with store.new_file() as new:
                new.write(bytes(250_000))
        except StoreError as error:
            print(error.hint)
            sys.exit(error.exit_code)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (6, "")
    assert "weightpkg gc" in done.stdout
    assert everything(Store(tmp_path)) == []


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "reports an error"),
        (errno.EMFILE, "too many files"),
    ],
)
def test_errors_of_the_system_say_path_and_reason(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, reason: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    put(store, b"before")
    with store.new_file() as new:
        monkeypatch.setattr(files.disk, "write", fail)
        with pytest.raises(StoreError, match=reason) as caught:
            new.write(CONTENT)
        monkeypatch.undo()
    assert str(store.root) in str(caught.value)
    assert len(everything(store)) == 2


def test_short_writes_lose_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.disk, "write", lambda fd, data: os.write(fd, data[:100]))
    assert store.blob_path(put(store, CONTENT).sha256).read_bytes() == CONTENT


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a letter")
    with pytest.raises(StoreError, match="store"):
        put(Store(tmp_path / "store"), CONTENT)
    assert (tmp_path / "store").read_text() == "a letter"


def test_a_store_of_another_layout_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "layout").write_text("2\n")
    with pytest.raises(StoreError, match="layout '2'") as caught:
        put(Store(tmp_path), CONTENT)
    assert "WEIGHTPKG_HOME" in (caught.value.hint or "")


def test_records_come_back_in_order(store: Store) -> None:
    b, a = installed(store, "b", b"1"), installed(store, "a", b"2", key="a" * 64)
    assert store.installed() == [a, b]
    assert store.find("a", "q4") == a
    assert store.find("a", "q4", Version("2")) is None


def test_a_broken_record_is_named(store: Store) -> None:
    installed(store, "a", b"1")
    path = store.root / "installed" / "a" / "1.0" / "q4.toml"
    path.write_text(path.read_text().replace("sha256", "sha512"))
    with pytest.raises(StoreError, match=r"q4\.toml.*files\[0\]") as caught:
        store.installed()
    assert "install the model again" in (caught.value.hint or "")


def test_uninstalling_keeps_what_others_need(store: Store) -> None:
    key = "a" * 64
    first, second = installed(store, "a", CONTENT, key), installed(store, "b", CONTENT, key)
    assert disk_usage(store, first) > len(CONTENT)
    assert uninstall(store, [first]) == 0
    assert store.blob(second.files[0].sha256)
    assert store.model(key)
    assert (uninstall(store, [second]) or 0) > len(CONTENT)
    assert everything(store) == []


def test_a_model_directory_is_there_whole_or_not_at_all(store: Store) -> None:
    key = "b" * 64
    with pytest.raises(RuntimeError), store.new_model(key) as directory:  # noqa: PT012  the error is in it
        (directory / "model.onnx").write_bytes(CONTENT)
        raise RuntimeError
    assert everything(store) == []
    for _ in range(2):  # the second is as good as the first, and goes
        with store.new_model(key) as directory:
            (directory / "model.onnx").write_bytes(CONTENT)
            (directory / "weightpkg.toml").write_text("schema = 1\n")
    path = store.model(key)
    assert path is not None
    assert (path / "model.onnx").stat().st_mode & 0o777 == 0o444
    assert len(everything(store)) == 2


@pytest.mark.parametrize("key", ["../" * 20, "A" * 64, "", "a" * 63])
def test_only_digests_become_paths(store: Store, key: str) -> None:
    with pytest.raises(ValueError, match="not"):
        store.model_path(key)
    with pytest.raises(ValueError, match="not"):
        Digest("sha256", key)


def test_a_lock_keeps_others_out(store: Store) -> None:
    digest = Digest("sha256", 64 * "1")
    program = (
        "import sys; from pathlib import Path; from weightpkg.store import Store;"
        "from weightpkg.digest import Digest\n"
        "with Store(Path(sys.argv[1])).lock(Digest('sha256', 64 * '1')): print('in')"
    )
    line = [sys.executable, "-c", program, str(store.root)]
    with store.lock(digest):
        other = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(1.0)
    assert other.communicate()[0] == "in\n"


def test_a_lease_that_is_being_made_is_left_by_who_only_looks(store: Store) -> None:
    lease = store.root / "leases" / "1.lease"  # which nobody has locked, or not yet
    lease.parent.mkdir(parents=True)
    lease.touch()
    plan_collection(store, Policy(now=0.0))
    assert lease.exists()
    with store.use_alone():
        collect(store, Policy(now=0.0))
    assert not lease.exists()


def test_what_is_uninstalled_while_it_is_listed_is_not_listed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = installed(store, "a", b"1")
    gone = store.record_path(installed(store, "b", b"2"))
    glob = Path.glob

    def globbed(self: Path, pattern: str) -> list[Path]:
        found = list(glob(self, pattern))
        gone.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(Path, "glob", globbed)
    assert store.installed() == [kept]
