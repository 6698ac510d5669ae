"""Lockfiles and manifests: what is written is what is read, and edits leave the rest alone."""

from __future__ import annotations

import string
from contextlib import suppress

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from weightpkg.digest import Digest
from weightpkg.errors import DocumentError, ProjectError
from weightpkg.lockfile import (
    LockedIndex,
    LockedModel,
    LockedPackage,
    Lockfile,
    dump_lockfile,
    read_lockfile,
)
from weightpkg.manifest import add_role, has_table, read_manifest, remove_role, role_of
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.requirement import NormalizedName, normalize_name

WORDS = st.text("abcxyz019", min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=3).map("-".join).map(normalize_name)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
LINES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=30)
PLATFORMS = st.sampled_from(["linux", "linux-x86_64", "macos-arm64", "windows"])
SOURCES = st.sampled_from(
    [
        (parse_source("hf:acme/tiny@main/tiny.gguf"),),
        (parse_source("https://example.com/a?b=c#d"),),
        (parse_source("file:tiny.gguf"), parse_source("pypi:tiny==1.0/tiny/x.gguf")),
    ]
)
FILES = st.builds(
    File,
    path=WORDS.map(lambda word: RelativePath(f"{word}.gguf")),
    sha256=HEX.map(lambda text: Digest("sha256", text)),
    size=st.none() | st.integers(0, 2**63 - 1),
    blake3=st.none() | HEX.map(lambda text: Digest("blake3", text)),
    sources=st.lists(SOURCES, max_size=3, unique=True).map(tuple),
)
PACKAGES = st.builds(
    LockedPackage,
    name=NAMES,
    version=st.sampled_from(["1.0", "2.0rc1", "0+abc", "1!3.1"]).map(Version),
    variant=NAMES,
    index=st.none() | NAMES,
    reference=st.none() | LINES.filter(bool),
    license=st.sampled_from(["MIT", "unknown", "LicenseRef-ü", "MIT AND (X OR Y WITH Z)"]),
    license_url=st.none() | st.just("https://example.com/ü"),
    format=st.sampled_from(["gguf", "onnx"]),
    architecture=WORDS,
    conversion=st.none() | HEX,
    converter=st.none() | st.integers(0, 99),
    tree=st.none() | HEX.map(lambda text: Digest("sha256", text)),
    files=st.lists(FILES, min_size=1, max_size=3).map(tuple),
)


@st.composite
def lockfiles(draw: st.DrawFn) -> Lockfile:
    packages = draw(st.lists(PACKAGES, max_size=4, unique_by=lambda package: package.key))
    models = [
        LockedModel(
            role=draw(NAMES),
            group=draw(st.none() | NAMES),
            platforms=tuple(draw(st.lists(PLATFORMS, max_size=2, unique=True))),
            requirement=draw(LINES),
            package=package.key,
        )
        for package in packages
        for _ in range(draw(st.integers(1, 2)))
    ]
    names = {package.index for package in packages if package.index}
    indexes = tuple(LockedIndex(name, draw(LINES)) for name in names)
    return Lockfile(models=tuple(models), packages=tuple(packages), indexes=indexes).sorted()


def read(content: bytes) -> Lockfile:
    return read_lockfile(content, source="weights.lock", warn=pytest.fail)


@given(lockfiles())
def test_what_is_written_is_what_is_read(lockfile: Lockfile) -> None:
    content = dump_lockfile(lockfile)
    assert read(content) == lockfile
    assert dump_lockfile(read(content)) == content


@given(lockfiles(), st.data())
def test_the_order_in_which_it_was_made_does_not_matter(
    lockfile: Lockfile, data: st.DataObject
) -> None:
    other = Lockfile(
        models=tuple(data.draw(st.permutations(lockfile.models))),
        packages=tuple(data.draw(st.permutations(lockfile.packages))),
        indexes=tuple(data.draw(st.permutations(lockfile.indexes))),
    )
    assert dump_lockfile(other) == dump_lockfile(lockfile)


@given(lockfiles().filter(lambda lockfile: lockfile.packages), st.data())
def test_an_edit_of_a_package_by_hand_is_seen(lockfile: Lockfile, data: st.DataObject) -> None:
    text = dump_lockfile(lockfile).decode()
    rows = [
        line for line in text.splitlines() if line.startswith(("size = ", "sha256 = ", "format"))
    ]
    row = data.draw(st.sampled_from(rows))
    key, _, value = row.partition(" = ")
    digit = "1" if value.strip('"')[0] != "1" else "2"
    other = value.replace(value.strip('"')[0], digit, 1)
    with pytest.raises(DocumentError):
        read(text.replace(row, f"{key} = {other}", 1).encode())


@given(lockfiles(), st.data())
def test_nothing_but_an_error_comes_of_a_broken_one(
    lockfile: Lockfile, data: st.DataObject
) -> None:
    content = bytearray(dump_lockfile(lockfile))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    with suppress(DocumentError):
        read_lockfile(bytes(content), source="weights.lock", warn=lambda _: None)


@pytest.mark.parametrize("text", ["", " ", "MIT AND", "(MIT", "MIT MIT", "OR", "MIT WITH"])
def test_a_license_is_an_expression(text: str) -> None:
    file = File(path=RelativePath("x"), sha256=Digest("sha256", "0" * 64), sources=())
    package = LockedPackage(
        name=NormalizedName("m"), version=Version("1"), variant=NormalizedName("q4"), index=None,
        license=text, format="gguf", architecture="llama", files=(file,),
    )  # fmt: skip
    model = LockedModel(role=NormalizedName("m"), requirement="m", package=package.key)
    with pytest.raises(DocumentError, match="license"):
        read(dump_lockfile(Lockfile(models=(model,), packages=(package,))))


