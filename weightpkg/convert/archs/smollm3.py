"""SmolLM3: as Llama, but in every fourth layer positions are not encoded at all (NoPE).

https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/smollm3/modeling_smollm3.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/smollm3.cpp
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes, read_windowed
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, undo_rotary_permutation, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile

NO_ROPE_LAYER_INTERVAL = 4
"""`no_rope_layer_interval` of config.json: GGUF has no key for it, llama.cpp takes this."""


TIED_BY_DEFAULT = True
"""Whether the embedding is the head as well, where config.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph.

    rotated: for each layer whether positions are encoded; is_interleaved: whether rows of q and k
    are in the order that ggml wants.
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
    rotated: tuple[bool, ...]
    is_interleaved: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `smollm3.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "smollm3")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        n_layers = keys.layers()
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
            rotated=_rotated(n_layers, NO_ROPE_LAYER_INTERVAL),
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
        config.expect("architectures", ["SmolLM3ForCausalLM"])
        config.expect("hidden_act", "silu")
        config.ignore("sliding_window", "max_window_layers")  # of a window that is not in use
        sizes = read_sizes(config)
        n_layers = sizes["num_hidden_layers"]
        if any(read_windowed(config, [False] * n_layers)):
            raise config.unsupported("layers with a window are not handled")
        theta, scaling = read_rope(config, 2e6)
        found = cls(
            **sizes,
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            rotated=_read_rotated(config, n_layers),
            is_interleaved=False,
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _read_rotated(config: HFConfig, n_layers: int) -> tuple[bool, ...]:
    """Each layer is listed, with 1 where it rotates, or of so many the last does not."""
    interval = config.get("no_rope_layer_interval", int, NO_ROPE_LAYER_INTERVAL)
    if interval < 1:
        raise config.unsupported(f"`no_rope_layer_interval` is {interval}")
    if "no_rope_layers" not in config:
        return _rotated(n_layers, interval)
    listed = config.numbers("no_rope_layers")
    if len(listed) != n_layers:
        raise config.unsupported(f"`no_rope_layers` has {len(listed)} layers, not {n_layers}")
    return tuple(map(bool, listed))


def _rotated(n_layers: int, interval: int) -> tuple[bool, ...]:
    return tuple((i + 1) % interval != 0 for i in range(n_layers))


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
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids, mask = blocks.token_inputs(graph)
    shared = _attention_inputs(graph, mask, config)

    table = weights.take("model.embed_tokens.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.embedding(graph, ids, embedding)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        inputs = shared if config.rotated[i] else replace(shared, cos=None, sin=None)
        x, update = _layer(graph, x, update, weights, config, i, inputs)

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
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

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    down = take("mlp.down_proj", width, inner)
    return x, blocks.swiglu_mlp(graph, normed, pair, down, f"layer.{i}.gate_up")
