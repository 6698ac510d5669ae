"""Commands that tests break off, what must hold of a store however they end, and counts of that."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import tomli
from blake3 import blake3

from factories import index_page
from tiny_checkpoint import TinyCheckpoint
from weightpkg.convert import Job
from weightpkg.convert.child_worker import load_work
from weightpkg.convert.directory import Conversion
from weightpkg.install import install, plan_install
from weightpkg.progress import Progress, Silence
from weightpkg.repair import make_find_file, repair
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.retention import Policy, collect, uninstall
from weightpkg.settings import Settings
from weightpkg.store import MANIFEST, Installed, Store, tree_digest
from weightpkg.verify import verify

LARGE_SIZE = 9 * 1024 * 1024
"""Bytes of `large-raw`: two whole chunks, and a part of one."""

_MONTH_S = 30 * 24 * 60 * 60


def is_thorough() -> bool:
    """Whether all places are tried, and not only some that are spread among them."""
    return bool(os.environ.get("WEIGHTPKG_THOROUGH"))


def report(what: str, injected: int, lost: int) -> None:
    """Add a line of JSON to the file that WEIGHTPKG_DURABILITY_REPORT names, if it does."""
    if path := os.environ.get("WEIGHTPKG_DURABILITY_REPORT"):
        line = json.dumps({"what": what, "injected": injected, "lost": lost}) + "\n"
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write(line)


def convert_here(job: Job, directory: Path, progress: Progress) -> Conversion:
    """Convert in this process instead of a child, where a disk that fails or kills is seen as well."""
    with load_work(job.form)(job) as prepared:
        return prepared.convert(directory, progress)


def add_large(settings: Settings) -> None:
    """Give the index a model `large` of three chunks, which is not converted."""
    path = settings.index_dir / "large-raw.gguf"
    path.write_bytes(b"".join(bytes([i % 251]) * 65536 for i in range(LARGE_SIZE // 65536)))
    page = index_page("large", {"raw": [path]})
    (settings.index_dir / "models" / "large.toml").write_text(page)


def add_checkpoint(settings: Settings) -> None:
    """Give the index a model `vectors` of several files, whose weights are used in place."""
    source = TinyCheckpoint.read("bert").write(settings.index_dir / "vectors")
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    page = index_page(
        "vectors", {"f32": paths}, architecture="bert", form="safetensors", below="vectors"
    )
    (settings.index_dir / "models" / "vectors.toml").write_text(page)


def put_model(settings: Settings, name: str, *, allow_conversion: bool = True) -> Installed:
    """Install a model as the command does."""
    store = settings.store()
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        resolved = resolve(Requirement.parse(name), settings.index())
        plan = plan_install(resolved, store, allow_conversion=allow_conversion)
        return install(plan, store, fetcher)


def repair_all(settings: Settings) -> None:
    """Verify and repair as the command does; the first error is raised."""
    store = settings.store()
    with store.use(), settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        find_file = make_find_file(store, settings.index())
        for done in repair(verify(store, Silence()), store, fetcher, find_file):
            if done.error:
                raise done.error


def collect_all(settings: Settings, *, drop_sources: bool = False) -> None:
    """Remove what nothing needs, as the command would in a month."""
    store = settings.store()
    with store.use_alone():
        collect(store, Policy(now=time.time() + _MONTH_S, drop_sources=drop_sources))


def remove_model(settings: Settings, name: str) -> None:
    """Uninstall a model if it is there."""
    store = settings.store()
    uninstall(store, [record for record in store.installed() if record.full_name == name])


def damage(path: Path) -> None:
    """Change a byte in the middle of a file."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    path.chmod(0o444)


def find(settings: Settings, name: str) -> Installed | None:
    """The record of an installed model."""
    found = (record for record in settings.store().installed() if record.full_name == name)
    return next(found, None)


def check_store(root: Path, damaged: Collection[str] = ()) -> None:
    """Assert that whatever has its final name is whole, and whatever a record names is there.

    Args:
        root: of the store.
        damaged: names of blobs and conversions that were damaged on purpose.
    """
    marker = root / "layout"
    assert not marker.exists() or marker.read_bytes() == b"1\n"
    for path in root.glob("blobs/sha256/*/*"):
        _check_blob(path, damaged)
    for path in root.glob("models/*"):
        if path.name not in damaged:
            _check_model(path)
    store = Store(root)
    for record in store.installed():
        assert all(store.blob(file.sha256) for file in record.files if file.is_kept), record
        if record.conversion and record.conversion not in damaged:
            assert tree_digest(store.model_path(record.conversion)) == record.tree, record


def _check_blob(path: Path, damaged: Collection[str]) -> None:
    name = path.name.removesuffix(".chunks")
    if name != path.name:
        assert Store.read_chunks(path).sha256.hex == name
    elif name not in damaged:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == name
        assert path.stat().st_mode & 0o777 == 0o444


def _check_model(directory: Path) -> None:
    rows = tomli.loads((directory / MANIFEST).read_text("utf-8"))["files"]
    assert {path.name for path in directory.iterdir()} == {MANIFEST, *(r["path"] for r in rows)}
    for row in rows:
        path = directory / row["path"]
        assert blake3(path.read_bytes()).hexdigest() == row["blake3"], path
        assert path.stat().st_mode & 0o777 == 0o444


def start(action: Callable[[], object]) -> int:
    """Do something in a child that then ends with 0, or prints its error and ends with 1."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        action()
        code = 0
    finally:
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def end(child: int) -> int:
    """Wait for a child; return its exit code, below 0 where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@dataclass(frozen=True, slots=True)
