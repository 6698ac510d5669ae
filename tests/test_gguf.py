from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from factories import (
    F32,
    I8,
    STRING,
    TensorBytes,
    gguf_bytes,
    gguf_header,
    gguf_pair,
    tiny_llama,
    tiny_vocabulary,
)
from weightpkg.errors import GGUFError
from weightpkg.formats.ggml import GGML_TYPES
from weightpkg.formats.gguf import GGUFFile
from weightpkg.formats.gguf_header import MAX_HEADER_SIZE

SMAPS = Path("/proc/self/smaps")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[GGUFFile]:
    with GGUFFile.open(tiny_llama(tmp_path / "tiny.gguf"), name="tiny.gguf") as file:
        yield file


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# What the reference writes is read


def test_reads_metadata_of_every_type(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 255)
    writer.add_int8("i8", -128)
    writer.add_uint16("u16", 65535)
    writer.add_int16("i16", -32768)
    writer.add_uint32("u32", 2**32 - 1)
    writer.add_int32("i32", -(2**31))
    writer.add_uint64("u64", 2**64 - 1)
    writer.add_int64("i64", -(2**63))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", val=True)
    writer.add_string("text", "grüße, 世界 \0")
    writer.add_array("strings", ["", "a", "Ġthe"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("fractions", [1.5, -0.25])
    writer.add_array("truths", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile.open(path) as file:
        assert file.tensors == {}
        assert file.metadata == {
            "general.architecture": "llama",
            "u8": 255,
            "i8": -128,
            "u16": 65535,
            "i16": -32768,
            "u32": 2**32 - 1,
            "i32": -(2**31),
            "u64": 2**64 - 1,
            "i64": -(2**63),
            "f32": 0.5,
            "f64": 0.1,
            "yes": True,
            "text": "grüße, 世界 \0",
            "strings": ["", "a", "Ġthe"],
            "integers": [1, -2, 3],
            "fractions": [1.5, -0.25],
            "truths": [True, False],
        }
        assert type(file.metadata["yes"]) is bool


@pytest.mark.parametrize("kind", GGML_TYPES.items(), ids=lambda item: item[1].name)
def test_lays_out_tensors_of_every_type_as_the_reference_does(
    tmp_path: Path, kind: tuple[int, Any]
) -> None:
    number, ggml_type = kind
    row = ggml_type.type_size * 3
    data = np.random.default_rng(0).integers(0, 256, (5, row), np.uint8)
    shape = (3 * ggml_type.block_size, 5)
    tensors = [
        TensorBytes("first", shape, number, data.tobytes()),
        TensorBytes("second", shape, number, data[::-1].tobytes()),
    ]
    path = written(tmp_path / "a.gguf", gguf_bytes({"a": 1}, tensors))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    with GGUFFile.open(path) as file:
        for name, tensor in file.tensors.items():
            assert tensor.shape == shape[::-1]
            assert tensor.type.name == theirs[name].tensor_type.name
            assert (tensor.offset, tensor.size) == (theirs[name].data_offset, theirs[name].n_bytes)
        np.testing.assert_array_equal(file.rows(file.tensors["first"], 1, 3), data[1:3])
        np.testing.assert_array_equal(file.rows(file.tensors["second"], 0, 5), data[::-1])


def test_reads_a_whole_model_as_the_reference_does(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "a.gguf", tied=False, weights="Q4_0", output="BF16")
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    with GGUFFile.open(path) as file:
        assert file.metadata == {name: field.contents() for name, field in fields.items()}
        assert [(t.name, t.shape) for t in file.tensors.values()] == [
            (t.name, tuple(reversed(t.shape.tolist()))) for t in reader.tensors
        ]
        for theirs in reader.tensors:
            tensor = file.tensors[theirs.name]
            rows = file.rows(tensor, 0, math.prod(tensor.shape[:-1]))
            assert rows.tobytes() == theirs.data.tobytes()


def test_tiny_models_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    one, again, other = (
        tiny_llama(tmp_path / str(i), seed=seed).read_bytes() for i, seed in enumerate((1, 1, 2))
    )
    assert one == again != other
    assert len(tiny_vocabulary()) == len(set(tiny_vocabulary())) == 302


# A file that cannot be mapped or read is refused


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="`: file: is empty"):
        GGUFFile.open(written(tmp_path / "empty.gguf", b""))


def test_refuses_a_directory(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="file: is not a regular file"):
        GGUFFile.open(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GGUFError, match="file: is not a regular file"):
        GGUFFile.open(tmp_path / "pipe")


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="file: cannot be read: No such file or directory"):
        GGUFFile.open(tmp_path / "none.gguf")


def test_refuses_a_header_larger_than_any(tmp_path: Path) -> None:
    path = tmp_path / "sparse.gguf"
    size = MAX_HEADER_SIZE - 10
    path.write_bytes(gguf_header(0, 1) + gguf_pair("a", STRING, struct.pack("<Q", size)))
    os.truncate(path, MAX_HEADER_SIZE + 1024)
    with pytest.raises(GGUFError, match="`a`: the header is larger than 268,435,456 bytes"):
        GGUFFile.open(path)


def test_names_the_file_as_the_caller_does(tmp_path: Path) -> None:
    path = written(tmp_path / "blob", gguf_header(0, 0, version=9))
    with pytest.raises(GGUFError, match=re.escape(f"`{path}`: header: version 9 is not known")):
        GGUFFile.open(path)
    with pytest.raises(GGUFError, match="`smollm2`: header: version 9 is not known"):
        GGUFFile.open(path, name="smollm2")


# Values are asked for by key and type


def test_gets_values_by_type(tiny: GGUFFile) -> None:
    assert tiny.get("llama.block_count", int) == 2
    assert tiny.get("llama.rope.freq_base", float) == 10000.0
    assert tiny.get("tokenizer.ggml.model", str) == "gpt2"
    assert tiny.get("tokenizer.ggml.add_bos_token", bool) is False
    assert tiny.array("tokenizer.ggml.tokens", str) == tiny_vocabulary()
    assert tiny.array("tokenizer.ggml.token_type", int)[:4] == [3, 3, 3, 1]


def test_gets_the_default_where_there_is_no_key(tiny: GGUFFile) -> None:
    assert tiny.get("llama.expert_count", int, 0) == 0
    assert tiny.get("llama.block_count", int, 7) == 2
    assert tiny.array("tokenizer.ggml.scores", float, []) == []


@pytest.mark.parametrize(
    ("key", "kind", "reason"),
    [
        ("llama.none", int, "`llama.none`: is missing (a whole number)"),
        ("llama.block_count", str, "`llama.block_count`: must be a string, not a whole number"),
        ("llama.block_count", bool, "must be true or false, not a whole number"),
        ("llama.block_count", float, "must be a number with a fraction, not a whole number"),
        ("tokenizer.ggml.add_bos_token", int, "must be a whole number, not true or false"),
        ("tokenizer.ggml.tokens", str, "must be a string, not an array"),
        ("tokenizer.ggml.model", list, "must be an array, not a string"),
    ],
)
def test_refuses_a_value_of_another_type(
    tiny: GGUFFile, key: str, kind: type[object], reason: str
) -> None:
    with pytest.raises(GGUFError, match=re.escape(reason)) as caught:
        tiny.get(key, kind)
    assert str(caught.value).startswith(f"`tiny.gguf`: metadata key `{key}`: ")


def test_refuses_an_array_of_another_type(tiny: GGUFFile) -> None:
    with pytest.raises(GGUFError, match="each element must be a whole number, not a string"):
        tiny.array("tokenizer.ggml.tokens", int)
    with pytest.raises(GGUFError, match="`none`: is missing"):
        tiny.array("none", str)


def test_takes_no_truth_for_a_number_in_an_array(tmp_path: Path) -> None:
    path = written(tmp_path / "a.gguf", gguf_bytes({"a": [True]}))
    with GGUFFile.open(path) as file, pytest.raises(GGUFError, match="not true or false"):
        file.array("a", int)


# Bytes are read without a copy


def test_rows_outlive_the_file(tmp_path: Path) -> None:
    content = gguf_bytes(tensors=[TensorBytes("a", (4, 2), I8, b"abcdefgh")])
    with GGUFFile.open(written(tmp_path / "a.gguf", content)) as file:
        rows = file.rows(file.tensors["a"], 1, 2)
        file.release(file.tensors["a"], 0, 2)
    assert rows.tobytes() == b"efgh"
    assert not rows.flags.writeable
    assert not rows.flags.owndata


def test_a_tensor_of_one_axis_is_one_row(tiny: GGUFFile) -> None:
    assert tiny.rows(tiny.tensors["output_norm.weight"], 0, 1).shape == (1, 64 * 4)


def test_reads_tensors_without_weights(tmp_path: Path) -> None:
    tensors = [
        TensorBytes("none", (32, 0), F32, b""),
        TensorBytes("some", (8,), F32, bytes(32)),
        TensorBytes("none.at.the.end", (0,), F32, b""),
    ]
    with GGUFFile.open(written(tmp_path / "a.gguf", gguf_bytes(tensors=tensors))) as file:
        none, _, last = file.tensors.values()
        assert (none.shape, none.size) == ((0, 32), 0)
        assert file.rows(none, 0, 0).shape == (0, 128)
        assert file.rows(last, 0, 1).shape == (1, 0)
        file.release(last, 0, 1)


def test_releases_nothing_at_the_end_of_the_file(tmp_path: Path) -> None:
    page = 65_536
    tensors = [TensorBytes("a", (page,), I8, bytes(page)), TensorBytes("none", (0,), I8, b"")]
    content = gguf_bytes({"general.alignment": page}, tensors, alignment=page)
    with GGUFFile.open(written(tmp_path / "a.gguf", content)) as file:
        assert file.tensors["none"].offset == len(content)
        file.release(file.tensors["none"], 0, 1)


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not tell what is in memory")
def test_released_rows_do_not_count_as_memory(tmp_path: Path) -> None:
    rows, row_bytes = 64, 2**18
    tensor = TensorBytes("a", (row_bytes, rows), I8, os.urandom(row_bytes) * rows)
    path = written(tmp_path / "a.gguf", gguf_bytes(tensors=[tensor]))
    with GGUFFile.open(path) as file:
        for i in range(rows):
            file.rows(file.tensors["a"], i, i + 1).sum()
        assert resident_bytes(path) >= rows * row_bytes
        file.release(file.tensors["a"], 0, rows)
        assert resident_bytes(path) < row_bytes


def resident_bytes(path: Path) -> int:
    """How much of a mapped file is in this process's memory."""
    mapping = SMAPS.read_text().partition(str(path))[2]
    match = re.search(r"^Rss: +(\d+) kB$", mapping, re.MULTILINE)
    assert match is not None
    return int(match[1]) * 1024
