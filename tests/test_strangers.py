"""Pickles are refused by what is in them, and nothing else is."""

from __future__ import annotations

import io
import os
import re
import time
import zipfile
from pathlib import Path

import pytest

from factories import safetensors_bytes, safetensors_file, tiny_llama
from weightpkg.errors import FormatError, PickleError
from weightpkg.formats.strangers import refuse_pickle

# `pickle.dumps({}, protocol)`, and what `torch.save` wrote before it wrote zip files
PICKLES = {
    "protocol 2": b"\x80\x02}q\x00.",
    "protocol 3": b"\x80\x03}q\x00.",
    "protocol 4": b"\x80\x04}\x94.",
    "protocol 5": b"\x80\x05}\x94.",
    "a frame": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0]\x94(\x8c\x01a\x94e.",
    "old torch": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.",
}


def zip_file(*members: tuple[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def torch_checkpoint() -> bytes:
    return zip_file(
        ("archive/data.pkl", b"\x80\x02}q\x00."),
        ("archive/byteorder", b"little"),
        ("archive/data/0", bytes(1000)),
        ("archive/version", b"3\n"),
    )


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
@pytest.mark.parametrize("name", ["model.bin", "model.safetensors", "model.gguf"])
def test_refuses_a_pickle_whatever_it_is_called(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content + bytes(5000))
    with pytest.raises(
        PickleError, match=re.escape(f"{name}`: file: is a Python pickle")
    ) as caught:
        refuse_pickle(tmp_path / name)
    assert str(caught.value).endswith(", which could run code and is never loaded")
    assert caught.value.hint == "use the model's safetensors or GGUF files"
    assert caught.value.exit_code == 8


@pytest.mark.parametrize(
    "content",
    [
        torch_checkpoint(),
        zip_file(("model/constants.pkl", b""), ("model/data/0", b"")),
        zip_file(("archive/data/0", bytes(3_000_000)), ("archive/data.pkl", b"")),
        bytes(3_000_000) + torch_checkpoint(),
        torch_checkpoint() + bytes(3_000_000),
    ],
    ids=["torch", "TorchScript", "pickle last", "behind something else", "before something else"],
)
def test_refuses_a_zip_file_of_a_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(PickleError, match="`tiny`: file: is a PyTorch checkpoint of a Python pick"):
        refuse_pickle(tmp_path / "a", name="tiny")


@pytest.mark.parametrize("size", [0x280, 0x380, 0x480, 0x580, 0x10480, 0x5D0480])
@pytest.mark.parametrize("start", [b"{", b" {", b"\n{"])
def test_takes_no_size_of_a_header_for_a_pickle(tmp_path: Path, size: int, start: bytes) -> None:
    content = safetensors_file(start + b"}".ljust(size - len(start)))
    assert content[0] == 0x80
    (tmp_path / "a").write_bytes(content)
    refuse_pickle(tmp_path / "a")


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"\x80",
        b"\x80abc",
        safetensors_bytes({"a": ("U8", (3,), b".pk")}),
        zip_file(("a.json", b'{"file": "data.pkl"}'), ("data.pkl.txt", b"")),
        b"PK\x03\x04",
        b"PK\x01\x02" + bytes(24) + b"\xff\xff",
    ],
    ids=["json", "a byte", "text", "safetensors", "another zip", "cut off", "cut off at its end"],
)
def test_lets_pass_what_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    refuse_pickle(tmp_path / "a")


def test_lets_pass_a_model(tmp_path: Path) -> None:
    refuse_pickle(tiny_llama(tmp_path / "tiny.gguf"))


def test_is_not_held_up_by_a_file_of_signatures(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"PK\x03\x04" * 500_000)
    start = time.process_time()
    refuse_pickle(tmp_path / "a")
    assert time.process_time() - start < 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="file: is not a regular file"):
        refuse_pickle(tmp_path / "pipe")
