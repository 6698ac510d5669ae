"""DeepSeek V2 and V3: latent attention (MLA), and a mixture of experts beside shared ones.

Keys and values are one latent vector a token, and a rotated part that all heads share. Files with
`attn_k_b` and `attn_v_b` have the two matrices that let queries meet the latent vectors themselves:
the cache holds these, as one key/value head. Older files have `attn_kv_b`, which expands them into
keys and values; to use it otherwise it would have to be transposed, which blocks cannot be.
Heads are here [rotated, not rotated], as the operator wants them: in the files it is the reverse.
V2 weighs experts by a softmax of all scores. V3 adds a bias to sigmoids to choose, not to weigh.
Checkpoints have `kv_b_proj` alone. What V3 has beside, to predict a token after the next, is left out.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/deepseek_v2/modeling_deepseek_v2.py
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/deepseek_v3/modeling_deepseek_v3.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/deepseek2.cpp
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks, experts, hyperparameters, rope
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_experts, read_layers, read_rope
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, reorder_rows, without_buffers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile

SOFTMAX, SIGMOID = 1, 2
"""`expert_gating_func`."""

TIED_BY_DEFAULT = False
"""Whether the embedding is the head as well, where config.json does not say."""

_SCORING = {"softmax": SOFTMAX, "sigmoid": SIGMOID}
_DEFAULTS: dict[str, dict[str, bool | float | str]] = {
    "deepseek_v2": {
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
    },
    "deepseek_v3": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "norm_topk_prob": True,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
    },
}
"""What `model_type` means where config.json has no such key."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph; heads of keys are those of the cache.

    is_compressed: whether the cache holds latent vectors.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_scale: float
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: rope.AnyScaling
    first_k_dense_replace: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    scoring_func: int
    norm_topk_prob: bool
    routed_scaling_factor: float
    is_compressed: bool
    num_nextn_predict_layers: int = 0

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `deepseek2.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "deepseek2")
        heads = keys.get("attention.head_count", int)
        n_experts = keys.get("expert_count", int)
        cached = keys.get("attention.key_length", int)
        separate = keys.get("attention.key_length_mla", int, 0)
        head_size = separate or cached
        rotated = keys.get("rope.dimension_count", int)
        scaling, magnitude = _rope_scaling(keys)
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=keys.get("embedding_length", int),
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=keys.get("attention.head_count_kv", int, heads),
            head_dim=cached,
            q_lora_rank=keys.get("attention.q_lora_rank", int, 0) or None,
            kv_lora_rank=keys.get("attention.kv_lora_rank", int),
            qk_nope_head_dim=head_size - rotated,
            qk_rope_head_dim=rotated,
            v_head_dim=keys.get(
                "attention.value_length_mla", int, keys.get("attention.value_length", int)
            ),
            attention_scale=magnitude**2 / math.sqrt(max(1, head_size)),
            max_position_embeddings=keys.get("context_length", int),
            rms_norm_eps=keys.get("attention.layer_norm_rms_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_scaling=scaling,
            first_k_dense_replace=keys.get("leading_dense_block_count", int, 0),
            moe_intermediate_size=keys.get("expert_feed_forward_length", int),
            n_routed_experts=n_experts,
            n_shared_experts=keys.get("expert_shared_count", int),
            num_experts_per_tok=keys.chosen_experts(n_experts),
            n_group=keys.get("expert_group_count", int, 1),
            topk_group=keys.get("expert_group_used_count", int, 1),
            scoring_func=keys.get("expert_gating_func", int, SOFTMAX),
            norm_topk_prob=keys.get("expert_weights_norm", bool, False),
            routed_scaling_factor=keys.get("expert_weights_scale", float, 1.0),
            is_compressed=separate > 0,
        )
        keys.finish()
        hyperparameters.check(config, file.name)
        _check_cache(config, keys)
        _check(config, file.name)
        return config

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        _expect_handled(config)
        heads = config.get("num_attention_heads", int)
        config.expect("num_key_value_heads", heads)
        rest, rotated = config.get("qk_nope_head_dim", int), config.get("qk_rope_head_dim", int)
        config.expect("head_dim", rotated)
        config.expect("qk_head_dim", rest + rotated)
        theta, scaling = read_rope(config)
        n_experts, n_chosen = read_experts(config, "n_routed_experts", "num_local_experts")
        n_group, topk_group = _read_groups(config)
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=config.get("hidden_size", int),
            intermediate_size=config.get("intermediate_size", int),
            num_hidden_layers=read_layers(config),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=rest + rotated,
            q_lora_rank=config.get("q_lora_rank", int) if "q_lora_rank" in config else None,
            kv_lora_rank=config.get("kv_lora_rank", int),
            qk_nope_head_dim=rest,
            qk_rope_head_dim=rotated,
            v_head_dim=config.get("v_head_dim", int),
            attention_scale=_read_magnitude(config) ** 2 / math.sqrt(max(1, rest + rotated)),
            max_position_embeddings=config.get("max_position_embeddings", int),
            rms_norm_eps=config.number("rms_norm_eps"),
            rope_theta=theta,
            rope_scaling=scaling,
            first_k_dense_replace=config.get("first_k_dense_replace", int),
            moe_intermediate_size=config.get("moe_intermediate_size", int),
            n_routed_experts=n_experts,
            n_shared_experts=config.get("n_shared_experts", int),
            num_experts_per_tok=n_chosen,
            n_group=n_group,
            topk_group=topk_group,
            scoring_func=_SCORING[config.get("scoring_func", str)],
            norm_topk_prob=config.get("norm_topk_prob", bool),
            routed_scaling_factor=config.number("routed_scaling_factor"),
            is_compressed=False,
            num_nextn_predict_layers=config.get("num_nextn_predict_layers", int, 0),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        _check(found, config.name)
        return found


def _expect_handled(config: HFConfig) -> None:
    """Refuse values of keys of which only some are handled."""
    defaults = _DEFAULTS[config.get("model_type", str)]
    config.assume(defaults)
    config.require("kv_lora_rank", "q_lora_rank", "n_shared_experts")
    config.expect("architectures", ["DeepseekV2ForCausalLM"], ["DeepseekV3ForCausalLM"])
    config.expect_own_code("deepseek")
    config.expect("hidden_act", "silu")
    config.expect("moe_layer_freq", 1)
    config.expect("rope_interleave", True)
    config.expect("scoring_func", defaults["scoring_func"])
    config.expect("num_nextn_predict_layers", 0, 1)
    config.ignore("aux_loss_alpha", "ep_size", "seq_aux")  # of training


def _read_groups(config: HFConfig) -> tuple[int, int]:
    """Return into how many groups experts are divided, and how many of them a token goes to."""
    method = config.get("topk_method", str)
    if config.get("model_type", str) == "deepseek_v2":
        config.expect("topk_method", "greedy", "group_limited_greedy")
        config.expect("norm_topk_prob", False)
    else:
        config.expect("topk_method", "noaux_tc")
    config.ignore("n_group", "topk_group")
    if method == "greedy":
        return 1, 1
    return config.get("n_group", int), config.get("topk_group", int)


def _read_magnitude(config: HFConfig) -> float:
    """Return what queries and keys each are multiplied by for YaRN."""
    group = config.group("rope_parameters") or config.group("rope_scaling")
    if group is None or "mscale_all_dim" not in group:
        return 1.0
    return rope.yarn_attention_factor(group.positive("factor"), group.positive("mscale_all_dim"))


def _rope_scaling(keys: Hyperparameters) -> tuple[rope.Scaling, float]:
    """Return how frequencies are scaled, and what queries and keys each are multiplied by.

    GGUF has 0.1 times `mscale_all_dim` of config.json, and not `mscale`, which equals it in every
    model: then cosines and sines are not multiplied by anything.
    """
    scaling = keys.rope_scaling()
    if scaling.original_max_position_embeddings is None:
        return scaling, 1.0
    per_logarithm = keys.get("rope.scaling.yarn_log_multiplier", float)
    logarithm = 10 * (rope.yarn_attention_factor(scaling.factor) - 1)
    return replace(scaling, attention_factor=1.0), 1 + per_logarithm * logarithm


def _check_cache(config: Config, keys: Hyperparameters) -> None:
    """Refuse a file that says something else of the cache than the sizes of heads do."""
    rank, rotated = config.kv_lora_rank, config.qk_rope_head_dim
    compressed = (rank + rotated, rank, 1)
    head_size = config.qk_nope_head_dim + rotated
    expanded = (head_size, config.v_head_dim, config.num_attention_heads)
    value_size = keys.get("attention.value_length", int)
    cache = (config.head_dim, value_size, config.num_key_value_heads)
    if cache != (compressed if config.is_compressed else expanded):
        raise keys.unsupported(f"{cache}: not the size of a head's keys, its values, and how many")


def _check(config: Config, source: str) -> None:
    """Refuse sizes of heads that do not go together, and experts chosen in unknown ways."""

    def refuse(reason: str) -> NoReturn:
        raise hyperparameters.unsupported(source, reason)

    head_size = config.qk_nope_head_dim + config.qk_rope_head_dim
    fits = 0 < config.v_head_dim <= head_size and config.v_head_dim % 16 == 0
    if not (fits and config.qk_nope_head_dim > 0):
        sizes = f"{head_size}, {config.qk_rope_head_dim} and {config.v_head_dim}"
        refuse(f"{sizes}: not the size of a head's keys, how many rotate, and of its values")
    if config.qk_rope_head_dim % 16 or config.qk_rope_head_dim < 1:
        refuse(f"{config.qk_rope_head_dim} values of each head rotate")
    if config.scoring_func not in {SOFTMAX, SIGMOID}:
        refuse(f"expert_gating_func {config.scoring_func} is not handled")
    if not 1 <= config.topk_group <= config.n_group or config.n_routed_experts % config.n_group:
        groups = f"{config.topk_group} of {config.n_group} groups"
        refuse(f"{groups} of {config.n_routed_experts} experts")


_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b": "mlp.gate.e_score_correction",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}

_EXPERT = "model.layers.{}.mlp.experts.{}.{}_proj.weight"


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    whole = name.removesuffix(".mlp.gate.e_score_correction_bias")
    return without_buffers(name) if whole == name else f"{whole}.mlp.gate.e_score_correction.bias"


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name; of experts, one for all of a layer."""
    return expand_names(_GGUF_NAMES, _GGUF_LAYER_NAMES, config.num_hidden_layers)


def build(graph: Graph, weights: Weights, config: Config) -> None:
    """Add the whole model to the graph, taking all of its weights.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    vocabulary, width = config.vocab_size, config.hidden_size
    for i in range(config.num_nextn_predict_layers):
        weights.leave_out(f"model.layers.{config.num_hidden_layers + i}.")
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
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    frequencies = rope.scaled_frequencies(config.rope_theta, config.qk_rope_head_dim, scaling)
    last, total = blocks.attention_lengths(graph, mask)
    cos, sin = blocks.rotary_tables(graph, frequencies, positions, scaling.attention_factor)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    scale = config.attention_scale
    return blocks.AttentionInputs(last, total, cos, sin, *heads, scale=scale, is_interleaved=True)


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
    width, epsilon = config.hidden_size, config.rms_norm_eps

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"model.layers.{i}.{name}.weight", shape)

    normed, x = blocks.add_rms_norm(graph, x, update, take("input_layernorm", width), epsilon)
    q = _queries(graph, normed, weights, config, i)
    latent, rotated = _latent(graph, normed, weights, config, i)
    attend = _attend_compressed if config.is_compressed else _attend_expanded
    heads = attend(graph, (q, latent, rotated), weights, config, i, shared)
    outputs = config.num_attention_heads * config.v_head_dim
    attended = blocks.project(graph, heads, take("self_attn.o_proj", width, outputs))

    norm = take("post_attention_layernorm", width)
    normed, x = blocks.add_rms_norm(graph, x, attended, norm, epsilon)
    if i < config.first_k_dense_replace:
        return x, _mlp(graph, normed, weights, f"{i}.mlp", width, config.intermediate_size)
    inner = config.n_shared_experts * config.moe_intermediate_size
    always = _mlp(graph, normed, weights, f"{i}.mlp.shared_experts", width, inner)
    return x, blocks.add(graph, _mixture(graph, normed, weights, config, i), always)


def _mlp(graph: Graph, x: Value, weights: Weights, name: str, width: int, inner: int) -> Value:
    """x: (B, T, E) -> (B, T, E), of the layer's network, or of its shared experts."""
    prefix = f"model.layers.{name}"
    pair = [weights.take(f"{prefix}.{part}_proj.weight", (inner, width)) for part in ("gate", "up")]
    down = weights.take(f"{prefix}.down_proj.weight", (width, inner))
    return blocks.swiglu_mlp(graph, x, pair, down, f"layer.{name}.gate_up")


def _queries(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E) -> (B, T, H*D), each head with its rotated part first."""
    prefix = f"model.layers.{i}.self_attn"
    width, rank = config.hidden_size, config.q_lora_rank
    rotated, rest = config.qk_rope_head_dim, config.qk_nope_head_dim
    rows = config.num_attention_heads * (rotated + rest)
    if rank is None:
        weight = weights.take(f"{prefix}.q_proj.weight", (rows, width))
    else:
        x = blocks.project(graph, x, weights.take(f"{prefix}.q_a_proj.weight", (rank, width)))
        norm = weights.take(f"{prefix}.q_a_layernorm.weight", (rank,))
        x = blocks.rms_norm(graph, x, norm, config.rms_norm_eps)
        weight = weights.take(f"{prefix}.q_b_proj.weight", (rows, rank))
    return blocks.project(graph, x, rotated_first(weight, rotated, rest))


def rotated_first(weight: Weight, rotated: int, rest: int) -> Weight:
    """Return the rows of queries with each head's rotated part before the rest of it."""

    def order(heads: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.roll(heads, rotated, axis=1)  # (H, D, ...): the last `rotated` come first

    return reorder_rows(weight, rotated + rest, order)


def _latent(
    graph: Graph, x: Value, weights: Weights, config: Config, i: int
) -> tuple[Value, Value]:
    """x: (B, T, E) -> latent vectors (B, T, rank), and what rotates (B, T, D_rotated)."""
    prefix, rank, rotated = (
        f"model.layers.{i}.self_attn",
        config.kv_lora_rank,
        config.qk_rope_head_dim,
    )
    weight = weights.take(
        f"{prefix}.kv_a_proj_with_mqa.weight", (rank + rotated, config.hidden_size)
    )
    norm = weights.take(f"{prefix}.kv_a_layernorm.weight", (rank,))
    latent, keys = blocks.split(graph, blocks.project(graph, x, weight), (rank, rotated))
    return blocks.rms_norm(graph, latent, norm, config.rms_norm_eps), keys


def _attend_compressed(
    graph: Graph,
    parts: tuple[Value, Value, Value],
    weights: Weights,
    config: Config,
    i: int,
    shared: blocks.AttentionInputs,
) -> Value:
    """q, latent, rotated -> (B, T, H*D_value); a cached vector is key and value at once."""
    q, latent, keys = parts
    prefix, heads = f"model.layers.{i}.self_attn", config.num_attention_heads
    rank, rotated, rest = config.kv_lora_rank, config.qk_rope_head_dim, config.qk_nope_head_dim
    k_b = weights.take(f"{prefix}.k_b_proj.weight", (heads, rank, rest))
    v_b = weights.take(f"{prefix}.v_b_proj.weight", (heads, config.v_head_dim, rank))

    pieces = list(blocks.split(graph, q, (rotated, rest) * heads))
    pieces[1::2] = _per_head(graph, pieces[1::2], k_b)  # (B, T, rest) -> (B, T, rank)
    q, kv = _beside(graph, pieces), _beside(graph, (keys, latent))
    output = blocks.attend(graph, (q, kv, kv), i, shared)  # (B, T, H*(rotated + rank))
    pieces = list(blocks.split(graph, output, (rotated, rank) * heads))
    return _beside(graph, _per_head(graph, pieces[1::2], v_b))


def _per_head(graph: Graph, parts: Sequence[Value], weight: Weight) -> list[Value]:
    """parts: H of (B, T, K), weight: (H, N, K) -> H of (B, T, N)."""
    matrices = [experts.one_of(weight, head) for head in range(len(parts))]
    return [
        blocks.project(graph, part, matrix) for part, matrix in zip(parts, matrices, strict=True)
    ]


def _beside(graph: Graph, parts: Sequence[Value], axis: int = -1) -> Value:
    """Return the values as one, along an axis."""
    return graph.op("Concat", parts, attributes={"axis": axis})[0]


def _attend_expanded(
    graph: Graph,
    parts: tuple[Value, Value, Value],
    weights: Weights,
    config: Config,
    i: int,
    shared: blocks.AttentionInputs,
) -> Value:
    """q, latent, rotated -> (B, T, H*D_value); values are filled up to the size of keys."""
    q, latent, keys = parts
    heads, head_size, size = config.num_attention_heads, config.head_dim, config.v_head_dim
    rotated, rest = config.qk_rope_head_dim, config.qk_nope_head_dim
    shape = (heads * (rest + size), config.kv_lora_rank)
    weight = weights.take(f"model.layers.{i}.self_attn.kv_b_proj.weight", shape)
    expanded = _reshape(graph, blocks.project(graph, latent, weight), 0, 0, heads, -1)
    k, v = blocks.split(graph, expanded, (rest, size))  # (B, T, H, rest), (B, T, H, D_value)

    one = _reshape(graph, keys, 0, 0, 1, rotated)  # (B, T, rotated) -> (B, T, 1, rotated)
    each = graph.constant(np.array([1, 1, heads, 1], np.int64), "shape")
    (same,) = graph.op("Expand", (one, each))  # (B, T, H, rotated)
    k = _reshape(graph, _beside(graph, (same, k)), 0, 0, -1)  # (B, T, H*D)
    pads = graph.constant(np.array([0] * 7 + [head_size - size], np.int64), "pads")
    v = _reshape(graph, graph.op("Pad", (v, pads))[0], 0, 0, -1)  # (B, T, H*D)
    output = _reshape(graph, blocks.attend(graph, (q, k, v), i, shared), 0, 0, heads, -1)
    if size < head_size:
        output, _ = blocks.split(graph, output, (size, head_size - size))
    return _reshape(graph, output, 0, 0, -1)  # (B, T, H*D_value)


def _reshape(graph: Graph, x: Value, *shape: int) -> Value:
    """Return x in another shape; 0: as long as it is, -1: what remains."""
    return graph.op("Reshape", (x, graph.constant(np.array(shape, np.int64), "shape")))[0]


def _mixture(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E) -> (B, T, E), of the experts that are chosen."""
    width, inner = config.hidden_size, config.moe_intermediate_size
    choice = _choose(graph, x, weights, config, i)
    shapes = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
    gate, up, down = (
        experts.take(weights, _EXPERT.format(i, "{}", part), config.n_routed_experts, shape)
        for part, shape in shapes.items()
    )
    return experts.swiglu_mixture(graph, x, choice, (gate, up), down, f"layer.{i}.experts")


def _choose(graph: Graph, x: Value, weights: Weights, config: Config, i: int) -> experts.Choice:
    """x: (B, T, E) -> which experts each token goes to."""
    n_experts, n_chosen = config.n_routed_experts, config.num_experts_per_tok
    prefix = f"model.layers.{i}.mlp.gate"
    weight = weights.take(f"{prefix}.weight", (n_experts, config.hidden_size))
    scores = selection = _scores(graph, blocks.project(graph, x, weight), config)
    if config.scoring_func == SIGMOID:
        bias = weights.take(f"{prefix}.e_score_correction.bias", (n_experts,))
        selection = blocks.add_bias(graph, scores, [bias])
    if config.n_group > 1:
        selection = _best_groups(graph, selection, config)
    _, chosen = experts.top(graph, selection, n_chosen)
    (shares,) = graph.op("GatherElements", (scores, chosen), attributes={"axis": -1})
    if config.norm_topk_prob:
        axes = graph.constant(np.array([-1], np.int64), "axes")
        (total,) = graph.op("ReduceSum", (shares, axes))
        (shares,) = graph.op("Div", (shares, total))
    if config.routed_scaling_factor != 1:
        shares = blocks.scaled(graph, shares, config.routed_scaling_factor)
    return experts.Choice(chosen, shares, n_experts, n_chosen)


def _scores(graph: Graph, logits: Value, config: Config) -> Value:
    """logits: (B, T, X) -> numbers from 0 to 1."""
    if config.scoring_func == SIGMOID:
        return graph.op("Sigmoid", (logits,))[0]
    return graph.op("Softmax", (logits,), attributes={"axis": -1})[0]


def _best_groups(graph: Graph, scores: Value, config: Config) -> Value:
    """scores: (B, T, X) -> the same, and minus infinity for experts outside of the best groups.

    A group is as good as its two best experts together, or, by softmax, as its best one.
    """
    grouped = _reshape(graph, scores, 0, 0, config.n_group, -1)
    best, _ = experts.top(graph, grouped, 2 if config.scoring_func == SIGMOID else 1)
    last = graph.constant(np.array([-1], np.int64), "axes")
    (worth,) = graph.op("ReduceSum", (best, last), attributes={"keepdims": 0})  # (B, T, groups)
    _, groups = experts.top(graph, worth, config.topk_group)
    numbers = graph.constant(np.arange(config.n_group)[:, None], "groups")
    (matches,) = graph.op("Equal", (_reshape(graph, groups, 0, 0, 1, -1), numbers))
    (ones,) = graph.op("Cast", (matches,), attributes={"to": int(TensorProto.FLOAT)})
    (found,) = graph.op("ReduceMax", (ones, last))  # (B, T, groups, 1)
    (is_best,) = graph.op("Cast", (found,), attributes={"to": int(TensorProto.BOOL)})
    lowest = graph.constant(np.array(-np.inf, np.float32), "lowest")
    (kept,) = graph.op("Where", (is_best, grouped, lowest))
    return _reshape(graph, kept, 0, 0, -1)  # (B, T, groups, X/groups) -> (B, T, X)
