from __future__ import annotations

import json
import os
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import safetensors_bytes, safetensors_entry, safetensors_file
from malformed import safetensors as malformed
from malformed import safetensors_index as malformed_index
from malformed.gguf import Attack
from mutations import mutated_safetensors, safetensors_seed
from weightpkg.errors import SafetensorsError
from weightpkg.formats.safetensors import SafetensorsCheckpoint, SafetensorsFile, read_index
from weightpkg.formats.safetensors_header import (
    MAX_HEADER_SIZE,
    SAFETENSORS_TYPES,
    Header,
    SafetensorsType,
    read_header,
)
from weightpkg.tensor import DenseLayout

SMAPS = Path("/proc/self/smaps")
CUT_OFF = "the file may not have been downloaded to its end"


def header(content: bytes) -> Header:
    return read_header("a.safetensors", content)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def index_text(weight_map: dict[str, str]) -> bytes:
    return json.dumps({"metadata": {"total_size": 1.5}, "weight_map": weight_map}).encode()


def assert_read_alike(content: bytes) -> None:
    """The reference reads the same tensors of the same types and shapes from the same bytes."""
    ours = header(content)
    theirs = safetensors.deserialize(content)
    assert {name for name, _ in theirs} == ours.tensors.keys()
    for name, tensor in theirs:
        mine = ours.tensors[name]
        assert (tensor["dtype"], tensor["shape"]) == (mine.dtype.name, list(mine.shape))
        assert tensor["data"] == content[mine.start : mine.start + mine.nbytes]


# What the reference writes is read


def arrays() -> dict[str, Any]:
    chance = np.random.default_rng(0)
    kinds = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", "c8"]
    found: dict[str, Any] = {
        f"of.{kind}": chance.integers(0, 2, (3, 5, 2)).astype(kind) for kind in kinds
    }
    return found | {
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 7), np.float32),
        "none.at.the.end": np.zeros((7, 0), np.uint8),
        "größe/東京": np.arange(3),
    }


def test_reads_arrays_as_the_reference_does(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    metadata = {"format": "np", "größe": "a\n\0b"}
    safetensors.numpy.save_file(arrays(), path, metadata)
    theirs = safetensors.numpy.load_file(path)
    with SafetensorsFile.open(path) as file:
        assert file.metadata == metadata
        assert file.tensors.keys() == theirs.keys() == arrays().keys()
        for name, tensor in file.tensors.items():
            np.testing.assert_array_equal(file.array(tensor), theirs[name], strict=True)
            rows = file.rows(tensor, 0, tensor.n_rows)
            assert rows.tobytes() == theirs[name].tobytes()
        starts = [tensor.start for tensor in file.tensors.values()]
        assert starts == sorted(starts)
    assert_read_alike(path.read_bytes())


@pytest.mark.parametrize("kind", SAFETENSORS_TYPES.values(), ids=lambda kind: kind.name)
def test_lays_out_tensors_of_every_type_as_the_reference_does(
    tmp_path: Path, kind: SafetensorsType
) -> None:
    row = kind.bits  # bytes of 8 weights
    data = np.random.default_rng(0).integers(0, 2, (5, row), np.uint8)
    content = safetensors_bytes(
        {
            "first": (kind.name, (5, 8), data.tobytes()),
            "second": (kind.name, (5, 1, 8), data[::-1].tobytes()),
        }
    )
    assert_read_alike(content)
    with SafetensorsFile.open(written(tmp_path / "a.safetensors", content)) as file:
        first, second = file.tensors.values()
        assert (first.row_bytes, first.n_rows, second.n_rows) == (row, 5, 5)
        np.testing.assert_array_equal(file.rows(first, 1, 3), data[1:3])
        np.testing.assert_array_equal(file.rows(second, 0, 5), data[::-1])
        assert file.array(second).tobytes() == data[::-1].tobytes()
        words = row // np.dtype(kind.words).itemsize
        assert file.array(second).shape == (5, 1, words)
        assert kind.bits < 8 or words == 8


def test_knows_every_type_of_the_reference() -> None:
    with pytest.raises(safetensors.SafetensorError, match="unknown variant") as caught:
        safetensors.deserialize(safetensors_file({"a": safetensors_entry("?", (), 0, 1)}))
    assert set(re.findall(r"`(\w+)`", str(caught.value))) == SAFETENSORS_TYPES.keys()


def test_says_what_can_be_converted() -> None:
    layouts = {kind.name: kind.layout for kind in SAFETENSORS_TYPES.values() if kind.layout}
    assert layouts == {
        "F32": DenseLayout("float32"),
        "F16": DenseLayout("float16"),
        "BF16": DenseLayout("bfloat16"),
    }


def test_a_bfloat16_is_the_upper_half_of_a_float32(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 0.0], np.float32)
    content = safetensors_bytes({"a": ("BF16", (3,), values.view("<u2")[1::2].tobytes())})
    with SafetensorsFile.open(written(tmp_path / "a", content)) as file:
        words = file.array(file.tensors["a"])
    np.testing.assert_array_equal((words.astype(np.uint32) << 16).view(np.float32), values)