class Command:
    """A command to be broken off.

    prepare: makes the store that it starts from.
    run: does it; to be done again where it was broken off.
    is_done: whether the store is as it should be after it.
    damaged: names the blobs and conversions that `prepare` has damaged.
    """

    name: str
    prepare: Callable[[Settings], object]
    run: Callable[[Settings], object]
    is_done: Callable[[Settings], bool]
    damaged: Callable[[Settings], frozenset[str]] = lambda _: frozenset()

    def __str__(self) -> str:
        return self.name


def _fetch_large(settings: Settings) -> None:
    store = settings.store()
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        resolved = resolve(Requirement.parse("large-raw"), settings.index())
        fetcher.fetch(resolved.variant.files[0])


def _has_large(settings: Settings) -> bool:
    return any(p.stat().st_size == LARGE_SIZE for p in settings.home.glob("blobs/sha256/*/*"))


def _damage_large(settings: Settings) -> None:
    record = put_model(settings, "large-raw", allow_conversion=False)
    damage(settings.store().blob_path(record.files[0].sha256))


def _damage_model(settings: Settings) -> None:
    record = put_model(settings, "tiny-q4")
    directory = settings.store().model_path(record.conversion or "")
    damage(directory / "model.onnx.data")
    (directory / "tokenizer.json").unlink()
    (directory / "unheard-of").write_text("")


def _damage_weights(settings: Settings) -> None:
    record = put_model(settings, "vectors-f32")
    (weights,) = (file.sha256 for file in record.files if file.path == "model.safetensors")
    damage(settings.store().blob_path(weights))


def _all_names(settings: Settings) -> frozenset[str]:
    (record,) = settings.store().installed()
    return frozenset({file.sha256.hex for file in record.files} | {record.conversion or ""})


def _is_sound(settings: Settings) -> bool:
    return verify(settings.store(), Silence()) == []


def _leave_things(settings: Settings) -> None:
    """Have one of each thing that may go: blob, conversion, partial, quarantine."""
    store = settings.store()
    put_model(settings, "tiny-q4")
    store.forget(put_model(settings, "tiny-q8"))
    (settings.home / "partial").mkdir(exist_ok=True)
    (settings.home / "partial" / ("a" * 64)).write_bytes(b"weights")
    (settings.home / "partial" / f"{'a' * 64}.journal").write_bytes(b"\n")
    bad = settings.home / "tmp" / "bad"
    bad.write_bytes(b"damaged")
    store.set_aside(bad)


def _is_collected(settings: Settings) -> bool:
    places = ("blobs/sha256/*/*", "partial/*", "quarantine/*")
    return not any(path for place in places for path in settings.home.glob(place))


def _put_both(settings: Settings) -> None:
    for name in ("tiny-q4", "tiny-q8"):
        put_model(settings, name)


COMMANDS = [
    Command(
        "install",
        lambda _: None,
        lambda settings: put_model(settings, "tiny-q4"),
        lambda settings: find(settings, "tiny-q4") is not None,
    ),
    Command(
        "install a checkpoint",
        lambda _: None,
        lambda settings: put_model(settings, "vectors-f32"),
        lambda settings: find(settings, "vectors-f32") is not None,
    ),
    Command(
        "install --no-convert",
        lambda settings: put_model(settings, "tiny-q8"),
        lambda settings: put_model(settings, "tiny-q4", allow_conversion=False),
        lambda settings: find(settings, "tiny-q4") is not None,
    ),
    Command("fetch", lambda _: None, _fetch_large, _has_large),
    Command("repair a blob", _damage_large, repair_all, _is_sound, _all_names),
    Command("repair a model", _damage_model, repair_all, _is_sound, _all_names),
    Command("repair weights in place", _damage_weights, repair_all, _is_sound, _all_names),
    Command(
        "uninstall",
        _put_both,
        lambda settings: remove_model(settings, "tiny-q4"),
        lambda settings: find(settings, "tiny-q4") is None,
    ),
    Command(
        "gc",
        _leave_things,
        lambda settings: collect_all(settings, drop_sources=True),
        _is_collected,
    ),
]


def copy_tree(source: Path, target: Path) -> None:
    """Copy a store; a file that has several names in it has them in the copy."""
    copied: dict[int, str] = {}

    def copy(path: str, new: str) -> None:
        first = copied.setdefault(Path(path).stat().st_ino, new)
        if first == new:
            shutil.copy2(path, new)
        else:
            os.link(first, new)

    shutil.copytree(source, target, copy_function=copy)


@dataclass(frozen=True, slots=True)
class Bench:
    """Runs a command again and again, each time from the same store."""

    command: Command
    settings: Settings
    start: Path
    damaged: frozenset[str]

    @classmethod
    def build(cls, command: Command, settings: Settings) -> Bench:
        """Make the store that a command starts from, and do it once, so that all is imported."""
        add_large(settings)
        add_checkpoint(settings)
        settings.home.mkdir()
        command.prepare(settings)
        start = settings.home.with_name("start")
        copy_tree(settings.home, start)
        damaged = command.damaged(settings)
        command.run(settings)
        assert command.is_done(settings)
        return cls(command, settings, start, damaged)

    def reset(self) -> None:
        """Have the store as it is before the command."""
        shutil.rmtree(self.settings.home)
        copy_tree(self.start, self.settings.home)

    def check(self, *, is_acknowledged: bool) -> None:
        """Assert that nothing is half done, and that the command can be done now."""
        check_store(self.settings.home, self.damaged)
        assert not is_acknowledged or self.command.is_done(self.settings)
        self.command.run(self.settings)
        assert self.command.is_done(self.settings)
        check_store(self.settings.home)
        assert verify(self.settings.store(), Silence()) == []
        with self.settings.store().use():  # sweeps, as it is alone
            left = [p for name in ("tmp", "trash") for p in self.settings.home.glob(f"{name}/*")]
        assert left == []
