"""The index: every rule of its specification, and names as people type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import refresh_index
from factories import index_page
from weightpkg.digest import Digest
from weightpkg.document import parse_document
from weightpkg.errors import (
    DocumentError,
    ModelNotFoundError,
    NoMatchingReleaseError,
    ResolutionError,
    UnsupportedVersionError,
    VariantNotFoundError,
)
from weightpkg.index import Index
from weightpkg.page import read_model
from weightpkg.requirement import NormalizedName, Requirement, normalize_name
from weightpkg.resolve import resolve

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = Index(ROOT / "index")


@pytest.fixture
def page(tmp_path: Path) -> str:
    source = tmp_path / "m.gguf"
    source.write_bytes(b"weights")
    return index_page("tiny", {"q4": [source]})


# what is replaced, by what, the key that the error names, and a word of its reason
FAULTS = [
    ("schema = 1", "", "schema", "missing"),
    ("schema = 1", 'schema = "1"', "schema", "whole number"),
    ("schema = 1", "schema = true", "schema", "whole number"),
    ('name = "tiny"', "name = 3", "name", "a string"),
    ('name = "tiny"', 'name = "../tiny"', "name", "not a name"),
    ('summary = "', 'sumary = "', "summary", "missing"),
    ("A model for tests", "A\\u001b[2Jmodel", "summary", "printable"),
    ("A model for tests", "", "summary", "one line"),
    ("text-generation", "world-domination", "task", "none of"),
    ('architecture = "llama"', 'architecture = "ll ama"', "architecture", "not a name"),
    ('license = "MIT"', 'license = "Do what you want"', "license", "SPDX"),
    ('license = "MIT"', 'license = "MIT"\nlicense-url = "http://x.example"', "license-url", "https"),
    ('license = "MIT"', 'license = "MIT"\nlicence-url = "https://x.example"', "licence-url", "`license-url`"),
    ('license = "MIT"', 'license = "MIT"\nparameters = -1', "parameters", "between 0"),
    ('license = "MIT"', 'license = "MIT"\nparameters = 1.5', "parameters", "whole number"),
    ('tags = ["tests"]', "tags = [1]", "tags[0]", "a string"),
    ('default-variant = "q4"', 'default-variant = "q8"', "default-variant", "not a variant"),
    ('version = "1.0"', 'version = "new"', "releases[0].version", "PEP 440"),
    ("date = 2026-01-02", 'date = "2026-01-02"', "releases[0].date", "a date"),
    ("date = 2026-01-02", "date = 2026-01-02T00:00:00Z", "releases[0].date", "a date with a time"),
    ("variants.q4", "variants.Q4", "releases[0].variants.Q4", "must be written `q4`"),
    ("variants.q4", 'variants."a/b"', "releases[0].variants.a/b", "not a name"),
    ('format = "gguf"', 'format = "pickle"', "releases[0].variants.q4.format", "none of"),
    ('path = "m.gguf"', 'path = "../m.gguf"', "releases[0].variants.q4.files[0].path", "plain"),
    ("size = 7", "size = 1e3", "releases[0].variants.q4.files[0].size", "whole number"),
    ('sha256 = "', 'sha256 = "X', "releases[0].variants.q4.files[0].sha256", "not a digest"),
    ('["file:m.gguf"]', "[]", "releases[0].variants.q4.files[0].sources", "empty"),
    ('["file:m.gguf"]', '["ftp://x"]', "releases[0].variants.q4.files[0].sources[0]", "none of"),
    ('["file:m.gguf"]', '["file:m.gguf", []]', "releases[0].variants.q4.files[0].sources[1]", "parts"),
    ('["file:m.gguf"]', '["http://x.example/m"]', "releases[0].variants.q4.files[0].sources[0]", "none of"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "where", "reason"), FAULTS, ids=lambda value: str(value)[:24]
)
def test_a_broken_rule_is_named_with_its_key(
    page: str, old: str, new: str, where: str, reason: str
) -> None:
    assert old in page
    with pytest.raises(DocumentError, match=re.escape(reason)) as caught:
        read_model(parse_document(page.replace(old, new).encode(), source="models/tiny.toml"))
    assert caught.value.where == where
    assert "models/tiny.toml" in str(caught.value)


def test_a_newer_schema_is_refused_with_a_hint(page: str) -> None:
    content = page.replace("schema = 1", "schema = 2").encode()
    with pytest.raises(UnsupportedVersionError) as caught:
        read_model(parse_document(content, source="tiny.toml"))
    assert "upgrade" in (caught.value.hint or "")


def test_keys_for_anybodys_use_are_left_alone(page: str) -> None:
    content = page.replace("schema = 1", "schema = 1\nx-note = [1, {}]").encode()
    assert read_model(parse_document(content, source="tiny.toml")).name == "tiny"


BOMBS = {
    "deep nesting": b"a = " + b"[" * 5000 + b"]" * 5000,
    "deep keys": b".".join([b"a"] * 5000) + b" = 1",
    "inline tables": b"a = " + b"{a = " * 200 + b"1" + b"}" * 200,
    "key twice": b"a = 1\na = 2",
    "huge number": b"a = " + b"9" * 10_000,
    "not UTF-8": b'a = "\xff"',
    "control character": b'a = "\x00"',
    "unclosed": b'a = "',
    "not TOML": b"<html><body>Please log in</body></html>",
    "too large": b"#" * (17 * 1024 * 1024),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_hostile_document_is_one_clear_error(bomb: str) -> None:
    with pytest.raises(DocumentError, match=r"page\.toml"):
        read_model(parse_document(BOMBS[bomb], source="page.toml"))


def index_of(directory: Path, *pages: tuple[str, str]) -> Index:
    (directory / "models").mkdir(parents=True)
    for name, page in pages:
        (directory / "models" / name).write_text(page)
    return Index(directory)


def test_lint_lists_every_fault_of_every_page(tmp_path: Path, page: str) -> None:
    index = index_of(
        tmp_path / "index",
        ("tiny.toml", page),
        ("other.toml", page),
        ("bad.toml", "schema = ["),
        ("notes.txt", "hello"),
    )
    (tmp_path / "index" / "models" / "link.toml").symlink_to("tiny.toml")
    faults = [str(fault) for fault in index.lint()]
    assert [fault.partition(":")[0] for fault in faults] == [
        "models/bad.toml", "models/link.toml", "models/notes.txt", "models/other.toml",
    ]  # fmt: skip
    assert "belongs on the page tiny.toml" in faults[3]


def test_lint_refuses_names_that_two_things_have(tmp_path: Path, page: str) -> None:
    other = page.replace('"tiny"', '"tiny-q4"').replace("q4", "q8").replace("tiny-q8", "tiny-q4")
    index = index_of(tmp_path / "index", ("tiny.toml", page), ("tiny-q4.toml", other))
    (fault,) = index.lint()
    assert "tiny-q4" in str(fault)
    assert "ambiguous" in str(fault)


def test_lint_warns_of_a_missing_size(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page.replace("size = 7\n", "")))
    assert index.lint() == []
    assert "no size" in index.warnings()[0]


def test_a_directory_that_is_no_index_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="not a directory"):
        Index(tmp_path).names()


def test_the_shipped_index_has_no_faults() -> None:
    assert SHIPPED.lint() == []
    assert [warning for warning in SHIPPED.warnings() if "no size" not in warning] == []
    assert len(SHIPPED.names()) >= 150


def test_the_shipped_index_is_what_facts_and_rules_make() -> None:
    facts = refresh_index.read_facts(refresh_index.FACTS)
    pages, used = refresh_index.make_pages(facts)
    assert list(refresh_index.outdated(pages)) == []
    assert used == facts


def test_every_digest_of_the_shipped_index_was_published() -> None:
    """By the hub's catalogues, or in the packages whose pages are written by hand."""
    facts = {fact.sha256 for fact in refresh_index.read_facts(refresh_index.FACTS)}
    for name in SHIPPED.names():
        for release in SHIPPED.model(NormalizedName(name)).releases:
            for file in (file for variant in release.variants for file in variant.files):
                by_hand = all(source.text.startswith("pypi:") for source in file.sources[0])
                assert by_hand or (file.sha256 and file.sha256.hex in facts), (name, str(file.path))


