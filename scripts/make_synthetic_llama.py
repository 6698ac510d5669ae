"""Write a Llama of random weights in GGUF, of a given size, with the types of llama.cpp's Q4_K_M.

The layers are those of a model of 3 billion weights, and as many as it takes. Blocks are random bytes
with small scales, so every one is valid; the vocabulary has bytes and single characters. The same
size and seed give the same bytes, and memory is that of the largest tensor, whatever the size.

Usage: python scripts/make_synthetic_llama.py FILE [--size-mb 2000] [--seed 0]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

F32, Q4_K, Q6_K = (gguf.GGMLQuantizationType[name] for name in ("F32", "Q4_K", "Q6_K"))
WIDTH, INNER, HEADS, KV_HEADS, HEAD_SIZE, VOCABULARY = 3072, 8192, 24, 8, 128, 32_000
BYTES = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
# one character each, so that no two are joined: Chinese, and then Korean ones
LETTERS = [*map(chr, range(0x4E00, 0x9FFD)), *map(chr, range(0xAC00, 0xD7A4))]
WORDS = (*BYTES, *LETTERS[: VOCABULARY - len(BYTES)])
# where the float16 scales of a block are
SCALES = {Q4_K: (0, 2), Q6_K: (208,)}


@dataclass(frozen=True)
class Matrix:
    """A tensor to be. shape: (N, K), or (N,) for F32."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """(N, bytes of a row), or (N,) for F32."""
        if self.kind == F32:
            return self.shape
        block_size, type_size = gguf.GGML_QUANT_SIZES[self.kind]
        return (self.shape[0], self.shape[1] // block_size * type_size)

    @property
    def size(self) -> int:
        """Bytes."""
        return int(np.prod(self.byte_shape)) * (4 if self.kind == F32 else 1)

    def content(self, random: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.float32]:
        """Make its bytes."""
        if self.kind == F32:
            return np.ones(self.shape, np.float32)
        content = np.frombuffer(random.bytes(self.size), np.uint8).copy()
        blocks = content.reshape(-1, gguf.GGML_QUANT_SIZES[self.kind][1])
        for place in SCALES[self.kind]:
            # of what random bytes say, only the fraction stays: 2 ** -12 to 2 ** -11
            scale = blocks[:, place : place + 2].view("<u2")
            scale[:] = scale & 0x03FF | 0x0C00
        return content.reshape(self.byte_shape)


def has_more_bits(i: int, layers: int) -> bool:
    """Whether Q4_K_M has v and down in Q6_K: llama.cpp's `use_more_bits`."""
    eighth = layers // 8
    return i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2


def layer(i: int, layers: int) -> Iterator[Matrix]:
    """Yield the tensors of one layer."""
    more = Q6_K if has_more_bits(i, layers) else Q4_K
    queries, keys = HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE
    shapes = {
        "attn_norm": ((WIDTH,), F32),
        "attn_q": ((queries, WIDTH), Q4_K),
        "attn_k": ((keys, WIDTH), Q4_K),
        "attn_v": ((keys, WIDTH), more),
        "attn_output": ((WIDTH, queries), Q4_K),
        "ffn_norm": ((WIDTH,), F32),
        "ffn_gate": ((INNER, WIDTH), Q4_K),
        "ffn_up": ((INNER, WIDTH), Q4_K),
        "ffn_down": ((WIDTH, INNER), more),
    }
    for name, (shape, kind) in shapes.items():
        yield Matrix(f"blk.{i}.{name}.weight", shape, kind)


def model(layers: int) -> list[Matrix]:
    """Return all tensors of so many layers; the head shares the embedding."""
    whole = [
        Matrix("token_embd.weight", (VOCABULARY, WIDTH), Q6_K),
        Matrix("output_norm.weight", (WIDTH,), F32),
    ]
    return [*whole, *(matrix for i in range(layers) for matrix in layer(i, layers))]


def layers_for(size: int) -> int:
    """Return with how many layers the tensors have about so many bytes: one at least."""
    layers = 1
    while sum(matrix.size for matrix in model(layers + 1)) <= size:
        layers += 1
    return layers


def write(path: Path, size: int, seed: int = 0) -> None:
    """Write a model of about `size` bytes."""
    layers = layers_for(size)
    matrices = model(layers)
    writer = gguf.GGUFWriter(path, "llama")
    _add_metadata(writer, layers)
    for matrix in matrices:
        dtype = np.dtype(np.float32 if matrix.kind == F32 else np.uint8)
        raw_dtype = None if matrix.kind == F32 else matrix.kind
        writer.add_tensor_info(matrix.name, matrix.byte_shape, dtype, matrix.size, raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(seed)
    for matrix in matrices:
        writer.write_tensor_data(matrix.content(random))
    writer.close()


def _add_metadata(writer: gguf.GGUFWriter, layers: int) -> None:
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(layers)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(WORDS))
    writer.add_token_scores([0.0] * len(WORDS))
    kinds = [gguf.TokenType.UNKNOWN, *2 * [gguf.TokenType.CONTROL], *256 * [gguf.TokenType.BYTE]]
    writer.add_token_types([*kinds, *(len(WORDS) - len(kinds)) * [gguf.TokenType.NORMAL]])


def main() -> int:
    """Write the file, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--size-mb", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.file, arguments.size_mb * 1_000_000, arguments.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
