"""The catalogue: searches find what pages say, whatever becomes of the cache."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from factories import index_page
from weightpkg import catalog
from weightpkg.digest import Digest
from weightpkg.errors import DocumentError
from weightpkg.index import Index
from weightpkg.listing import Listing
from weightpkg.package import Model
from weightpkg.requirement import normalize_name


class Pages:
    """An index whose pages are written as a test goes, and a search of it in a new process's way."""

    def __init__(self, root: Path) -> None:
        self.index = root / "index"
        self.cache = root / "cache"
        (self.index / "models").mkdir(parents=True)
        (root / "m.gguf").write_bytes(b"weights")
        self.template = index_page("NAME", {"q4": [root / "m.gguf"]})

    def write(self, name: str, summary: str = "A model for tests") -> Path:
        path = self.index / "models" / f"{name}.toml"
        page = self.template.replace("NAME", name).replace(
            "A model for tests", summary.replace('"', '\\"')
        )
        path.write_text(page)
        return path

    def open(self, note: Callable[[str], None] = lambda _: None) -> Index:
        return Index(self.index, cache=self.cache, note=note)

    def search(self, *words: str) -> list[str]:
        return [hit.listing.name for hit in self.open().search(words)]

    def file(self) -> Path:
        (path,) = self.cache.glob("*.sqlite")
        return path


@pytest.fixture
def pages(tmp_path: Path) -> Pages:
    pages = Pages(tmp_path)
    pages.write("tiny")
    pages.write("tiny-chat", "Talks of the weather")
    pages.write("large")
    return pages


def test_the_best_match_comes_first(pages: Pages) -> None:
    pages.write("a-tiny-one")
    pages.write("attiny")
    pages.write("weatherman", "Nothing tiny about it")
    assert pages.search("TINY") == ["tiny", "tiny-chat", "a-tiny-one", "attiny", "weatherman"]
    assert pages.search("weather") == ["weatherman", "tiny-chat"]
    assert pages.search("weather", "tiny") == ["tiny-chat", "weatherman"]
    assert pages.search("mit", "large") == ["large"]
    assert pages.search("nothing", "large") == []


@pytest.mark.parametrize("word", ["%", "_", "*", "'", '"', "?1", "tiny%", "\0", "é", ";--"])
def test_a_word_is_looked_for_as_it_is(pages: Pages, word: str) -> None:
    assert pages.search(word) == []
    pages.write("odd", "All of %_*\"?1 tiny% é ;-- and it's")
    assert pages.search(word) == ([] if word == "\0" else ["odd"])


def test_a_search_of_very_many_words_has_an_answer(pages: Pages) -> None:
    assert pages.search(*["tiny"] * 5000) == ["tiny", "tiny-chat"]


def test_the_limit_keeps_the_best(pages: Pages) -> None:
    hits = pages.open().search(["model"], limit=1)
    assert [hit.listing.name for hit in hits] == ["tiny"]


