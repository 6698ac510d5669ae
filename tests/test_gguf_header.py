from __future__ import annotations

import math
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from factories import (
    ARRAY,
    BOOL,
    I8,
    INT32,
    STRING,
    TensorBytes,
    gguf_array,
    gguf_bytes,
    gguf_header,
    gguf_pair,
    gguf_string,
)
from malformed import gguf as malformed
from mutations import gguf_seed, mutated_gguf
from weightpkg.errors import GGUFError
from weightpkg.formats.gguf_header import Header, read_header


def header(content: bytes) -> Header:
    return read_header("a.gguf", content)


# What llama.cpp accepts is accepted


def test_accepts_a_file_of_nothing() -> None:
    assert header(gguf_header(0, 0)) == Header({}, {}, 24)


def test_accepts_version_2() -> None:
    assert header(gguf_header(0, 0, version=2)) == Header({}, {}, 24)


@pytest.mark.parametrize("alignment", [1, 8, 65_536])
def test_accepts_another_alignment(alignment: int) -> None:
    tensors = [TensorBytes("a", (3,), I8, b"abc"), TensorBytes("b", (2,), I8, b"de")]
    content = gguf_bytes({"general.alignment": alignment}, tensors, alignment=alignment)
    for tensor, expected in zip(header(content).tensors.values(), (b"abc", b"de"), strict=True):
        assert content[tensor.offset : tensor.offset + tensor.size] == expected
        assert tensor.offset % alignment == 0


def test_accepts_bytes_after_the_last_tensor() -> None:
    content = gguf_bytes(tensors=[TensorBytes("a", (3,), I8, b"abc")])
    assert header(content + b"more").tensors.keys() == {"a"}
    assert header(content[:-29]).tensors.keys() == {"a"}  # nor is its padding needed


def test_accepts_names_with_hyphens_slashes_and_other_scripts() -> None:
    content = gguf_bytes({"qwen2-vl.a b": 1}, [TensorBytes("v/blk.0/größe", (1,), I8, b"a")])
    assert header(content).metadata.keys() == {"qwen2-vl.a b"}
    assert header(content).tensors.keys() == {"v/blk.0/größe"}


def test_accepts_any_float() -> None:
    values = header(gguf_bytes({"a": math.nan, "b": [math.inf, -0.0]})).metadata
    assert str(values) == "{'a': nan, 'b': [inf, -0.0]}"


def test_accepts_any_byte_as_true() -> None:
    pair = gguf_pair("a", ARRAY, gguf_array(BOOL, 3, b"\x00\x01\xff"))
    assert header(gguf_header(0, 1) + pair).metadata == {"a": [False, True, True]}


# What is malformed is refused


@pytest.mark.parametrize("attack", malformed.attacks(), ids=lambda attack: attack.__name__)
def test_refuses_the_attack(attack: Callable[[], malformed.Attack]) -> None:
    content, refusal = attack()
    with pytest.raises(GGUFError, match=re.escape(refusal)) as caught:
        header(content)
    assert str(caught.value).startswith("`a.gguf`: ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_refuses_a_huge_array_at_once() -> None:
    content, refusal = malformed.array_of_2_to_the_60()
    assert len(content) < 70
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(GGUFError, match=re.escape(refusal)):
        header(content)
    assert time.process_time() - start < 0.1
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_refuses_a_file_cut_off_at_any_byte() -> None:
    content = gguf_seed()
    assert 1500 < len(content) < 2500
    assert len(header(content).tensors) == 3
    for size in range(len(content)):
        with pytest.raises(GGUFError) as caught:
            header(content[:size])
        assert caught.value.hint == "the file may not have been downloaded to its end", size


def test_accepts_no_mutation_that_the_reference_refuses(tmp_path: Path) -> None:
    content = gguf_seed()
    path = tmp_path / "mutated.gguf"
    accepted = 0
    for seed in range(2500):
        mutation = mutated_gguf(content, seed)
        try:
            ours = header(mutation)
        except GGUFError:
            continue
        accepted += 1
        path.write_bytes(mutation)
        theirs = gguf.GGUFReader(path)
        assert [t.data_offset for t in theirs.tensors] == [t.offset for t in ours.tensors.values()]
        assert theirs.fields.keys() - {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"} == (
            ours.metadata.keys()
        )
    assert 300 < accepted < 2200


def test_shortens_a_key_of_64_kilobytes_in_errors() -> None:
    with pytest.raises(GGUFError) as caught:
        header(gguf_header(0, 1) + gguf_pair("k" * 65_536, 99, b""))
    assert str(caught.value) == (
        f"`a.gguf`: metadata key 0 `{'k' * 61}...`: there is no value type 99"
    )


# What is no GGUF file at all is refused


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"PK\x03\x04\x14\0\0\0", "this is a zip archive, such as a wheel or a PyTorch checkpoint"),
        (b"\x80\x02}q\0.", "this is a Python pickle, which could run code and is never loaded"),
        (b"\x80\0\0\0\0\0\0\0{}", "this looks like a safetensors file"),
        (b"\n<!DOCTYPE html>", "this is a web page: the download may have needed a login"),
        (b"<HTML>", "this is a web page: the download may have needed a login"),
        (b"lmgg\1\0", "this is a GGML file from before GGUF: convert it with llama.cpp"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "this is a Git LFS pointer: `git lfs pull` fetches the file itself",
        ),
        (b"GGU", "the file may not have been downloaded to its end"),
        (b"something else", None),
    ],
    ids=["zip", "pickle", "safetensors", "doctype", "html", "ggml", "lfs", "cut off", "unknown"],
)
def test_recognises_what_is_no_gguf_file(content: bytes, hint: str | None) -> None:
    with pytest.raises(GGUFError, match="header: does not begin with `GGUF`") as caught:
        header(content)
    assert caught.value.hint == hint


# It takes no longer than it must


def test_reads_a_large_vocabulary_fast() -> None:
    # 0.1 s on the machine this was written on; far more would be a reader that copies or crawls
    strings = b"".join(gguf_string(f"▁token{i}") for i in range(262_144))
    pairs = [
        gguf_pair("tokens", ARRAY, gguf_array(STRING, 262_144, strings)),
        gguf_pair("types", ARRAY, gguf_array(INT32, 262_144, struct.pack("<i", 1) * 262_144)),
    ]
    content = gguf_header(0, 2) + b"".join(pairs)
    start = time.process_time()
    tokens = header(content).metadata["tokens"]
    assert time.process_time() - start < 1.5
    assert isinstance(tokens, list)
    assert tokens[262_143] == "▁token262143"
