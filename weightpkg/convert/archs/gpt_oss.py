"""gpt-oss: a mixture of experts with clamped gates, attention with sinks, windows in every other layer.

Every projection has a bias. A sink is a number for each head that takes its share of the softmax.
YaRN's ramp is not rounded to whole frequencies, as config.json says (`truncate`: false); llama.cpp
rounds it, and computes slightly other positions.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gpt_oss/modeling_gpt_oss.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/openai-moe-iswa.cpp
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile

SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0
"""`swiglu_alpha` and `swiglu_limit` of config.json: GGUF has no keys for them."""


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
    rope_scaling: rope.Scaling
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `gpt-oss.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "gpt-oss")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        keys.ignore("feed_forward_length")  # of layers without experts, of which there are none
        n_experts = keys.get("expert_count", int)
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("expert_feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=replace(keys.rope_scaling(), truncate=False),
            num_local_experts=n_experts,
            num_experts_per_tok=keys.chosen_experts(n_experts),
            sliding_window=keys.get("attention.sliding_window", int),
        )
        keys.finish()
        hyperparameters.check(config, file.name)
        return config


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_sinks": "self_attn.sinks",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
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
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids, mask = blocks.token_inputs(graph)
    shared = _attention_inputs(graph, mask, config)

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


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling = config.rope_scaling
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    positions = config.max_position_embeddings
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return blocks.AttentionInputs(last, total, cos, sin, *heads)


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
    width, head_size = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}", shape)

    norm = take("input_layernorm.weight", width)
    normed, x = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    sizes = {"q": queries, "k": keys, "v": keys}
    qkv = [take(f"self_attn.{part}_proj.weight", size, width) for part, size in sizes.items()]
    biases = [take(f"self_attn.{part}_proj.bias", size) for part, size in sizes.items()]
    sinks = take("self_attn.sinks.weight", config.num_attention_heads)
    window = config.sliding_window if i % 2 == 0 else None
    inputs = replace(shared, window=window, sinks=graph.constant(sinks.dense(), sinks.name))
    heads = blocks.attention(graph, normed, qkv, i, inputs, biases)
    output = take("self_attn.o_proj.weight", width, queries), take("self_attn.o_proj.bias", width)
    attended = blocks.project(graph, heads, *output)

    norm = take("post_attention_layernorm.weight", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, config.rms_norm_eps)
    return x, _mixture(graph, normed, weights, config, i)


def _mixture(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E) -> (B, T, E), of the layer's experts."""
    width, inner = config.hidden_size, config.intermediate_size
    n_experts, chosen = config.num_local_experts, config.num_experts_per_tok

    def take(name: str, *shape: int) -> tuple[Weight, Weight]:
        name = f"model.layers.{i}.mlp.{name}"
        return weights.take(f"{name}.weight", shape), weights.take(f"{name}.bias", shape[:-1])

    scores = blocks.project(graph, x, *take("router", n_experts, width))
    choice = experts.choose_by_softmax(graph, scores, n_experts, chosen)
    pairs = experts.dispatch(graph, choice)
    rows = experts.gather(graph, x, width, pairs)
    gate, gate_bias = take("experts.gate_proj", n_experts, inner, width)
    up, up_bias = take("experts.up_proj", n_experts, inner, width)
    name, biases = f"layer.{i}.experts.gate_up", (gate_bias, up_bias)
    parts = experts.projections(graph, rows, (gate, up), name, pairs, biases)
    down, down_bias = take("experts.down_proj", n_experts, width, inner)
    y = experts.project(graph, clamped_swiglu(graph, *parts), down, pairs, down_bias)
    return experts.combine(graph, y, x, width, choice, pairs)


def clamped_swiglu(graph: Graph, gate: Value, up: Value) -> Value:
    """gate, up: (1, R, F) -> gate * sigmoid(alpha * gate) * (up + 1), both clamped first."""
    limits = [
        graph.constant(np.array(limit, np.float32), "limit")
        for limit in (-SWIGLU_LIMIT, SWIGLU_LIMIT)
    ]
    (gate,) = graph.op("Clip", (gate, None, limits[1]))
    (up,) = graph.op("Clip", (up, *limits))
    alpha = {"alpha": SWIGLU_ALPHA}
    (gate,) = graph.op("QuickGelu", (gate,), domain=blocks.MICROSOFT, attributes=alpha)
    one = graph.constant(np.array(1, np.float32), "one")
    return graph.op("Mul", (gate, blocks.add(graph, up, one)))[0]
