"""Power cuts: whatever the disk had not been told to keep may be lost, and nothing promised is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import tomli
from blake3 import blake3

from durability import add_checkpoint, report
from power_cut import CrashState, Event, RecordingDisk, Tree, crash_states
from weightpkg import files
from weightpkg.install import install, plan_install
from weightpkg.progress import Silence
from weightpkg.repair import make_find_file, repair
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.retention import Policy, collect, uninstall
from weightpkg.settings import Settings
from weightpkg.verify import verify

N_STATES = 100_000 if os.environ.get("WEIGHTPKG_THOROUGH") else 20_000


def scenario(settings: Settings, disk: RecordingDisk, more: Sequence[str]) -> None:
    """Everything that changes a store; each step is promised once it has returned."""
    store = settings.store()
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())

        def put(name: str, *, allow_conversion: bool = True) -> None:
            resolved = resolve(Requirement.parse(name), settings.index())
            plan = plan_install(resolved, store, allow_conversion=allow_conversion)
            install(plan, store, fetcher)
            disk.ack(f"installed {name}")

        put("tiny-q4")
        put("tiny-q8", allow_conversion=False)
        for name in more:
            put(name)
        damage(settings, disk)
        with store.use():
            done = repair(
                verify(store, Silence()), store, fetcher, make_find_file(store, settings.index())
            )
        assert done
        assert all(each.error is None for each in done)
        disk.ack("repaired")
        with store.use_alone():
            collect(store, Policy(now=0.0, drop_sources=True))
        disk.ack("collected")
        uninstall(store, [r for r in store.installed() if r.variant == "q8"])
        disk.ack("uninstalled tiny-q8")
        put("tiny-q8")


def damage(settings: Settings, disk: RecordingDisk) -> None:
    """Flip a bit of a blob and of a converted file, as a bad disk does: silently, and durably."""
    store = settings.store()
    (record,) = [r for r in store.installed() if r.variant == "q4"]
    paths = [
        store.blob_path(record.files[0].sha256),
        store.model_path(record.conversion or "") / "model.onnx",
    ]
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        path.chmod(0o444)
        disk.note(path)


def record(settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str) -> Sequence[Event]:
    """Do everything on a disk with clones or without, with a model of several files or without."""
    add_checkpoint(settings)
    disk = RecordingDisk(settings.home.parent, has_clones=kind == "clones")
    monkeypatch.setattr(files, "disk", disk)
    scenario(settings, disk, [] if kind == "single files" else ["vectors-f32"])
    return disk.events


@cache
def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def blake3_of(content: bytes) -> str:
    return blake3(content).hexdigest()


@cache
def toml(content: bytes) -> dict[str, object]:
    return tomli.loads(content.decode())


def violations(state: CrashState) -> list[str]:
    """What is broken after a cut. Damage that the scenario does is repaired before it counts."""
    tree = {
        path.removeprefix("store/"): c
        for path, c in state.tree.items()
        if path.startswith("store/")
    }
    found = []
    records = {path: c for path, c in tree.items() if path.startswith("installed/")}
    if records and tree.get("layout") != b"1\n":
        found.append("the layout is lost")
    for path, content in records.items():
        try:
            found += [f"{path}: {fault}" for fault in faults_of(toml(content), tree)]
        except (ValueError, KeyError):
            found.append(f"{path} cannot be read")
    for path, content in tree.items():
        name = path.rpartition("/")[2]
        if path.startswith("blobs/") and len(name) == 64 and sha256(content) != name:
            found.append(f"{path} is wrong")
    return found + broken_promises(state, records)


def broken_promises(state: CrashState, records: Tree) -> list[str]:
    """What was promised and is not so, but for what was just being done."""
    there = {f"{path.split('/')[1]}-{Path(path).stem}" for path in records}
    last = {words.split()[1]: words.split()[0] for words in state.acked if " " in words}
    return [
        f"{name} was {what}, and it is {'there' if name in there else 'lost'}"
        for name, what in last.items()
        if (what == "installed") != (name in there) and not state.doing.endswith(name)
    ]


def faults_of(record: dict[str, object], tree: Tree) -> list[str]:
    found = []
    for file in record["files"]:  # type: ignore[attr-defined]
        blob = f"blobs/sha256/{file['sha256'][:2]}/{file['sha256']}"
        if file.get("dropped"):
            continue
        if blob not in tree:
            found.append("points at a blob that is not there")
        elif b"chunks" not in tree.get(f"{blob}.chunks", b""):
            found.append("has a blob without its chunks")
    if "conversion" in record:
        directory = f"models/{record['conversion']}"
        manifest = tree.get(f"{directory}/weightpkg.toml", b"")
        if sha256(manifest) != record["tree"]:
            return [*found, "points at a model that is not there"]
        found += [
            f"has a model whose {row['path']} is wrong"
            for row in toml(manifest)["files"]  # type: ignore[attr-defined]
            if blake3_of(tree.get(f"{directory}/{row['path']}", b"")) != row["blake3"]
        ]
    return found


def after_damage(events: Sequence[Event]) -> range:
    """The events between the damage and the end of its repair, when wrong bytes are no wonder."""
    acks = [i for i, e in enumerate(events) if e.kind == "ack"]
    repaired = next(n for n, i in enumerate(acks) if events[i].data == b"repaired")
    return range(acks[repaired - 1], acks[repaired])


def check(
    events: Sequence[Event], *, per_point: int, stops_early: bool = False
) -> tuple[int, list[str]]:
    """Return how many different states there were, and what was broken in them."""
    damaged = after_damage(events)
    seen: set[int] = set()
    found: list[str] = []
    for state in crash_states(events, seed=7, per_point=per_point):
        if state.at in damaged:
            continue
        seen.add(hash((state.at, frozenset(state.tree.items()))))
        found += violations(state)
        if found and stops_early:
            break
    return len(seen), found


@pytest.mark.parametrize("kind", ["clones", "hard links"])
def test_no_power_cut_loses_anything(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    events = record(settings, monkeypatch, kind)
    n_states, found = check(events, per_point=max(50, 4 * N_STATES // len(events)))
    report("power cuts", injected=n_states, lost=len(found))
    assert found == []
    assert n_states >= N_STATES


def test_each_fsync_is_needed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    # of a model of several files: the directory of blobs is synced for each, and the last would do
    events = record(settings, monkeypatch, "single files")
    noted = after_damage(events)[:5]  # the damage itself: a content and an fsync for each file
    syncs = [i for i, event in enumerate(events) if event.kind == "fsync" and i not in noted]
    needless = []
    for i in syncs:
        without = [*events[:i], Event("content", -1), *events[i + 1 :]]
        _, found = check(without, per_point=90, stops_early=True)
        if not found:
            needless.append(i)
    report("fsyncs removed one at a time, and noticed", injected=len(syncs), lost=len(needless))
    assert needless == []
