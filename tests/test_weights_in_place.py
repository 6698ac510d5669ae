"""Checkpoints installed: their weights are in the store once, and all that handles the store knows it."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from durability import convert_here
from factories import index_page
from tiny_checkpoint import DenseType, TinyCheckpoint
from weightpkg import files
from weightpkg.api import ensure, load
from weightpkg.cli import cli
from weightpkg.convert import Job, Quantization, SourceFile, child, conversion_key
from weightpkg.convert.limits import Limits
from weightpkg.digest import fingerprint_file, hash_file
from weightpkg.errors import RunError, UnsupportedFormatError
from weightpkg.formats.checkpoint_files import checkpoint_of, is_checkpoint
from weightpkg.install import install, plan_install
from weightpkg.placing import place_files
from weightpkg.progress import Advance, Silence
from weightpkg.repair import make_find_file, repair
from weightpkg.requirement import Requirement
from weightpkg.resolve import resolve
from weightpkg.retention import Policy, collect, plan_collection, total_freed, uninstall
from weightpkg.settings import Settings
from weightpkg.store import Installed, Store, disk_usage, placed_sources
from weightpkg.verify import verify

WIDE = 8192  # of the inner layer: 4 MB of weights each


def write_large(directory: Path, dtype: DenseType = "F32", *, n_shards: int = 1) -> Path:
    """Write a BERT with 8 MB of weights in float32."""
    page = TinyCheckpoint.read("bert").changed(intermediate_size=WIDE)
    shapes = {name: tuple(WIDE if n == 96 else n for n in s) for name, s in page.shapes.items()}
    return replace(page, shapes=shapes).write(directory, dtype, n_shards=n_shards)


def add_page(settings: Settings, name: str, directory: Path) -> None:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    page = index_page(
        name, {"f32": paths}, architecture="bert", form="safetensors", below=directory.name
    )
    (settings.index_dir / "models" / f"{name}.toml").write_text(page)


@pytest.fixture
def source(settings: Settings) -> Path:
    """A checkpoint that the index has as `vectors`."""
    directory = write_large(settings.index_dir / "source")
    add_page(settings, "vectors", directory)
    return directory


@pytest.fixture
def linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that has no clones."""

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(files.Disk, "reflink", refuse)


@pytest.fixture
def record(settings: Settings, source: Path, linked: None) -> Installed:
    """`vectors`, installed where the disk makes hard links."""
    ensure("vectors", settings=settings)
    (record,) = settings.store().installed()
    return record


def weights_of(store: Store, record: Installed) -> tuple[Path, Path]:
    """The blob, and its name in the model directory."""
    (digest,) = (file.sha256 for file in record.files if file.path == "model.safetensors")
    return store.blob_path(digest), store.model_path(record.conversion or "") / "model.safetensors"


def on_disk(path: Path) -> int:
    """Bytes that a directory takes of the disk, as `du` counts them."""
    blocks = {}
    for file in path.rglob("*"):
        entry = file.lstat()
        if stat.S_ISREG(entry.st_mode):
            blocks[entry.st_dev, entry.st_ino] = entry.st_blocks * 512
    return sum(blocks.values())


class Counting(Silence):
    """Counts the bytes that it is told of."""

    total: int | None = 0
    done = 0

    @contextmanager
    def task(self, description: str, total: int | None) -> Iterator[Advance]:  # noqa: ARG002  counts
        def advance(size: int) -> None:
            self.done += size

        self.total = total
        yield advance


