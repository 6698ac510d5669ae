"""Gemma 3 (text): norms before and after each part, local and global attention.

The embedding is scaled by the root of its width. Attention and MLP each have an RMS norm before and
one after them (weights in GGUF have the 1 in them that is added to those of checkpoints), queries and keys one of each head. Five layers
of six see only a window and rotate by a base of their own. GeGLU; the head may have weights.
Of a model that takes images as well, this is the part for text; the rest is left out.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gemma3/modeling_gemma3.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/models/gemma3.cpp (keys, names, defaults)
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope, rotary
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes, read_two_ropes, read_windowed
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, plus_one, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


# What config.json of a model with images says beside the text model.
_OF_IMAGES = """
boi_token_id boi_token_index eoi_token_id eoi_token_index image_token_id image_token_index
mm_tokens_per_image vision_config
"""
_IMAGE_TENSOR = re.compile(r"(model\.)?(multi_modal_projector|vision_tower)\..+")

# Of transformers 4 and 5; a model with images leaves out what is so.
_DEFAULTS = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}

TIED_BY_DEFAULT = True
"""Whether the embedding is the head as well, where config.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph.

    scaling: of the products of queries and keys, query_pre_attn_scalar ** -0.5; windowed: for each
    layer whether its tokens see a window only.
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
    rope_local_base_freq: float
    rope_scaling: rope.AnyScaling
    scaling: float
    sliding_window: int | None
    windowed: tuple[bool, ...]

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `gemma3.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "gemma3")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        n_layers = keys.layers()
        is_27b = n_layers == 62  # llama.cpp's rule, where GGUF has no scale
        scaled_size = hidden_size // max(1, heads) if is_27b else head_dim
        window = keys.get("attention.sliding_window", int, 0) or None
        windowed = _windowed(file, keys, n_layers)
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
            rope_local_base_freq=keys.get("rope.freq_base_swa", float, 10000.0),
            rope_scaling=rope.Scaling(factor=keys.linear_rope_factor()),
            scaling=keys.get("attention.scale", float, 1 / math.sqrt(max(1, scaled_size))),
            sliding_window=window,
            windowed=windowed if window else (False,) * n_layers,
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
        text = config
        if config.get("model_type", str) == "gemma3":
            config.expect("architectures", ["Gemma3ForConditionalGeneration"])
            config.ignore(*_OF_IMAGES.split())
            text = config.group("text_config") or HFConfig(config.name, {})
            text.expect("tie_word_embeddings", True)
            config.finish()
        return cls._from_text(text)

    @classmethod
    def _from_text(cls, config: HFConfig) -> Config:
        config.assume(_DEFAULTS)
        config.expect("architectures", ["Gemma3ForCausalLM"], ["Gemma3TextModel"])
        config.expect("hidden_activation", "gelu_pytorch_tanh")
        config.ignore("cache_implementation")
        sizes = read_sizes(config)
        period = config.get("sliding_window_pattern", int, 6)
        if period < 1:
            raise config.unsupported(f"`sliding_window_pattern` is {period}")
        default = [(i + 1) % period != 0 for i in range(sizes["num_hidden_layers"])]
        (theta, scaling), local_theta = _read_ropes(config)
        found = cls(
            **sizes,
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_local_base_freq=local_theta,
            rope_scaling=scaling,
            scaling=1 / math.sqrt(config.positive("query_pre_attn_scalar")),
            sliding_window=config.get("sliding_window", int),
            windowed=read_windowed(config, default),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _read_ropes(config: HFConfig) -> tuple[tuple[float, rope.AnyScaling], float]:
    """Return base and scaling of layers without a window, and the base of those with one."""
    ropes = read_two_ropes(config)
    if ropes is None:
        local_theta = config.number("rope_local_base_freq", 10000.0)
        ropes = read_rope(config, 1e6), (local_theta, rope.Scaling())
    full, (local_theta, local_scaling) = ropes
    if local_scaling != rope.Scaling() or full[1].attention_factor != 1:
        raise config.unsupported("such rope scaling is not handled in this architecture")
    return full, local_theta


def _windowed(file: GGUFFile, keys: Hyperparameters, n_layers: int) -> tuple[bool, ...]:
    """Each layer is listed, or of so many the last sees everything (of 0 none does)."""
    key = "attention.sliding_window_pattern"
    if isinstance(file.metadata.get(f"gemma3.{key}"), list):
        listed = keys.array(key, bool)
        if len(listed) != n_layers:
            raise keys.unsupported(f"{len(listed)} layers with or without a window, not {n_layers}")
        return tuple(listed)
    period = keys.get(key, int, 6)
    if period < 0:
        raise keys.unsupported(f"`gemma3.{key}` is {period}")
    return tuple(period == 0 or (i + 1) % period != 0 for i in range(n_layers))


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k": "self_attn.k_proj",
    "attn_k_norm": "self_attn.k_norm",
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
    if _IMAGE_TENSOR.fullmatch(name):
        return None
    return without_buffers(name.replace("language_model.", "", 1))


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
    shared = _attention_inputs(graph, ids, mask, config)

    table = weights.take("model.embed_tokens.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.scaled(graph, blocks.embedding(graph, ids, embedding), width**0.5)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared[config.windowed[i]])

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


_Shared = tuple[blocks.AttentionInputs, rotary.Rotation]


def _attention_inputs(
    graph: Graph, ids: Value, mask: Value, config: Config
) -> tuple[_Shared, _Shared]:
    """Return what layers without a window share, and those with one."""
    last, total = blocks.attention_lengths(graph, mask)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    full = blocks.AttentionInputs(last, total, None, None, *heads, scale=config.scaling)
    frequencies = [
        rope.scaled_frequencies(config.rope_theta, config.head_dim, config.rope_scaling),
        rope.inverse_frequencies(config.rope_local_base_freq, config.head_dim),
    ]
    everywhere, local = rotary.rotations(
        graph, ids, last, frequencies, config.max_position_embeddings
    )
    return (full, everywhere), (replace(full, window=config.sliding_window), local)


def _layer(
    graph: Graph,
    x: Value,
    update: Value | None,
    weights: Weights,
    config: Config,
    i: int,
    shared: _Shared,
) -> tuple[Value, Value]:
    """Return the residual stream and what is to be added to it, both (B, T, E)."""
    width, inner, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    normed, x = blocks.add_rms_norm(graph, x, update, take("input_layernorm", width), epsilon)
    attended = _attention(graph, normed, weights, config, i, shared)
    attended = blocks.rms_norm(graph, attended, take("post_attention_layernorm", width), epsilon)

    norm = take("pre_feedforward_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    gate, up = blocks.projections(graph, normed, pair, f"layer.{i}.gate_up")
    product = blocks.geglu(graph, gate, up)
    update = blocks.project(graph, product, take("mlp.down_proj", width, inner))
    return x, blocks.rms_norm(graph, update, take("post_feedforward_layernorm", width), epsilon)


def _attention(
    graph: Graph, x: Value, weights: Weights, config: Config, i: int, shared: _Shared
) -> Value:
    """x: (B, T, E) -> (B, T, E); queries and keys are turned before they come to the operator."""
    width, head_size, epsilon = config.hidden_size, config.head_dim, config.rms_norm_eps
    n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads
    inputs, rotation = shared

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.self_attn.{name}.weight", shape)

    qkv = (
        take("q_proj", n_heads * head_size, width),
        take("k_proj", n_kv_heads * head_size, width),
        take("v_proj", n_kv_heads * head_size, width),
    )
    q, k, v = blocks.projections(graph, x, qkv, f"layer.{i}.qkv")
    q = blocks.rms_norm_heads(graph, q, take("q_norm", head_size), n_heads, epsilon)
    k = blocks.rms_norm_heads(graph, k, take("k_norm", head_size), n_kv_heads, epsilon)
    q, k = rotary.rotate(graph, q, rotation), rotary.rotate(graph, k, rotation)
    mixed = blocks.attend(graph, (q, k, v), i, inputs)
    return blocks.project(graph, mixed, take("o_proj", width, n_heads * head_size))
