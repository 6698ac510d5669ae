"""Locking as a function: sound, stable, the same every time, and whatever the order."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from weightpkg.digest import Digest
from weightpkg.errors import ProjectError
from weightpkg.lockfile import Lockfile, dump_lockfile, read_lockfile
from weightpkg.locking import Ask, Offer, Upgrade, drift, is_for, plan_lock, select
from weightpkg.manifest import Choice, Manifest, Wanted
from weightpkg.package import File, Model, RelativePath, Release, Variant
from weightpkg.requirement import NormalizedName, Requirement
from weightpkg.resolve import resolve

ROOTS = {NormalizedName("default"): "unsigned"}
MODELS = ("ant", "bee", "bee-king")
VERSIONS = ("1.0", "1.1", "2.0", "2.1")
REQUIREMENTS = st.builds(
    "{}{}{}".format,
    st.sampled_from(MODELS),
    st.sampled_from(["", "-q4", "-q8"]),
    st.sampled_from(["", ">=1.1", "<2.1", "~=1.0", "==1.0"]),
)


class Shelf(dict[NormalizedName, Model]):
    """An index in memory."""

    def model(self, name: NormalizedName) -> Model:
        return self[name]

    def nearest(self, name: str) -> list[str]:  # noqa: ARG002  the protocol has it
        return []


def shelf(versions: dict[str, list[str]], yanked: frozenset[str] = frozenset()) -> Shelf:
    """Models that have these versions, each in two variants."""
    return Shelf(
        {NormalizedName(name): _model(name, own, yanked) for name, own in versions.items()}
    )


def _model(name: str, versions: list[str], yanked: frozenset[str]) -> Model:
    releases = [
        Release(
            version=Version(version),
            date=date(2026, 1, 1),
            changes="x",
            yanked="wrong" if version in yanked else None,
            variants=tuple(_variant(name, version, variant) for variant in ("q4", "q8")),
        )
        for version in sorted(versions, key=Version, reverse=True)
    ]
    return Model(
        name=name,
        summary="x",
        task="text-generation",
        architecture="llama",
        license="MIT",
        default_variant=NormalizedName("q4"),
        releases=tuple(releases),
    )


def _variant(name: str, version: str, variant: str) -> Variant:
    digest = f"{name}{version}{variant}".encode().hex().ljust(64, "0")
    file = File(path=RelativePath("m.gguf"), sha256=Digest("sha256", digest), sources=())
    return Variant(name=NormalizedName(variant), format="gguf", files=(file,))


def asking(index: Shelf) -> Ask:
    return lambda text: Offer(resolve(Requirement.parse(text), index), NormalizedName("default"))


def manifest(*requirements: str) -> Manifest:
    return Manifest(
        wanted=tuple(
            Wanted(NormalizedName(f"role{i}"), None, (Choice(text),))
            for i, text in enumerate(requirements)
        )
    )


ALL = shelf({name: list(VERSIONS) for name in MODELS})
OLD = shelf({name: ["1.0"] for name in MODELS})


def lock(
    wanted: Manifest,
    old: Lockfile | None = None,
    index: Shelf = ALL,
    upgrade: Upgrade | None = None,
) -> Lockfile:
    plan = plan_lock(wanted, old or Lockfile(), asking(index), ROOTS, upgrade or Upgrade())
    return plan.lockfile


WISHES = st.lists(REQUIREMENTS, max_size=5).map(lambda texts: manifest(*texts))


@given(WISHES)
def test_what_is_locked_is_what_was_wanted(wanted: Manifest) -> None:
    lockfile = lock(wanted)
    assert drift(wanted, lockfile) == []
    assert {m.role for m in lockfile.models} == {one.role for one in wanted.wanted}
    for model in lockfile.models:
        package = lockfile.package(model.package)
        assert package.version in Requirement.parse(model.requirement).specifier


@given(WISHES)
def test_locking_again_changes_nothing(wanted: Manifest) -> None:
    lockfile = lock(wanted)
    again = read_lockfile(dump_lockfile(lockfile), source="weights.lock", warn=pytest.fail)
    assert dump_lockfile(lock(wanted, again)) == dump_lockfile(lockfile)


@given(st.lists(REQUIREMENTS, max_size=5), st.data())
def test_the_order_of_wishes_does_not_matter(texts: list[str], data: st.DataObject) -> None:
    wanted = manifest(*texts)
    shuffled = replace(wanted, wanted=tuple(data.draw(st.permutations(wanted.wanted))))
    assert dump_lockfile(lock(shuffled)) == dump_lockfile(lock(wanted))


@given(st.lists(REQUIREMENTS.filter(lambda text: ">=" not in text), max_size=5))
def test_newer_and_yanked_releases_move_nothing(texts: list[str]) -> None:
    wanted = manifest(*texts)
    before = lock(wanted, index=OLD)
    later = shelf({name: list(VERSIONS) for name in MODELS}, frozenset({"1.0"}))
    plan = plan_lock(wanted, before, asking(later), ROOTS, Upgrade())
    assert plan.lockfile == before
    assert len({note for note in plan.notes if "yanked" in note}) == len(before.packages)


@given(st.lists(REQUIREMENTS.filter(lambda text: ">=" not in text), max_size=5))
def test_an_upgrade_is_what_locking_anew_would_be(texts: list[str]) -> None:
    wanted = manifest(*texts)
    before = lock(wanted, index=OLD)
    assert lock(wanted, before, upgrade=Upgrade(everything=True)) == lock(wanted)


def test_an_upgrade_of_one_leaves_the_others() -> None:
    wanted = manifest("ant", "bee")
    before = lock(wanted, index=OLD)
    after = lock(wanted, before, upgrade=Upgrade(frozenset({NormalizedName("bee")})))
    assert [str(package) for package in after.packages] == ["ant-q4 1.0", "bee-q4 2.1"]


def test_a_wish_that_a_locked_package_will_do_for_gets_that() -> None:
    before = lock(manifest("ant"), index=OLD)
    after = lock(manifest("ant", "ant-q4<2"), before)
    assert [str(package) for package in after.packages] == ["ant-q4 1.0"]
    moved = lock(manifest("ant>=2"), before)
    assert [str(package) for package in moved.packages] == ["ant-q4 2.1"]


def test_what_the_lockfile_learned_stays() -> None:
    wanted = manifest("ant")
    (package,) = lock(wanted).packages
    tree, known = Digest("sha256", "1" * 64), Digest("blake3", "2" * 64)
    files = tuple(replace(file, blake3=known, size=7) for file in package.files)
    learned = replace(lock(wanted), packages=(replace(package, tree=tree, files=files),))
    assert lock(wanted, learned) == learned
    again = lock(wanted, learned, upgrade=Upgrade(everything=True))
    assert again == learned  # the same bytes are the same bytes


def test_another_root_is_refused_until_everything_is_upgraded() -> None:
    wanted = manifest("ant")
    before = lock(wanted)
    signed = {NormalizedName("default"): "sha256:" + "0" * 64}
    with pytest.raises(ProjectError, match="has the root sha256:0000"):
        plan_lock(wanted, before, asking(ALL), signed, Upgrade())
    plan = plan_lock(wanted, before, asking(ALL), signed, Upgrade(everything=True))
    assert plan.lockfile.indexes[0].root == signed[NormalizedName("default")]
    with pytest.raises(ProjectError, match="needs the index `default`"):
        plan_lock(wanted, before, asking(ALL), {}, Upgrade())


@pytest.mark.parametrize(
    ("here", "package"),
    [("linux-x86_64", "ant-q8"), ("linux-arm64", "bee-q4"), ("macos-arm64", "ant-q4")],
)
def test_the_nearest_platform_counts(here: str, package: str) -> None:
    choices = (
        Choice("ant-q8", ("linux-x86_64",)),
        Choice("bee-q4", ("linux",)),
        Choice("ant-q4"),
    )
    wanted = Manifest(wanted=(Wanted(NormalizedName("chat"), None, choices),))
    chosen = select(lock(wanted), here, [None])
    assert [one.full_name for one in chosen.values()] == [package]
    assert is_for((), here)


def test_a_license_that_was_corrected_is_another_lockfile() -> None:
    wanted = manifest("ant")
    before = lock(wanted)
    other = Shelf({name: replace(model, license="Apache-2.0") for name, model in ALL.items()})
    plan = plan_lock(wanted, before, asking(other), ROOTS, Upgrade())
    assert [package.license for package in plan.lockfile.packages] == ["Apache-2.0"]
    assert plan.notes == ["ant-q4 2.1 is locked as MIT, and the index has Apache-2.0 now"]
