"""Llama: pre-norm transformer with grouped-query attention, rotary positions and SwiGLU.

RMS norms without bias, no bias anywhere else either; the head may share the embedding's weights.
Also SmolLM2 and what else calls itself `llama` in GGUF and fits.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/llama/modeling_llama.py
https://github.com/ggml-org/llama.cpp/blob/b6700/gguf-py/gguf/constants.py (names)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert import blocks, rope
from weightpkg.convert.weights import Weight, Weights, reorder_rows
from weightpkg.errors import TensorMismatchError, UnsupportedArchitectureError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.graph import Graph, Value
    from weightpkg.formats.gguf import GGUFFile

# Keys that were thought about: read below, or without influence on the mathematics.
_GGUF_KEYS = {
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_factor: float = 1.0

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `llama.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        _refuse_unknown_keys(file)
        heads = file.get("llama.attention.head_count", int)
        hidden_size = file.get("llama.embedding_length", int)
        head_dim = file.get("llama.attention.key_length", int, hidden_size // max(1, heads))
        config = cls(
            vocab_size=_vocabulary(file),
            hidden_size=hidden_size,
            intermediate_size=file.get("llama.feed_forward_length", int),
            num_hidden_layers=file.get("llama.block_count", int),
            num_attention_heads=heads,
            num_key_value_heads=file.get("llama.attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=file.get("llama.context_length", int),
            rms_norm_eps=file.get("llama.attention.layer_norm_rms_epsilon", float),
            rope_theta=file.get("llama.rope.freq_base", float, 10000.0),
            rope_factor=_linear_rope_factor(file),
        )
        config.check(file.name)
        for key in ("rope.dimension_count", "attention.value_length"):
            if file.get(f"llama.{key}", int, head_dim) != head_dim:
                raise _unsupported(
                    file.name, f"`llama.{key}` is not the size of a head, {head_dim}"
                )
        return config

    def check(self, source: str) -> None:
        """Refuse sizes that no model has, before anything is computed from them.

        Raises:
            UnsupportedArchitectureError: names the field.
        """
        limits = {
            "vocab_size": 2**24,
            "hidden_size": 2**17,
            "intermediate_size": 2**20,
            "num_hidden_layers": 1024,
            "num_attention_heads": 1024,
            "num_key_value_heads": 1024,
            "head_dim": 1024,
            "max_position_embeddings": 2**20,
        }
        for field, limit in limits.items():
            if not 1 <= getattr(self, field) <= limit:
                raise _unsupported(source, f"{field} is {getattr(self, field)}, not 1 to {limit}")
        for field in ("rms_norm_eps", "rope_theta", "rope_factor"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise _unsupported(source, f"{field} is {value}, which is not a positive number")
        if self.head_dim % 8 or self.num_attention_heads % self.num_key_value_heads:
            heads = f"{self.num_attention_heads} heads, {self.num_key_value_heads} for keys"
            raise _unsupported(source, f"{heads}, of size {self.head_dim}: not evenly divided")


def _unsupported(source: str, reason: str) -> UnsupportedArchitectureError:
    return UnsupportedArchitectureError(f"`{source}`: {reason}")


def _refuse_unknown_keys(file: GGUFFile) -> None:
    keys = {key.removeprefix("llama.") for key in file.metadata if key.startswith("llama.")}
    if unknown := sorted(keys - _GGUF_KEYS):
        raise _unsupported(
            file.name,
            f"`llama.{unknown[0]}` may change what the model computes, and is not handled",
        )


def _vocabulary(file: GGUFFile) -> int:
    """The embedding's rows: there may be more than tokens, for alignment."""
    tensor = file.tensors.get("token_embd.weight")
    if tensor is None:
        raise TensorMismatchError(f"`{file.name}`: tensor `token_embd.weight` is missing")
    return tensor.shape[0]


def _linear_rope_factor(file: GGUFFile) -> float:
    kind = file.get("llama.rope.scaling.type", str, "none")
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise _unsupported(file.name, f"rope scaling `{kind}` is not handled")
    return file.get("llama.rope.scaling.factor", float)


