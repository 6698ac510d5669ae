"""Granite: as Llama, with multipliers for embeddings, attention, residuals and logits.

https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/granite/modeling_granite.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/granite.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, undo_rotary_permutation, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


TIED_BY_DEFAULT = False
"""Whether the embedding is the head as well, where config.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph.

    is_interleaved: whether rows of q and k are in the order that ggml wants.
    """

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
    rope_scaling: rope.AnyScaling
    embedding_multiplier: float
    attention_multiplier: float
    residual_multiplier: float
    logits_scaling: float
    is_interleaved: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `granite.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "granite")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
            embedding_multiplier=keys.get("embedding_scale", float, 1.0),
            attention_multiplier=keys.get("attention.scale", float, head_dim**-0.5),
            residual_multiplier=keys.get("residual_scale", float, 1.0),
            logits_scaling=keys.get("logit_scale", float, 1.0),
            is_interleaved=True,
        )
        if not keys.get("rope.scaling.finetuned", bool, True):  # here this means something
            raise keys.unsupported("positions that are not encoded are not handled")
        keys.finish()
        hyperparameters.check(config, file.name)
        return config

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", ["GraniteForCausalLM"])
        config.expect("hidden_act", "silu")
        theta, scaling = read_rope(config)
        found = cls(
            **read_sizes(config),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            embedding_multiplier=config.number("embedding_multiplier", 1.0),
            attention_multiplier=config.number("attention_multiplier", 1.0),
            residual_multiplier=config.number("residual_multiplier", 1.0),
            logits_scaling=config.number("logits_scaling", 1.0),
            is_interleaved=False,
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": "rope_factors",
}
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


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    return without_buffers(name)


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
    return expand_names(_GGUF_NAMES, _GGUF_LAYER_NAMES, config.num_hidden_layers)


def build(graph: Graph, weights: Weights, config: Config) -> None:
    """Add the whole model to the graph, taking all of its weights.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
        UnsupportedArchitectureError: the factors of the rotary frequencies are not positive.
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids, mask = blocks.token_inputs(graph)
    shared = _attention_inputs(graph, mask, weights, config)

    table = weights.take("model.embed_tokens.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.embedding(graph, ids, embedding)  # (B, T, E)
    x = blocks.scaled(graph, x, config.embedding_multiplier)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    x = blocks.scaled(graph, x, 1 / config.logits_scaling)  # there is less of it than of logits
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(
    graph: Graph, mask: Value, weights: Weights, config: Config
) -> blocks.AttentionInputs:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    if "rope_factors.weight" in weights:  # llama3 scaling: a factor for each frequency
        factors = weights.take("rope_factors.weight", (config.head_dim // 2,)).dense()
        frequencies = rope.divided(frequencies, factors, weights.source)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return blocks.AttentionInputs(last, total, cos, sin, *heads, scale=config.attention_multiplier)


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
    rows = {"q": queries, "k": keys, "v": keys}
    qkv = [take(f"self_attn.{part}_proj", n, width) for part, n in rows.items()]
    if config.is_interleaved:
        qkv[:2] = [undo_rotary_permutation(weight, head_size) for weight in qkv[:2]]
    heads = blocks.attention(graph, normed, qkv, i, shared)
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))
    attended = blocks.scaled(graph, attended, config.residual_multiplier)

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    down = take("mlp.down_proj", width, inner)
    update = blocks.swiglu_mlp(graph, normed, pair, down, f"layer.{i}.gate_up")
    return x, blocks.scaled(graph, update, config.residual_multiplier)
