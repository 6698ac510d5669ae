"""Llama in NumPy: an exact float32 evaluation of a GGUF file's weights, to compare others with.

Independent of weightpkg: the file is read by the `gguf` package, and the model is written out from
its paper (https://arxiv.org/abs/2302.13971) and llama.cpp's conventions (q and k rows interleaved
for the rotation of neighbours).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Llama:
    """Dequantised weights and sizes."""

    tensors: dict[str, NDArray[np.float32]]
    layers: int
    heads: int
    kv_heads: int
    epsilon: float
    theta: float
    rope_scale: float

    @classmethod
    def read(cls, path: Path) -> Llama:
        """Read and dequantise a whole GGUF file."""
        reader = gguf.GGUFReader(path)

        def value(key: str, default: float | None = None) -> float:
            field = reader.get_field(f"llama.{key}")
            if field is None:
                assert default is not None, key
                return default
            return float(field.contents())

        tensors = {
            t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
            for t in reader.tensors
        }
        heads = int(value("attention.head_count"))
        return cls(
            tensors,
            int(value("block_count")),
            heads,
            int(value("attention.head_count_kv", heads)),
            value("attention.layer_norm_rms_epsilon"),
            value("rope.freq_base", 10000.0),
            value("rope.scaling.factor", 1.0),
        )

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the logits that follow each token: (T, V)."""
        table = self.tensors["token_embd.weight"]
        x = table[tokens]  # (T, E)
        for i in range(self.layers):
            x = x + self._attention(i, self._norm(x, f"blk.{i}.attn_norm.weight"))
            x = x + self._feed_forward(i, self._norm(x, f"blk.{i}.ffn_norm.weight"))
        x = self._norm(x, "output_norm.weight")
        head = self.tensors.get("output.weight", table)
        result: NDArray[np.float32] = x @ head.T
        return result

    def _norm(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        result: NDArray[np.float32] = x * scale * self.tensors[name]
        return result

    def _linear(self, i: int, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        result: NDArray[np.float32] = x @ self.tensors[f"blk.{i}.{name}.weight"].T
        return result

    def _attention(self, i: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        count, group = len(x), self.heads // self.kv_heads
        q = self._rotate(self._linear(i, "attn_q", x).reshape(count, self.heads, -1))
        k = self._rotate(self._linear(i, "attn_k", x).reshape(count, self.kv_heads, -1))
        v = self._linear(i, "attn_v", x).reshape(count, self.kv_heads, -1)
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)  # (T, H, D)
        scores = np.einsum("thd,shd->hts", q, k, optimize=True) / np.sqrt(np.float32(q.shape[-1]))
        scores += np.triu(np.full((count, count), -np.inf, np.float32), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", weights, v, optimize=True)
        return self._linear(i, "attn_output", mixed.reshape(count, -1))

    def _rotate(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """x: (T, H, D); neighbours (2i, 2i+1) turn by position * theta ** (-2i / D)."""
        size = x.shape[-1]
        frequency = self.theta ** (-np.arange(0, size, 2) / size) / self.rope_scale
        if "rope_freqs.weight" in self.tensors:
            frequency = frequency / self.tensors["rope_freqs.weight"]
        angle = np.arange(len(x))[:, None, None] * frequency
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        even, odd = x[..., ::2], x[..., 1::2]
        turned = np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1)
        result: NDArray[np.float32] = turned.reshape(x.shape)
        return result

    def _feed_forward(self, i: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        gate = self._linear(i, "ffn_gate", x)
        silu = gate / (1 + np.exp(-gate))
        return self._linear(i, "ffn_down", silu * self._linear(i, "ffn_up", x))
