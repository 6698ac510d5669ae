"""What people hand over in place of a model file, told by its content, whatever it is called."""

from __future__ import annotations

import re

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
