"""gpt-oss: a mixture of experts with clamped gates, attention with sinks, windows in every other layer.

Every projection has a bias. A sink is a number for each head that takes its share of the softmax.
Checkpoints have one tensor for a layer's experts, with rows of gate and up in turn; its matrices lie
as they are computed with where they are in MXFP4, and turned round where they are dense.
YaRN's ramp is not rounded to whole frequencies, as config.json says (`truncate`: false); llama.cpp
rounds it, and computes slightly other positions.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gpt_oss/modeling_gpt_oss.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/openai-moe-iswa.cpp
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_experts, read_rope, read_sizes, read_windowed
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import (
    Weight,
    Weights,
    every_second,
    expand_names,
    transposed,
    without_buffers,
)
from weightpkg.tensor import BlockLayout, Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.graph import Graph, Value
    from weightpkg.formats.gguf import GGUFFile

SWIGLU_ALPHA = 1.702
SWIGLU_LIMIT = 7.0
"""`swiglu_alpha` and `swiglu_limit` of config.json: GGUF has no keys for them."""

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
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int
    windowed: tuple[bool, ...]
    swiglu_alpha: float
    swiglu_limit: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `gpt-oss.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "gpt-oss")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        keys.check_whole_heads_rotate(head_dim)
        keys.ignore("feed_forward_length")  # of layers without experts, of which there are none
        n_experts, n_layers = keys.get("expert_count", int), keys.layers()
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("expert_feed_forward_length", int),
            num_hidden_layers=n_layers,
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=replace(keys.rope_scaling(), truncate=False),
            num_local_experts=n_experts,
            num_experts_per_tok=keys.chosen_experts(n_experts),
            sliding_window=keys.get("attention.sliding_window", int),
            windowed=_every_other(n_layers),
            swiglu_alpha=SWIGLU_ALPHA,
            swiglu_limit=SWIGLU_LIMIT,
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
        config.require("num_key_value_heads", "head_dim", "sliding_window")
        if "rope_parameters" not in config:
            config.require("rope_scaling")  # without it YaRN is meant
        config.expect("architectures", ["GptOssForCausalLM"])
        config.expect("hidden_act", "silu")
        config.expect("attention_bias", True)
        config.ignore("initial_context_length")  # it is among the numbers of YaRN
        theta, scaling = read_rope(config, 150000.0)
        n_experts, n_chosen = read_experts(config, "num_local_experts", "num_experts")
        config.expect("experts_per_token", n_chosen)
        sizes = read_sizes(config)
        found = cls(
            **sizes,
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            num_local_experts=n_experts,
            num_experts_per_tok=n_chosen,
            sliding_window=config.get("sliding_window", int),
            windowed=read_windowed(config, _every_other(sizes["num_hidden_layers"])),
            swiglu_alpha=config.number("swiglu_alpha", SWIGLU_ALPHA),
            swiglu_limit=config.number("swiglu_limit", SWIGLU_LIMIT),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


def _every_other(n_layers: int) -> tuple[bool, ...]:
    """Which layers see a window: the first, the third and so on."""
    return tuple(i % 2 == 0 for i in range(n_layers))


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
    "attn_sinks": "self_attn.sinks",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

_EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    return f"{name}.weight" if name.endswith(".self_attn.sinks") else without_buffers(name)


def unstacked(weights: Weights) -> Weights:
    """Return a checkpoint's tensors with a matrix for each expert, and biases of gate and up apart."""
    return weights.split(_unstacked)


def _unstacked(weight: Weight) -> Iterator[Weight]:
    prefix, part = weight.name.rpartition(".")[::2]
    is_of_experts = prefix.endswith(".mlp.experts")
    if is_of_experts and len(weight.shape) == 3 and part in {"gate_up_proj", "down_proj"}:
        for i in range(weight.shape[0]):
            matrix = _matrix(experts.one_of(weight, i))
            if part == "down_proj":
                yield replace(matrix, name=f"{prefix}.{i}.down_proj.weight")
            else:
                yield _half(matrix, f"{prefix}.{i}.gate_proj.weight", 0)
                yield _half(matrix, f"{prefix}.{i}.up_proj.weight", 1)
    elif is_of_experts and len(weight.shape) == 2 and part == "gate_up_proj_bias":
        yield _bias(weight, f"{prefix}.gate_proj.bias", 0)
        yield _bias(weight, f"{prefix}.up_proj.bias", 1)
    elif is_of_experts and part == "down_proj_bias":
        yield replace(weight, name=f"{prefix}.down_proj.bias")
    else:
        yield weight


