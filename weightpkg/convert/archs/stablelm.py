"""StableLM and StableLM 2: layer norms with biases, SwiGLU, and a part of each head rotates.

Some have biases on q, k and v; the largest has a layer norm for each head of q and k, and its
attention and feed-forward read the same norm and are added at once (parallel residual).
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/stablelm/modeling_stablelm.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/stablelm.cpp
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert import blocks, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_partial_rope, read_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, reorder_rows, without_buffers

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    layer_norm_eps: float
    rope_theta: float
    rope_scaling: rope.AnyScaling
    rotary_dim: int
    use_qkv_bias: bool
    qk_layernorm: bool
    use_parallel_residual: bool

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `stablelm.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "stablelm")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            layer_norm_eps=keys.get("attention.layer_norm_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=keys.rope_scaling(),
            rotary_dim=keys.get("rope.dimension_count", int, head_dim),
            use_qkv_bias="blk.0.attn_q.bias" in file.tensors,
            qk_layernorm="blk.0.attn_q_norm.weight" in file.tensors,
            use_parallel_residual="blk.0.ffn_norm.weight" not in file.tensors,
        )
        keys.ignore("use_parallel_residual")  # not always true: which norms there are tells
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
        config.require("num_key_value_heads")
        config.expect("architectures", ["StableLmForCausalLM"])
        config.expect("hidden_act", "silu")
        sizes = read_sizes(config)
        theta, scaling, share = read_partial_rope(config, share=0.25)
        found = cls(
            **sizes,
            layer_norm_eps=config.number("layer_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            rotary_dim=int(sizes["head_dim"] * share),
            use_qkv_bias=config.get("use_qkv_bias", bool, False),
            qk_layernorm=config.get("qk_layernorm", bool, False),
            use_parallel_residual=config.get("use_parallel_residual", bool, False),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        _check_rotary_dim(found, config.name)
        return found


def _check_rotary_dim(config: Config, source: str) -> None:
    size, whole = config.rotary_dim, config.head_dim
    if size % 2 or not 0 < size <= whole:
        reason = f"{size} of a head's {whole} values rotate"
        raise hyperparameters.unsupported(source, reason)


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
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
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


def rotary_order(config: Config) -> NDArray[np.intp]:
    """Return an order of a head's values in which what rotates is a multiple of 16: (D,).

    The attention operator wants that. Behind each rotating half come values that do not rotate, and
    in its table they have a frequency of 0.
    """
    half, padded = config.rotary_dim // 2, len(_frequencies(config))
    first, second, rest = np.split(np.arange(config.head_dim), (half, 2 * half))
    fill = padded - half
    order = (first, rest[:fill], second, rest[fill : 2 * fill], rest[2 * fill :])
    return np.concatenate(order)


def _frequencies(config: Config) -> NDArray[np.float64]:
    frequencies = rope.scaled_frequencies(config.rope_theta, config.rotary_dim, config.rope_scaling)
    return np.pad(frequencies, (0, -len(frequencies) % 8))


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
    x, _ = blocks.add_layer_norm(graph, x, update, norm, config.layer_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    last, total = blocks.attention_lengths(graph, mask)
    positions, factor = config.max_position_embeddings, config.rope_scaling.attention_factor
    cos, sin = blocks.rotary_tables(graph, _frequencies(config), positions, factor)
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
    width, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    def norm(name: str) -> tuple[Weight, Weight]:
        return weights.take_norm(f"model.layers.{i}.{name}", width)

    gate_up = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    down = take("mlp.down_proj", width, inner)
    normed, x = blocks.add_layer_norm(graph, x, update, norm("input_layernorm"), epsilon)
    attended = _attention(graph, normed, weights, config, i, shared)
    if config.use_parallel_residual:
        update = blocks.swiglu_mlp(graph, normed, gate_up, down, f"layer.{i}.gate_up")
        return x, blocks.add(graph, attended, update)
    second = norm("post_attention_layernorm")
    normed, x = blocks.add_layer_norm(graph, x, attended, second, epsilon)
    return x, blocks.swiglu_mlp(graph, normed, gate_up, down, f"layer.{i}.gate_up")


def _attention(
    graph: Graph,
    x: Value,
    weights: Weights,
    config: Config,
    i: int,
    shared: blocks.AttentionInputs,
) -> Value:
    """x: (B, T, E) -> (B, T, E)."""
    prefix = f"model.layers.{i}.self_attn"
    head_size, order = config.head_dim, rotary_order(config)
    n_heads, n_kv_heads = config.num_attention_heads, config.num_key_value_heads

    def take(name: str, n: int, *width: int) -> Weight:
        weight = weights.take(f"{prefix}.{name}", (n * head_size, *width))
        if name.startswith("v_proj"):
            return weight
        return reorder_rows(weight, head_size, lambda rows: rows[:, order])

    heads = {"q": n_heads, "k": n_kv_heads, "v": n_kv_heads}
    qkv = [take(f"{part}_proj.weight", n, config.hidden_size) for part, n in heads.items()]
    biases = [take(f"{part}_proj.bias", n) for part, n in heads.items() if config.use_qkv_bias]
    if config.qk_layernorm:
        q, k, v = blocks.projections(graph, x, qkv, f"layer.{i}.qkv", biases)
        q_norm = _head_norms(weights, f"{prefix}.q_layernorm", n_heads, head_size)
        k_norm = _head_norms(weights, f"{prefix}.k_layernorm", n_kv_heads, head_size)
        q = _norm_heads(graph, q, q_norm[:, order], config.layer_norm_eps)
        k = _norm_heads(graph, k, k_norm[:, order], config.layer_norm_eps)
        mixed = blocks.attend(graph, (q, k, v), i, shared)
    else:
        mixed = blocks.attention(graph, x, qkv, i, shared, biases)
    shape = (config.hidden_size, n_heads * head_size)
    return blocks.project(graph, mixed, weights.take(f"{prefix}.o_proj.weight", shape))


def _head_norms(weights: Weights, name: str, n_heads: int, head_size: int) -> NDArray[np.float32]:
    """Return each head's weights, (H, D): in GGUF they are one tensor, in checkpoints one a head."""
    if f"{name}.weight" in weights:
        return weights.take(f"{name}.weight", (n_heads, head_size)).dense()
    names = (f"{name}.norms.{head}.weight" for head in range(n_heads))
    return np.stack([weights.take(each, (head_size,)).dense() for each in names])


def _norm_heads(graph: Graph, x: Value, weight: NDArray[np.float32], epsilon: float) -> Value:
    """x: (B, T, H*D), weight: (H, D) -> layer norm of each head by its own weight, without bias."""
    n_heads, head_size = weight.shape
    apart = graph.constant(np.array([0, 0, n_heads, head_size], np.int64), "shape")
    (heads,) = graph.op("Reshape", (x, apart))  # (B, T, H*D) -> (B, T, H, D)
    ones = graph.constant(np.ones(head_size, np.float32), "ones")
    attributes = {"axis": -1, "epsilon": epsilon, "stash_type": 1}
    (normed,) = graph.op("LayerNormalization", (heads, ones), attributes=attributes)
    (weighted,) = graph.op("Mul", (normed, graph.constant(weight, "head_norm")))
    together = graph.constant(np.array([0, 0, -1], np.int64), "shape")
    return graph.op("Reshape", (weighted, together))[0]  # (B, T, H, D) -> (B, T, H*D)
