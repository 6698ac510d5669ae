"""`weightpkg convert`: what is said before a conversion, and after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from factories import tiny_llama
from tiny_checkpoint import TinyCheckpoint
from weightpkg.cli import cli
from weightpkg.convert import Job, SourceFile, child
from weightpkg.digest import Digest
from weightpkg.errors import GGUFError
from weightpkg.formats.gguf import GGUFFile
from weightpkg.progress import Silence

if TYPE_CHECKING:
    from click.testing import Result


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["convert", *map(str, words)])


def read(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_llama(tmp_path / "tiny.gguf", weights="Q4_1")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return TinyCheckpoint.read("llama").write(tmp_path / "checkpoint", "BF16")


def test_a_dry_run_says_what_becomes_of_each_type_and_writes_nothing(
    source: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = run(source, "--dry-run", "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "4 bits, a scale and offset for 32" in rows["Q4_1"]
    assert "offsets rounded once" in rows["Q4_1"]
    assert "equal to the bit" in rows["F32"]
    assert "llama: " in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_is_what_the_conversion_then_says_and_writes(source: Path, tmp_path: Path) -> None:
    planned = read(run(source, "--dry-run", "--json"))
    done = read(run(source, "-o", tmp_path / "out", "--json"))
    assert planned["architecture"] == done["architecture"] == "llama"
    assert planned["parts"] == done["parts"]
    assert planned["source_size"] == done["source_size"] == source.stat().st_size
    assert planned["size"] == (tmp_path / "out" / "model.onnx.data").stat().st_size
    files = (path for path in (tmp_path / "out").iterdir() if path.name != "weightpkg.toml")
    assert done["size"] == sum(path.stat().st_size for path in files)


def test_every_tensor_of_the_source_is_in_the_plan(source: Path) -> None:
    parts = read(run(source, "--dry-run", "--json"))["parts"]
    with GGUFFile.open(source) as file:
        tensors = list(file.tensors.values())
    assert sum(part["n_tensors"] for part in parts) == len(tensors)
    assert sum(part["source_size"] for part in parts) == sum(tensor.size for tensor in tensors)


def test_the_memory_of_a_plan_is_that_of_a_process_and_not_of_the_file(source: Path) -> None:
    assert 20e6 < read(run(source, "--dry-run", "--json"))["memory"] < 500e6


def test_what_quantising_costs_is_said(checkpoint: Path) -> None:
    plain = read(run(checkpoint, "--dry-run", "--json"))
    assert {part["exactness"] for part in plain["parts"]} == {"equal to the bit"}
    quantised = read(run(checkpoint, "--dry-run", "--json", "--quantize", "q4"))
    kinds = {part["becomes"]: part["exactness"] for part in quantised["parts"]}
    assert kinds["4 bits, a scale for 32"] == "quantised"
    assert kinds["float32"] == "equal to the bit"
    assert quantised["size"] < plain["size"]


def test_a_malformed_file_is_refused_by_a_dry_run_as_by_a_conversion(
    source: Path, tmp_path: Path
) -> None:
    source.write_bytes(source.read_bytes()[:-100])
    planned, done = run(source, "--dry-run"), run(source, "-o", tmp_path / "out")
    assert isinstance(planned.exception, GGUFError)
    assert str(planned.exception) == str(done.exception)


def test_a_dry_run_reads_the_file_in_the_limited_process(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_WORKER", Path(__file__).with_name("hostile_worker.py"))
    file = SourceFile(source, Digest("sha256", 64 * "0"), "tiny")
    assert child.plan(Job("gguf", "tiny", (file,)), Silence()).architecture == "none"


def test_an_output_is_asked_for_unless_it_is_a_dry_run(source: Path) -> None:
    assert run(source).exit_code == 2


def test_matrices_in_float32_are_not_written_again(tmp_path: Path) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "checkpoint", "F32")
    parts = read(run(source, "-o", tmp_path / "out", "--json"))["parts"]
    assert {(part["becomes"], part["size"] > 0) for part in parts} == {
        ("float32, in place", False),
        ("float32", True),
    }
