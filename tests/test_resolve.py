"""Resolution: sound, complete, the same in any order; and it says why."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from weightpkg.errors import (
    ModelNotFoundError,
    NamespaceNotFoundError,
    NoMatchingReleaseError,
    NothingFitsError,
    ResolutionError,
    VariantNotFoundError,
)
from weightpkg.license_policy import LicensePolicy
from weightpkg.machine import Machine
from weightpkg.memory import estimate
from weightpkg.package import File, Model, RelativePath, Release, Variant
from weightpkg.requirement import NormalizedName, Requirement
from weightpkg.resolve import Exclusion, Rules, consider, explain, resolve


def variant(name: str, size: int | None = 1000, *, form: str = "gguf", q: str | None = None) -> Variant:  # fmt: skip
    file = File(path=RelativePath("m.gguf"), sha256=None, size=size, sources=())
    return Variant(name=NormalizedName(name), format=form, quantization=q, files=(file,))


def release(version: str, *variants: Variant, yanked: str | None = None) -> Release:
    return Release(
        version=Version(version),
        date=date(2026, 1, 1),
        changes="x",
        yanked=yanked,
        variants=variants or (variant("q4"),),
    )


def model(name: str, *releases: Release, **facts: str) -> Model:
    found = releases or (release("1.0"),)
    return Model(
        name=name,
        summary="x",
        task="text-generation",
        architecture=facts.get("architecture", "llama"),
        license=facts.get("license", "MIT"),
        default_variant=NormalizedName(facts.get("default", found[0].variants[0].name)),
        releases=found,
    )


class Shelf:
    """An index in memory."""

    def __init__(self, *models: Model) -> None:
        self.models = {each.normalized_name: each for each in models}

    def __contains__(self, name: NormalizedName) -> bool:
        return name in self.models

    def model(self, name: NormalizedName) -> Model:
        return self.models[name]

    def nearest(self, name: str) -> Sequence[str]:  # noqa: ARG002  all are near
        return sorted(self.models)[:3]


class ShelfWithAliases(Shelf):
    def __init__(self, aliases: Mapping[str, Model], *models: Model) -> None:
        super().__init__(*models)
        self.models |= {NormalizedName(name): each for name, each in aliases.items()}


def found(text: str, shelf: Shelf, rules: Rules | None = None) -> str:
    return str(resolve(Requirement.parse(text), shelf, rules))


CHAT = model(
    "chat",
    release("3.0a1", variant("q4", 4 * 10**9, q="Q4_0")),
    release("2.0", variant("q4", 4 * 10**9, q="Q4_0"), yanked="wrong template"),
    release(
        "1.1",
        variant("q2", 10**9, q="Q2_K"),
        variant("q4", 4 * 10**9, q="Q4_0"),
        variant("q8", 8 * 10**9, q="Q8_0"),
        variant("f16", 16 * 10**9, form="safetensors", q="F16"),
    ),
    release("1.0", variant("q4", 4 * 10**9, q="Q4_0"), variant("old")),
    default="q4",
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("chat", "chat-q4 1.1"),
        ("Chat_Q8", "chat-q8 1.1"),
        ("chat==1.0", "chat-q4 1.0"),
        ("chat-old", "chat-old 1.0"),  # the newest release that has it
        ("chat<1.1", "chat-q4 1.0"),
        ("chat==2.0", "chat-q4 2.0"),
        ("chat>=3.0a1", "chat-q4 3.0a1"),
        ("chat>=2", "chat-q4 3.0a1"),  # PEP 440: a pre-release where nothing else matches
    ],
)
def test_finds_what_is_asked_for(text: str, answer: str) -> None:
    assert found(text, Shelf(CHAT)) == answer


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nothing", ModelNotFoundError),
        ("chat-q9", VariantNotFoundError),
        ("chat>=4", NoMatchingReleaseError),
        ("chat==2.*", NoMatchingReleaseError),  # matches a yanked one, and not by its very version
        ("acme/chat", NamespaceNotFoundError),
    ],
)
def test_what_is_not_there_is_one_clear_error(text: str, kind: type[ResolutionError]) -> None:
    with pytest.raises(kind) as caught:
        found(text, Shelf(CHAT))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("memory", "answer"),
    [("64GiB", "q4"), ("12GiB", "q4"), ("5GiB", "f16")],
)
def test_the_default_is_chosen_where_it_fits_else_the_largest_that_does(
    memory: str, answer: str
) -> None:
    small = model(
        "m",
        release("1", variant("q4", 4 * 10**9, q="Q4_0"), variant("q2", 10**9, q="Q2_K"), variant("f16", 12 * 10**8, form="safetensors", q="F32")),
    )  # fmt: skip
    rules = Rules(machine=Machine.parse(memory))
    assert found("m", Shelf(small), rules) == f"m-{answer} 1"


def test_a_variant_fits_to_the_byte() -> None:
    one = model("m", release("1", variant("q4", 4 * 10**9, q="Q4_0")))
    need = estimate(one, one.releases[0].variants[0])
    assert need is not None
    enough = next(size for size in range(int(need.total / 0.9), 2**40) if Machine(memory=size).room == need.total)  # fmt: skip
    assert found("m", Shelf(one), Rules(machine=Machine(memory=enough))) == "m-q4 1"
    with pytest.raises(NothingFitsError):
        found("m", Shelf(one), Rules(machine=Machine(memory=enough - 10)))


def test_a_machine_that_is_too_small_for_all_is_an_error_with_each_reason() -> None:
    with pytest.raises(NothingFitsError, match="it needs") as caught:
        found("chat==1.1", Shelf(CHAT), Rules(machine=Machine.parse("2GB")))
    assert len(caught.value.reasons) == 4
    assert "--explain" in (caught.value.hint or "")


def test_what_is_asked_for_by_name_is_noted_and_not_refused() -> None:
    rules = Rules(machine=Machine.parse("1GB"))
    chosen = explain(Requirement.parse("chat-q8"), Shelf(CHAT), rules).chosen
    assert chosen is not None
    assert [note.rule for note in chosen.notes] == ["memory"]
    yanked = explain(Requirement.parse("chat==2.0"), Shelf(CHAT)).chosen
    assert yanked is not None
    assert yanked.notes == (Exclusion("yanked", "2.0 is yanked: wrong template"),)


def test_says_what_was_considered_and_why_it_fell_out() -> None:
    rules = Rules(
        machine=Machine.parse("cpu,9GiB"), convertible={"gguf": {"llama"}, "safetensors": {"bert"}}
    )
    explanation = explain(Requirement.parse("chat>=1.1"), Shelf(CHAT), rules)
    considered = [
        (str(each.resolved), [exclusion.rule for exclusion in each.exclusions])
        for each in explanation.candidates
    ]
    assert considered == [
        ("chat-q4 3.0a1", ["prerelease"]),
        ("chat-q4 2.0", ["yanked"]),
        ("chat-q4 1.1", []),
        ("chat-f16 1.1", ["architecture", "memory"]),
        ("chat-q8 1.1", ["memory"]),
        ("chat-q2 1.1", []),
        ("chat-q4 1.0", ["version"]),
        ("chat-old 1.0", ["version"]),
    ]


def test_licenses_are_refused_by_policy_also_for_what_is_named() -> None:
    shelf = Shelf(model("m", license="GPL-3.0-only OR LicenseRef-llama3"))
    assert (
        found("m-q4", shelf, Rules(licenses=LicensePolicy(denied=("GPL-3.0-only",)))) == "m-q4 1.0"
    )
    with pytest.raises(NothingFitsError, match=r"`GPL-3\.0-only` is not allowed"):
        found("m-q4", shelf, Rules(licenses=LicensePolicy(allowed=("MIT",))))


def test_a_namespace_has_an_index_of_its_own() -> None:
    other = Shelf(model("chat", release("9")))
    spaces = {NormalizedName("acme"): other}
    asked = Requirement.parse("Acme/chat")
    assert str(resolve(asked, Shelf(CHAT), namespaces=spaces)) == "chat-q4 9"
    with pytest.raises(NamespaceNotFoundError, match="other") as caught:
        resolve(Requirement.parse("other/chat"), Shelf(CHAT), namespaces=spaces)
    assert "`acme`" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "answer", "alias"),
    [
        ("talk", "chat-q4 1.1", "talk"),
        ("talk-to-me_Q8", "chat-q8 1.1", "talk-to-me"),
        ("chat", "chat-q4 1.1", None),
    ],
)
def test_an_alias_stands_for_a_model(text: str, answer: str, alias: str | None) -> None:
    shelf = ShelfWithAliases({"talk": CHAT, "talk-to-me": CHAT}, CHAT)
    explanation = explain(Requirement.parse(text), shelf)
    assert str(explanation.result()) == answer
    assert explanation.alias == alias


def test_one_that_was_found_otherwise_is_held_against_the_rules_too() -> None:
    resolved = resolve(Requirement.parse("chat"), Shelf(CHAT))
    rules = Rules(machine=Machine.parse("1GB"), licenses=LicensePolicy(allowed=("Apache-2.0",)))
    candidate = consider(resolved, rules)
    assert [exclusion.rule for exclusion in candidate.exclusions] == ["license"]
    assert [note.rule for note in candidate.notes] == ["memory"]


# properties

T = TypeVar("T")

NAMES = ["q2", "q4", "q8", "f16", "f32"]
VERSIONS = ["0.9", "1.0", "1.1", "1.2rc1", "2.0", "2.0.post1", "3.0a2"]
variants_of = st.lists(
    st.builds(
        variant,
        st.sampled_from(NAMES),
        st.sampled_from([None, 0, 10**8, 10**9, 5 * 10**9, 40 * 10**9]),
        form=st.sampled_from(["gguf", "safetensors", "onnx"]),
        q=st.sampled_from([None, "Q4_K_M", "Q8_0", "F32"]),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda each: each.name,
)


@st.composite
def models(draw: st.DrawFn, name: str) -> Model:
    versions = draw(st.lists(st.sampled_from(VERSIONS), min_size=1, max_size=3, unique=True))
    versions.sort(key=Version, reverse=True)
    releases = [
        release(version, *draw(variants_of), yanked=draw(st.sampled_from([None, None, "bad"])))
        for version in versions
    ]
    return model(
        name,
        *releases,
        architecture=draw(st.sampled_from(["llama", "bert", "mamba"])),
        license=draw(st.sampled_from(["MIT", "GPL-3.0-only", "MIT OR LicenseRef-x"])),
    )


shelves = st.tuples(*(models(name) for name in ("a", "a-b", "a-q4-c")))
requirements = st.builds(
    lambda name, specifier: Requirement.parse(name + specifier),
    st.sampled_from(["a", "a-b", "a-q4", "a-b-q8", "a-b-f16", "a-q4-c-q2", "a-q5"]),
    st.sampled_from(["", "", ">=1", "==1.0", "==1.*", "<2", "!=1.1", ">=2.0a1", "~=1.0", "===2.0"]),
)
rule_sets = st.builds(
    Rules,
    machine=st.none() | st.builds(Machine, memory=st.sampled_from([None, 10**8, *(int(2**28 * 1.5**i) for i in range(14))])),
    context=st.none() | st.integers(0, 32_768),
    licenses=st.none() | st.sampled_from([LicensePolicy(allowed=("MIT",)), LicensePolicy(denied=("MIT",))]),
    convertible=st.none() | st.just({"gguf": {"llama"}, "safetensors": {"llama", "bert"}}),
)  # fmt: skip


def allowed(requirement: Requirement, rules: Rules, owner: Model, each: Release, build: Variant) -> bool:  # fmt: skip
    """What the rules say, written down once more and otherwise."""
    wanted = requirement.name.removeprefix(owner.normalized_name).strip("-")
    pinned = any(
        s.operator in {"==", "==="} and "*" not in s.version for s in requirement.specifier
    )
    live = [r.version for r in owner.releases if pinned or r.yanked is None]
    finals = [v for v in live if not v.is_prerelease]
    matches = list(requirement.specifier.filter(live, prereleases=requirement.specifier.prereleases or None))  # fmt: skip
    if not any(requirement.specifier.contains(v) for v in finals):
        matches = [v for v in live if requirement.specifier.contains(v, prereleases=True)]
    need = estimate(owner, build, rules.context)
    room = rules.machine.room if rules.machine else None
    known = (rules.convertible or {}).get(build.format)
    return (
        each.version in matches
        and wanted in {"", build.name}
        and (rules.licenses is None or rules.licenses.refusal(owner.license) is None)
        and (known is None or owner.architecture in known)
        and (wanted != "" or need is None or room is None or need.total <= room)
    )


@given(shelves, requirements, rule_sets)
def test_resolution_is_sound_and_complete(
    shelf: tuple[Model, ...], requirement: Requirement, rules: Rules
) -> None:
    owner = max(
        (m for m in shelf if f"{requirement.name}-".startswith(f"{m.normalized_name}-")),
        key=lambda m: len(m.name),
    )
    could = [
        (each.version, build.name)
        for each in owner.releases
        for build in each.variants
        if allowed(requirement, rules, owner, each, build)
    ]
    explanation = explain(requirement, Shelf(*shelf), rules)
    passed = [
        (each.resolved.release.version, each.resolved.variant.name)
        for each in explanation.candidates
        if not each.exclusions
    ]
    assert sorted(passed) == sorted(could)
    try:
        resolved = resolve(requirement, Shelf(*shelf), rules)
    except ResolutionError:
        assert not could
    else:
        assert (resolved.release.version, resolved.variant.name) in could
        finals = [version for version, _ in could]
        assert resolved.release.version == max(finals)


@given(shelves, requirements, rule_sets, st.randoms(use_true_random=False))
def test_resolution_does_not_depend_on_any_order(
    shelf: tuple[Model, ...], requirement: Requirement, rules: Rules, chance: random.Random
) -> None:
    def shuffled(items: Sequence[T]) -> tuple[T, ...]:
        return tuple(chance.sample(items, len(items)))

    again = [
        Model(
            name=m.name,
            summary=m.summary,
            task=m.task,
            architecture=m.architecture,
            license=m.license,
            default_variant=m.default_variant,
            releases=shuffled(
                [
                    Release(version=r.version, date=r.date, changes=r.changes, yanked=r.yanked, variants=shuffled(r.variants))
                    for r in m.releases
                ]
            ),
        )
        for m in shelf
    ]  # fmt: skip

    def outcome(pages: Sequence[Model]) -> list[tuple[str, tuple[Exclusion, ...]]]:
        candidates = explain(requirement, Shelf(*pages), rules).candidates
        return [(str(each.resolved), each.exclusions) for each in candidates]

    assert outcome(shelf) == outcome(shuffled(again))


def test_the_property_of_pre_releases_is_what_packaging_does() -> None:
    versions = [Version(text) for text in VERSIONS]
    for text in ("", ">=1", ">=2.0a1", ">=2.1", "==1.2rc1", "<1", "!=2.0"):
        m = model("m", *(release(str(v)) for v in versions))
        candidates = explain(Requirement.parse(f"m{text}"), Shelf(m)).candidates
        left = {each.resolved.release.version for each in candidates if not each.exclusions}
        assert left == set(SpecifierSet(text).filter(versions)), text
