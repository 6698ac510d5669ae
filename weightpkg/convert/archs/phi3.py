"""Phi-3, Phi-3.5 and Phi-4: as Llama, with q, k and v in one matrix, and gate and up in another.

A part of each head may be left unrotated; tokens may see a window of the text only.

Models of 128k positions divide their frequencies by other factors (LongRoPE,
https://arxiv.org/abs/2402.13753) up to the length they were first trained on than beyond it. A
graph whose keys are cached rotated cannot change from the one to the other, so all positions have
the factors of the whole context, as llama.cpp and vLLM do where the context is not cut down.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/phi3/modeling_phi3.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/phi3.cpp
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_partial_rope, read_sizes
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
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    sliding_window: int | None
    rms_norm_eps: float
    rope_theta: float
    rotary_dim: int
    rope_scaling: rope.AnyScaling

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `phi3.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "phi3")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        positions = keys.get("context_length", int)
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=positions,
            original_max_position_embeddings=keys.get(
                "rope.scaling.original_context_length", int, positions
            ),
            sliding_window=keys.get("attention.sliding_window", int, 0) or None,
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rotary_dim=keys.get("rope.dimension_count", int, head_dim),
            rope_scaling=rope.Scaling(attention_factor=_attention_factor(keys)),
        )
        if (kind := keys.get("rope.scaling.type", str, "longrope")) not in {"none", "longrope"}:
            raise keys.unsupported(f"rope scaling `{kind}` is not handled")
        keys.finish()
        hyperparameters.check(config, file.name)
        _check_rotary_dim(config, file.name)
        return config

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", ["Phi3ForCausalLM"])
        config.expect("hidden_act", "silu")
        config.expect_own_code("phi3")
        for key in ("full_attn_mod", "interpolate_factor"):  # of models that came after it
            config.expect(key, 1)
        sizes = read_sizes(config)
        theta, scaling, share = read_partial_rope(config)
        if isinstance(scaling, rope.LongScaling):
            config.require("original_max_position_embeddings")
        elif scaling != rope.Scaling():
            raise config.unsupported("rope scaling that is not `longrope` is not handled")
        config.ignore("original_max_position_embeddings")
        found = cls(
            **sizes,
            original_max_position_embeddings=sizes["max_position_embeddings"],
            sliding_window=config.optional("sliding_window", int),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            rotary_dim=int(sizes["head_dim"] * share),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        _check_rotary_dim(found, config.name)
        return found


def _check_rotary_dim(config: Config, source: str) -> None:
    size, whole = config.rotary_dim, config.head_dim
    if size % 16 or not 0 < size <= whole:
        reason = f"{size} of a head's {whole} values rotate"
        raise hyperparameters.unsupported(source, reason)


def _attention_factor(keys: Hyperparameters) -> float:
    factor = keys.get("rope.scaling.attn_factor", float, 1.0)
    if not 0 < factor < math.inf:
        raise keys.unsupported(f"rope.scaling.attn_factor is {factor}")
    return factor


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_factors_long": "long_factor",
    "rope_factors_short": "short_factor",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
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
    frequencies = rope.scaled_frequencies(config.rope_theta, config.rotary_dim, scaling)
    is_longer = config.max_position_embeddings > config.original_max_position_embeddings
    if is_longer or "short_factor.weight" in weights:
        shape = (config.rotary_dim // 2,)
        long = weights.take("long_factor.weight", shape)
        short = weights.take("short_factor.weight", shape)
        factors = (long if is_longer else short).dense()
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
    qkv = take("self_attn.qkv_proj", queries + 2 * keys, width)
    heads = blocks.attention(graph, normed, (qkv,), i, shared)
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    gate_up = blocks.project(graph, normed, take("mlp.gate_up_proj", 2 * inner, width))
    gate, up = blocks.split(graph, gate_up, (inner, inner))
    product = blocks.swiglu(graph, gate, up)
    return x, blocks.project(graph, product, take("mlp.down_proj", width, inner))
