"""Gemma 3 in NumPy: an exact float32 evaluation of a GGUF file's weights, to compare others with.

Independent of weightpkg: the file is read by the `gguf` package, and the model is written out from
its report (https://arxiv.org/abs/2503.19786) and llama.cpp's conventions (norm weights with the 1
added, q and k rows as Hugging Face has them, the last of every six layers global).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Gemma3:
    """Dequantised weights and sizes."""

    tensors: dict[str, NDArray[np.float32]]
    layers: int
    heads: int
    kv_heads: int
    epsilon: float
    theta: float
    local_theta: float
    rope_scale: float
    window: int
    period: int
    scale: float

    @classmethod
    def read(cls, path: Path) -> Gemma3:
        """Read and dequantise a whole GGUF file."""
        reader = gguf.GGUFReader(path)

        def value(key: str, default: float | None = None) -> float:
            field = reader.get_field(f"gemma3.{key}")
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
            value("rope.freq_base_swa", 10000.0),
            value("rope.scaling.factor", 1.0),
            int(value("attention.sliding_window", 0)),
            int(value("attention.sliding_window_pattern", 6)),
            value("attention.scale", 1 / math.sqrt(value("attention.key_length"))),
        )

    def logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Return the logits that follow each token: (T, V)."""
        table = self.tensors["token_embd.weight"]
        x = table[tokens] * np.float32(math.sqrt(table.shape[1]))  # (T, E)
        for i in range(self.layers):
            y = self._attention(i, self._norm(x, f"blk.{i}.attn_norm.weight"))
            x = x + self._norm(y, f"blk.{i}.post_attention_norm.weight")
            y = self._feed_forward(i, self._norm(x, f"blk.{i}.ffn_norm.weight"))
            x = x + self._norm(y, f"blk.{i}.post_ffw_norm.weight")
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
        is_local = bool(self.window) and (i + 1) % self.period != 0
        q = self._linear(i, "attn_q", x).reshape(count, self.heads, -1)
        k = self._linear(i, "attn_k", x).reshape(count, self.kv_heads, -1)
        v = self._linear(i, "attn_v", x).reshape(count, self.kv_heads, -1)
        q = self._rotate(self._norm(q, f"blk.{i}.attn_q_norm.weight"), is_local=is_local)
        k = self._rotate(self._norm(k, f"blk.{i}.attn_k_norm.weight"), is_local=is_local)
        k, v = k.repeat(group, axis=1), v.repeat(group, axis=1)  # (T, H, D)
        scores = np.einsum("thd,shd->hts", q, k, optimize=True) * np.float32(self.scale)
        back = np.arange(count)[:, None] - np.arange(count)  # from each token to each other
        hidden = (back < 0) | (is_local & (back >= self.window))
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hts,shd->thd", weights, v, optimize=True)
        return self._linear(i, "attn_output", mixed.reshape(count, -1))

    def _rotate(self, x: NDArray[np.float32], *, is_local: bool) -> NDArray[np.float32]:
        """x: (T, H, D); elements i and D/2 + i turn by position * theta ** (-2i / D)."""
        size = x.shape[-1]
        theta, scale = (self.local_theta, 1.0) if is_local else (self.theta, self.rope_scale)
        frequency = theta ** (-np.arange(0, size, 2) / size) / scale
        angle = np.arange(len(x))[:, None, None] * frequency
        cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        left, right = x[..., : size // 2], x[..., size // 2 :]
        return np.concatenate((left * cos - right * sin, left * sin + right * cos), axis=-1)

    def _feed_forward(self, i: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        gate = self._linear(i, "ffn_gate", x)
        inner = np.float32(math.sqrt(2 / math.pi)) * (gate + np.float32(0.044715) * gate**3)
        gelu = np.float32(0.5) * gate * (1 + np.tanh(inner))
        return self._linear(i, "ffn_down", gelu * self._linear(i, "ffn_up", x))
