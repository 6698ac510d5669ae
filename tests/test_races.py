"""Many processes on one store: no error, nothing wrong, and nothing fetched twice."""

from __future__ import annotations

import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from durability import report
from factories import index_page
from http_server import Site, serve
from weightpkg.errors import NotInstalledError
from weightpkg.install import install, plan_install
from weightpkg.progress import Silence
from weightpkg.reference import matching
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.retention import Policy, collect, uninstall
from weightpkg.settings import Settings
from weightpkg.verify import verify

N_PROCESSES = 8
N_ROUNDS = 200
KEPT = ("a-q4", "b-q4")
COMING_AND_GOING = ("c-q4", "d-q4", "e-q4")


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture
def shared(site: Site, tmp_path: Path) -> Settings:
    """Five models on a server; `e` shares its file with `d`."""
    index = tmp_path / "index"
    (index / "models").mkdir(parents=True)
    for i, name in enumerate("abcde"):
        content = bytes([min(i, 3)]) * 100_000
        (index / f"{name}.gguf").write_bytes(content)
        site.files[f"/{name}.gguf"] = content
        page = index_page(name, {"q4": [index / f"{name}.gguf"]})
        page = page.replace(f"file:{name}.gguf", f"{site.url}/{name}.gguf")
        assert site.url in page
        (index / "models" / f"{name}.toml").write_text(page)
    environ = {"WEIGHTPKG_HOME": str(tmp_path / "store"), "WEIGHTPKG_INDEX": str(index)}
    return Settings.from_environment(environ)


def work(settings: Settings, seed: int) -> None:
    """Do what many users do, in any order."""
    chooser = random.Random(seed)
    store = settings.store()
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        for _ in range(N_ROUNDS):
            what = chooser.choice(["install"] * 4 + ["verify", "collect", "uninstall", "uninstall"])
            name = chooser.choice(KEPT + COMING_AND_GOING)
            if what == "install":
                resolved = resolve(Requirement.parse(name), settings.index())
                install(plan_install(resolved, store, allow_conversion=False), store, fetcher)
            elif what == "verify":
                with store.use():
                    assert verify(store, Silence()) == []
            elif what == "collect":
                with store.use_alone():
                    collect(store, Policy(now=2**40, grace_s=0))
            elif name in COMING_AND_GOING:
                try:
                    uninstall(store, matching(name, store.installed()))
                except NotInstalledError:
                    continue


def fork(settings: Settings, seed: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        work(settings, seed)
    except BaseException:  # noqa: BLE001  the child ends here, whatever happens
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def test_eight_processes_share_a_store(shared: Settings, site: Site) -> None:
    children = [fork(shared, seed) for seed in range(N_PROCESSES)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    report("rounds of eight processes on one store", N_PROCESSES * N_ROUNDS, sum(map(bool, codes)))
    assert codes == [0] * N_PROCESSES
    store = shared.store()
    assert verify(store, Silence()) == []
    downloads = Counter(site.paths())
    assert [downloads[f"/{name[0]}.gguf"] for name in KEPT] == [1, 1]
    with store.use_alone():
        collect(store, Policy(now=2**40, grace_s=0))
    needed = {file.sha256.hex for record in store.installed() for file in record.files}
    blobs = (store.root / "blobs" / "sha256").glob("*/*")
    assert {path.name.removesuffix(".chunks") for path in blobs} == needed
    assert not list((store.root / "tmp").iterdir())