@pytest.mark.parametrize(
    ("name", "size", "sha256"),
    [
        ("smollm2-135m", 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        ("gemma3-270m", 253_113_024, "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        ("llama3-8b", 4_920_733_888, "ab9e4eec7e80892fd78f74d9a15d0299f1e22121cea44efd68a7a02a3fe9a1da"),
    ],
)  # fmt: skip
def test_the_shipped_index_has_what_publishers_say(name: str, size: int, sha256: str) -> None:
    (file,) = resolve(Requirement.parse(name), SHIPPED).variant.files
    assert (file.size, file.sha256) == (size, Digest("sha256", sha256))


def test_search_puts_the_best_first() -> None:
    def names(*words: str) -> list[str]:
        return [hit.listing.name for hit in SHIPPED.search(words)]

    assert names("llama3-8b")[0] == "llama3-8b"
    assert names("llama")[0].startswith("llama")
    assert "smollm2-135m" in names("SMALL", "chat")
    assert names("speech") == ["silero-vad"]
    assert names("gemma", "speech") == []
    assert names("qwen3", "4b")[0] == "qwen3-4b"
    assert names("Llama-3.1-8B-Instruct")[0] == "llama3.1-8b"
    assert names("embeddings", "apache-2.0")[0] == "minilm-l6"


def test_names_of_the_shipped_index_have_one_form() -> None:
    others = {"magika", "minilm-l6", "silero-vad"}
    for name in SHIPPED.names():
        model = SHIPPED.model(NormalizedName(name))
        size = r"-e?\d+(\.\d+)?[bm](-|\Z)"
        assert model.name in others or re.search(size, model.name), model.name
        assert model.name == model.name.lower()
        for variant in model.releases[0].variants:
            assert re.fullmatch(r"i?q[2-8]|mxfp4|b?f16|f32|onnx", variant.name), model.name


def test_models_of_the_shipped_index_can_be_called_as_their_makers_call_them() -> None:
    for name, model in [
        ("Llama-3.1-8B-Instruct", "llama3.1-8b"),
        ("DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1-7b"),
        ("gemma-3-1b-it", "gemma3-1b"),
    ]:
        assert resolve(Requirement.parse(name), SHIPPED).model.name == model


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("smollm2-135m", "smollm2-135m-q4 1.0.0"),
        ("SmolLM2_135M.Q4", "smollm2-135m-q4 1.0.0"),
        ("smollm2-135m-q4>=0.5,<2", "smollm2-135m-q4 1.0.0"),
        (" silero-vad == 6.2.3 ", "silero-vad-onnx 6.2.3"),
    ],
)
def test_resolves_names_as_people_type_them(text: str, found: str) -> None:
    assert str(resolve(Requirement.parse(text), SHIPPED)) == found


