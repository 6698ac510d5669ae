"""Any order of any work, damage and sudden ends, against a model that is two dictionaries."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from durability import report
from factories import index_page
from weightpkg import files
from weightpkg.install import install, plan_install
from weightpkg.progress import Silence
from weightpkg.reference import matching
from weightpkg.repair import make_find_file, repair
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.retention import Policy, collect, uninstall
from weightpkg.settings import Settings
from weightpkg.store import Store
from weightpkg.verify import verify

FAR_FUTURE = 2.0**40


class Killed(BaseException):
    """The process ends here; nothing of it may run after this."""


class MortalDisk(files.Disk):
    """Ends the process at the nth call, and lets nothing happen after that."""

    def __init__(self, n: int) -> None:
        self._left = n

    def __getattribute__(self, name: str) -> object:
        if name.startswith("_"):
            return super().__getattribute__(name)
        self._left -= 1
        if self._left < 0:
            raise Killed
        return super().__getattribute__(name)


class StoreMachine(RuleBasedStateMachine):
    """A store, an index of files beside it, and what should be in both."""

    names = Bundle("names")
    n_steps = 0

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        (self.directory / "index" / "models").mkdir(parents=True)
        home, index = str(self.directory / "store"), str(self.directory / "index")
        self.settings = Settings.from_environment(
            {"WEIGHTPKG_HOME": home, "WEIGHTPKG_INDEX": index, "WEIGHTPKG_NO_ADOPT": "1"}
        )
        self.published: dict[str, bytes] = {}
        self.installed: dict[str, bytes] = {}
        self.unsure: set[str] = set()
        self.is_damaged = False

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    @property
    def store(self) -> Store:
        return self.settings.store()

    @rule(target=names, content=st.integers(0, 5), number=st.integers(0, 4))
    def publish(self, content: int, number: int) -> str:
        name = f"model{number}"
        if name in self.published:
            return name
        path = self.settings.index_dir / f"{name}.gguf"
        path.write_bytes(random.Random(content).randbytes(10_000 * content + 1))
        self.published[name] = path.read_bytes()
        page = index_page(name, {"q4": [path]})
        (self.settings.index_dir / "models" / f"{name}.toml").write_text(page)
        return name

    @rule(name=names)
    def install(self, name: str) -> None:
        self._install(name)
        self.installed[name] = self.published[name]
        self.unsure.discard(name)

    def _install(self, name: str) -> None:
        resolved = resolve(Requirement.parse(name), self.settings.index())
        plan = plan_install(resolved, self.store, allow_conversion=False)
        with self.settings.sources(self.store) as sources:
            install(plan, self.store, self.settings.fetcher(sources, self.store, Silence()))

    @rule(name=names)
    def uninstall(self, name: str) -> None:
        if name in self.installed:
            self._uninstall(name)
            del self.installed[name]

    def _uninstall(self, name: str) -> None:
        records = matching(f"{name}-q4", self.store.installed())
        assert uninstall(self.store, records) is not None

    @rule()
    def collect(self) -> None:
        store = self.store
        with store.use_alone():
            collect(store, Policy(now=FAR_FUTURE, grace_s=0))
        needed = {file.sha256.hex for record in store.installed() for file in record.files}
        there = {path.name for path in (store.root / "blobs").rglob("*") if path.is_file()}
        assert {name for name in there if not name.endswith(".chunks")} <= needed

    @rule(what=st.sampled_from(["flip", "cut", "delete", "mode"]), seed=st.integers(0, 100))
    def damage(self, what: str, seed: int) -> None:
        blobs = sorted(p for p in (self.settings.home / "blobs").rglob("*") if p.is_file())
        if not blobs:
            return
        self.is_damaged = True
        path = blobs[seed % len(blobs)]
        path.chmod(0o666)
        if what == "delete":
            path.unlink()
        elif what != "mode":
            content = path.read_bytes()
            path.write_bytes(
                content[:-1] if what == "cut" else bytes([content[0] ^ 1]) + content[1:]
            )

    @rule()
    def repair(self) -> None:
        store = self.store
        with self.settings.sources(store) as sources, store.use():
            fetcher = self.settings.fetcher(sources, store, Silence())
            find = make_find_file(store, self.settings.index())
            done = repair(verify(store, Silence()), store, fetcher, find)
        needed = [each for each in done if each.problem.models]
        assert [each.error for each in needed if each.error] == []
        # what nothing installed needs may be beyond repair, and is collected
        self.collect()
        assert verify(store, Silence()) == []
        self.is_damaged = False

    @rule(name=names, what=st.sampled_from(["install", "uninstall"]), at=st.integers(0, 25))
    def end_suddenly(self, name: str, what: str, at: int) -> None:
        if what == "uninstall" and name not in self.installed:
            return
        try:
            with mortal(at):
                self._install(name) if what == "install" else self._uninstall(name)
        except Killed:
            self.unsure.add(name)
        names = {record.name for record in self.store.installed()}
        if name in names:
            self.installed[name] = self.published[name]
        elif what == "install" and name in self.installed:
            raise AssertionError(f"{name} was lost by an installation")
        else:
            self.installed.pop(name, None)

    @invariant()
    def agrees_with_the_model(self) -> None:
        if not hasattr(self, "settings"):
            return
        StoreMachine.n_steps += 1
        store = self.store
        assert {record.name for record in store.installed()} == set(self.installed)
        if self.is_damaged:
            return
        for record in store.installed():
            blob = store.blob(record.files[0].sha256)
            assert blob is not None
            assert blob.read_bytes() == self.installed[record.name]
        assert [problem for problem in verify(store, Silence()) if problem.models] == []


@contextmanager
def mortal(n: int) -> Iterator[None]:
    """Let the nth change of the disk be the last."""
    disk = files.disk
    files.disk = MortalDisk(n)
    try:
        yield
    finally:
        files.disk = disk


def test_any_order_of_anything_agrees_with_the_model() -> None:
    StoreMachine.n_steps = 0
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=1000 if os.environ.get("WEIGHTPKG_THOROUGH") else 150,
            stateful_step_count=30,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    report("steps of a state machine, in any order", StoreMachine.n_steps, 0)
    assert StoreMachine.n_steps > 1000
