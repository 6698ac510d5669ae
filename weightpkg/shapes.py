"""The shapes of published decoders: what an index does not say and memory depends on.

Each row is a model's config.json as its publisher has it. A model that is not here is taken to be
shaped as the nearest of its architecture, by the number of its parameters, or, where none of its
architecture is here, of Llama's, whose shapes most others follow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder's sizes, by their names in config.json as `n_` and `_size` have it here."""

    parameters: int
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int


def nearest_shape(architecture: str, parameters: int) -> Shape:
    """Return the shape of the published model that is nearest.

    Names of architectures are those of GGUF or of config.json, also of what was made from one that
    is here: `qwen3vl`, `gemma3_text`, `gpt_oss`.

    >>> nearest_shape("qwen2", 7_000_000_000).n_layers
    28
    """
    name = re.sub(r"[-_]", "", architecture)
    family = max((each for each in _SHAPES if name.startswith(each)), key=len, default="llama")
    wanted = math.log(max(parameters, 1))
    return _shape(min(_SHAPES[family], key=lambda row: abs(math.log(int(row[0] * 1e6)) - wanted)))


def _shape(row: Row) -> Shape:
    millions, layers, hidden, heads, kv_heads, head, vocabulary = row
    return Shape(
        parameters=int(millions * 1e6),
        n_layers=layers,
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_size=head,
        vocab_size=vocabulary,
    )


Row = tuple[float, int, int, int, int, int, int]

# millions of parameters, layers, hidden size, heads, kv heads, head size, vocabulary
_SHAPES: dict[str, tuple[Row, ...]] = {
    "llama": (
        (134.5, 30, 576, 9, 3, 64, 49_152),  # SmolLM2-135M
        (361.8, 32, 960, 15, 5, 64, 49_152),  # SmolLM2-360M
        (1100, 22, 2048, 32, 4, 64, 32_000),  # TinyLlama-1.1B
        (1236, 16, 2048, 32, 8, 64, 128_256),  # Llama-3.2-1B
        (1711, 24, 2048, 32, 32, 64, 49_152),  # SmolLM2-1.7B
        (3213, 28, 3072, 24, 8, 128, 128_256),  # Llama-3.2-3B
        (6738, 32, 4096, 32, 32, 128, 32_000),  # Llama-2-7B
        (7242, 32, 4096, 32, 8, 128, 32_000),  # Mistral-7B
        (8030, 32, 4096, 32, 8, 128, 128_256),  # Llama-3-8B
        (13_016, 40, 5120, 40, 40, 128, 32_000),  # Llama-2-13B
        (23_572, 40, 5120, 32, 8, 128, 131_072),  # Mistral-Small-24B
        (46_703, 32, 4096, 32, 8, 128, 32_000),  # Mixtral-8x7B
        (70_554, 80, 8192, 64, 8, 128, 128_256),  # Llama-3-70B
    ),
    "qwen2": (
        (494, 24, 896, 14, 2, 64, 151_936),
        (1544, 28, 1536, 12, 2, 128, 151_936),
        (3086, 36, 2048, 16, 2, 128, 151_936),
        (7616, 28, 3584, 28, 4, 128, 152_064),
        (14_770, 48, 5120, 40, 8, 128, 152_064),
        (32_764, 64, 5120, 40, 8, 128, 152_064),
        (72_706, 80, 8192, 64, 8, 128, 152_064),
    ),
    "qwen3": (
        (596, 28, 1024, 16, 8, 128, 151_936),
        (1721, 28, 2048, 16, 8, 128, 151_936),
        (4022, 36, 2560, 32, 8, 128, 151_936),
        (8191, 36, 4096, 32, 8, 128, 151_936),
        (14_768, 40, 5120, 40, 8, 128, 151_936),
        (32_762, 64, 5120, 64, 8, 128, 151_936),
    ),
    "qwen3moe": ((30_532, 48, 2048, 32, 4, 128, 151_936),),
    "gemma2": (
        (2614, 26, 2304, 8, 4, 256, 256_000),
        (9242, 42, 3584, 16, 8, 256, 256_000),
        (27_227, 46, 4608, 32, 16, 128, 256_000),
    ),
    "gemma3": (
        (268.1, 18, 640, 4, 1, 256, 262_144),
        (999.9, 26, 1152, 4, 1, 256, 262_144),
        (3880, 34, 2560, 8, 4, 256, 262_208),
        (11_766, 48, 3840, 16, 8, 256, 262_208),
        (27_009, 62, 5376, 32, 16, 128, 262_208),
    ),
    "phi3": (
        (3821, 32, 3072, 32, 32, 96, 32_064),  # Phi-3-mini
        (3836, 32, 3072, 24, 8, 128, 200_064),  # Phi-4-mini
        (14_660, 40, 5120, 40, 10, 128, 100_352),  # Phi-4
    ),
    "granite": (
        (2534, 40, 2048, 32, 8, 64, 49_155),
        (8171, 40, 4096, 32, 8, 128, 49_155),
    ),
    "olmo2": ((7299, 32, 4096, 32, 32, 128, 100_352),),
    "smollm3": ((3075, 36, 2048, 16, 4, 128, 128_256),),
    "stablelm": ((1645, 24, 2048, 32, 32, 64, 100_352),),
    "starcoder2": (
        (3030, 30, 3072, 24, 2, 128, 49_152),
        (7174, 32, 4608, 36, 4, 128, 49_152),
    ),
    "gpt2": ((124, 12, 768, 12, 12, 64, 50_257),),
    "falcon": ((7217, 32, 4544, 71, 1, 64, 65_024),),
    "deepseek2": (
        (15_706, 27, 2048, 16, 16, 192, 102_400),  # V2-Lite, its latent attention unfolded
        (671_026, 61, 7168, 128, 128, 192, 129_280),  # V3
    ),
    "gptoss": (
        (20_915, 24, 2880, 64, 8, 64, 201_088),
        (116_829, 36, 2880, 64, 8, 64, 201_088),
    ),
}