def test_says_what_there_is_instead() -> None:
    with pytest.raises(ModelNotFoundError) as no_model:
        resolve(Requirement.parse("smolm2-135m"), SHIPPED)
    assert no_model.value.nearest[0] == "smollm2-135m"
    with pytest.raises(VariantNotFoundError) as no_variant:
        resolve(Requirement.parse("smollm2-135m-q9"), SHIPPED)
    assert no_variant.value.available == ("q4",)
    with pytest.raises(NoMatchingReleaseError) as no_release:
        resolve(Requirement.parse("smollm2-135m>=2"), SHIPPED)
    assert no_release.value.available == ("1.0.0",)
    with pytest.raises(ResolutionError, match="namespace `acme`"):
        resolve(Requirement.parse("acme/smollm2-135m"), SHIPPED)


def test_a_yanked_release_is_chosen_only_by_its_exact_version(tmp_path: Path, page: str) -> None:
    release = page[page.index("[[releases]]") :]
    newer = release.replace('"1.0"', '"2.0"').replace(
        'changes = "', 'yanked = "wrong"\nchanges = "'
    )
    index = index_of(tmp_path / "index", ("tiny.toml", page.replace(release, newer + release)))
    assert str(resolve(Requirement.parse("tiny"), index)) == "tiny-q4 1.0"
    assert resolve(Requirement.parse("tiny==2.0"), index).release.yanked == "wrong"
    with pytest.raises(NoMatchingReleaseError, match=">=2"):
        resolve(Requirement.parse("tiny>=2"), index)


def test_the_longest_model_name_counts(tmp_path: Path, page: str) -> None:
    longer = page.replace('"tiny"', '"tiny-chat"')
    index = index_of(tmp_path / "index", ("tiny.toml", page), ("tiny-chat.toml", longer))
    assert resolve(Requirement.parse("tiny-chat-q4"), index).model.name == "tiny-chat"
    assert normalize_name("tiny-chat") in index


# ---- versions of the specification


def test_a_newer_minor_version_is_read_and_noted(page: str) -> None:
    newer = page.replace("schema = 1", 'schema = "1.7"\nquantised-by = "acme"').replace(
        'sha256 = "', 'sha3 = "00"\nsha256 = "'
    )
    model = read_model(parse_document(newer.encode(), source="models/tiny.toml"))
    (note,) = model.notes
    assert "models/tiny.toml is of schema 1.7, and of 1.0 is known here" in note
    assert "`releases[0].variants.q4.files[0].sha3`, `quantised-by`" in note


