"""Falcon: attention and feed-forward side by side (parallel residual), layer norms, GELU, no biases.

Both read one norm of the residual stream, or, in the 40B model, a norm each. q, k and v are one
matrix, whose rows llama.cpp's converter sorts by these three; in checkpoints those of each key and
value lie behind those of their queries.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/falcon/modeling_falcon.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/falcon.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_layers, read_rope
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, part_of_groups, without_buffers

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


TIED_BY_DEFAULT = True
"""Whether the embedding is the head as well, where config.json does not say."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph.

    is_grouped: whether rows of each key and value lie behind those of their queries.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    layer_norm_epsilon: float
    rope_theta: float
    rope_scaling: rope.AnyScaling
    num_ln_in_parallel_attn: int
    is_grouped: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `falcon.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "falcon")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        if (layout := keys.get("tensor_data_layout", str, "jploski")) != "jploski":
            raise keys.unsupported(f"tensor data layout `{layout}` is not handled")
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            layer_norm_epsilon=keys.get("attention.layer_norm_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
            num_ln_in_parallel_attn=1 + ("blk.0.attn_norm_2.weight" in file.tensors),
            is_grouped=False,
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
        config.expect("architectures", ["FalconForCausalLM"])
        config.expect_own_code("falcon")
        config.ignore("ff_factor")  # `ffn_hidden_size` says it again
        config.expect("parallel_attn", True)
        config.expect("activation", "gelu")
        heads, hidden_size = config.get("num_attention_heads", int), config.get("hidden_size", int)
        is_new = config.get("new_decoder_architecture", bool, False)
        n_norms = config.get("num_ln_in_parallel_attn", int, 2 if is_new else 1)
        config.expect("num_ln_in_parallel_attn", 1, 2 if is_new else 1)
        theta, scaling = read_rope(config)
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=config.get("ffn_hidden_size", int, 4 * hidden_size),
            num_hidden_layers=read_layers(config),
            num_attention_heads=heads,
            num_key_value_heads=_read_kv_heads(config, heads, is_new=is_new),
            head_dim=hidden_size // max(1, heads),
            max_position_embeddings=config.get("max_position_embeddings", int, 2048),
            layer_norm_epsilon=config.number("layer_norm_epsilon"),
            rope_theta=theta,
            rope_scaling=scaling,
            num_ln_in_parallel_attn=n_norms,
            is_grouped=True,
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _read_kv_heads(config: HFConfig, heads: int, *, is_new: bool) -> int:
    """One, in the new architecture as many as is said, or as many as for queries."""
    said = config.get("num_kv_heads", int, heads)
    return 1 if config.get("multi_query", bool, True) and not is_new else said


_GGUF_NAMES = {
    "token_embd": "transformer.word_embeddings",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",  # `ln_mlp` where there are two
    "attn_norm_2": "ln_attn",
    "attn_qkv": "self_attention.query_key_value",
    "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    return without_buffers(name.replace(".ln_mlp.", ".input_layernorm."))


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
    n_layers = config.num_hidden_layers
    return expand_names(_GGUF_NAMES, _GGUF_LAYER_NAMES, n_layers, "transformer.h")


def build(graph: Graph, weights: Weights, config: Config) -> None:
    """Add the whole model to the graph, taking all of its weights.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    ids, mask = blocks.token_inputs(graph)
    shared = _attention_inputs(graph, mask, config)

    table = weights.take("transformer.word_embeddings.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    x = blocks.embedding(graph, ids, embedding)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take_norm("transformer.ln_f", width)
    x, _ = blocks.add_layer_norm(graph, x, update, norm, config.layer_norm_epsilon)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    return blocks.AttentionInputs(last, total, cos, sin, *heads)


def _ungrouped(weight: Weight, config: Config) -> tuple[Weight, ...]:
    """Return q, k and v of a matrix that has them group by group."""
    size, n_queries = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    ends = (0, n_queries * size, (n_queries + 1) * size, (n_queries + 2) * size)
    return tuple(part_of_groups(weight, ends[-1], *ends[i : i + 2]) for i in range(3))


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
    prefix, epsilon = f"transformer.h.{i}", config.layer_norm_epsilon

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"{prefix}.{name}.weight", shape)

    norm = weights.take_norm(f"{prefix}.input_layernorm", width)
    normed, x = blocks.add_layer_norm(graph, x, update, norm, epsilon)
    attention_normed = normed
    if config.num_ln_in_parallel_attn == 2:
        norm = weights.take_norm(f"{prefix}.ln_attn", width)
        attention_normed, _ = blocks.add_layer_norm(graph, x, None, norm, epsilon)
    whole = take("self_attention.query_key_value", queries + 2 * keys, width)
    qkv = _ungrouped(whole, config) if config.is_grouped else (whole,)
    heads = blocks.attention(graph, attention_normed, qkv, i, shared)
    attended = blocks.project(graph, heads, take("self_attention.dense", width, queries))

    raised = blocks.project(graph, normed, take("mlp.dense_h_to_4h", inner, width))
    down = take("mlp.dense_4h_to_h", width, inner)
    fed = blocks.project(graph, blocks.gelu(graph, raised), down)
    return x, blocks.add(graph, attended, fed)