# What the reference accepts is accepted, as far as nobody is harmed


ENTRY = b'{"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}'


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file({}),
        safetensors_file({"__metadata__": {}}),
        safetensors_file(b'{"a": ' + ENTRY + b"}   ", b"abc"),
        safetensors_file(b'\n\t {"a": ' + ENTRY + b"}\r\n", b"abc"),
        safetensors_file(b'{"a": ' + ENTRY + b"}" + 65_536 * b" ", b"abc"),
        safetensors_file(b'{"\\u0061\\ud83d\\ude00": ' + ENTRY + b"}", b"abc"),
        safetensors_file(b'{"a": ' + ENTRY.replace(b"{", b'{\n  "shape": [3],').replace(b', "shape": [3]', b"") + b"}", b"abc"),
        safetensors_bytes({64 * "name.of": ("U8", (3,), b"abc")}),
        safetensors_bytes({"a": ("U8", (), b"a"), "b": ("F32", (1, 0, 2), b""), "c": ("I8", (1,), b"b")}),
        safetensors_bytes({"a": ("U8", tuple(63 * [1] + [3]), b"abc")}),
        safetensors_bytes({"odd": ("U8", (3,), b"abc"), "unaligned": ("F32", (1,), b"defg")}),
        safetensors_bytes({"..a/b..": ("U8", (3,), b"abc")}),
    ],
    ids=["nothing", "no metadata", "padded", "padded in front", "padded to the limit", "escapes", "another order", "a long name", "scalars and empty ones", "64 axes", "unaligned", "dots"],
)  # fmt: skip
def test_accepts(tmp_path: Path, content: bytes) -> None:
    assert_read_alike(content)
    with SafetensorsFile.open(written(tmp_path / "a", content)) as file:
        for tensor in file.tensors.values():
            assert file.array(tensor).shape == tensor.shape
            assert file.rows(tensor, 0, tensor.n_rows).shape == (tensor.n_rows, tensor.row_bytes)
            file.release(tensor, 0, tensor.n_rows)


def test_accepts_a_header_in_another_order_than_the_data() -> None:
    entries = {
        "c": safetensors_entry("U8", (2,), 1, 3),
        "b": safetensors_entry("U8", (0,), 1, 1),
        "a": safetensors_entry("U8", (1,), 0, 1),
    }
    content = safetensors_file(entries, b"xyz")
    assert list(header(content).tensors) == ["a", "b", "c"]
    assert_read_alike(content)


# What is malformed is refused


