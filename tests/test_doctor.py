"""`weightpkg doctor` and `weightpkg resolve`, as whole processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from weightpkg.settings import Settings

Result = subprocess.CompletedProcess[str]
Weightpkg = Callable[..., Result]


@pytest.fixture
def weightpkg(settings: Settings, tmp_path: Path) -> Weightpkg:
    """Run the command line with the store and index of `settings`."""
    kept = {key: os.environ[key] for key in ("PATH", "VIRTUAL_ENV") if key in os.environ}
    environ = {**kept, **settings.environ, "HOME": str(tmp_path / "home")}

    def run(*words: str, **changes: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "weightpkg", *words],
            env={**environ, **changes},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


SCHEMA = {
    "schema": int,
    "weightpkg": str,
    "python": str,
    "system": str,
    "architecture": str,
    "machine": {"device": str, "memory": int, "system": str},
    "cpu": {"vendor": None, "model": None, "physical-cores": None, "logical-cores": int, "features": list},
    "memory": {"total": int, "available": int, "limit": None},
    "devices": list,
    "onnxruntime": {"version": str, "error": None, "distributions": dict, "providers": list},
    "execution": None,
    "store": {
        "path": str, "error": None, "is-writable": bool, "free": int, "size": int, "installed": int,
        "in-use": int, "partials": int, "partial-size": int, "quarantined": int,
    },
    "findings": list,
}  # fmt: skip


def check(value: object, schema: object) -> None:
    """Compare keys and types; None in the schema is anything."""
    if isinstance(schema, dict):
        assert isinstance(value, dict)
        assert list(value) == list(schema)
        for key, kind in schema.items():
            check(value[key], kind)
    elif isinstance(schema, type):
        assert isinstance(value, schema)


def test_doctor_describes_this_machine(weightpkg: Weightpkg, settings: Settings) -> None:
    done = weightpkg("doctor")
    assert done.returncode == 0, done.stdout
    assert "CPUExecutionProvider" in done.stdout
    assert not settings.home.exists()  # it only looks
    document = json.loads(weightpkg("doctor", "--json").stdout)
    check(document, SCHEMA)
    assert document["machine"]["memory"] <= document["memory"]["total"]
    assert document["store"]["path"] == str(settings.home)


def test_doctor_finds_what_is_wrong_with_a_store(weightpkg: Weightpkg, settings: Settings) -> None:
    home = settings.home
    (home / "partial").mkdir(parents=True)
    (home / "partial" / ("0" * 64)).write_bytes(b"half")
    (home / "quarantine" / "bad").mkdir(parents=True)
    (home / "layout").write_text("9\n")
    done = weightpkg("doctor")
    assert done.returncode == 1
    assert "problem: the store cannot be used: " in done.stdout
    assert "layout `9`, not 1" in done.stdout
    assert "note: 1 downloads were not finished" in done.stdout
    assert "note: 1 damaged files were set aside" in done.stdout
    (first, *_) = json.loads(weightpkg("doctor", "--json").stdout)["findings"]
    assert first["severity"] == "problem"


def test_doctor_of_a_place_where_no_store_can_be(weightpkg: Weightpkg, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "store"
    done = weightpkg("doctor", WEIGHTPKG_HOME=str(home))
    assert done.returncode == 1
    assert f"problem: `{home}` cannot be written" in done.stdout


def test_doctor_of_a_store_with_a_broken_record(weightpkg: Weightpkg, settings: Settings) -> None:
    record = settings.home / "installed" / "tiny" / "1.0" / "q4.toml"
    record.parent.mkdir(parents=True)
    record.write_text("schema = [")
    done = weightpkg("doctor")
    assert done.returncode == 1
    assert "problem: the store cannot be used: " in done.stdout
    assert "q4.toml" in done.stdout


def test_doctor_finds_a_second_onnxruntime(weightpkg: Weightpkg, tmp_path: Path) -> None:
    fake = tmp_path / "site" / "onnxruntime_gpu-1.31.0.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.31.0\n"
    )
    (fake / "RECORD").write_text("onnxruntime/__init__.py,,\n")
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = weightpkg("doctor", PYTHONPATH=path)
    assert done.returncode == 1
    assert "problem: `onnxruntime` and `onnxruntime-gpu` are installed together" in done.stdout


def test_doctor_of_a_broken_onnxruntime(weightpkg: Weightpkg, tmp_path: Path) -> None:
    broken = tmp_path / "site" / "onnxruntime.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no such library')")
    path = os.pathsep.join([str(broken.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = weightpkg("doctor", PYTHONPATH=path)
    assert done.returncode == 1
    assert "problem: onnxruntime cannot be imported: no such library" in done.stdout


def test_resolve_says_what_a_name_means(weightpkg: Weightpkg) -> None:
    assert weightpkg("resolve", "tiny").stdout == "tiny-q4==1.0\n"
    explained = weightpkg("resolve", "tiny", "--explain", "--for", "cpu,16GiB").stdout
    assert "for cpu, 16.0 GiB; license MIT" in explained
    q4, q8 = explained.splitlines()[2:]
    assert q4.startswith("tiny-q4  1.0")
    assert q4.endswith("chosen")
    assert q8.endswith("would do")


def test_resolve_for_a_saved_machine_is_the_same_anywhere(
    weightpkg: Weightpkg, tmp_path: Path
) -> None:
    saved = tmp_path / "machine.json"
    saved.write_text(weightpkg("doctor", "--json").stdout)
    here = weightpkg("resolve", "tiny", "--json").stdout
    assert weightpkg("resolve", "tiny", "--json", "--for", str(saved)).stdout == here
    assert json.loads(here)["machine"] == json.loads(saved.read_text())["machine"]


def test_resolve_refuses_what_a_rule_excludes(weightpkg: Weightpkg) -> None:
    small = weightpkg("resolve", "tiny", "--for", "1MB")
    assert small.returncode == 4
    assert "there is room for 1 MB" in small.stderr
    assert "--explain" in small.stderr
    named = weightpkg("resolve", "tiny-q8", "--for", "1MB")
    assert (named.returncode, named.stdout) == (0, "tiny-q8==1.0\n")
    assert "note: it needs" in named.stderr
    denied = weightpkg("resolve", "tiny-q8", "--deny-license", "mit", "--json")
    assert denied.returncode == 4
    excluded = json.loads(denied.stdout)["candidates"]
    assert [[each["rule"] for each in row["exclusions"]] for row in excluded] == [
        ["variant", "license"],
        ["license"],
    ]
    assert weightpkg("resolve", "tiny", "--for", "toaster").returncode == 4


def test_resolve_knows_what_is_installed_exactly(weightpkg: Weightpkg) -> None:
    assert weightpkg("install", "tiny").returncode == 0
    document = json.loads(weightpkg("resolve", "tiny", "--json", "--context", "64").stdout)
    q4, q8 = (row["memory"] for row in document["candidates"])
    assert (q4["basis"], q8["basis"]) == ("installed", "index")
    assert q4["context"] == 64
    assert q4["kv-cache"] > 0


def test_show_tells_memory(weightpkg: Weightpkg) -> None:
    before = weightpkg("show", "tiny").stdout
    assert "memory, while it runs:\n  tiny-q4 1.0: about " in before
    assert weightpkg("install", "tiny").returncode == 0
    memory = json.loads(weightpkg("show", "tiny", "--context", "64", "--json").stdout)["memory"]
    assert [need["basis"] for need in memory.values()] == ["installed", "index"]
    assert [need["context"] for need in memory.values()] == [64, 64]
    resolved = json.loads(weightpkg("resolve", "tiny", "--context", "64", "--json").stdout)
    assert [row["memory"] for row in resolved["candidates"]] == list(memory.values())


@pytest.mark.parametrize("command", ["show", "resolve"])
def test_memory_of_a_cache_in_int8_is_a_quarter(weightpkg: Weightpkg, command: str) -> None:
    assert weightpkg("install", "tiny").returncode == 0
    sizes = []
    for kind in ("float", "int8"):
        words = (command, "tiny", "--context", "64", "--json", "--kv-cache", kind)
        found = json.loads(weightpkg(*words).stdout)
        rows = (
            found["memory"].values()
            if command == "show"
            else [row["memory"] for row in found["candidates"]]
        )
        sizes.append([need["kv-cache"] for need in rows])
    assert len(sizes[0]) == 2  # of what is installed, and of what is estimated
    assert sizes[0] == [4 * size for size in sizes[1]]


def test_resolve_takes_a_file(weightpkg: Weightpkg, settings: Settings) -> None:
    path = settings.index_dir / "tiny-q4.gguf"
    document = json.loads(weightpkg("resolve", str(path), "--json").stdout)
    (candidate,) = document["candidates"]
    assert candidate["is-chosen"]
    assert document["requirement"] == str(path)


def test_resolve_imports_nothing_heavy(weightpkg: Weightpkg) -> None:
    done = weightpkg("resolve", "tiny", PYTHONPROFILEIMPORTTIME="1")
    assert done.stdout == "tiny-q4==1.0\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "weightpkg.resolve" in imported
    assert not imported & {"numpy", "onnx", "onnxruntime", "requests", "rich", "tokenizers"}


@pytest.mark.parametrize(("start", "command"), [("doc", "doctor"), ("res", "resolve")])
def test_completion_offers_the_commands(weightpkg: Weightpkg, start: str, command: str) -> None:
    line = {"COMP_WORDS": f"weightpkg {start}", "COMP_CWORD": "1"}
    done = weightpkg(_WEIGHTPKG_COMPLETE="bash_complete", **line)
    assert command in done.stdout


def test_completion_offers_the_options(weightpkg: Weightpkg) -> None:
    line = {"COMP_WORDS": "weightpkg resolve --ex", "COMP_CWORD": "2"}
    assert "--explain" in weightpkg(_WEIGHTPKG_COMPLETE="bash_complete", **line).stdout
