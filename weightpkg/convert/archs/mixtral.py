"""Mixtral: as Llama, with a mixture of experts for each feed-forward network.

In GGUF it is a `llama` that has experts. Each token goes to the few whose scores are the highest,
and their weights are a softmax of those scores.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/mixtral/modeling_mixtral.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/llama.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, undo_rotary_permutation

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


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
    rope_factor: float
    num_local_experts: int
    num_experts_per_tok: int

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `llama.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "llama")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        n_experts = keys.get("expert_count", int)
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
            rope_factor=keys.linear_rope_factor(),
            num_local_experts=n_experts,
            num_experts_per_tok=keys.chosen_experts(n_experts),
        )
        keys.finish()
        hyperparameters.check(config, file.name)
        return config


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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name; of experts, one for all of a layer."""
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
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(
    graph: Graph, mask: Value, weights: Weights, config: Config
) -> blocks.AttentionInputs:
    frequencies = rope.inverse_frequencies(config.rope_theta, config.head_dim) / config.rope_factor
    if "rope_factors.weight" in weights:  # llama3 scaling: a factor for each frequency
        factors = weights.take("rope_factors.weight", (config.head_dim // 2,)).dense()
        frequencies = rope.divided(frequencies, factors, weights.source)
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
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    n_experts, chosen = config.num_local_experts, config.num_experts_per_tok
    scores = blocks.project(graph, normed, take("mlp.gate", n_experts, width))
    choice = experts.choose_by_softmax(graph, scores, n_experts, chosen)
    pair = [take(f"mlp.experts.{part}_proj", n_experts, inner, width) for part in ("gate", "up")]
    down = take("mlp.experts.down_proj", n_experts, width, inner)
    name = f"layer.{i}.experts.gate_up"
    return x, experts.swiglu_mixture(graph, normed, choice, pair, down, name)
