"""Llama: pre-norm transformer with grouped-query attention, rotary positions and SwiGLU.

RMS norms without bias; projections can have biases, and do in no model that is well known; the head
may share the embedding's weights. Also SmolLM2 and what else calls itself `llama` and fits, and
Mistral, whose tokens may see a window of the text only.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/llama/modeling_llama.py
https://github.com/ggml-org/llama.cpp/blob/b6700/gguf-py/gguf/constants.py (names)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import undo_rotary_permutation, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weights
    from weightpkg.formats.gguf import GGUFFile

# Where these are missing, the configuration classes of transformers do not mean the same.
_REQUIRED = {"llama": (), "mistral": ("num_key_value_heads", "sliding_window")}

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
    sliding_window: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
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
        config.require(*_REQUIRED[config.get("model_type", str)])
        config.expect("architectures", ["LlamaForCausalLM"], ["MistralForCausalLM"])
        config.expect("hidden_act", "silu")
        theta, scaling = read_rope(config)
        found = cls(
            **read_sizes(config),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=_window(config),
            attention_bias=config.get("attention_bias", bool, False),
            mlp_bias=config.get("mlp_bias", bool, False),
            is_interleaved=False,
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _window(config: HFConfig) -> int | None:
    """Return Mistral's, which may be null; Llama has none."""
    is_mistral = config.get("model_type", str) == "mistral"
    return config.optional("sliding_window", int) if is_mistral else None


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
    if "rope_factors" in weights:  # the same as GGUF has it: a factor for each frequency
        factors = weights.take("rope_factors", (config.head_dim // 2,)).dense()
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
    prefix, width, epsilon = f"model.layers.{i}.", config.hidden_size, config.rms_norm_eps
    norm = weights.take(f"{prefix}input_layernorm.weight", (width,))
    normed, x = blocks.add_rms_norm(graph, x, update, norm, epsilon)
    attended = _attention(graph, normed, weights, config, i, shared)

    norm = weights.take(f"{prefix}post_attention_layernorm.weight", (width,))
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    return x, _feed_forward(graph, normed, weights, config, i)


def _attention(
    graph: Graph,
    x: Value,
    weights: Weights,
    config: Config,
    i: int,
    shared: blocks.AttentionInputs,
) -> Value:
    """x: (B, T, E) -> (B, T, E)."""
    prefix, width, head_size = f"model.layers.{i}.self_attn.", config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size
    rows = {"q_proj": queries, "k_proj": keys, "v_proj": keys}
    qkv = [weights.take(f"{prefix}{name}.weight", (n, width)) for name, n in rows.items()]
    if config.is_interleaved:
        qkv[:2] = [undo_rotary_permutation(weight, head_size) for weight in qkv[:2]]
    has_bias = config.attention_bias
    biases = [weights.take(f"{prefix}{name}.bias", (n,)) for name, n in rows.items() if has_bias]
    heads = blocks.attention(graph, x, qkv, i, shared, biases)
    output = weights.take(f"{prefix}o_proj.weight", (width, queries))
    bias = weights.take(f"{prefix}o_proj.bias", (width,)) if has_bias else None
    return blocks.project(graph, heads, output, bias)


def _feed_forward(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E) -> (B, T, E)."""
    prefix, width, inner = f"model.layers.{i}.mlp.", config.hidden_size, config.intermediate_size
    has_bias, pair = config.mlp_bias, ("gate_proj", "up_proj")
    matrices = [weights.take(f"{prefix}{name}.weight", (inner, width)) for name in pair]
    biases = [weights.take(f"{prefix}{name}.bias", (inner,)) for name in pair if has_bias]
    gate, up = blocks.projections(graph, x, matrices, f"layer.{i}.gate_up", biases)
    down = weights.take(f"{prefix}down_proj.weight", (width, inner))
    bias = weights.take(f"{prefix}down_proj.bias", (width,)) if has_bias else None
    return blocks.project(graph, blocks.swiglu(graph, gate, up), down, bias)