def _matrix(weight: Weight) -> Weight:
    """Return an expert's matrix as (outputs, inputs)."""
    if isinstance(weight.layout, BlockLayout):
        return weight
    # all of it at once, or else each slice would read all of it
    return replace(transposed(weight), row_step=weight.shape[1])


def _half(weight: Weight, name: str, first: Literal[0, 1]) -> Weight:
    half = every_second(weight, first)
    step = max(1, weight.row_step // 2)
    return replace(half, name=name, row_step=step)


def _bias(weight: Weight, name: str, first: Literal[0, 1]) -> Weight:
    """weight: (X, 2*F) -> (X, F)."""

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        values = weight.rows(start, stop)
        assert not isinstance(values, Blocks)  # noqa: S101  no type of blocks is a bias
        return values[:, first::2]

    shape = (weight.shape[0], weight.shape[1] // 2)
    return replace(weight, name=name, shape=shape, rows=rows, place=None)


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name; of experts, one for all of a layer."""
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

    norm = weights.take("model.norm.weight", (width,))
    x, _ = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _attention_inputs(graph: Graph, mask: Value, config: Config) -> blocks.AttentionInputs:
    scaling = config.rope_scaling
    frequencies = rope.scaled_frequencies(config.rope_theta, config.head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    positions = config.max_position_embeddings
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
    width, head_size = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head_size, config.num_key_value_heads * head_size

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}", shape)

    norm = take("input_layernorm.weight", width)
    normed, x = blocks.add_rms_norm(graph, x, update, norm, config.rms_norm_eps)
    sizes = {"q": queries, "k": keys, "v": keys}
    qkv = [take(f"self_attn.{part}_proj.weight", size, width) for part, size in sizes.items()]
    biases = [take(f"self_attn.{part}_proj.bias", size) for part, size in sizes.items()]
    sinks = take("self_attn.sinks.weight", config.num_attention_heads)
    window = config.sliding_window if config.windowed[i] else None
    inputs = replace(shared, window=window, sinks=graph.constant(sinks.dense(), sinks.name))
    heads = blocks.attention(graph, normed, qkv, i, inputs, biases)
    output = take("self_attn.o_proj.weight", width, queries), take("self_attn.o_proj.bias", width)
    attended = blocks.project(graph, heads, *output)

    norm = take("post_attention_layernorm.weight", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, config.rms_norm_eps)
    return x, _mixture(graph, normed, weights, config, i)


def _mixture(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E) -> (B, T, E), of the layer's experts."""
    width, inner = config.hidden_size, config.intermediate_size
    n_experts, chosen = config.num_local_experts, config.num_experts_per_tok

    def take(part: str, rows: int, columns: int) -> tuple[experts.Experts, Weight]:
        name = _EXPERT.format(i, "{}", part)
        bias = weights.take(f"model.layers.{i}.mlp.experts.{part}_proj.bias", (n_experts, rows))
        return experts.take(weights, name, n_experts, (rows, columns)), bias

    router = weights.take(f"model.layers.{i}.mlp.router.weight", (n_experts, width))
    bias = weights.take(f"model.layers.{i}.mlp.router.bias", (n_experts,))
    scores = blocks.project(graph, x, router, bias)
    choice = experts.choose_by_softmax(graph, scores, n_experts, chosen)
    pairs = experts.dispatch(graph, choice)
    rows = experts.gather(graph, x, width, pairs)
    gate, gate_bias = take("gate", inner, width)
    up, up_bias = take("up", inner, width)
    name, biases = f"layer.{i}.experts", (gate_bias, up_bias)
    g, u = experts.projections(graph, rows, (gate, up), f"{name}.gate_up", pairs, biases)
    activated = clamped_swiglu(graph, g, u, config.swiglu_alpha, config.swiglu_limit)
    down, down_bias = take("down", width, inner)
    y = experts.project(graph, activated, down, f"{name}.down", pairs, down_bias)
    return experts.combine(graph, y, x, width, choice, pairs)


def clamped_swiglu(graph: Graph, gate: Value, up: Value, alpha: float, limit: float) -> Value:
    """gate, up: (1, R, F) -> gate * sigmoid(alpha * gate) * (up + 1), both clamped first."""
    limits = [graph.constant(np.array(end, np.float32), "limit") for end in (-limit, limit)]
    (gate,) = graph.op("Clip", (gate, None, limits[1]))
    (up,) = graph.op("Clip", (up, *limits))
    attributes = {"alpha": alpha}
    (gate,) = graph.op("QuickGelu", (gate,), domain=blocks.MICROSOFT, attributes=attributes)
    one = graph.constant(np.array(1, np.float32), "one")
    return graph.op("Mul", (gate, blocks.add(graph, up, one)))[0]