@pytest.mark.parametrize("attack", malformed.attacks(), ids=lambda attack: attack.__name__)
def test_refuses_the_attack(attack: Callable[[], Attack]) -> None:
    content, refusal = attack()
    start = time.process_time()
    with pytest.raises(SafetensorsError, match=re.escape(refusal)) as caught:
        header(content)
    assert time.process_time() - start < 1
    assert str(caught.value).startswith("`a.safetensors`: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


# where the reference is not what its specification says, or leaves the harm to others
LOOSER = {
    "dtype_that_is_an_object",
    "field_that_is_unknown",
    "header_with_too_much_padding",
    "header_with_too_much_padding_in_front",
    "metadata_key_twice",
    "metadata_that_is_null",
    "name_climbs_up",
    "name_climbs_up_on_windows",
    "name_empty",
    "name_too_long",
    "name_with_a_newline",
    "name_with_control_characters",
    "name_with_nul",
    "name_with_reversed_writing",
    "shape_that_overflows_though_empty",
    "shape_with_rows_of_half_a_byte",
    "shape_with_too_many_axes",
    "tensor_that_is_an_array",
    "tensor_twice",
    "tensor_twice_alike",
    "tensor_twice_once_escaped",
}


def test_refuses_more_than_the_reference_only_where_it_means_to() -> None:
    accepted = set()
    for attack in malformed.attacks():
        try:
            safetensors.deserialize(attack().content)
        except safetensors.SafetensorError:
            continue
        accepted.add(attack.__name__)
    assert accepted <= LOOSER  # a later release may have become as strict


def test_refuses_a_huge_header_at_once() -> None:
    content, refusal = malformed.header_of_too_many_elements()
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(SafetensorsError, match=re.escape(refusal)):
        header(content)
    assert time.process_time() - start < 0.5
    assert tracemalloc.get_traced_memory()[1] < 3 * len(content)
    tracemalloc.stop()


def test_refuses_a_file_cut_off_at_any_byte() -> None:
    content = safetensors_seed()
    assert 500 < len(content) < 1500
    assert len(header(content).tensors) == 7
    for size in range(len(content)):
        with pytest.raises(SafetensorsError) as caught:
            header(content[:size])
        assert caught.value.hint == CUT_OFF, size


def test_accepts_no_mutation_that_the_reference_refuses() -> None:
    content = safetensors_seed()
    refusals = []
    for seed in range(4000):
        mutation = mutated_safetensors(content, seed)
        try:
            header(mutation)
        except SafetensorsError as error:
            refusals.append(str(error))
            continue
        assert_read_alike(mutation)
    assert 1000 < len(refusals) < 3900
    assert all(refusal.isprintable() and len(refusal) < 300 for refusal in refusals)


NUMBERS = st.integers(-1, 20) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 1.0, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*SAFETENSORS_TYPES, "f32", ""]),
        "shape": st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(NUMBERS, min_size=1, max_size=3),
    }
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), ENTRIES | JSON_VALUES, max_size=3), st.integers(0, 40))
@settings(max_examples=500)
def test_accepts_no_header_that_the_reference_refuses(entries: dict[str, Any], size: int) -> None:
    content = safetensors_file(entries, bytes(size))
    try:
        header(content)
    except SafetensorsError:
        return
    assert_read_alike(content)


@given(st.lists(st.tuples(st.sampled_from([*SAFETENSORS_TYPES]), st.lists(st.integers(0, 4), max_size=3)), max_size=4))  # fmt: skip
@settings(max_examples=300)
def test_accepts_every_sound_file(kinds: list[tuple[str, list[int]]]) -> None:
    tensors = {}
    for i, (kind, shape) in enumerate(kinds):
        shape = [*shape, 8]  # noqa: PLW2901  rows of whole bytes
        n_bytes = int(np.prod(shape)) * SAFETENSORS_TYPES[kind].bits // 8
        tensors[str(i)] = (kind, tuple(shape), os.urandom(n_bytes))
    assert_read_alike(safetensors_bytes(tensors))


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_refuses_any_bytes_with_its_own_error(content: bytes) -> None:
    with pytest.raises(SafetensorsError):
        header(content)
    with pytest.raises(SafetensorsError):
        header(safetensors_file(content + b"\xff"))
    with pytest.raises(SafetensorsError):
        read_index("a.json", content)


# What is no safetensors file at all is refused


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"GGUF\3\0\0\0\0\0\0\0\0\0\0\0", "this looks like a GGUF file"),
        (b"PK\x03\x04\x14\0\0\0\x08\x08", "this is a zip archive, such as a wheel or a PyTorch checkpoint"),
        (b"\x80\x04\x95\x07\0\0\0\0\0\0\0}", "this is a Python pickle, which could run code and is never loaded"),
        (b"\x80\x02}q\0.", "this is a Python pickle, which could run code and is never loaded"),
        (b"<html>\n {<head>", "this is a web page: the download may have needed a login"),
        (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer: `git lfs pull` fetches the file itself"),
        (b"\x08\x0a\x12\x07pytorch", None),
        (safetensors_file(b"{}")[:8], CUT_OFF),
    ],
    ids=["gguf", "zip", "pickle", "a short pickle", "html", "lfs", "onnx", "cut off"],
)  # fmt: skip
def test_recognises_what_is_no_safetensors_file(content: bytes, hint: str | None) -> None:
    with pytest.raises(SafetensorsError, match="header: ") as caught:
        header(content)
    assert caught.value.hint == hint


