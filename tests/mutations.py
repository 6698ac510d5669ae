"""Files made wrong by chance: the same ones for a seed, on every machine.

Of GGUF and safetensors mostly the header, as all else is weights; of ONNX all of it.
"""

from __future__ import annotations

import random
import re
import struct
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper
from onnx import helper as make

from factories import F32, TensorBytes, gguf_bytes, safetensors_bytes, safetensors_file


def gguf_seed() -> bytes:
    """Two kilobytes with every kind of value, that needs each of its bytes."""
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "general.alignment": 16,
        "a.number": 3,
        "a.fraction": 0.5,
        "a.truth": True,
        "tokens": [f"token {i}" for i in range(20)],
        "scores": [float(i) for i in range(20)],
        "types": [1] * 20,
        "none": [],
    }
    tensors = [TensorBytes(f"blk.{i}.weight", (32, 2), F32, bytes(range(256))) for i in range(3)]
    return gguf_bytes(metadata, tensors, alignment=16)


def mutated_gguf(content: bytes, seed: int) -> bytes:
    """Some bytes of the header changed: at random, to extremes, or moved by one."""
    chance = random.Random(seed)
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        place = chance.randrange(len(changed) - 768)
        changed[place] = chance.choice(
            (chance.randrange(256), 0, 0x7F, 0x80, 0xFF, changed[place] ^ 1)
        )
    return bytes(changed)


def safetensors_seed() -> bytes:
    """A file that needs each of its bytes."""
    tensors = {
        f"model.layers.{i}.weight": ("F16", (3, 8), bytes(range(i, i + 48))) for i in range(6)
    }
    return safetensors_bytes(tensors | {"scale": ("BF16", (), b"ab")}, {"format": "pt"})


_TOKENS = [
    *(b"0 1 -0 -1 1.0 1e2 048 NaN true null 2147483648 18446744073709551616".split()),
    *b'{ } [ ] , : " \\ \\u0061 \\ud800 \\n \0 \xff \n [] {} "" [[ ]] "a" "F32" "BF16" "F4"'.split(b" "),
    *(b'"dtype" "shape" "data_offsets" "__metadata__" "model.layers.1.weight" [3,8] [0,48]'.split()),
]  # fmt: skip


def mutated_safetensors(content: bytes, seed: int) -> bytes:
    """The header changed: bytes, numbers and words, or a piece of it copied elsewhere or left out.

    Its size is mostly set right, so that more than that is tested.
    """
    chance = random.Random(seed)
    size = struct.unpack_from("<Q", content)[0]
    text, data = content[8 : 8 + size], content[8 + size :]
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        start = chance.randrange(len(text))
        stop = chance.choice((start, start + 1, chance.randrange(start, len(text))))
        if chance.random() < 0.4:
            numbers = [number.span() for number in re.finditer(rb"\d+", text)]
            start, stop = chance.choice(numbers or [(0, 0)])
        piece = chance.randrange(len(text))
        new = chance.choice(
            (
                bytes([chance.randrange(256)]),
                str(chance.randrange(300)).encode(),
                chance.choice(_TOKENS),
                text[piece : piece + chance.randrange(80)],
            )
        )
        text = text[:start] + new + text[stop:]
        text = text or b"{}"
    if chance.random() < 0.05:
        size = len(text) + chance.choice((-1, 1, 2**24, -len(text), 2**63 - len(text)))
        return struct.pack("<Q", size) + text + data
    return safetensors_file(text, data)


def onnx_seed() -> bytes:
    """A model with a subgraph, a function, and tensors in its own bytes and elsewhere."""
    inside = numpy_helper.from_array(np.arange(16, dtype=np.float32), "w")
    outside = TensorProto(name="v", data_type=1, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "data", "offset": "0", "length": "64"}.items():
        outside.external_data.add(key=key, value=value)
    branch = make.make_graph([make.make_node("Add", ["x", "w"], ["z"])], "then", [], [], [inside])
    nodes = [
        make.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        make.make_node("MatMulNBits", ["y", "v"], ["o"], domain="com.microsoft", bits=4),
    ]
    places = [make.make_tensor_value_info(name, 1, ["n", 16]) for name in "xo"]
    graph = make.make_graph(nodes, "g", places[:1], places[1:], [outside])
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    model.functions.add(name="f", domain="com.microsoft").node.append(nodes[1])
    content: bytes = model.SerializeToString()
    return content


_EXTREMES = [
    *(struct.pack("<I", n) for n in (0, 1, 8, 9, 2**31 - 1, 2**31, 2**32 - 1)),
    *(struct.pack("<Q", n) for n in (0, 1, 63, 64, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1)),
    *(b"\xff" * 10, b"\x80" * 9 + b"\x01", b"../", b"\0", b"."),
]  # fmt: skip


def spliced(content: bytes, seed: int, *, end: int | None = None) -> bytes:
    """Pieces left out, said twice, put elsewhere, made extreme, or all after some byte left out.

    Args:
        content: a valid file.
        seed: which of all such files.
        end: where that stops which is changed; the file's end if not given.
    """
    chance = random.Random(seed)
    text, rest = content[:end], b"" if end is None else content[end:]
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(text) + 1)
        stop = min(len(text), start + chance.choice((0, 1, 4, 8, chance.randrange(64))))
        piece = chance.randrange(len(text) + 1)
        new = chance.choice(
            (b"", chance.choice(_EXTREMES), text[piece : piece + chance.randrange(64)])
        )
        if chance.random() < 0.5:  # in place of as many bytes
            stop = min(len(text), start + len(new))
        text = text[:start] + new + text[stop:]
    if chance.random() < 0.1:
        return (text + rest)[: chance.randrange(len(text) + 1)]
    return text + rest