def test_what_is_known_of_a_newer_minor_version_is_checked_all_the_same(page: str) -> None:
    newer = page.replace("schema = 1", 'schema = "1.7"').replace("size = 7", "size = -7")
    with pytest.raises(DocumentError, match="between 0"):
        read_model(parse_document(newer.encode(), source="models/tiny.toml"))


@pytest.mark.parametrize("schema", ["0", "2", '"2.0"', '"0.9"', "20"])
def test_another_major_version_is_refused(page: str, schema: str) -> None:
    content = page.replace("schema = 1", f"schema = {schema}").encode()
    with pytest.raises(UnsupportedVersionError):
        read_model(parse_document(content, source="tiny.toml"))


@pytest.mark.parametrize("schema", ["1.0", '"1"', '"1."', '"1.x"', "[]", '"-1.0"', '"1.0.0"', "-1"])
def test_what_is_no_version_is_a_fault(page: str, schema: str) -> None:
    content = page.replace("schema = 1", f"schema = {schema}").encode()
    with pytest.raises(DocumentError, match="must be a whole number, or a string"):
        read_model(parse_document(content, source="tiny.toml"))


def test_a_base_model_is_a_repository(page: str) -> None:
    good = page.replace("schema = 1", 'schema = 1\nbase-model = "acme/Tiny-1.1_B"').encode()
    assert read_model(parse_document(good, source="tiny.toml")).base_model == "acme/Tiny-1.1_B"
    for text in ("tiny", "a/b/c", "../b", "a /b", "a/é"):
        bad = page.replace("schema = 1", f'schema = 1\nbase-model = "{text}"').encode()
        with pytest.raises(DocumentError, match="not a repository"):
            read_model(parse_document(bad, source="tiny.toml"))


# ---- aliases


def alias(index: Index, name: str, model: str) -> None:
    directory = index.directory / "aliases"
    directory.mkdir(exist_ok=True)
    (directory / f"{name}.toml").write_text(f'schema = 1\nmodel = "{model}"\n')


def test_an_alias_leads_to_its_model(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page))
    alias(index, "tiny-instruct", "Tiny")
    alias(index, "tiny-old", "tiny-instruct")
    assert index.lint() == []
    assert index.names() == ["tiny"]
    assert index.aliases() == ["tiny-instruct", "tiny-old"]
    for name in ("Tiny.Instruct", "tiny-instruct-q4", "tiny-old==1.0"):
        assert str(resolve(Requirement.parse(name), index)) == "tiny-q4 1.0"


def test_aliases_in_a_circle_are_one_error(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page))
    alias(index, "one", "two")
    alias(index, "two", "one")
    with pytest.raises(
        DocumentError, match=r"aliases/two\.toml: `model`: goes in a circle: one ->"
    ):
        resolve(Requirement.parse("one"), index)
    assert [fault.source for fault in index.lint()] == ["aliases/two.toml", "aliases/one.toml"]


def test_aliases_lead_through_a_few_others_at_most(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page))
    for i in range(9):
        alias(index, f"a{i}", f"a{i + 1}")
    alias(index, "a9", "tiny")
    assert index.target(normalize_name("a2")) == "tiny"
    with pytest.raises(DocumentError, match="leads through too many aliases: a1 ->"):
        index.target(normalize_name("a1"))


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("tiny", "tiny", "is a model, too"),
        ("other", "nothing", "no model is called `nothing`"),
        ("other", "no name", "not a name"),
        ("tiny-q4", "tiny", "is ambiguous: alias `tiny-q4` and variant `q4` of `tiny`"),
        ("Other", "tiny", "is not called by a normalised name"),
    ],
)
def test_lint_says_what_is_wrong_with_an_alias(
    tmp_path: Path, page: str, name: str, target: str, reason: str
) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page))
    alias(index, name, target)
    (fault,) = index.lint()
    assert reason in str(fault)


def test_a_name_that_is_a_model_and_an_alias_is_not_resolved(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page))
    alias(index, "tiny", "tiny")
    with pytest.raises(DocumentError, match="is a model, too"):
        resolve(Requirement.parse("tiny"), index)


def test_a_name_opens_its_page_and_no_other(tmp_path: Path, page: str) -> None:
    index = index_of(tmp_path / "index", ("tiny.toml", page), ("broken.toml", "schema = ["))
    assert str(resolve(Requirement.parse("tiny-q4"), index)) == "tiny-q4 1.0"
