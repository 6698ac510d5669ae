"""The user's configuration: read strictly, edited without losing a comment."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from weightpkg.config import (
    CONFIG,
    Config,
    IndexConfig,
    load_config,
    read_config,
    remove_index,
    set_index,
    set_source_replacement,
)
from weightpkg.digest import Digest
from weightpkg.errors import DocumentError, StoreError
from weightpkg.requirement import NormalizedName

ROOT = "5f" * 32
ACME = IndexConfig(
    name=NormalizedName("acme"),
    url="https://models.acme.example/index",
    root_sha256=Digest("sha256", ROOT),
    max_staleness_days=30,
)
TEXT = f"""\
# ours
[indexes.ACME] # the company's
url = "https://models.acme.example/index"
root-sha256 = "{ROOT}" # read out over the telephone
max-staleness = 30

[source-replacement]
url = "https://mirror.example"
only = true
"""


def read(text: str) -> Config:
    return read_config(text.encode(), source=CONFIG)


def test_reads_indexes_and_leaves_source_replacement_to_others() -> None:
    config = read(TEXT)
    assert config.indexes == (ACME,)
    assert config.index(NormalizedName("acme")) == ACME
    assert config.index(NormalizedName("other")) is None
    assert config.source_replacement is not None
    assert config.source_replacement.required("url", str) == "https://mirror.example"
    assert config.source_replacement.where == "source-replacement"


def test_a_home_without_a_configuration_says_nothing(tmp_path: Path) -> None:
    assert load_config(tmp_path) == Config()
    assert not list(tmp_path.iterdir())


FAULTS = {
    'x = 1\n[indexes.a]\nurl = "/srv"': "config.toml: `x`: is not a key that is known here",
    "indexes = 1": "`indexes`: must be a table, not a whole number",
    "source-replacement = 1": "`source-replacement`: must be a table, not a whole number",
    "[indexes.a]": "`indexes.a.url`: is missing (a string)",
    "[indexes.a]\nurl = 1": "`indexes.a.url`: must be a string, not a whole number",
    '[indexes.a]\nurl = "/srv"\nmax-stalenes = 1': "did you mean `max-staleness`?",
    '[indexes.a]\nurl = "/srv"\nmax-staleness = -1': "`indexes.a.max-staleness`: must be between",
    '[indexes.a]\nurl = "/srv"\nmax-staleness = 3651': "must be at most 3650 days",
    '[indexes.a]\nurl = "/srv"\nmax-staleness = true': "must be a whole number",
    '[indexes.a]\nurl = "/srv"\nroot-sha256 = "abc"': "`indexes.a.root-sha256`:",
    '[indexes.a]\nurl = "https://a.example/"': "`indexes.a.root-sha256`: is missing",
    '[indexes.a]\nurl = "srv/index"': "the absolute path of a directory",
    '[indexes.a]\nurl = "http://a.example/"': "`indexes.a.url`: `http://a.example/` is none of",
    '[indexes.a]\nurl = "https://me:secret@a.example/"': "without user and password",
    '[indexes.a]\nurl = "ftp://a.example/"': "is none of",
    '[indexes."a/b"]\nurl = "/srv"': "is not a name",
    '[indexes.a]\nurl = "/srv"\n[indexes.A]\nurl = "/srv"': "is the same namespace as `a`",
    f'[indexes.a]\nurl = "/srv"\nroot-sha256 = "{ROOT}"\nallow-unsigned = true': "cannot be together",
    "[indexes.a": "not TOML",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_refuses(text: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(text)
    assert FAULTS[text] in caught.value.message


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("/srv/index", "/srv/index"),
        ("file:///srv/index", "/srv/index"),
        ("https://a.example/index", None),
        ("http://127.0.0.1:80/", None),
        ("http://localhost/", None),
    ],
)
def test_an_index_is_at_a_url_or_in_a_directory(url: str, directory: str | None) -> None:
    index = read(f'[indexes.a]\nurl = "{url}"\nallow-unsigned = true').indexes[0]
    assert index.directory == (Path(directory) if directory else None)


def test_an_edit_keeps_comments_and_all_else(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(TEXT)
    set_index(tmp_path, ACME)
    assert (tmp_path / CONFIG).read_text() == TEXT
    other = IndexConfig(name=NormalizedName("other"), url="/srv/index", allow_unsigned=True)
    set_index(tmp_path, other)
    changed = IndexConfig(name=NormalizedName("acme"), url=ACME.url, root_sha256=ACME.root_sha256)
    set_index(tmp_path, changed)
    text = (tmp_path / CONFIG).read_text()
    assert load_config(tmp_path).indexes == (changed, other)
    assert "# ours" in text
    assert "# read out over the telephone" in text
    assert "max-staleness" not in text
    assert remove_index(tmp_path, NormalizedName("acme"))
    assert not remove_index(tmp_path, NormalizedName("acme"))
    assert load_config(tmp_path).indexes == (other,)
    assert load_config(tmp_path).source_replacement is not None


def test_source_replacement_is_written_and_removed(tmp_path: Path) -> None:
    set_source_replacement(tmp_path, {"url": "/srv/mirror", "only": True})
    set_index(tmp_path, ACME)
    set_source_replacement(tmp_path, {"url": "/srv/other"})
    replacement = load_config(tmp_path).source_replacement
    assert replacement is not None
    assert replacement.keys() == ["url"]
    set_source_replacement(tmp_path, None)
    set_source_replacement(tmp_path, None)
    assert load_config(tmp_path).source_replacement is None
    assert load_config(tmp_path).indexes == (ACME,)


def test_an_edit_that_would_not_be_valid_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text(TEXT)
    bad = IndexConfig(name=NormalizedName("acme"), url="http://a.example/")
    with pytest.raises(DocumentError):
        set_index(tmp_path, bad)
    assert (tmp_path / CONFIG).read_text() == TEXT
    (tmp_path / CONFIG).write_text("[indexes")
    with pytest.raises(DocumentError, match="not TOML"):
        set_index(tmp_path, ACME)
    assert (tmp_path / CONFIG).read_text() == "[indexes"


def test_a_configuration_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    (tmp_path / CONFIG).mkdir()
    with pytest.raises(StoreError, match=CONFIG):
        load_config(tmp_path)


def _add(home: Path, number: int) -> None:
    for i in range(5):
        name = NormalizedName(f"n{number}-{i}")
        set_index(home, IndexConfig(name=name, url="/srv", allow_unsigned=True))


def test_processes_that_edit_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add, args=(tmp_path, i)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(load_config(tmp_path).indexes) == 15
