"""Processes killed anywhere: what was acknowledged is there, nothing is half done, on it goes.

A kill ends a process and not the machine, so what it wrote is seen by the next; syncing is left out
where it would only take time. WEIGHTPKG_THOROUGH=1 kills more often.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from durability import (
    COMMANDS,
    Bench,
    add_large,
    check_store,
    collect_all,
    convert_here,
    damage,
    end,
    find,
    is_thorough,
    put_model,
    remove_model,
    repair_all,
    report,
    start,
)
from weightpkg import files
from weightpkg.progress import Silence
from weightpkg.retention import Policy, plan_collection
from weightpkg.settings import Settings
from weightpkg.verify import verify

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here"),
    # each child replaces nothing but itself: it runs one command and ends
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.timeout(3600 if is_thorough() else 120),
]

N_ROUNDS = 1000 if is_thorough() else 150  # two are killed in each
N_CLI = 300 if is_thorough() else 50
OWNERS = (("tiny-q4", "large-raw"), ("tiny-q8",))  # no two change the same model at once


class UnsyncedDisk(files.Disk):
    """A disk that takes no time to sync."""

    def fsync(self, descriptor: int) -> None:
        pass


class DeadlyDisk(files.Disk):
    """A disk that ends the process at its nth call to sync or rename, before or after it."""

    def __init__(self, n: int, *, is_after: bool) -> None:
        self._left = n
        self._is_after = is_after

    @staticmethod
    def _kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def fsync(self, descriptor: int) -> None:  # noqa: ARG002  nothing is synced
        self._left -= 1
        if not self._left:
            self._kill()

    def rename(self, path: Path, new: Path) -> None:
        self._left -= 1
        if not self._left and not self._is_after:
            self._kill()
        super().rename(path, new)
        if not self._left:
            self._kill()


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "disk", UnsyncedDisk())
    monkeypatch.setattr("weightpkg.convert.child.convert", convert_here)


@pytest.fixture
def bench(request: pytest.FixtureRequest, settings: Settings) -> Bench:
    return Bench.build(request.param, settings)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("bench", COMMANDS, ids=str, indirect=True)
def test_a_kill_at_every_sync_and_rename_loses_nothing(bench: Bench, moment: str) -> None:
    def act() -> None:
        files.disk = DeadlyDisk(n + 1, is_after=moment == "after")
        bench.command.run(bench.settings)

    n = 0
    while True:
        bench.reset()
        code = end(start(act))
        if code == 0:
            break
        assert code == -signal.SIGKILL
        n += 1
        bench.check(is_acknowledged=False)
    bench.check(is_acknowledged=True)
    assert n > 3
    report(f"kills {moment} sync or rename: {bench.command}", n, 0)


@dataclass
class Children:
    """Processes that change one store until they are killed, and what they have acknowledged.

    installed: whether a model is; None where somebody was killed while changing that.
    damaged: names of blobs and conversions that were damaged, and not repaired since.
    """

    settings: Settings
    installed: dict[str, bool | None] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    _reader: int = -1
    _writer: int = -1

    def run(self, seed: str, delay_s: float) -> int:
        """Start a child for each owner, and kill both after a while; return how many were."""
        self._reader, self._writer = os.pipe()
        children = [
            start(partial(self._work, names, random.Random(f"{seed} {names}"))) for names in OWNERS
        ]
        time.sleep(delay_s)
        for child in children:
            os.kill(child, signal.SIGKILL)
        assert [end(child) for child in children] == [-signal.SIGKILL] * len(children)
        os.close(self._writer)
        with open(self._reader, "rb") as stream:  # noqa: PTH123  a pipe has no path
            for line in stream.read().decode().splitlines():
                self._learn(*line.split())
        return len(children)

    def _say(self, *words: str) -> None:
        os.write(self._writer, (" ".join(words) + "\n").encode())

    def _work(self, names: tuple[str, ...], seeded: random.Random) -> None:
        actions = [self._install, self._install, self._uninstall, self._mend, self._tidy]
        while True:
            seeded.choice(actions)(seeded.choice(names))

    def _install(self, name: str) -> None:
        self._say("changes", name)
        put_model(self.settings, name, allow_conversion=name != "large-raw")
        self._say("installed", name)

    def _uninstall(self, name: str) -> None:
        self._say("changes", name)
        remove_model(self.settings, name)
        self._say("uninstalled", name)

    def _mend(self, name: str) -> None:
        record = find(self.settings, name)
        if record is not None:
            store, blob = self.settings.store(), record.files[0].sha256
            self._say("damaged", blob.hex)
            damage(store.blob_path(blob))
            repair_all(self.settings)
            self._say("repaired", blob.hex)

    def _tidy(self, _: str) -> None:
        store = self.settings.store()
        plan_collection(store, Policy(now=time.time()))  # as `gc --dry-run`, while others work
        collect_all(self.settings)
        with store.use():
            verify(store, Silence())

    def _learn(self, what: str, name: str) -> None:
        if what == "damaged":
            self.damaged.add(name)
        elif what == "repaired":
            self.damaged.discard(name)
        else:
            self.installed[name] = {"installed": True, "uninstalled": False}.get(what)

    def check(self) -> None:
        """Assert that nothing is lost, and make good what was damaged on purpose."""
        settings = self.settings
        check_store(settings.home, self.damaged)
        for name, is_installed in self.installed.items():
            is_there = find(settings, name) is not None
            assert is_installed in (None, is_there), name
            self.installed[name] = is_there
        if self.damaged:
            repair_all(settings)
            self.damaged.clear()
            check_store(settings.home)
        assert verify(settings.store(), Silence()) == []
        with settings.store().use():
            assert not [p for name in ("tmp", "trash") for p in settings.home.glob(f"{name}/*")]


def test_kills_at_random_moments_lose_nothing(settings: Settings) -> None:
    add_large(settings)
    put_model(settings, "tiny-q4")  # so that no child has to import anything
    seeded = random.Random(1)
    children = Children(settings)
    n_killed = 0
    for i in range(N_ROUNDS):
        n_killed += children.run(str(i), seeded.uniform(0, 0.12))
        children.check()
    for name in ("tiny-q4", "tiny-q8"):
        put_model(settings, name)
    children.installed.clear()
    children.check()
    report("kills at random moments", n_killed, 0)


def weightpkg(settings: Settings, *words: str) -> subprocess.Popen[bytes]:
    """Start the command line."""
    line = [sys.executable, "-m", "weightpkg", "--quiet", *words]
    environ = {**os.environ, **settings.environ}
    return subprocess.Popen(line, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def prepare(settings: Settings, words: tuple[str, ...]) -> None:
    """Have something to do for a command."""
    if words[0] == "install":
        remove_model(settings, words[-1])
    elif words[0] == "uninstall":
        put_model(settings, words[-1])


def test_kills_of_the_command_line_lose_nothing(settings: Settings) -> None:
    add_large(settings)
    begin = time.monotonic()
    assert weightpkg(settings, "install", "tiny-q4").communicate()[1] == b""
    whole_s = time.monotonic() - begin
    lines = [
        ("install", "tiny-q4"), ("install", "tiny-q8"), ("install", "--no-convert", "large-raw"),
        ("uninstall", "tiny-q4"), ("verify", "--repair"), ("gc", "--yes", "--sources"),
    ]  # fmt: skip
    seconds = dict.fromkeys(lines, whole_s)
    seeded = random.Random(2)
    n_killed = 0
    while n_killed < N_CLI:
        words = seeded.choice(lines)
        prepare(settings, words)
        begin = time.monotonic()
        process = weightpkg(settings, *words)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seeded.uniform(0.1, 1.0) * seconds[words])
            seconds[words] = time.monotonic() - begin
        process.kill()
        _, said = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), said.decode()
        n_killed += process.returncode != 0
        check_store(settings.home)
        if process.returncode == 0 and words[0] in ("install", "uninstall"):
            assert (find(settings, words[-1]) is None) == (words[0] == "uninstall")
    for words in (("install", "tiny-q4"), ("verify",)):
        process = weightpkg(settings, *words)
        assert (process.communicate()[1], process.returncode) == (b"", 0)
    report("kills of the command line", n_killed, 0)