_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
        "rope_freqs.weight": "rope_factors",
    }
    for i in range(config.num_hidden_layers):
        for gguf, canonical in _GGUF_LAYER_NAMES.items():
            names[f"blk.{i}.{gguf}.weight"] = f"model.layers.{i}.{canonical}.weight"
    return names


def undo_rotary_permutation(weight: Weight, head_size: int) -> Weight:
    """Return q or k rows in Hugging Face's order.

    llama.cpp's converter interleaves the two halves of each head, because ggml rotates neighbours:
    https://github.com/ggml-org/llama.cpp/blob/b6700/convert_hf_to_gguf.py `LlamaModel.permute`
    """

    def order(rows: NDArray[np.generic]) -> NDArray[np.generic]:
        pairs = rows.reshape(len(rows), head_size // 2, 2, *rows.shape[2:])
        return pairs.swapaxes(1, 2)  # (H, D/2, 2, ...) -> (H, 2, D/2, ...)

    return reorder_rows(weight, head_size, order)


def build(graph: Graph, weights: Weights, config: Config) -> None:
    """Add the whole model to the graph, taking all of its weights.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
        UnsupportedArchitectureError: the factors of the rotary frequencies are not positive.
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids = graph.input("input_ids", np.int64, ("batch_size", "sequence_length"))
    mask = graph.input("attention_mask", np.int64, ("batch_size", "total_sequence_length"))
    shared = _attention_inputs(graph, mask, weights, config)

    table = weights.take("model.embed_tokens.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.embedding(graph, ids, embedding)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    head = embedding
    if "lm_head.weight" in weights:
        output = weights.take("lm_head.weight", (vocabulary, width))
        head = blocks.add_matrix(graph, output.name, [output])
    logits = blocks.linear(graph, blocks.last_positions(graph, x), head)
    (logits,) = graph.op("Identity", (logits,), outputs=("logits",))
    graph.output(logits, np.float32, ("batch_size", "logits_length", vocabulary))


def _attention_inputs(
    graph: Graph, mask: Value, weights: Weights, config: Config
) -> blocks.AttentionInputs:
    frequencies = rope.inverse_frequencies(config.rope_theta, config.head_dim) / config.rope_factor
    if "rope_factors" in weights:  # llama3 scaling: a factor for each frequency
        factors = weights.take("rope_factors", (config.head_dim // 2,)).dense()
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            raise _unsupported(weights.source, "a factor of `rope_freqs.weight` is not positive")
        frequencies = frequencies / factors.astype(np.float64)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, config.max_position_embeddings)
    return blocks.AttentionInputs(
        last,
        total,
        cos,
        sin,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
    )


def _layer(
    graph: Graph,
    x: Value,
    update: Value | None,
    weights: Weights,
    config: Config,
    i: int,
    shared: blocks.AttentionInputs,
) -> tuple[Value, Value]:
    """Return the residual stream and what is to be added to it, both (B, T, E)."""
    width, inner, head_size = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    epsilon = config.rms_norm_eps
    normed, x = blocks.add_rms_norm(graph, x, update, take("input_layernorm", width), epsilon)
    qkv = (
        undo_rotary_permutation(take("self_attn.q_proj", queries, width), head_size),
        undo_rotary_permutation(take("self_attn.k_proj", keys, width), head_size),
        take("self_attn.v_proj", keys, width),
    )
    heads = blocks.attention(graph, normed, qkv, i, shared)
    output = take("self_attn.o_proj", width, queries)
    attended = blocks.linear(graph, heads, blocks.add_matrix(graph, output.name, [output]))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    pair = (take("mlp.gate_proj", inner, width), take("mlp.up_proj", inner, width))
    gate, up = blocks.projections(graph, normed, pair, f"layer.{i}.gate_up")
    down = take("mlp.down_proj", width, inner)
    product = blocks.swiglu(graph, gate, up)
    return x, blocks.linear(graph, product, blocks.add_matrix(graph, down.name, [down]))