def flip(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(-1000, os.SEEK_END)
        stream.write(b"damage")
    path.chmod(0o444)


def repair_all(settings: Settings, store: Store) -> list[str]:
    """Repair what is bad; return what kinds of things were."""
    with store.use(), settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        problems = verify(store, Silence())
        done = repair(problems, store, fetcher, make_find_file(store, settings.index()))
    assert [each.error for each in done] == [None] * len(problems)
    return [problem.kind for problem in problems]


def test_a_model_in_float32_adds_no_second_copy_to_the_disk(
    settings: Settings, source: Path
) -> None:
    store = settings.store()
    resolved = resolve(Requirement.parse("vectors"), settings.index())
    with settings.sources(store) as sources:
        fetcher = settings.fetcher(sources, store, Silence())
        install(plan_install(resolved, store, allow_conversion=False), store, fetcher)
        before, free = on_disk(store.root), shutil.disk_usage(store.root).free
        install(plan_install(resolved, store), store, fetcher)
    (record,) = store.installed()
    blob, placed = weights_of(store, record)
    assert placed.read_bytes() == blob.read_bytes()
    model = onnx.load(placed.with_name("model.onnx"), load_external_data=False)
    assert {p.key: p.value for p in model.metadata_props}["weightpkg.conversion"] == (
        record.conversion
    )
    if placed.samefile(blob):
        assert on_disk(store.root) - before < 200_000
    else:  # a clone: its blocks are counted twice, and there only once
        assert free - shutil.disk_usage(store.root).free < 2_000_000
    assert placed_sources(placed.parent) == {blob.name}
    assert verify(store, Silence()) == []


def test_everything_is_counted_and_hashed_once(settings: Settings, record: Installed) -> None:
    store = settings.store()
    blob, placed = weights_of(store, record)
    assert placed.samefile(blob)
    whole = sum(file.size for file in record.files)
    assert whole < disk_usage(store, record) < whole + 150_000
    progress = Counting()
    assert verify(store, progress) == []
    assert progress.done == progress.total
    assert progress.done < whole + 150_000


def test_the_sizes_of_places_add_up(settings: Settings, record: Installed) -> None:
    result = CliRunner().invoke(cli, ["cache", "size", "--json"], env=dict(settings.environ))
    found = json.loads(result.stdout)
    assert sum(found["sizes"].values()) <= found["total"] < sum(found["sizes"].values()) + 20_000
    assert found["sizes"]["converted models"] < 150_000


def test_damage_to_shared_weights_is_found_and_made_good_under_both_names(
    settings: Settings, record: Installed
) -> None:
    store = settings.store()
    blob, placed = weights_of(store, record)
    before = blob.read_bytes()
    flip(blob)
    problems = verify(store, Silence())
    assert [(p.kind, p.path) for p in problems] == [("corrupt", blob), ("corrupt", placed)]
    assert repair_all(settings, store) == ["corrupt", "corrupt"]
    assert placed.samefile(blob)
    assert blob.read_bytes() == before
    assert verify(store, Silence()) == []


def test_a_changed_mode_is_one_of_both_names(settings: Settings, record: Installed) -> None:
    store = settings.store()
    weights_of(store, record)[1].chmod(0o644)
    assert repair_all(settings, store) == ["mode", "mode"]
    assert verify(store, Silence()) == []


def test_lost_weights_come_back(settings: Settings, record: Installed) -> None:
    store = settings.store()
    blob, placed = weights_of(store, record)
    placed.unlink()
    assert repair_all(settings, store) == ["missing"]
    assert placed.samefile(blob)
    blob.unlink()
    assert repair_all(settings, store) == ["missing"]
    assert verify(store, Silence()) == []


def test_sources_that_a_model_is_made_of_are_not_dropped(
    settings: Settings, record: Installed
) -> None:
    store = settings.store()
    blob, placed = weights_of(store, record)
    before = on_disk(store.root)
    policy = Policy(now=0.0, drop_sources=True)
    promised = total_freed(plan_collection(store, policy))
    assert 0 < promised < 20_000
    with store.use_alone():
        _, freed = collect(store, policy)
    assert placed.samefile(blob)
    assert promised <= freed <= before - on_disk(store.root)
    (record,) = store.installed()
    assert [file.path for file in record.files if file.is_kept] == ["model.safetensors"]
    assert verify(store, Silence()) == []
    assert plan_collection(store, policy) == []
    resolved = resolve(Requirement.parse("vectors"), settings.index())
    plan = plan_install(resolved, store)
    assert plan.is_done
    with settings.sources(store) as sources:
        again = install(plan, store, settings.fetcher(sources, store, Silence()))
    assert again == record
    (placed.parent / "tokenizer.json").unlink()
    assert repair_all(settings, store) == ["missing"]


def test_a_store_that_is_too_large_loses_no_weights_in_place(
    settings: Settings, record: Installed
) -> None:
    store = settings.store()
    size = files.tree_size(store.root)
    doomed = plan_collection(store, Policy(now=0.0, max_size=size - 1000))
    assert {one.kind for one in doomed} == {"source", "blob"}
    assert weights_of(store, record)[0].name not in {one.name for one in doomed}
    doomed = plan_collection(store, Policy(now=0.0, max_size=0))
    assert 0.99 * size < total_freed(doomed) <= size


def test_uninstalling_frees_what_it_says(settings: Settings, record: Installed) -> None:
    store = settings.store()
    before = files.tree_size(store.root)
    freed = uninstall(store, [record])
    assert before - 20_000 < (freed or 0) <= before
    assert list(store.root.glob("blobs/sha256/*/*")) == list(store.root.glob("models/*")) == []


def test_sources_that_were_converted_are_dropped(settings: Settings) -> None:
    add_page(settings, "halves", write_large(settings.index_dir / "halves", "F16"))
    ensure("halves", settings=settings)
    store = settings.store()
    with store.use_alone():
        collect(store, Policy(now=0.0, drop_sources=True))
    (record,) = store.installed()
    assert not any(file.is_kept for file in record.files)
    assert not list(store.root.glob("blobs/sha256/*/*"))
    assert verify(store, Silence()) == []


def test_a_model_that_makes_vectors_writes_no_text(settings: Settings, record: Installed) -> None:
    with pytest.raises(RunError, match="writes no text"):
        load(record.full_name, task="text-generation", settings=settings)


def test_shards_stay_where_they_are(settings: Settings, linked: None) -> None:
    add_page(settings, "many", write_large(settings.index_dir / "many", n_shards=3))
    directory = ensure("many", settings=settings)
    shards = sorted(directory.glob("*.safetensors"))
    assert [path.stat().st_nlink for path in shards] == [2, 2, 2]
    assert len(placed_sources(directory)) == 3
    assert verify(settings.store(), Silence()) == []


def test_a_folder_with_a_checkpoint_is_adopted(settings: Settings, source: Path) -> None:
    (source / "README.md").write_text("not of the model")
    environ = {**settings.environ, "HOME": str(settings.home)}
    result = CliRunner().invoke(cli, ["adopt", str(source)], env=environ)
    assert result.exit_code == 0, result.output
    assert "installed vectors-f32 1.0" in result.stderr
    assert "README.md: no model that is known" in result.stderr
    assert verify(settings.store(), Silence()) == []


def test_what_is_somebody_elses_keeps_its_permissions(tmp_path: Path, linked: None) -> None:
    source = TinyCheckpoint.read("bert").write(tmp_path / "source")
    weights = source / "model.safetensors"
    weights.chmod(0o640)
    result = CliRunner().invoke(cli, ["convert", str(source), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "model.safetensors").samefile(weights)
    assert stat.S_IMODE(weights.stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "out" / "model.onnx").stat().st_mode) == 0o444


@pytest.mark.parametrize("quantization", [None, "q4"])
def test_the_child_makes_what_is_made_here(
    tmp_path: Path, quantization: Quantization | None
) -> None:
    source = TinyCheckpoint.read("llama").write(tmp_path / "source")
    sources = tuple(
        SourceFile(path, known.sha256, path.name, known.blake3 if path.suffix else None)
        for path in sorted(source.iterdir())
        for known in [fingerprint_file(path)]
    )
    job = Job("safetensors", "tiny", sources, quantization)
    done = []
    for name, convert in (("here", convert_here), ("there", child.convert)):
        (tmp_path / name).mkdir()
        done.append(convert(job, tmp_path / name, Silence()))
    assert done[0] == done[1]
    assert done[0].placed == (frozenset() if quantization else {"model.safetensors"})
    for path in (tmp_path / "here").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


def test_a_model_of_many_shards_may_open_them_all() -> None:
    assert Limits.for_size(10**9, n_files=300).open_files > 300


def test_only_files_of_the_model_are_placed_and_only_beside_it(tmp_path: Path) -> None:
    for name in ("secret", "own"):
        (tmp_path / name).write_text(name)
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "below").symlink_to(tmp_path)
    sources = {"own": tmp_path / "own", "below/own": tmp_path / "own"}
    place_files(sources, {"own", "below/own", "secret", "../secret"}, directory)
    assert {path.name for path in directory.iterdir()} == {"below", "own"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "own", "secret"}


