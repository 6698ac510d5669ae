"""Bills of materials: valid by the standards' own libraries, and the same bytes everywhere."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from packaging.version import Version

from test_lockfile import lockfiles
from weightpkg.audit import Subject
from weightpkg.bill.cyclonedx import write_cyclonedx
from weightpkg.bill.materials import Bill, BillError, make_bill, parse_timestamp, purl_of
from weightpkg.bill.spdx import write_spdx
from weightpkg.cli import cli
from weightpkg.digest import Digest
from weightpkg.lockfile import LockedPackage, Lockfile
from weightpkg.package import File, Model, RelativePath, Release, Variant, parse_source
from weightpkg.requirement import NormalizedName
from weightpkg.settings import Settings

cyclonedx_schema = pytest.importorskip("cyclonedx.schema")
cyclonedx_json = pytest.importorskip("cyclonedx.validation.json")
spdx_parser = pytest.importorskip("spdx_tools.spdx.parser.parse_anything")
spdx_validator = pytest.importorskip("spdx_tools.spdx.validation.document_validator")

COMMIT = 40 * "c"
TIME = datetime(2026, 1, 2, tzinfo=UTC)


def file(path: str, *sources: str, seed: str = "a") -> File:
    return File(
        path=RelativePath(path),
        sha256=Digest("sha256", 64 * seed),
        blake3=Digest("blake3", 64 * "b"),
        size=100,
        sources=tuple((parse_source(source),) for source in sources),
    )


def package(*files: File, name: str = "tiny", **changes: Any) -> LockedPackage:
    made = LockedPackage(
        name=NormalizedName(name),
        version=Version("1.0"),
        variant=NormalizedName("q4"),
        index=NormalizedName("default"),
        license="MIT",
        format="gguf",
        architecture="llama",
        conversion=64 * "d",
        converter=1,
        tree=Digest("sha256", 64 * "e"),
        files=files or (file("tiny.gguf", f"hf:acme/Tiny-GGUF@{COMMIT}/sub/tiny q4.gguf"),),
    )
    return replace(made, **changes)


def page(own: LockedPackage, **changes: Any) -> Model:
    variant = Variant(name=own.variant, format=own.format, files=own.files)
    release = Release(
        version=own.version, date=date(2026, 1, 2), changes="first", variants=(variant,)
    )
    model = Model(
        name=own.name,
        summary='A "model" for tests, ü',
        task="text-generation",
        architecture="llama",
        parameters=1000,
        context_length=2048,
        license=own.license,
        homepage="https://example.com/tiny",
        base_model="acme/Tiny",
        tags=("small", "tests"),
        default_variant=own.variant,
        releases=(release,),
    )
    return replace(model, **changes)


def checkpoint() -> LockedPackage:
    names = ["config.json", "1_Pooling/config.json", "model-00001-of-00002.safetensors"]
    files = [file(n, f"hf:acme/Tiny@{COMMIT}/{n}", f"https://example.com/{n}") for n in names]
    return package(*files, format="safetensors")


PACKAGES = {
    "of the hub": package(),
    "of a wheel": package(file("m.gguf", "pypi:llm-tiny==0.1/llm_tiny/m.gguf")),
    "of a url": package(file("m.gguf", "https://example.com/a%20b.gguf?x=1&y=[2]")),
    "of this machine": package(file("m.gguf", "file:///home/ann/m.gguf")),
    "without a source": package(file("m.gguf")),
    "a checkpoint": checkpoint(),
    "own terms": package(license="LicenseRef-tiny", license_url="https://example.com/terms"),
    "either license": package(license="MIT OR LicenseRef-tiny"),
    "both licenses": package(license="Apache-2.0 AND (MIT OR GPL-2.0-only WITH Classpath-exception-2.0)"),
    "no license": package(license="unknown"),
    "of a namespace": package(index=NormalizedName("acme")),
    "by reference": package(index=None, reference="hf:acme/Tiny-GGUF@main/tiny.gguf"),
    "by a path": package(index=None, reference="/home/ann/tiny.gguf"),
    "kept as files": package(conversion=None, converter=None, tree=None),
    "not converted yet": package(tree=None),
    "odd names": package(file("a/b c+d@e=f.gguf", f"hf:a.b/C_d@{COMMIT}/a/b c+d@e=f.gguf")),
    "little known": package(replace(file("m.gguf"), sha256=None, blake3=None, size=None)),
}  # fmt: skip


def valid_cyclonedx(text: str) -> dict[str, Any]:
    """Read a bill, if the standard's own strict schema takes it."""
    validator = cyclonedx_json.JsonStrictValidator(cyclonedx_schema.SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    document = json.loads(text)
    assert isinstance(document, dict)
    return document


def valid_spdx(text: str, directory: Path) -> dict[str, Any]:
    """Read a bill, if the standard's own library reads it and finds nothing wrong."""
    path = directory / "bill.spdx.json"
    path.write_text(text, encoding="utf-8")
    document = spdx_parser.parse_file(str(path))
    assert spdx_validator.validate_full_spdx_document(document) == []
    content = json.loads(text)
    assert isinstance(content, dict)
    return content


def bill_of(own: LockedPackage) -> Bill:
    subject = Subject(package=own, model=page(own) if own.index else None)
    return make_bill([subject], None)


@pytest.mark.parametrize("name", PACKAGES)
def test_cyclonedx_is_valid(name: str) -> None:
    document = valid_cyclonedx(write_cyclonedx(bill_of(PACKAGES[name])))
    model = document["components"][0]
    assert model["type"] == "machine-learning-model"
    assert model["name"] == PACKAGES[name].full_name


@pytest.mark.parametrize("name", PACKAGES)
def test_spdx_is_valid(name: str, tmp_path: Path) -> None:
    own = PACKAGES[name]
    document = valid_spdx(write_spdx(bill_of(own)), tmp_path)
    assert document["packages"][0]["name"] == own.full_name
    assert len(document["packages"]) == 1 + len(own.files) + bool(own.conversion)


@pytest.mark.parametrize("write", [write_cyclonedx, write_spdx])
def test_nothing_of_this_machine_is_in_it(write: Callable[[Bill], str]) -> None:
    for name in ("of this machine", "by a path"):
        assert "/home/ann" not in write(bill_of(PACKAGES[name]))


def test_what_cyclonedx_says() -> None:
    document = valid_cyclonedx(write_cyclonedx(bill_of(package())))
    model, onnx = document["components"]
    assert model["purl"] == f"pkg:huggingface/acme/Tiny-GGUF@{COMMIT}"
    assert model["licenses"] == [{"expression": "MIT"}]
    assert {h["alg"]: h["content"] for h in model["hashes"]} == {
        "SHA-256": 64 * "a",
        "BLAKE3": 64 * "b",
    }
    (part,) = model["components"]
    assert part["purl"] == f"pkg:huggingface/acme/Tiny-GGUF@{COMMIT}#sub/tiny%20q4.gguf"
    urls = {r["type"]: r["url"] for r in model["externalReferences"]}
    assert urls == {
        "website": "https://example.com/tiny",
        "distribution": f"https://huggingface.co/acme/Tiny-GGUF/resolve/{COMMIT}/sub/tiny%20q4.gguf",
    }
    assert model["pedigree"]["ancestors"][0]["purl"] == "pkg:huggingface/acme/Tiny"
    assert model["modelCard"]["modelParameters"] == {
        "task": "text-generation",
        "modelArchitecture": "llama",
    }
    assert onnx["pedigree"]["ancestors"][0]["purl"] == model["purl"]
    assert onnx["components"][0]["hashes"] == [{"alg": "SHA-256", "content": 64 * "e"}]
    edges = {row["ref"]: row.get("dependsOn") for row in document["dependencies"]}
    assert edges[onnx["bom-ref"]] == [model["bom-ref"]]
    assert document["metadata"]["timestamp"] == "2026-01-02T00:00:00+00:00"
    assert document["metadata"]["tools"]["components"][0]["name"] == "weightpkg"


def test_what_spdx_says(tmp_path: Path) -> None:
    own = PACKAGES["own terms"]
    document = valid_spdx(write_spdx(bill_of(own)), tmp_path)
    model, part, onnx = document["packages"]
    assert model["licenseDeclared"] == "LicenseRef-tiny"
    assert document["hasExtractedLicensingInfos"][0]["extractedText"] == "https://example.com/terms"
    assert model["externalRefs"][0]["referenceLocator"] == purl_of(own)
    assert part["checksums"] == [{"algorithm": "SHA256", "checksumValue": 64 * "a"}]
    assert f"weightpkg:blake3={64 * 'b'}" in part["comment"]
    assert f"weightpkg:tree=sha256:{64 * 'e'}" in onnx["comment"]
    kinds = [row["relationshipType"] for row in document["relationships"]]
    assert kinds == ["DESCRIBES", "CONTAINS", "GENERATED_FROM"]
    assert document["creationInfo"]["created"] == "2026-01-02T00:00:00Z"


def test_a_yank_is_said(tmp_path: Path) -> None:
    own = package()
    model = page(own)
    yanked = replace(model, releases=(replace(model.releases[0], yanked="wrong tokenizer"),))
    bill = make_bill([Subject(package=own, model=yanked)], None)
    properties = valid_cyclonedx(write_cyclonedx(bill))["components"][0]["properties"]
    assert {"name": "weightpkg:yanked", "value": "wrong tokenizer"} in properties
    assert "weightpkg:yanked=wrong tokenizer" in write_spdx(bill)


@pytest.mark.parametrize("write", [write_cyclonedx, write_spdx])
def test_the_same_content_is_the_same_bytes(write: Callable[[Bill], str]) -> None:
    subjects = [
        Subject(package=replace(own, name=NormalizedName(f"m{i}")))
        for i, own in enumerate(PACKAGES.values())
    ]
    bill = make_bill(subjects, TIME)
    assert write(bill) == write(bill)
    assert write(make_bill(subjects, TIME.replace(year=2027))) != write(bill)
    other = [replace(subjects[0], package=package(tree=Digest("sha256", 64 * "f")))]
    serials = {
        json.loads(write_cyclonedx(make_bill(rows, TIME)))["serialNumber"]
        for rows in (subjects, subjects[:1], other)
    }
    assert len(serials) == 3


def test_the_order_of_components_does_not_matter_to_cyclonedx() -> None:
    subjects = [Subject(package=package(name=f"m{i}")) for i in range(5)]
    shuffled = random.Random(1).sample(subjects, 5)
    assert write_cyclonedx(make_bill(subjects, TIME)) == write_cyclonedx(make_bill(shuffled, TIME))


@pytest.mark.parametrize("expression", ["Foo-1.0", "MIT WITH foo", "a@b", "LicenseRef-ü"])
def test_a_license_that_spdx_does_not_know_is_one_error(expression: str) -> None:
    bill = make_bill([Subject(package=package(license=expression))], TIME)
    with pytest.raises(BillError, match="no SPDX document can be made of it") as caught:
        write_spdx(bill)
    assert caught.value.hint == "`--format cyclonedx` may say it"
    valid_cyclonedx(write_cyclonedx(bill))


def test_a_bill_of_nothing(tmp_path: Path) -> None:
    assert "components" not in valid_cyclonedx(write_cyclonedx(make_bill([], TIME)))
    with pytest.raises(BillError, match="there is no model"):
        write_spdx(make_bill([], TIME))


@hypothesis_settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(lockfiles())
def test_any_lockfile_has_a_valid_bill(lockfile: Lockfile) -> None:
    bill = make_bill([Subject(package=one) for one in lockfile.packages], None)
    valid_cyclonedx(write_cyclonedx(bill))
    with suppress(BillError):  # of licenses that SPDX does not list
        assert json.loads(write_spdx(bill))["spdxVersion"] == "SPDX-2.3"


def test_the_time_is_the_newest_release_s_if_none_is_given() -> None:
    own = package()
    assert bill_of(own).timestamp == datetime(2026, 1, 2, tzinfo=UTC)
    unknown = make_bill([Subject(package=own)], None)
    assert unknown.timestamp == datetime(1970, 1, 1, tzinfo=UTC)
    assert make_bill([], None).timestamp == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "yesterday", "-1", "1e9", "99999999999999999999", "2026-13-01", "٣", "12:00"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(BillError, match="is not a time"):
        parse_timestamp(text)


@given(st.integers(0, 4_102_444_800))
def test_seconds_and_iso_times_are_the_same(seconds: int) -> None:
    found = parse_timestamp(str(seconds))
    assert found.timestamp() == seconds
    assert parse_timestamp(found.isoformat()) == found


@pytest.mark.parametrize("revision", ["main", "v1.0", "ABCDEF"])
def test_revisions_in_package_urls(revision: str) -> None:
    own = package(file("m.gguf", f"hf:Acme/Tiny@{revision}/m.gguf"))
    assert purl_of(own) == f"pkg:huggingface/Acme/Tiny@{revision.lower()}"


def test_files_of_several_places_have_a_generic_package_url() -> None:
    own = package(file("a.gguf", f"hf:a/b@{COMMIT}/a.gguf"), file("b", f"hf:a/c@{COMMIT}/b"))
    assert purl_of(own) == "pkg:generic/tiny-q4@1.0"


@pytest.mark.parametrize(("form", "library"), [("cyclonedx", "cyclonedx"), ("spdx", "spdx_tools")])
def test_a_missing_library_names_the_extra(
    form: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    write = write_cyclonedx if form == "cyclonedx" else write_spdx
    with pytest.raises(BillError) as caught:
        write(bill_of(package()))
    assert caught.value.hint == "pip install 'weightpkg[audit]'"


@pytest.fixture
def synced(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for key, value in settings.environ.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("WEIGHTPKG_NO_ADOPT", "1")
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    Path("weights.toml").write_text('[models]\nchat = "tiny"\nsmall = "tiny-q8"\n')
    assert CliRunner().invoke(cli, ["sync"]).exit_code == 0
    return settings


@pytest.mark.parametrize("form", ["cyclonedx", "spdx"])
def test_one_lockfile_has_one_bill_on_all_machines(
    form: str, synced: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = CliRunner().invoke(cli, ["audit", "--format", form])
    assert here.exit_code == 0
    monkeypatch.setenv("WEIGHTPKG_HOME", str(tmp_path / "another"))
    there = CliRunner().invoke(cli, ["audit", "--format", form])
    assert there.stdout == here.stdout
    assert str(tmp_path) not in here.stdout
    if form == "spdx":
        assert len(valid_spdx(here.stdout, tmp_path)["packages"]) == 6
    else:
        assert len(valid_cyclonedx(here.stdout)["components"]) == 4


def test_source_date_epoch_and_the_option(
    synced: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    words = ["audit", "--format", "cyclonedx"]
    text = CliRunner().invoke(cli, words).stdout
    assert json.loads(text)["metadata"]["timestamp"] == "1970-01-02T00:00:00+00:00"
    text = CliRunner().invoke(cli, [*words, "--timestamp", "2026-05-01T01:00:00Z"]).stdout
    assert json.loads(text)["metadata"]["timestamp"] == "2026-05-01T01:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert isinstance(CliRunner().invoke(cli, words).exception, BillError)


def test_a_bill_is_written_and_problems_are_said(synced: Settings) -> None:
    path = Path("weights.toml")
    path.write_text(f'deny = ["MIT"]\n{path.read_text()}')
    result = CliRunner().invoke(cli, ["audit", "--format", "cyclonedx"])
    assert result.exit_code == 1
    valid_cyclonedx(result.stdout)
    assert "error: tiny-q4 1.0: `MIT` is denied" in result.stderr


def test_a_bill_is_not_printed_as_something_else(synced: Settings) -> None:
    result = CliRunner().invoke(cli, ["audit", "--format", "spdx", "--json"])
    assert result.exit_code == 2
