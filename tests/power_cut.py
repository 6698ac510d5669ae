"""What a disk may hold after a power cut: every change is recorded, and crash states are made of them.

The model is as weak as POSIX allows: what was written to a file since its last fsync may be there,
not at all, or in part; a name that was made, moved or removed since its directory's last fsync may
or may not have changed, each for itself and in any order; only a rename never loses both names. It
is that of ALICE (Pillai et al., OSDI 2014), without any file system's kindness.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from weightpkg import files

Kind = Literal["content", "fsync", "enter", "leave", "ack"]


@dataclass(frozen=True)
class Event:
    """One change. Paths are relative to the store's parent directory.

    content: `node` now holds `data`. fsync: `node` is durable. enter: `name` in directory `node` is
    `child`. leave: `name` in `node` is gone, and, after a rename, only if event `after` has
    happened. ack: whoever asked for `data` was told that it is done.
    """

    kind: Kind
    node: int = 0
    name: str = ""
    child: int = 0
    data: bytes = b""
    after: int = -1
    is_directory: bool = False


class RecordingDisk(files.Disk):
    """Changes the real disk, and records what it does below a directory.

    Where it has clones, these are copies, which shows all that there is to be seen.
    """

    def __init__(self, root: Path, *, has_clones: bool) -> None:
        self.root = root
        self._has_clones = has_clones
        self.events: list[Event] = []
        self._nodes: dict[Path, int] = {root: 0}
        self._n_nodes = 1
        self._seen: dict[int, bytes] = {}

    def ack(self, what: str) -> None:
        """Note that something was promised."""
        self.events.append(Event("ack", data=what.encode()))

    def note(self, path: Path) -> None:
        """Note that a file has another content, durably, that this disk did not write."""
        self._look(path)
        self.events.append(Event("fsync", self._node(path)))

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        self._enter(path)
        return descriptor

    def open(self, path: Path) -> int:
        is_new = not path.exists()
        descriptor = super().open(path)
        if is_new:
            self._enter(path)
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        size = super().write(descriptor, data)
        self._look(self._path(descriptor))
        return size

    def truncate(self, descriptor: int, size: int) -> None:
        super().truncate(descriptor, size)
        self._look(self._path(descriptor))

    def fsync(self, descriptor: int) -> None:
        super().fsync(descriptor)
        path = self._path(descriptor)
        if self._is_ours(path):
            node = self._node(path)
            self._look(path)
            self.events.append(Event("fsync", node))

    def rename(self, path: Path, new: Path) -> None:
        self._discover(path)
        super().rename(path, new)
        node = self._node(path)
        moved = {p: n for p, n in self._nodes.items() if p == path or path in p.parents}
        for old in moved:
            del self._nodes[old]
        self._nodes |= {new / old.relative_to(path): n for old, n in moved.items()}
        self.events.append(Event("enter", self._node(new.parent), new.name, node))
        entered = len(self.events) - 1
        self.events.append(Event("leave", self._node(path.parent), path.name, after=entered))

    def link(self, path: Path, new: Path) -> None:
        super().link(path, new)
        node = self._node(path)
        self._nodes[new] = node
        self.events.append(Event("enter", self._node(new.parent), new.name, node))

    def reflink(self, path: Path, new: Path) -> None:
        if not self._has_clones:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        shutil.copyfile(path, new)
        self._enter(new)
        self._look(new)

    def mkdir(self, path: Path) -> None:
        super().mkdir(path)
        self._enter(path)

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self._leave(path)

    def rmdir(self, path: Path) -> None:
        super().rmdir(path)
        self._leave(path)

    def _is_ours(self, path: Path) -> bool:
        return path == self.root or self.root in path.parents

    def _path(self, descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def _enter(self, path: Path) -> None:
        node = self._nodes[path] = self._n_nodes
        self._n_nodes += 1
        parent = self._node(path.parent)
        self.events.append(Event("enter", parent, path.name, node, is_directory=path.is_dir()))

    def _leave(self, path: Path) -> None:
        self._node(path)
        del self._nodes[path]
        self.events.append(Event("leave", self._node(path.parent), path.name))

    def _node(self, path: Path) -> int:
        if path not in self._nodes:
            self._enter(path)
        return self._nodes[path]

    def _discover(self, path: Path) -> None:
        """Note what was written below a path by others than this disk, as conversions are."""
        for file in [path, *sorted(path.rglob("*"))]:
            self._node(file)
            self._look(file)

    def _look(self, path: Path) -> None:
        """Note what a file holds now, if it is another content than before."""
        if not self._is_ours(path) or not path.is_file():
            return
        node, data = self._node(path), path.read_bytes()
        if self._seen.get(node) != data:
            self._seen[node] = data
            self.events.append(Event("content", node, data=data))


@dataclass
class _Node:
    """A file's contents, or a directory's names: what is durable, and what may or may not be."""

    is_directory: bool = False
    durable: bytes = b""
    current: bytes = b""
    names: dict[str, int] = field(default_factory=dict)


Tree = dict[str, bytes]
"""The files that are there after a cut, by their paths."""


@dataclass(frozen=True)
class CrashState:
    """A tree that a power cut may leave, what had been promised before it, and what was going on."""

    tree: Tree
    acked: tuple[str, ...]
    doing: str
    at: int


def crash_states(events: Sequence[Event], *, seed: int, per_point: int) -> Iterator[CrashState]:
    """Yield states that cuts after each event may leave.

    After each event: nothing pending has happened, all of it has, each single change has, all but
    each single change have, and some random subsets.

    Args:
        events: as recorded.
        seed: of the random subsets.
        per_point: how many states at most after each event.
    """
    chooser = random.Random(seed)
    nodes: dict[int, _Node] = {0: _Node(is_directory=True)}
    pending: list[int] = []  # the events of names that are not durable
    dirty: set[int] = set()  # the files whose content is not
    acked: list[str] = []
    promises = [event.data.decode() for event in events if event.kind == "ack"] + [""]
    for i, event in enumerate(events):
        node = nodes.setdefault(event.node, _Node())
        if event.kind == "content":
            node.current = event.data
            dirty.add(event.node)
        elif event.kind in ("enter", "leave"):
            pending.append(i)
            if event.is_directory:
                nodes[event.child] = _Node(is_directory=True)
        elif event.kind == "fsync":
            node.durable = node.current
            dirty.discard(event.node)
            for j in [j for j in pending if events[j].node == event.node]:
                _apply(events[j], nodes)
                pending.remove(j)
        else:
            acked.append(event.data.decode())
        for happened, whole in _choices(pending, sorted(dirty), per_point, chooser):
            tree = _tree(events, nodes, happened, whole, dirty, chooser)
            yield CrashState(tree, tuple(acked), promises[len(acked)], i)


def _choices(
    pending: list[int], dirty: list[int], most: int, chooser: random.Random
) -> Iterator[tuple[set[int], set[int]]]:
    """Yield which changes of names have happened, and which contents are whole."""
    everything = [*pending, *(-1 - node for node in dirty)]
    subsets = [set(everything), set()]
    singles = chooser.sample(everything, min(len(everything), most))
    for one in singles:
        subsets += [{one}, set(everything) - {one}]
    while len(subsets) < most and len(everything) > 2:
        subsets.append({one for one in everything if chooser.random() < 0.5})
    for subset in subsets[:most]:
        yield {one for one in subset if one >= 0}, {-1 - one for one in subset if one < 0}


def _apply(event: Event, nodes: dict[int, _Node]) -> None:
    names = nodes.setdefault(event.node, _Node()).names
    if event.kind == "enter":
        names[event.name] = event.child
    else:
        names.pop(event.name, None)


def _tree(
    events: Sequence[Event],
    nodes: dict[int, _Node],
    happened: set[int],
    whole: set[int],
    dirty: set[int],
    chooser: random.Random,
) -> Tree:
    names = {number: node.names for number, node in nodes.items()}
    for i in sorted(happened):
        event = events[i]
        if (
            event.after >= 0
            and event.after not in happened
            and not _is_durable(events, event, names)
        ):
            continue  # a rename may leave both names, and never none
        changed = dict(names.get(event.node, {}))
        if event.kind == "enter":
            changed[event.name] = event.child
        else:
            changed.pop(event.name, None)
        names[event.node] = changed

    def content(number: int) -> bytes:
        node = nodes.get(number, _Node())
        if number not in dirty or number in whole:
            return node.current
        return chooser.choice([node.durable, b"", node.current[: len(node.current) // 2]])

    tree: Tree = {}

    def walk(number: int, prefix: str) -> None:
        for name, child in names.get(number, {}).items():
            if child in nodes and nodes[child].is_directory:
                walk(child, f"{prefix}{name}/")
            else:
                tree[f"{prefix}{name}"] = content(child)

    walk(0, "")
    return tree


def _is_durable(events: Sequence[Event], leave: Event, names: dict[int, dict[str, int]]) -> bool:
    entered = events[leave.after]
    return names.get(entered.node, {}).get(entered.name) == entered.child