def test_pages_are_read_once(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    pages.search("tiny")
    read: list[str] = []
    plain = Index._read

    def noted(index: Index, name: str) -> Model:
        read.append(name)
        return plain(index, name)

    monkeypatch.setattr(Index, "_read", noted)
    assert pages.search("large") == ["large"]
    assert read == ["large"]
    pages.write("new")
    assert pages.search("new") == ["new"]
    assert read == ["large", "new", "new"]


def test_a_change_of_the_index_is_seen(pages: Pages) -> None:
    assert pages.search("storm") == []
    path = pages.write("large", "Talks of the storm")
    assert pages.search("storm") == ["large"]
    path.unlink()
    assert pages.search("storm") == []
    pages.write("newer", "Talks of the storm")
    assert pages.search("storm") == ["newer"]


def test_of_many_pages_a_new_one_is_seen_and_an_edited_one_a_day_later(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_LOOK_AT_ALL", 2)
    long_ago = 10**18
    os.utime(pages.index / "models", ns=(long_ago, long_ago))
    assert pages.search("storm") == []
    pages.write("large", "Talks of the storm")
    os.utime(pages.index / "models", ns=(long_ago, long_ago))
    assert pages.search("storm") == []
    monkeypatch.setattr(catalog, "_LOOK_AFTER_NS", 0)
    assert pages.search("storm") == ["large"]
    monkeypatch.setattr(catalog, "_LOOK_AFTER_NS", 10**18)
    pages.write("new", "Talks of the storm")
    assert pages.search("storm") == ["new", "large"]


def test_what_was_looked_at_is_not_looked_at_again(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "_LOOK_AT_ALL", 2)
    pages.search("tiny")  # right after the pages were written, so it may have missed some
    monkeypatch.setattr(catalog, "_RECENT_NS", 0)
    pages.search("tiny")
    listings: list[Path] = []
    plain = catalog.Directory.listed

    def listed(
        self: catalog.Directory, old: Callable[[], Mapping[str, catalog.Stamp]]
    ) -> Iterator[tuple[str, tuple[int, int]]]:
        listings.append(self.path)
        return plain(self, old)

    monkeypatch.setattr(catalog.Directory, "listed", listed)
    assert pages.search("tiny") == ["tiny", "tiny-chat"]
    assert listings == []


def test_odd_names_and_times_are_no_trouble(pages: Pages) -> None:
    models = pages.index / "models"
    (Path(os.fsdecode(os.fsencode(models) + b"/\xff.toml"))).write_text("")
    (models / "no name.toml").write_text("")
    (models / "directory.toml").mkdir()
    (models / "nowhere.toml").symlink_to("nothing")
    os.utime(models / "tiny.toml", ns=(10**19, 10**19))
    assert pages.search("tiny") == ["tiny", "tiny-chat"]
    assert pages.search(os.fsdecode(b"\xff")) == []
    assert pages.open().faulty() == ["directory", "nowhere"]


def test_many_pages_are_announced(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_LOOK_AT_ALL", 2)
    notes: list[str] = []
    for _ in range(2):
        pages.open(notes.append).search(["tiny"])
    assert notes == ["reading 3 pages of the index, once"]


def test_memory_does_not_grow_with_the_pages(pages: Pages, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(*_: object) -> Iterator[tuple[str, catalog.Stamp]]:
        return ((f"a-model-of-many-{i}-7b", (10**18 + i, 1000 + i)) for i in range(40_000))

    def refuse(page: str) -> Listing:
        raise DocumentError("nothing", source=page)

    monkeypatch.setattr(catalog.Directory, "listed", listed)
    monkeypatch.setattr(catalog, "_LOOK_AT_ALL", 2)
    source = catalog.Directory(pages.index / "models")
    one = catalog.Catalog(source, pages.cache, refuse)
    tracemalloc.start()
    try:
        assert one.search(["tiny"], None) == []  # makes it of nothing
        assert one.search(["tiny"], None) == []  # and of what the old one knows
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000  # a list of all would be three times that
    assert len(one.faulty()) == 40_000


def test_a_page_that_is_not_valid_is_left_out_and_named(pages: Pages) -> None:
    page = pages.index / "models" / "broken.toml"
    page.write_text("schema = [")
    assert pages.search("tiny") == ["tiny", "tiny-chat"]
    assert pages.open().faulty() == ["broken"]
    page.unlink()
    assert pages.open().faulty() == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "cut in the header": lambda data: data[:50],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda _: b"<html>Please log in</html>" * 100,
    "zeros at the end": lambda data: data[:4096] + bytes(len(data) - 4096),
    "bits flipped": lambda data: data[:4096] + bytes(byte ^ 0x55 for byte in data[4096:]),
}


@pytest.mark.parametrize("added", [[], ["tiny-new"]], ids=["same", "changed"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_catalogue_is_made_again(pages: Pages, damage: str, added: list[str]) -> None:
    pages.search("tiny")
    file = pages.file()
    content = DAMAGES[damage](file.read_bytes())
    file.unlink()
    file.write_bytes(content)
    for name in added:
        pages.write(name)
    expected = ["tiny", *added, "tiny-chat"]
    assert pages.search("tiny") == expected
    assert pages.search("tiny") == expected
    assert pages.file().read_bytes() != content


def test_a_catalogue_of_another_version_is_made_again(
    pages: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr(catalog, "VERSION", 99)
        pages.search("tiny")
    assert pages.search("tiny") == ["tiny", "tiny-chat"]
    with sqlite3.connect(pages.file()) as connection:
        assert connection.execute("SELECT version FROM meta").fetchone() == (catalog.VERSION,)
    connection.close()


def test_where_nothing_can_be_kept_a_search_still_has_its_answer(pages: Pages) -> None:
    pages.cache.write_bytes(b"a file where a directory should be")
    assert pages.search("tiny") == ["tiny", "tiny-chat"]
    assert Index(pages.index).search(["large"])[0].listing.name == "large"


def test_what_a_killed_process_left_is_swept(pages: Pages) -> None:
    left = pages.cache / "tmp" / "1-abc"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    pages.search("tiny")
    assert not left.exists()


def test_several_processes_may_build_at_once(pages: Pages) -> None:
    for i in range(200):
        pages.write(f"model-{i}")
    code = (
        "import sys; from pathlib import Path; from weightpkg.index import Index\n"
        "index = Index(Path(sys.argv[1]), cache=Path(sys.argv[2]))\n"
        "print(len(index.search(['model-'])))"
    )
    command = [sys.executable, "-c", code, str(pages.index), str(pages.cache)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[0].split() for process in running] == [[b"200"]] * 4
    assert list((pages.cache / "tmp").iterdir()) == []


def test_finds_the_models_of_a_digest(pages: Pages) -> None:
    digest = Digest("sha256", "93fa9fd6d13e7ba2a0fabc5bd2d2b1b3e0c1b8d0b1e7b0a7a6f5e1a4c9b3d2e1")
    assert list(pages.open().find(digest)) == []
    (file,) = pages.open().model(normalize_name("large")).releases[0].variants[0].files
    assert file.sha256 is not None
    found = [str(resolved) for resolved, _ in pages.open().find(file.sha256)]
    assert found == ["large-q4 1.0", "tiny-q4 1.0", "tiny-chat-q4 1.0"]