def test_two_branches_that_each_add_a_model_merge_as_text() -> None:
    def package(name: str) -> LockedPackage:
        file = File(path=RelativePath("x"), sha256=Digest("sha256", "0" * 64), sources=())
        return LockedPackage(
            name=NormalizedName(name), version=Version("1"), variant=NormalizedName("q4"),
            index=None, license="MIT", format="gguf", architecture="llama", files=(file,),
        )  # fmt: skip

    def locked(*names: str) -> bytes:
        models = [
            LockedModel(role=NormalizedName(name), requirement=name, package=package(name).key)
            for name in names
        ]
        return dump_lockfile(Lockfile(models=tuple(models), packages=tuple(map(package, names))))

    base, ours, theirs = locked("m"), locked("a", "m"), locked("m", "z")
    assert set(base.splitlines()) <= set(ours.splitlines()) & set(theirs.splitlines())
    assert read(locked("a", "m", "z")).packages == read(locked("z", "m", "a")).packages


MANIFEST = """\
# what we use, and why
allow-licenses = ["MIT"]  # by legal

[models]
# the big one
chat = "tiny-q4"   # fast enough
embed = { name = "minilm", version = ">=1" }

[models.dev]
judge = "tiny-q8"  # only here

[indexes]
acme = "../index"
"""


def test_comments_and_order_survive_an_edit() -> None:
    text = add_role(MANIFEST, "new", "tiny>=2", source="weights.toml")
    assert text == MANIFEST.replace('">=1" }\n', '">=1" }\nnew = "tiny>=2"\n')
    text = add_role(MANIFEST, "other", "tiny", group="dev", source="weights.toml")
    assert text == MANIFEST.replace("# only here\n", '# only here\nother = "tiny"\n')
    text = add_role(MANIFEST, "chat", "tiny-q8", source="weights.toml")
    assert text == MANIFEST.replace('"tiny-q4" ', '"tiny-q8" ')
    assert remove_role(MANIFEST, "chat", source="weights.toml") == MANIFEST.replace(
        'chat = "tiny-q4"   # fast enough\n', ""
    )
    assert "judge" not in remove_role(MANIFEST, "judge", source="weights.toml")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "models = { a = 'x' }\n",
        "models.a = 'x'\n",
        "[models]\n",
        "[models.dev]\na = 'x'\n",
        "[indexes]\nb = 'c'\n\n[models]\na = 'x'\n",
        "# only a comment",
        "[models]\r\na = 'x'\r\n",
    ],
)
@pytest.mark.parametrize("group", [None, "dev", "new"])
def test_any_way_of_writing_is_edited_or_refused(text: str, group: str | None) -> None:
    after = add_role(text, "chat", "tiny", group=group, source="weights.toml")
    before = read_manifest(text.encode(), source="weights.toml")
    assert (
        len(read_manifest(after.encode(), source="weights.toml").wanted) == len(before.wanted) + 1
    )
    back = remove_role(after, "chat", source="weights.toml")
    assert read_manifest(back.encode(), source="weights.toml") == before


@given(
    st.lists(st.tuples(st.booleans(), NAMES, st.none() | NAMES.map("g-{}".format)), max_size=8),
    st.sampled_from(["weights.toml", "pyproject.toml"]),
)
def test_edits_do_what_they_say_and_nothing_else(
    edits: list[tuple[bool, str, str | None]], source: str
) -> None:
    text = (
        f'[project]\nname = "p"\n[tool.weightpkg]\n{_head(MANIFEST)}'
        if source == "pyproject.toml"
        else MANIFEST
    )
    expected: dict[str, tuple[str | None, str]] = _roles(text, source)
    for is_addition, name, group in edits:
        try:
            if is_addition:
                text = add_role(text, name, f"{name}-q4", group=group, source=source)
                expected[name] = group, f"{name}-q4"
            else:
                text = remove_role(text, name, source=source)
                del expected[name]
        except ProjectError:
            assert (name in expected) == is_addition
        except DocumentError:
            assert name in {group, *(other for other, _ in expected.values())} or name in _KEYS
        assert _roles(text, source) == expected
    assert "# by legal" in text
    assert tomli.loads(text)


_KEYS = {"name", "version", "variant", "variants"}


def _head(text: str) -> str:
    for table in ("models.dev", "models", "indexes"):
        text = text.replace(f"[{table}]", f"[tool.weightpkg.{table}]")
    return text


def _roles(text: str, source: str) -> dict[str, tuple[str | None, str]]:
    manifest = read_manifest(text.encode(), source=source)
    return {one.role: (one.group, one.choices[0].requirement) for one in manifest.wanted}


@given(st.text(string.printable, max_size=60))
def test_any_text_is_a_manifest_or_an_error(text: str) -> None:
    for content in (text, f"[models]\n{text}", f"[models.dev]\nx = {text}"):
        with suppress(DocumentError):
            read_manifest(content.encode(), source="weights.toml")


def test_a_role_has_the_name_of_its_model() -> None:
    assert role_of("acme/tiny-q4==1") == "tiny-q4"
    assert role_of("hf:acme/Tiny-GGUF") == "tiny-gguf"
    assert role_of("./x/My model.gguf") == "my-model"


def test_other_peoples_pyproject_is_no_matter() -> None:
    assert not has_table(b"this is [not TOML", source="pyproject.toml")
    assert not has_table(b'[project]\ndependencies = ["weightpkg"]', source="pyproject.toml")
    assert has_table(b"[tool.weightpkg]\n", source="pyproject.toml")
