"""What people hand over in place of a model file, told by its content, whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from weightpkg.errors import FormatError, PickleError
from weightpkg.formats.mapped import map_file

_MODELS = {"GGUF": rb"GGUF", "safetensors": rb".{7}\x00\{"}

# By how they begin.
_STRANGERS = {
    rb"PK\x03\x04": "this is a zip archive, such as a wheel or a PyTorch checkpoint",
    rb"\x80[\x02-\x05]": "this is a Python pickle, which could run code and is never loaded",
    rb"version https://git-lfs": "this is a Git LFS pointer: `git lfs pull` fetches the file itself",
    rb"\s*<(!doctype|html)": "this is a web page: the download may have needed a login",
    rb"(tj|lm|fm)gg": "this is a GGML file from before GGUF: convert it with llama.cpp",
}


def recognise(start: bytes, expected: str) -> str | None:
    """Return a hint of what a file is that is not what was expected, if that can be told.

    Args:
        start: its first 64 bytes, or all of it.
        expected: the format that it does not have, `GGUF` or `safetensors`.
    """
    for name, pattern in _MODELS.items():
        if name != expected and re.match(pattern, start, re.DOTALL):
            return f"this looks like a {name} file"
    for pattern, hint in _STRANGERS.items():
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return hint
    return None


_PICKLE = re.compile(
    rb"\x80[\x00-\x05]"  # the first instruction: protocol
    rb"(?!..\x00{4}[ \t\n\r{])",  # the size of a header of 640 bytes begins so, too
    re.DOTALL,
)
# A zip file has its members' names before their bytes and once more at its end; PyTorch writes
# `data.pkl` first.
_SEARCHED = 1024 * 1024
_ZIP_HEADERS = ((b"PK\x03\x04", 26, 30), (b"PK\x01\x02", 28, 46))  # size of the name, name


def refuse_pickle(path: Path, *, name: str | None = None) -> None:
    """Refuse a Python pickle or a zip file of pickles, such as a PyTorch checkpoint.

    It tells people what they have; nothing rests on it, as only GGUF and safetensors are read, and
    strictly. Pickles of protocol 0 and 1, which begin like any text, are not told from others.

    Args:
        path: any file that is not empty.
        name: what to call it in errors, if not by its path.

    Raises:
        PickleError: it is one.
        FormatError: it cannot be read, or is empty.
    """
    name = name or str(path)
    with map_file(path, name, FormatError) as content:
        start, end = content[:_SEARCHED], content[-_SEARCHED:]
    if _PICKLE.match(start):
        raise PickleError(name, "is a Python pickle")
    if any(member.endswith(b".pkl") for part in (start, end) for member in _zip_members(part)):
        raise PickleError(name, "is a PyTorch checkpoint of a Python pickle")


def _zip_members(part: bytes) -> Iterator[bytes]:
    """Yield the end of each member's name."""
    for signature, size_at, name_at in _ZIP_HEADERS:
        place = part.find(signature)
        while place >= 0:
            size = int.from_bytes(part[place + size_at : place + size_at + 2], "little")
            end = place + name_at + size
            yield part[max(place + name_at, end - 8) : end]
            place = part.find(signature, place + len(signature))