# A file that cannot be mapped or read is refused


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="`: file: is empty"):
        SafetensorsFile.open(written(tmp_path / "empty", b""))


def test_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="file: is not a regular file"):
        SafetensorsFile.open(tmp_path)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="file: cannot be read: No such file or directory"):
        SafetensorsFile.open(tmp_path / "none")


def test_refuses_a_header_larger_than_any(tmp_path: Path) -> None:
    path = written(tmp_path / "sparse", struct.pack("<Q", MAX_HEADER_SIZE + 1) + b"{")
    os.truncate(path, MAX_HEADER_SIZE + 1024)
    with pytest.raises(SafetensorsError, match="25,000,001 bytes, more than 25,000,000"):
        SafetensorsFile.open(path)


def test_names_the_file_as_the_caller_does(tmp_path: Path) -> None:
    path = written(tmp_path / "blob", safetensors_file(b"{"))
    with pytest.raises(SafetensorsError, match=re.escape(f"`{path}`: header: is not JSON")):
        SafetensorsFile.open(path)
    with pytest.raises(SafetensorsError, match="`smollm2`: header: is not JSON"):
        SafetensorsFile.open(path, name="smollm2")


# Bytes are read without a copy


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": ("U8", (2, 4), b"abcdefgh")})
    with SafetensorsFile.open(written(tmp_path / "a", content)) as file:
        tensor = file.tensors["a"]
        rows, array = file.rows(tensor, 1, 2), file.array(tensor)
        file.release(tensor, 0, 2)
    assert rows.tobytes() == b"efgh"
    assert array.tobytes() == b"abcdefgh"
    for view in (rows, array):
        assert not view.flags.writeable
        assert not view.flags.owndata


def test_a_tensor_of_one_axis_or_none_is_one_row(tmp_path: Path) -> None:
    content = safetensors_bytes({"a": ("U8", (3,), b"abc"), "b": ("F16", (), b"de")})
    with SafetensorsFile.open(written(tmp_path / "a", content)) as file:
        vector, scalar = file.tensors.values()
        assert file.rows(vector, 0, 1).shape == (1, 3)
        assert file.rows(scalar, 0, 1).tobytes() == b"de"
        assert file.array(scalar).shape == ()


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell what is in memory")
def test_released_rows_do_not_count_as_memory(tmp_path: Path) -> None:
    rows, row_bytes = 64, 2**18
    tensors = {"a": ("U8", (rows, row_bytes), os.urandom(row_bytes) * rows)}
    path = written(tmp_path / "a.safetensors", safetensors_bytes(tensors))
    with SafetensorsFile.open(path) as file:
        tensor = file.tensors["a"]
        assert resident_bytes(path) < row_bytes
        file.array(tensor).sum()
        assert resident_bytes(path) >= rows * row_bytes
        file.release(tensor, 0, rows)
        assert resident_bytes(path) < row_bytes