def test_a_conversion_is_named_by_its_files_and_what_they_are_called(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = (hash_file(tmp_path / name, "sha256") for name in "ab")
    assert conversion_key({"x": a, "y": b}) == conversion_key({"y": b, "x": a})
    assert conversion_key({"x": a, "y": b}) != conversion_key({"x": b, "y": a})


def test_weights_without_a_configuration_are_refused_before_the_download(
    settings: Settings, source: Path
) -> None:
    (source / "config.json").unlink()
    add_page(settings, "vectors", source)
    with pytest.raises(UnsupportedFormatError, match="are not one model in safetensors format"):
        plan_install(resolve(Requirement.parse("vectors"), settings.index()), settings.store())


REPOSITORY = {
    "README.md", ".gitattributes", "config.json", "tokenizer.json", "1_Pooling/config.json",
    "pytorch_model.bin", "tf_model.h5", "onnx/model.onnx", "openvino/model.safetensors", "vocab.txt",
}  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "chosen"),
    [
        ({"model.safetensors"}, {"model.safetensors"}),
        ({"model.safetensors", "model.safetensors.index.json"}, {"model.safetensors"}),
        (
            {"model.safetensors.index.json", "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors", "consolidated.safetensors"},
            {"model.safetensors.index.json", "model-00001-of-00002.safetensors",
             "model-00002-of-00002.safetensors"},
        ),
    ],
)  # fmt: skip
def test_the_checkpoint_of_a_repository_is_what_belongs_to_it(
    weights: set[str], chosen: set[str]
) -> None:
    found = checkpoint_of(REPOSITORY | weights)
    assert found == chosen | {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    assert is_checkpoint(found)
    assert not is_checkpoint(checkpoint_of(REPOSITORY))
