"""Verifying: everything that is bad is found, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weightpkg.api import ensure
from weightpkg.progress import Silence
from weightpkg.settings import Settings
from weightpkg.verify import verify


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(0o444)


def cut(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    path.chmod(0o444)


def grow(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b"x")
    path.chmod(0o444)


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (flip, "corrupt"),
    (cut, "truncated"),
    (grow, "corrupt"),
    (Path.unlink, "missing"),
]


@pytest.mark.parametrize(("damage", "kind"), DAMAGES, ids=["flip", "cut", "grow", "unlink"])
@pytest.mark.parametrize("name", ["blob", "model.onnx.data", "tokenizer.json", "model.onnx"])
def test_finds_a_damaged_file(
    settings: Settings, damage: Callable[[Path], object], kind: str, name: str
) -> None:
    directory = ensure("tiny", settings=settings)
    (record,) = settings.store().installed()
    path = (
        settings.store().blob_path(record.files[0].sha256) if name == "blob" else directory / name
    )
    damage(path)
    (problem,) = verify(settings.store(), Silence())
    assert (problem.kind, problem.path, problem.models) == (kind, path, ("tiny-q4",))


def test_finds_a_changed_manifest_and_a_lost_directory(settings: Settings) -> None:
    manifest = ensure("tiny", settings=settings) / "weightpkg.toml"
    flip(manifest)
    assert [str(p.kind) for p in verify(settings.store(), Silence())] == ["corrupt"]
    manifest.unlink()
    assert [str(p.kind) for p in verify(settings.store(), Silence())] == ["missing"]


def test_finds_a_file_that_nobody_put_there(settings: Settings) -> None:
    extra = ensure("tiny", settings=settings) / "extra.py"
    extra.write_text("import os")
    (problem,) = verify(settings.store(), Silence())
    assert (problem.kind, problem.path) == ("unexpected", extra)


def test_finds_everything_and_says_whose_it_is(settings: Settings) -> None:
    for name in ("tiny-q4", "tiny-q8"):
        flip(ensure(name, settings=settings) / "model.onnx")
    cut(ensure("tiny-q8", settings=settings) / "tokenizer.json")
    problems = verify(settings.store(), Silence())
    assert sorted((p.kind, *p.models) for p in problems) == [
        ("corrupt", "tiny-q4"), ("corrupt", "tiny-q8"), ("truncated", "tiny-q8"),
    ]  # fmt: skip


def test_an_empty_store_is_fine(settings: Settings) -> None:
    assert verify(settings.store(), Silence()) == []
