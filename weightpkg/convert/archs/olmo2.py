"""OLMo 2 and OLMo 3: as Llama, but norms come after attention and feed-forward, not before.

What they normalise is the update; the residual stream itself enters the projections. Queries and
keys have RMS norms as well, over all heads at once. In OLMo 3 most layers see a window of the text.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/olmo2/modeling_olmo2.py
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/olmo3/modeling_olmo3.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/olmo2.cpp
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import (
    read_layers,
    read_rope,
    read_sizes,
    read_two_ropes,
    read_windowed,
)
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
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: rope.AnyScaling
    sliding_window: int | None
    windowed: tuple[bool, ...]

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `olmo2.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "olmo2")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        n_layers = keys.layers()
        window = keys.get("attention.sliding_window", int, 0) or None
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
            sliding_window=window,
            windowed=_windowed(keys, n_layers) if window else (False,) * n_layers,
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
        if config.get("model_type", str) == "olmo3":
            return cls._from_olmo3(config)
        config.expect("architectures", ["Olmo2ForCausalLM"])
        theta, scaling = read_rope(config)
        windowed = (False,) * read_layers(config)
        return cls._from_common(config, theta, scaling, None, windowed)

    @classmethod
    def _from_olmo3(cls, config: HFConfig) -> Config:
        config.expect("architectures", ["Olmo3ForCausalLM"])
        ropes = read_two_ropes(config)
        if ropes is None:
            config.expect("rope_theta", 500000)  # another one is read by transformers in two ways
            ropes = read_rope(config, 500000.0), (500000.0, rope.Scaling())
        (theta, scaling), local = ropes
        if local != (theta, rope.Scaling()):
            raise config.unsupported("a rope of their own for layers with a window is not handled")
        default = [(i + 1) % 4 != 0 for i in range(read_layers(config))]
        windowed = read_windowed(config, default)
        window = config.get("sliding_window", int)
        return cls._from_common(config, theta, scaling, window, windowed)

    @classmethod
    def _from_common(
        cls,
        config: HFConfig,
        theta: float,
        scaling: rope.AnyScaling,
        window: int | None,
        windowed: tuple[bool, ...],
    ) -> Config:
        config.expect("hidden_act", "silu")
        found = cls(
            **read_sizes(config),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=window,
            windowed=windowed,
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _windowed(keys: Hyperparameters, n_layers: int) -> tuple[bool, ...]:
    """Return for each layer whether its tokens see a window only."""
    default = [(i + 1) % 4 != 0 for i in range(n_layers)]
    pattern = keys.array("attention.sliding_window_pattern", bool, default)
    if len(pattern) != n_layers:
        raise keys.unsupported(f"{len(pattern)} layers with or without a window, not {n_layers}")
    return tuple(pattern)


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
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
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids, mask = blocks.token_inputs(graph)
    shared = _attention_inputs(graph, mask, config)

    table = weights.take("model.embed_tokens.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.embedding(graph, ids, embedding)  # (B, T, E)
    for i in range(config.num_hidden_layers):
        x = _layer(graph, x, weights, config, i, shared)

    norm = weights.take("model.norm.weight", (width,))
    x = blocks.rms_norm(graph, x, norm, config.rms_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(
    graph: Graph, mask: Value, config: Config
) -> tuple[blocks.AttentionInputs, blocks.AttentionInputs]:
    """Return what layers without a window share, and those with one, which do not scale positions."""
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    full = blocks.AttentionInputs(last, total, cos, sin, *heads)
    if scaling != rope.Scaling() and any(config.windowed):
        frequencies = rope.inverse_frequencies(config.rope_theta, config.head_dim)
        cos, sin = blocks.rotary_tables(graph, frequencies, positions)
    return full, replace(full, cos=cos, sin=sin, window=config.sliding_window)


def _layer(
    graph: Graph,
    x: Value,
    weights: Weights,
    config: Config,
    i: int,
    shared: tuple[blocks.AttentionInputs, blocks.AttentionInputs],
) -> Value:
    """Return the residual stream, (B, T, E)."""
    width, inner, head_size = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    epsilon = config.rms_norm_eps
    qkv = (
        take("self_attn.q_proj", queries, width),
        take("self_attn.k_proj", keys, width),
        take("self_attn.v_proj", keys, width),
    )
    q, k, v = blocks.projections(graph, x, qkv, f"layer.{i}.qkv")
    q = blocks.rms_norm(graph, q, take("self_attn.q_norm", queries), epsilon)
    k = blocks.rms_norm(graph, k, take("self_attn.k_norm", keys), epsilon)
    heads = blocks.attend(graph, (q, k, v), i, shared[config.windowed[i]])
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, queries))
    norm = take("post_attention_layernorm", width)
    x = blocks.add(graph, x, blocks.rms_norm(graph, attended, norm, epsilon))

    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    down = take("mlp.down_proj", width, inner)
    update = blocks.swiglu_mlp(graph, x, pair, down, f"layer.{i}.gate_up")
    norm = take("post_feedforward_layernorm", width)
    return blocks.add(graph, x, blocks.rms_norm(graph, update, norm, epsilon))
