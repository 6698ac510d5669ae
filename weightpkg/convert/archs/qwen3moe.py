"""Qwen3-MoE: as Qwen3, with a mixture of experts for each feed-forward network.

Each token goes to the few experts whose scores are the highest, and their weights are a softmax of
those scores alone. If `norm_topk_prob` of config.json is false, which GGUF has no key for and which
it is for no model that is well known, they are of a softmax of all scores.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/qwen3_moe/modeling_qwen3_moe.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/qwen3moe.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_experts, read_rope, read_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile

TIED_BY_DEFAULT = False
"""Whether the embedding is the head as well, where config.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph."""

    vocab_size: int
    hidden_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: rope.AnyScaling
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `qwen3moe.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "qwen3moe")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        keys.ignore("feed_forward_length")  # of layers without experts, of which there are none
        n_experts = keys.get("expert_count", int)
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            moe_intermediate_size=keys.get("expert_feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
            num_experts=n_experts,
            num_experts_per_tok=keys.chosen_experts(n_experts),
            norm_topk_prob=True,
        )
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
        config.require("num_key_value_heads")
        config.expect("architectures", ["Qwen3MoeForCausalLM"])
        config.expect("hidden_act", "silu")
        config.expect("decoder_sparse_step", 1)
        config.ignore("sliding_window", "max_window_layers")  # of windows that are not used
        theta, scaling = read_rope(config)
        n_experts, n_chosen = read_experts(config, "num_experts", "num_local_experts")
        sizes = read_sizes(config)
        found = cls(
            vocab_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            moe_intermediate_size=config.get("moe_intermediate_size", int),
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            num_key_value_heads=sizes["num_key_value_heads"],
            head_dim=sizes["head_dim"],
            max_position_embeddings=sizes["max_position_embeddings"],
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            num_experts=n_experts,
            num_experts_per_tok=n_chosen,
            norm_topk_prob=config.get("norm_topk_prob", bool, False),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


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
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

_EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    return without_buffers(name)


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
    width, inner, head_size = config.hidden_size, config.moe_intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    epsilon = config.rms_norm_eps
    normed, x = blocks.add_rms_norm(graph, x, update, take("input_layernorm", width), epsilon)
    qkv = (
        take("self_attn.q_proj", queries, width),
        take("self_attn.k_proj", keys, width),
        take("self_attn.v_proj", keys, width),
    )
    q, k, v = blocks.projections(graph, normed, qkv, f"layer.{i}.qkv")
    q_norm, k_norm = take("self_attn.q_norm", head_size), take("self_attn.k_norm", head_size)
    q = blocks.rms_norm_heads(graph, q, q_norm, config.num_attention_heads, epsilon)
    k = blocks.rms_norm_heads(graph, k, k_norm, config.num_key_value_heads, epsilon)
    heads = blocks.attend(graph, (q, k, v), i, shared)
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    n_experts, chosen = config.num_experts, config.num_experts_per_tok
    scores = blocks.project(graph, normed, take("mlp.gate", n_experts, width))
    choose = experts.choose_by_softmax if config.norm_topk_prob else experts.choose_by_share
    choice = choose(graph, scores, n_experts, chosen)
    sizes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    gate, up, down = (
        experts.take(weights, _EXPERT.format(i, "{}", part), n_experts, shape)
        for part, shape in sizes.items()
    )
    name = f"layer.{i}.experts"
    return x, experts.swiglu_mixture(graph, normed, choice, (gate, up), down, name)