def resident_bytes(path: Path) -> int:
    """How much of a mapped file is in this process's memory."""
    mapping = SMAPS.read_text().partition(str(path))[2]
    match = re.search(r"^Rss: +(\d+) kB$", mapping, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024


# Several files and their index


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A directory of `a` and `b` in one file, `c` in another, and their index."""
    directory = tmp_path / "sharded"
    directory.mkdir()
    one = {"a": ("U8", (3,), b"abc"), "b": ("U8", (2, 1), b"de")}
    written(directory / SHARDS[0], safetensors_bytes(one, {"format": "pt"}))
    written(directory / SHARDS[1], safetensors_bytes({"c": ("F16", (), b"fg")}))
    write_index(directory, {"b": SHARDS[0], "a": SHARDS[0], "c": SHARDS[1]})
    return directory


def write_index(directory: Path, weight_map: dict[str, str]) -> None:
    (directory / "model.safetensors.index.json").write_bytes(index_text(weight_map))


def contents(checkpoint: SafetensorsCheckpoint) -> dict[str, bytes]:
    return {name: checkpoint.array(t).tobytes() for name, t in checkpoint.tensors.items()}


def test_reads_tensors_from_every_shard(sharded: Path) -> None:
    for path in (sharded, sharded / "model.safetensors.index.json"):
        with SafetensorsCheckpoint.open(path) as checkpoint:
            assert contents(checkpoint) == {"a": b"abc", "b": b"de", "c": b"fg"}
            assert list(checkpoint.files) == list(SHARDS)
            assert checkpoint.files[SHARDS[0]].metadata == {"format": "pt"}
            b = checkpoint.tensors["b"]
            assert checkpoint.rows(b, 1, 2).tobytes() == b"e"
            checkpoint.release(b, 0, 2)
            assert b.shape == (2, 1)


def test_reads_a_single_file(tmp_path: Path) -> None:
    path = written(tmp_path / "model.safetensors", safetensors_bytes({"a": ("U8", (1,), b"a")}))
    for opened in (tmp_path, path):
        with SafetensorsCheckpoint.open(opened) as checkpoint:
            assert contents(checkpoint) == {"a": b"a"}
            assert list(checkpoint.files) == ["model.safetensors"]


def test_reads_what_the_reference_client_writes(tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    tensors = {f"layers.{i}.weight": np.full((4, 8), i, np.float32) for i in range(9)}
    split = hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        get_storage_id=lambda _: None,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=300,
    )
    for name, members in split.filename_to_tensors.items():
        safetensors.numpy.save_file({m: tensors[m] for m in members}, tmp_path / name)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    with SafetensorsCheckpoint.open(tmp_path) as checkpoint:
        assert len(checkpoint.files) == 5
        assert checkpoint.tensors.keys() == tensors.keys()
        for name, tensor in checkpoint.tensors.items():
            np.testing.assert_array_equal(checkpoint.array(tensor), tensors[name], strict=True)


def test_reads_shards_that_lie_elsewhere(sharded: Path, tmp_path: Path) -> None:
    index = (sharded / "model.safetensors.index.json").rename(tmp_path / "0123")
    files = {SHARDS[0]: tmp_path / "4567", SHARDS[1]: tmp_path / "89ab", "other": tmp_path}
    for shard in SHARDS:
        (sharded / shard).rename(files[shard])
    with SafetensorsCheckpoint.open_index(index, files, name="tiny") as checkpoint:
        assert contents(checkpoint) == {"a": b"abc", "b": b"de", "c": b"fg"}
        assert checkpoint.name == "tiny"
        assert [file.name for file in checkpoint.files.values()] == [f"tiny/{s}" for s in SHARDS]


def test_refuses_a_shard_that_is_not_among_the_files(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    files = {SHARDS[0]: sharded / SHARDS[0]}
    refusal = f"`tiny`: `weight_map`: names `{SHARDS[1]}`, which is not among the model's files"
    with pytest.raises(SafetensorsError, match=re.escape(refusal)):
        SafetensorsCheckpoint.open_index(index, files, name="tiny")


@pytest.mark.parametrize("attack", malformed_index.attacks(), ids=lambda attack: attack.__name__)
def test_refuses_the_attack_on_the_index(sharded: Path, attack: Callable[[], Attack]) -> None:
    content, refusal = attack()
    written(sharded / "model.safetensors.index.json", content)
    with pytest.raises(SafetensorsError, match=re.escape(refusal)) as caught:
        SafetensorsCheckpoint.open(sharded, name="m")
    assert str(caught.value).startswith("`m`: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("weight_map", "refusal"),
    [
        ({"a": 0, "b": 0}, None),
        ({"a": 0, "b": 0, "c": 1, "d": 1}, "`m/{1}`: tensor `d`: is not there, where the index"),
        ({"a": 0, "b": 1, "c": 1}, "`m/{1}`: tensor `b`: is not there, where the index says"),
        ({"a": 0, "c": 1}, "`m/{0}`: tensor `b`: is there, but the index has no such"),
        ({"a": 0, "b": 0, "c": 2}, "`m/model.safetensors`: file: cannot be read: No such file"),
    ],
    ids=["a shard left over", "a tensor missing", "another shard", "a tensor left over", "a shard missing"],
)  # fmt: skip
def test_index_and_shards_agree_on_every_tensor(
    sharded: Path, weight_map: dict[str, int], refusal: str | None
) -> None:
    names = (*SHARDS, "model.safetensors")
    write_index(sharded, {tensor: names[i] for tensor, i in weight_map.items()})
    if refusal is None:  # files that nobody names lie in many a directory
        with SafetensorsCheckpoint.open(sharded) as checkpoint:
            assert checkpoint.tensors.keys() == weight_map.keys()
        return
    with pytest.raises(SafetensorsError, match=re.escape(refusal.format(*names))):
        SafetensorsCheckpoint.open(sharded, name="m")


def test_refuses_a_tensor_that_is_in_two_shards(sharded: Path) -> None:
    two = {"c": ("F16", (), b"fg"), "a": ("U8", (3,), b"xyz")}
    written(sharded / SHARDS[1], safetensors_bytes(two))
    refusal = f"`m/{SHARDS[1]}`: tensor `a`: is there, but the index says in `{SHARDS[0]}`"
    with pytest.raises(SafetensorsError, match=re.escape(refusal)):
        SafetensorsCheckpoint.open(sharded, name="m")


def test_refuses_a_malformed_shard_and_closes_the_others(sharded: Path) -> None:
    (sharded / SHARDS[1]).write_bytes(b"{}")
    with pytest.raises(SafetensorsError, match="header: the file ends after 2 bytes"):
        SafetensorsCheckpoint.open(sharded)
    if SMAPS.exists():
        assert str(sharded) not in SMAPS.read_text()


def test_refuses_a_directory_without_a_model(tmp_path: Path) -> None:
    written(tmp_path / "pytorch_model.bin", b"")
    with pytest.raises(SafetensorsError, match=r"directory: has neither `model.safetensors` nor"):
        SafetensorsCheckpoint.open(tmp_path)


def test_refuses_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    with pytest.raises(SafetensorsError, match="file: cannot be read: File name too long"):
        SafetensorsCheckpoint.open(tmp_path / (300 * "n"))


def test_refuses_a_directory_of_two_models(sharded: Path) -> None:
    written(sharded / "model.safetensors", safetensors_bytes({}))
    with pytest.raises(SafetensorsError, match="directory: has both") as caught:
        SafetensorsCheckpoint.open(sharded)
    assert caught.value.hint == "give the path of the one that is meant"


def test_refuses_an_index_that_is_too_large(sharded: Path) -> None:
    os.truncate(sharded / "model.safetensors.index.json", 25_000_001)
    with pytest.raises(SafetensorsError, match="index: 25,000,001 bytes, more than 25,000,000"):
        SafetensorsCheckpoint.open(sharded)


def test_refuses_an_index_cut_off_at_any_byte() -> None:
    content = index_text({"a": SHARDS[0], "b": SHARDS[1]})
    assert read_index("a.json", content) == {"a": SHARDS[0], "b": SHARDS[1]}
    for size in range(len(content)):
        with pytest.raises(SafetensorsError, match="index: is not JSON at character"):
            read_index("a.json", content[:size])


def test_refuses_an_index_that_is_a_mutation_with_its_own_error() -> None:
    content = index_text({f"layers.{i}.weight": SHARDS[i % 2] for i in range(9)})
    accepted = 0
    for seed in range(1000):
        mutation = mutated_safetensors(safetensors_file(content, b""), seed)[8:]
        try:
            weight_map = read_index("a.json", mutation)
        except SafetensorsError:
            continue
        accepted += 1
        assert all(re.fullmatch(r"[\w.+@=-]+", shard) for shard in weight_map.values())
    assert 10 < accepted < 900


# It takes no longer than it must


def test_reads_many_tensors_fast() -> None:
    # 0.7 s on the machine this was written on
    entries = {f"model.layers.{i}.mlp.weight": safetensors_entry("F32", (1, 1), 4 * i, 4 * i + 4) for i in range(50_000)}  # fmt: skip
    content = safetensors_file(entries, bytes(200_000))
    start = time.process_time()
    assert len(header(content).tensors) == 50_000
    assert time.process_time() - start < 4
