"""StarCoder2: layer norms and biases everywhere, rotary positions, a feed-forward with GELU.

The models were trained with a window of 4096 tokens. llama.cpp's converter does not write it down;
where a file does, it is applied.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/starcoder2/modeling_starcoder2.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/starcoder2.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_rope, read_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, without_buffers

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
    sliding_window: int | None
    norm_epsilon: float
    rope_theta: float
    rope_scaling: rope.AnyScaling

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `starcoder2.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "starcoder2")
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
            sliding_window=keys.get("attention.sliding_window", int, 0) or None,
            norm_epsilon=keys.get("attention.layer_norm_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
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
        config.expect("architectures", ["Starcoder2ForCausalLM"])
        config.expect("hidden_act", "gelu_pytorch_tanh")
        config.expect("use_bias", True)
        config.expect("norm_type", "layer_norm")  # of the code that it was trained with
        config.expect("mlp_type", "default")
        config.ignore("embedding_dropout", "residual_dropout")
        theta, scaling = read_rope(config)
        found = cls(
            **read_sizes(config),
            sliding_window=config.optional("sliding_window", int),
            norm_epsilon=config.number("norm_epsilon"),
            rope_theta=theta,
            rope_scaling=scaling,
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
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
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
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take_norm("model.norm", width)
    x, _ = blocks.add_layer_norm(graph, x, update, norm, config.norm_epsilon)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
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
        return weights.take(f"model.layers.{i}.{name}", shape)

    epsilon = config.norm_epsilon
    norm = weights.take_norm(f"model.layers.{i}.input_layernorm", width)
    normed, x = blocks.add_layer_norm(graph, x, update, norm, epsilon)
    rows = {"q": queries, "k": keys, "v": keys}
    qkv = [take(f"self_attn.{part}_proj.weight", n, width) for part, n in rows.items()]
    biases = [take(f"self_attn.{part}_proj.bias", n) for part, n in rows.items()]
    heads = blocks.attention(graph, normed, qkv, i, shared, biases)
    output = take("self_attn.o_proj.weight", width, queries)
    attended = blocks.project(graph, heads, output, take("self_attn.o_proj.bias", width))

    norm = weights.take_norm(f"model.layers.{i}.post_attention_layernorm", width)
    normed, x = blocks.add_layer_norm(graph, x, attended, norm, epsilon)
    up, up_bias = take("mlp.c_fc.weight", inner, width), take("mlp.c_fc.bias", inner)
    down, down_bias = take("mlp.c_proj.weight", width, inner), take("mlp.c_proj.bias", width)
    activated = blocks.gelu_tanh(graph, blocks.project(graph, normed, up, up_bias))
    return x, blocks.project(graph, activated, down, down_bias)
