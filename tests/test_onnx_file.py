"""Published ONNX models: what is well is taken as it is, what could do harm is refused."""

from __future__ import annotations

import os
import pickle
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, numpy_helper
from onnx import helper as make

from malformed import onnx_file as malformed
from malformed.gguf import Attack
from malformed.onnx_file import external, model
from test_install import add_page, execute, leavings, plan
from weightpkg import reference
from weightpkg.api import path as model_path
from weightpkg.convert import Job, SourceFile, child
from weightpkg.digest import Digest, hash_file
from weightpkg.errors import OnnxError, PickleError, RunError, UnsupportedFormatError
from weightpkg.files import new_directory
from weightpkg.formats import onnx_file
from weightpkg.formats.onnx_file import check_model
from weightpkg.package import File, RelativePath, parse_source
from weightpkg.progress import Silence
from weightpkg.settings import Settings
from weightpkg.verify import verify


@pytest.fixture
def beside(tmp_path: Path) -> dict[str, Path]:
    """What lies in a model's directory, also what should not."""
    (tmp_path / "data").write_bytes(bytes(malformed.DATA_SIZE))
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return {path.name: path for path in tmp_path.iterdir()}


def check(content: bytes, beside: dict[str, Path], tmp_path: Path) -> tuple[str, ...]:
    path = tmp_path / "a.onnx"
    path.write_bytes(content)
    return check_model(path, "a.onnx", beside)


@pytest.mark.parametrize("attack", malformed.attacks(), ids=lambda attack: attack.__name__)
def test_refuses_the_attack(
    attack: Callable[[], Attack], beside: dict[str, Path], tmp_path: Path
) -> None:
    content, refusal = attack()
    start = time.process_time()
    with pytest.raises(OnnxError, match=re.escape(refusal)) as caught:
        check(content, beside, tmp_path)
    assert time.process_time() - start < 1
    assert str(caught.value).startswith("`a.onnx`: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_takes_external_data_of_plain_files(beside: dict[str, Path], tmp_path: Path) -> None:
    tensors = (external(malformed.GOOD), external({"location": "data", "checksum": "x"}, "v"))
    content = model(initializers=tensors).SerializeToString()
    assert check(content, beside, tmp_path) == ("data",)


def test_takes_every_operator_of_onnxruntime(beside: dict[str, Path], tmp_path: Path) -> None:
    nodes = [make.make_node("Op", [], [str(i)], domain=d) for i, d in enumerate(onnx_file.DOMAINS)]
    assert check(model(*nodes).SerializeToString(), beside, tmp_path) == ()


def test_refuses_a_file_cut_off_at_any_byte(beside: dict[str, Path], tmp_path: Path) -> None:
    content = adder(tmp_path).read_bytes()
    accepted = 0
    for size in range(len(content)):
        try:
            check(content[:size], beside, tmp_path)
        except OnnxError as error:
            assert error.hint == "the file may not have been downloaded to its end"  # noqa: PT017
        else:
            accepted += 1  # cut between two fields, and there is a graph: nothing can tell
    assert accepted <= 4


def test_ends_every_mutation_with_its_own_error(beside: dict[str, Path], tmp_path: Path) -> None:
    content = adder(tmp_path).read_bytes()
    refused = 0
    for seed in range(1000):
        chance = random.Random(seed)
        changed = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        try:
            check(bytes(changed), beside, tmp_path)
        except OnnxError as error:
            assert str(error).isprintable()  # noqa: PT017
            refused += 1
    assert 100 < refused < 1000


def test_refuses_a_model_that_no_protocol_buffer_can_hold(
    monkeypatch: pytest.MonkeyPatch, beside: dict[str, Path], tmp_path: Path
) -> None:
    monkeypatch.setattr(onnx_file, "MAX_SIZE", 100)
    with pytest.raises(OnnxError, match="bytes, more than 100"):
        check(bytes(101), beside, tmp_path)


def adder(directory: Path, data: Path | None = None) -> Path:
    """A model that adds 16 numbers to its input; they are in the file, or in `data`."""
    numbers = np.arange(16, dtype=np.float32)
    tensor = numpy_helper.from_array(numbers, "w")
    if data is not None:
        data.write_bytes(numbers.tobytes())
        tensor = external({"location": data.name}, "w")
    shape = make.make_tensor_value_info("x", TensorProto.FLOAT, [16])
    result = make.make_tensor_value_info("y", TensorProto.FLOAT, [16])
    node = make.make_node("Add", ["x", "w"], ["y"])
    graph = make.make_graph([node], "adder", [shape], [result], [tensor])
    content = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    path = directory / "adder.onnx"
    path.write_bytes(content.SerializeToString())
    return path


def test_installs_a_model_with_all_that_belongs_to_it(settings: Settings) -> None:
    index = settings.index_dir
    data = index / "adder.onnx_data"
    (index / "labels.json").write_text("{}")
    source = adder(index, data)
    add_page(settings, "adder", index / "labels.json", source, data, form="onnx", architecture="x")
    record = execute(settings, "adder")
    directory = model_path("adder", settings=settings)
    names = {path.name for path in directory.iterdir()}
    assert names == {"model.onnx", "adder.onnx_data", "labels.json", "weightpkg.toml"}
    assert (directory / "model.onnx").read_bytes() == source.read_bytes()
    assert verify(settings.store(), Silence()) == []
    assert leavings(settings) == []
    assert execute(settings, "adder") == record
    assert run(directory)[3] == 4.0


def run(directory: Path) -> list[float]:
    """What onnxruntime makes of sixteen ones."""
    import onnxruntime as ort  # noqa: PLC0415  takes time

    session = ort.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.ones(16, np.float32)})
    numbers: list[float] = result.tolist()
    return numbers


