"""Damage of every kind, to every kind of file: all of it is found, and all of it is made good."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from durability import report
from factories import index_page, tiny_llama
from http_server import Site, serve
from weightpkg.digest import CHUNK_SIZE, fingerprint_file
from weightpkg.errors import StoreError
from weightpkg.install import install, plan_install
from weightpkg.progress import Silence
from weightpkg.repair import Repaired, make_find_file, repair
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings
from weightpkg.verify import Problem, verify

ROUNDS = 10
A_ROUND = {"flip": 20, "delete": 5, "cut": 5, "mode": 2}  # 320 in all


@pytest.fixture
def site() -> Iterator[Site]:
    with serve() as site:
        yield site


@pytest.fixture
def many(settings: Settings, site: Site) -> Settings:
    """Two converted models, and forty files of many sizes that are kept as they are."""
    chooser = random.Random(1)
    paths = []
    for i in range(40):
        path = settings.index_dir / f"part{i}.gguf"
        path.write_bytes(chooser.randbytes(chooser.choice([1, 1000, 300_000])))
        paths.append(path)
    large = settings.index_dir / "large.gguf"
    large.write_bytes(chooser.randbytes(3 * CHUNK_SIZE + 5))
    page = index_page("files", {"q4": [*paths, large]}).replace(
        "file:large.gguf", f"{site.url}/large.gguf"
    )
    site.files["/large.gguf"] = large.read_bytes()
    (settings.index_dir / "models" / "files.toml").write_text(page)
    for name in ("tiny-q4", "tiny-q8", "files-q4"):
        put(settings, name, allow_conversion=name != "files-q4")
    return settings


def put(settings: Settings, name: str, *, allow_conversion: bool) -> None:
    store = settings.store()
    resolved = resolve(Requirement.parse(name), settings.index())
    plan = plan_install(resolved, store, allow_conversion=allow_conversion)
    with settings.sources(store) as sources:
        install(plan, store, settings.fetcher(sources, store, Silence()))


def mend(settings: Settings, problems: list[Problem]) -> list[Repaired]:
    store = settings.store()
    with settings.sources(store) as sources, store.use():
        fetcher = settings.fetcher(sources, store, Silence())
        return repair(problems, store, fetcher, make_find_file(store, settings.index()))


def files_of(settings: Settings) -> list[Path]:
    """All files that models are made of, and the lists of chunks."""
    places = (settings.home / "blobs", settings.home / "models")
    return sorted(path for place in places for path in place.rglob("*") if path.is_file())


def flip(path: Path, chooser: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chooser.randrange(len(content))] ^= 1 << chooser.randrange(8)
    rewrite(path, bytes(content))


def cut(path: Path, chooser: random.Random) -> None:
    rewrite(path, path.read_bytes()[: chooser.randrange(path.stat().st_size)])


def rewrite(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(mode)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "flip": flip,
    "cut": cut,
    "delete": lambda path, _: path.unlink(),
    "mode": lambda path, _: path.chmod(0o666),
}


def test_320_corruptions_are_found_and_repaired(many: Settings) -> None:
    chooser = random.Random(3)
    good = {path: path.read_bytes() for path in files_of(many)}
    n_found = n_repaired = 0
    for _ in range(ROUNDS):
        kinds = [kind for kind, n in A_ROUND.items() for _ in range(n)]
        # the permissions of a list of chunks are nobody's business
        candidates = [p for p in good if p.suffix != ".chunks"]
        victims = chooser.sample(candidates, A_ROUND["mode"])
        others = sorted(set(good) - set(victims))
        victims = [*chooser.sample(others, len(kinds) - len(victims)), *victims]
        for kind, path in zip(kinds, victims, strict=True):
            DAMAGES[kind](path, chooser)
        problems = verify(many.store(), Silence())
        manifests = {p.path.parent for p in problems if p.path.name == "weightpkg.toml"}
        found = {p.path for p in problems}
        # a directory whose manifest is gone is damaged as a whole
        n_found += sum(path in found or path.parent in manifests for path in victims)
        assert [each.error for each in mend(many, problems) if each.error] == []
        assert verify(many.store(), Silence()) == []
        n_repaired += sum(path.read_bytes() == good[path] for path in victims)
    n_damages = ROUNDS * sum(A_ROUND.values())
    report("corruptions found", n_damages, n_damages - n_found)
    report("corruptions repaired", n_damages, n_damages - n_repaired)
    assert (n_damages, n_found, n_repaired) == (320, 320, 320)
    assert {path: path.read_bytes() for path in files_of(many)} == good


def test_only_the_damaged_chunk_is_fetched_and_the_bad_bytes_are_kept(
    many: Settings, site: Site
) -> None:
    (path,) = [p for p in files_of(many) if p.stat().st_size > 3 * CHUNK_SIZE]
    good, content = path.read_bytes(), bytearray(path.read_bytes())
    content[CHUNK_SIZE + 7] ^= 1
    rewrite(path, bytes(content))
    site.requests.clear()
    (done,) = mend(many, verify(many.store(), Silence()))
    assert (done.error, done.fetched) == (None, CHUNK_SIZE)
    assert path.read_bytes() == good
    (kept,) = (many.home / "quarantine").iterdir()
    assert kept.read_bytes() == content
    wanted = [request.headers["Range"] for request in site.requests]
    assert wanted == [f"bytes={CHUNK_SIZE}-{2 * CHUNK_SIZE - 1}"]


def test_what_cannot_be_had_again_is_said_and_left_as_it_is(many: Settings, site: Site) -> None:
    site.files.clear()
    (many.index_dir / "large.gguf").unlink()
    (path,) = [p for p in files_of(many) if p.stat().st_size > 3 * CHUNK_SIZE]
    flip(path, random.Random(1))
    (done,) = mend(many, verify(many.store(), Silence()))
    assert done.error is not None
    assert "404" in str(done.error)
    assert path.exists()
    assert [p.kind for p in verify(many.store(), Silence())] == ["corrupt"]


def test_what_lies_around_is_found_and_taken_away(many: Settings) -> None:
    (many.home / "blobs" / "sha256" / "notes.txt").write_text("mine")
    (record,) = [r for r in many.store().installed() if r.variant == "q8"]
    extra = many.store().model_path(record.conversion or "") / "extra.py"
    extra.write_text("import os")
    problems = verify(many.store(), Silence())
    assert [p.kind for p in problems] == ["unexpected", "unexpected"]
    assert all(each.error is None for each in mend(many, problems))
    assert verify(many.store(), Silence()) == []
    assert sorted(p.name.rpartition("-")[2] for p in (many.home / "quarantine").iterdir()) == [
        "extra.py",
        "notes.txt",
    ]


def test_a_blob_that_nothing_needs_is_checked_too(many: Settings) -> None:
    store = many.store()
    source = tiny_llama(many.index_dir / "stray.gguf", seed=9)
    with store.use(), store.new_file() as new:
        new.write(source.read_bytes())
        path = store.publish(new, fingerprint_file(source))
    assert verify(store, Silence()) == []
    flip(path, random.Random(2))
    (problem,) = verify(store, Silence())
    assert (problem.kind, problem.models) == ("corrupt", ())
    (done,) = mend(many, [problem])
    assert isinstance(done.error, StoreError)
    assert "nothing says where" in done.error.message


def test_a_link_in_place_of_a_blob_is_no_blob(many: Settings, tmp_path: Path) -> None:
    (path,) = [p for p in files_of(many) if p.stat().st_size > 3 * CHUNK_SIZE]
    copy = tmp_path / "elsewhere"
    path.replace(copy)
    path.symlink_to(copy)
    (problem,) = verify(many.store(), Silence())
    assert (problem.kind, problem.path) == ("unexpected", path)
    (done,) = mend(many, [problem])
    assert done.error is None
    assert not path.is_symlink()
    assert verify(many.store(), Silence()) == []
