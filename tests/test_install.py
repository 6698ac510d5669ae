"""Installing, end to end and offline: a real GGUF from a `file:` source to a model that answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from factories import edit_gguf, index_page, tiny_llama
from weightpkg.api import ensure, load, path
from weightpkg.errors import (
    ConvertError,
    DigestMismatchError,
    FetchError,
    GGUFError,
    NotInstalledError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
    UnsupportedQuantizationError,
    WeightpkgError,
)
from weightpkg.install import Plan, install, plan_install
from weightpkg.progress import Silence
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.settings import Settings
from weightpkg.store import Installed
from weightpkg.verify import verify


def plan(settings: Settings, name: str = "tiny-q4", *, allow_conversion: bool = True) -> Plan:
    resolved = resolve(Requirement.parse(name), settings.index())
    return plan_install(resolved, settings.store(), allow_conversion=allow_conversion)


def execute(
    settings: Settings, name: str = "tiny-q4", *, allow_conversion: bool = True
) -> Installed:
    store = settings.store()
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        return install(plan(settings, name, allow_conversion=allow_conversion), store, fetcher)


def add_page(settings: Settings, name: str, *paths: Path, **facts: str) -> None:
    page = index_page(name, {"q4": list(paths)}, **facts)
    (settings.index_dir / "models" / f"{name}.toml").write_text(page)


def leavings(settings: Settings) -> list[Path]:
    """Whatever is in the store but what belongs to installed models, and the locks."""
    records = settings.store().installed()
    known = {record.conversion for record in records}
    known |= {file.sha256.hex for record in records for file in record.files}
    places = [settings.home / name for name in ("models", "tmp", "trash")]
    return [p for place in places if place.is_dir() for p in place.iterdir() if p.name not in known]


def test_a_plan_says_what_is_to_do_and_does_nothing(settings: Settings) -> None:
    found = plan(settings)
    assert [str(file.path) for file in found.missing] == ["tiny-q4.gguf"]
    assert found.download_size == (settings.index_dir / "tiny-q4.gguf").stat().st_size
    assert not found.is_done
    assert not settings.home.exists()


def test_what_is_installed_is_complete_and_verifies(settings: Settings) -> None:
    record = execute(settings)
    directory = path("tiny-q4", settings=settings)
    names = {file.name for file in directory.iterdir()}
    assert names == {
        "model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json",
        "genai_config.json", "weightpkg.toml",
    }  # fmt: skip
    assert settings.store().installed() == [record]
    assert verify(settings.store(), Silence()) == []
    assert leavings(settings) == []


def test_nothing_is_fetched_or_converted_twice(settings: Settings) -> None:
    first = execute(settings)
    (settings.index_dir / "tiny-q4.gguf").unlink()
    directory = settings.store().model_path(first.conversion or "")
    before = directory.stat().st_mtime_ns
    assert plan(settings).is_done
    assert execute(settings) == first
    assert directory.stat().st_mtime_ns == before


def test_two_stores_get_the_same_tree(settings: Settings, tmp_path: Path) -> None:
    other = Settings(tmp_path / "other", settings.index_dir, settings.environ)
    assert execute(settings).tree == execute(other).tree is not None


def test_files_can_be_kept_without_a_conversion_and_converted_later(settings: Settings) -> None:
    assert execute(settings, allow_conversion=False).conversion is None
    with pytest.raises(ConvertError, match="without a conversion"):
        path("tiny", settings=settings)
    (settings.index_dir / "tiny-q4.gguf").unlink()
    assert ensure("tiny", settings=settings).is_dir()


def test_wrong_bytes_harm_nothing(settings: Settings) -> None:
    execute(settings, "tiny-q8")
    source = settings.index_dir / "tiny-q4.gguf"
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    source.write_bytes(content)
    with pytest.raises(DigestMismatchError) as caught:
        execute(settings)
    assert caught.value.found == f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert [record.variant for record in settings.store().installed()] == ["q8"]
    assert verify(settings.store(), Silence()) == []
    assert leavings(settings) == []


def test_a_source_that_is_gone_is_a_fetch_error(settings: Settings) -> None:
    (settings.index_dir / "tiny-q4.gguf").unlink()
    with pytest.raises(FetchError, match=r"tiny-q4\.gguf"):
        execute(settings)


@pytest.mark.parametrize("damage", ["cut", "architecture", "blocks", "template"])
def test_a_file_that_cannot_be_converted_leaves_nothing_half_done(
    settings: Settings, damage: str
) -> None:
    source = tiny_llama(
        settings.index_dir / "bad.gguf", weights="F64" if damage == "blocks" else "Q4_0"
    )
    errors: dict[str, type[WeightpkgError]] = {
        "cut": GGUFError,
        "architecture": UnsupportedArchitectureError,
        "blocks": UnsupportedQuantizationError,
        "template": WeightpkgError,
    }
    if damage == "cut":
        source.write_bytes(source.read_bytes()[:-1000])
    elif damage == "architecture":
        edit_gguf(source, {"general.architecture": "unheard-of"})
    elif damage == "template":
        edit_gguf(source, {"tokenizer.ggml.tokens": None})
    add_page(settings, "bad", source)
    execute(settings, "tiny-q8")
    with pytest.raises(errors[damage], match=r"bad\.gguf"):
        execute(settings, "bad")
    assert leavings(settings) == []
    assert verify(settings.store(), Silence()) == []


def test_a_format_that_is_not_converted_is_refused_before_the_download(settings: Settings) -> None:
    source = settings.index_dir / "m.safetensors"
    source.write_bytes(b"weights")
    add_page(settings, "other", source, form="safetensors")
    add_page(settings, "third", source, architecture="gptx")
    for name, error in (("other", UnsupportedFormatError), ("third", UnsupportedArchitectureError)):
        with pytest.raises(error) as caught:
            plan(settings, name)
        assert "--no-convert" in (caught.value.hint or "")
        assert execute(settings, name, allow_conversion=False).tree is None


def test_load_answers_and_refuses_to_install_if_told(settings: Settings) -> None:
    with pytest.raises(NotInstalledError) as caught:
        load("tiny", allow_install=False, settings=settings)
    assert caught.value.hint == "weightpkg install tiny-q4"
    with load("tiny", task="text-generation", settings=settings, threads=1) as model:
        assert len(model.generate("the sky", max_tokens=5).tokens) <= 5
    load("tiny", allow_install=False, settings=settings).close()
