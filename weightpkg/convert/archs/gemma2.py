"""Gemma 2: norms before and after attention and feed-forward, GELU gates, capped logits.

Embeddings are multiplied by the root of their size. Every other layer sees a window of the text.
The norms' weights in GGUF have the 1 in them that is added to those of checkpoints.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma2/modeling_gemma2.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/gemma2.cpp
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes, read_windowed
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, plus_one, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


TIED_BY_DEFAULT = True
"""Whether the embedding is the head as well, where config.json does not say."""


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
    rope_scaling: rope.AnyScaling
    sliding_window: int
    windowed: tuple[bool, ...]
    query_pre_attn_scalar: float
    attn_logit_softcapping: float
    final_logit_softcapping: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `gemma2.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "gemma2")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        n_layers = keys.layers()
        is_27b = n_layers == 46  # llama.cpp's rule: GGUF has no key for the scalar
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=n_layers,
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
            sliding_window=keys.get("attention.sliding_window", int, 4096),
            windowed=_every_other(n_layers),
            query_pre_attn_scalar=float(hidden_size // max(1, heads) if is_27b else head_dim),
            attn_logit_softcapping=keys.get("attn_logit_softcapping", float, 50.0),
            final_logit_softcapping=keys.get("final_logit_softcapping", float, 30.0),
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
        config.require("num_key_value_heads", "head_dim")
        config.expect("architectures", ["Gemma2ForCausalLM"])
        for key in ("hidden_act", "hidden_activation"):
            config.expect(key, "gelu_pytorch_tanh")
        config.ignore("cache_implementation")
        sizes = read_sizes(config)
        theta, scaling = read_rope(config)
        found = cls(
            **sizes,
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=config.get("sliding_window", int),
            windowed=read_windowed(config, _every_other(sizes["num_hidden_layers"])),
            query_pre_attn_scalar=config.positive("query_pre_attn_scalar"),
            attn_logit_softcapping=config.number("attn_logit_softcapping"),
            final_logit_softcapping=config.number("final_logit_softcapping"),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _every_other(n_layers: int) -> tuple[bool, ...]:
    """Return that the first layer sees a window, the second everything, and so on."""
    return tuple(i % 2 == 0 for i in range(n_layers))


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    return without_buffers(name)


def canonical_weight(weight: Weight) -> Weight:
    """Return a checkpoint's tensor as GGUF has it: norms with the 1 that is added to them."""
    return plus_one(weight) if weight.name.endswith("norm.weight") else weight


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
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
    x = blocks.scaled(graph, blocks.embedding(graph, ids, embedding), width**0.5)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        inputs = replace(shared, window=config.sliding_window) if config.windowed[i] else shared
        x, update = _layer(graph, x, update, weights, config, i, inputs)

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    cap = config.final_logit_softcapping
    x = blocks.scaled(graph, x, 1 / cap)  # there is less of it than of logits
    (within_one,) = graph.op("Tanh", (blocks.head(graph, x, embedding),))
    blocks.output_logits(graph, blocks.scaled(graph, within_one, cap), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    return blocks.AttentionInputs(
        last,
        total,
        cos,
        sin,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        scale=config.query_pre_attn_scalar**-0.5,
        softcap=config.attn_logit_softcapping,
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
        take("self_attn.q_proj", queries, width),
        take("self_attn.k_proj", keys, width),
        take("self_attn.v_proj", keys, width),
    )
    heads = blocks.attention(graph, normed, qkv, i, shared)
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))
    attended = blocks.rms_norm(graph, attended, take("post_attention_layernorm", width), epsilon)

    norm = take("pre_feedforward_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    gate, up = blocks.projections(graph, normed, pair, f"layer.{i}.gate_up")
    product = blocks.geglu(graph, gate, up)
    update = blocks.project(graph, product, take("mlp.down_proj", width, inner))
    return x, blocks.rms_norm(graph, update, take("post_feedforward_layernorm", width), epsilon)