def test_a_hostile_model_is_not_installed(settings: Settings) -> None:
    source = settings.index_dir / "evil.onnx"
    source.write_bytes(malformed.path_that_is_absolute().content)
    add_page(settings, "evil", source, form="onnx")
    with pytest.raises(OnnxError, match=r"`evil\.onnx`: tensor `w`: external data is in `/etc/pas"):
        execute(settings, "evil")
    assert leavings(settings) == []


def test_a_model_without_its_data_is_not_installed(settings: Settings) -> None:
    source = adder(settings.index_dir, settings.index_dir / "adder.data")
    add_page(settings, "adder", source, form="onnx")
    with pytest.raises(OnnxError, match=r"`adder\.data`, which is not one of the model's files"):
        execute(settings, "adder")


def test_a_variant_has_one_model(settings: Settings, tmp_path: Path) -> None:
    first = adder(settings.index_dir)
    second = first.with_name("other.onnx")
    second.write_bytes(first.read_bytes())
    add_page(settings, "two", first, second, form="onnx")
    with pytest.raises(UnsupportedFormatError):
        plan(settings, "two")
    files = [SourceFile(p, hash_file(p, "sha256"), p.name) for p in (first, second)]
    with (
        pytest.raises(UnsupportedFormatError, match="2 of the files are ONNX models"),
        new_directory(tmp_path / "out") as directory,
    ):
        child.convert(Job("onnx", "adder", tuple(files)), directory, Silence())


@pytest.mark.parametrize("name", ["model.onnx", "weightpkg.toml"])
def test_no_file_takes_the_place_of_another(tmp_path: Path, name: str) -> None:
    source = adder(tmp_path)
    (tmp_path / "other").write_text("x")
    model = SourceFile(source, hash_file(source, "sha256"), "onnx/adder.onnx")
    other = SourceFile(tmp_path / "other", model.digest, f"{name}")
    if name == "model.onnx":  # then it would be a second model
        other = SourceFile(tmp_path / "other", model.digest, "model.onnx/")
    with (
        pytest.raises(UnsupportedFormatError, match="another file is called"),
        new_directory(tmp_path / "out") as directory,
    ):
        child.convert(Job("onnx", "adder", (model, other)), directory, Silence())


def test_files_above_the_model_come_along_the_nearest_of_each_name(tmp_path: Path) -> None:
    source = adder(tmp_path)
    digest = hash_file(source, "sha256")
    files = [SourceFile(source, digest, "a/b/adder.onnx")]
    for name in ("config.json", "a/config.json", "other/config.json", "a/b/c/deep.json", "v.txt"):
        path = tmp_path / name.replace("/", "_")
        path.write_text(name)
        files.append(SourceFile(path, digest, name))
    with new_directory(tmp_path / "out") as directory:
        child.convert(Job("onnx", "adder", tuple(files)), directory, Silence())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "weightpkg.toml", "config.json", "v.txt"}
    assert (tmp_path / "out" / "config.json").read_text() == "a/config.json"


def test_a_pickle_does_not_come_along(tmp_path: Path) -> None:
    source = adder(tmp_path)
    (tmp_path / "labels.json").write_bytes(pickle.dumps({"a": 1}))
    digest = hash_file(source, "sha256")
    files = [SourceFile(p, digest, p.name) for p in (source, tmp_path / "labels.json")]
    with (
        pytest.raises(PickleError, match=r"`labels\.json`: file: is a Python pickle"),
        new_directory(tmp_path / "out") as directory,
    ):
        child.convert(Job("onnx", "adder", tuple(files)), directory, Silence())


def test_a_secret_file_is_nowhere_in_what_is_made(settings: Settings, tmp_path: Path) -> None:
    canary = b"canary" * 20
    (tmp_path / "secret").write_bytes(canary)
    source = settings.index_dir / "evil.onnx"
    for location in (str(tmp_path / "secret"), "../secret"):
        tensor = external({"location": location, "length": "64"})
        source.write_bytes(model(initializers=(tensor,)).SerializeToString())
        add_page(settings, "evil", source, form="onnx")
        with pytest.raises(OnnxError) as caught:
            execute(settings, "evil")
        assert "canary" not in str(caught.value)
    found = [path for path in settings.home.rglob("*") if path.is_file()]
    assert found
    assert not any(b"canary" in path.read_bytes() for path in found)


def test_a_model_of_something_else_writes_no_text_and_takes_arrays(settings: Settings) -> None:
    from weightpkg.api import load  # noqa: PLC0415  needs onnxruntime

    add_page(settings, "adder", adder(settings.index_dir), form="onnx")
    with pytest.raises(RunError, match="not a text model"):
        load("adder", task="text-generation", settings=settings)
    with load("adder", settings=settings) as model:
        assert model.task == "tensors"


@pytest.mark.parametrize(
    ("names", "form"),
    [
        (["a.onnx"], "onnx"),
        (["onnx/a.onnx", "onnx/a.onnx_data", "config.json"], "onnx"),
        (["a.onnx", "b.onnx", "config.json"], "files"),
        (["a.onnx", "a.safetensors"], "files"),
        (["a.onnx", "a.safetensors", "config.json"], "files"),
        (["a.gguf"], "gguf"),
        (["a.gguf", "README.md"], "files"),
    ],
)
def test_the_format_of_a_repository_is_told_by_its_files(names: list[str], form: str) -> None:
    digest = Digest("sha256", 64 * "0")
    source = parse_source("https://example.org/a")
    chosen = [File(path=RelativePath(n), sha256=digest, sources=((source,),)) for n in names]
    assert reference._format(chosen) == form
