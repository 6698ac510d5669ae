"""Mixtral: as Llama, with a mixture of experts for each feed-forward network.

In GGUF it is a `llama` that has experts. Each token goes to the few whose scores are the highest,
and their weights are a softmax of those scores.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/mixtral/modeling_mixtral.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/llama.cpp
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_experts, read_rope, read_sizes
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
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int | None = None
    is_interleaved: bool

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
            rope_scaling=keys.rope_scaling(),
            num_local_experts=n_experts,
            num_experts_per_tok=keys.chosen_experts(n_experts),
            is_interleaved=True,
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
        config.expect("architectures", ["MixtralForCausalLM"])
        config.expect("hidden_act", "silu")
        config.ignore("router_jitter_noise")  # of training
        theta, scaling = read_rope(config, 1e6)
        n_experts, n_chosen = read_experts(config, "num_local_experts", "num_experts")
        found = cls(
            **read_sizes(config),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            num_local_experts=n_experts,
            num_experts_per_tok=n_chosen,
            sliding_window=config.optional("sliding_window", int),
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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

_EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"
_HF_MIXTURE = re.compile(
    r"(model\.layers\.\d+)\.block_sparse_moe\.(gate|experts\.\d+\.w[123])\.(.+)"
)
_HF_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    found = _HF_MIXTURE.fullmatch(name)
    if found is None:
        return without_buffers(name)
    layer, path, rest = found.groups()
    whole, _, part = path.rpartition(".")
    return f"{layer}.mlp.{whole}.{_HF_PARTS[part]}.{rest}" if whole else f"{layer}.mlp.gate.{rest}"


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
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    if "rope_factors.weight" in weights:  # llama3 scaling: a factor for each frequency
        factors = weights.take("rope_factors.weight", (config.head_dim // 2,)).dense()
        frequencies = rope.divided(frequencies, factors, weights.source)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return blocks.AttentionInputs(last, total, cos, sin, *heads, window=config.sliding_window)


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
    sizes = {"q": queries, "k": keys, "v": keys}
    qkv = [take(f"self_attn.{part}_proj", size, width) for part, size in sizes.items()]
    if config.is_interleaved:
        qkv[:2] = [undo_rotary_permutation(weight, head_size) for weight in qkv[:2]]
    heads = blocks.attention(graph, normed, qkv, i, shared)
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    n_experts, chosen = config.num_local_experts, config.num_experts_per_tok
    scores = blocks.project(graph, normed, take("mlp.gate", n_experts, width))
    choice = experts.choose_by_softmax(graph, scores, n_experts, chosen)
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    gate, up, down = (
        experts.take(weights, _EXPERT.format(i, "{}", part), n_experts, shape)
        for part, shape in shapes.items()
    )
    name = f"layer.{i}.experts"
    return x, experts.swiglu_mixture(graph, normed, choice, (gate, up), down, name)
