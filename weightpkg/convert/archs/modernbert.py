"""ModernBERT: pre-norm encoder with rotary positions, GeGLU, and local and global attention.

Every third layer sees everything and rotates by a base of its own, the others see half of
`local_attention` to each side. The first layer has no norm before its attention, as that of the
embedding is there already. Mostly there are no biases. The head of the training is left out.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/modernbert/modeling_modernbert.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert import blocks, encoder, rope, rotary
from weightpkg.convert.heads import HeadKind, HeadLayout, check_activation
from weightpkg.convert.hf_config import HFConfig, check_sizes

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.json_text import JSON

_ACTIVATIONS = {
    "gelu": blocks.gelu,
    "gelu_new": blocks.gelu_tanh,
    "gelu_pytorch_tanh": blocks.gelu_tanh,
}
_UNUSED = re.compile(r"(head|decoder)\..*|rotary_emb\..*")
_ARCHITECTURES: list[JSON] = [
    ["ModernBertModel"],
    ["ModernBertForMaskedLM"],
    ["ModernBertForSequenceClassification"],
    ["ModernBertForTokenClassification"],
]
PREFIX = "model."
WORDS = "embeddings.tok_embeddings.weight"
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"

# Of the head, of training, or of how other libraries compute; `layer_norm_eps` has no effect.
_IGNORED = """
classifier_activation classifier_bias classifier_pooling cls_token_id decoder_bias
deterministic_flash_attn embedding_dropout initializer_cutoff_factor layer_norm_eps mlp_dropout
reference_compile repad_logits_with_grad sparse_pred_ignore_index sparse_prediction
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph. is_global: whether each layer sees everything."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    norm_eps: float
    norm_bias: bool
    attention_bias: bool
    mlp_bias: bool
    hidden_activation: str
    local_attention: int
    global_rope_theta: float
    local_rope_theta: float
    is_global: tuple[bool, ...]

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", *_ARCHITECTURES)
        config.expect("hidden_activation", *_ACTIVATIONS)
        config.expect("position_embedding_type", "absolute", "rope")  # without effect
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        config.ignore(*_IGNORED.split())
        global_theta, local_theta = _thetas(config)
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=config.get("hidden_size", int),
            intermediate_size=config.get("intermediate_size", int),
            num_hidden_layers=config.get("num_hidden_layers", int),
            num_attention_heads=config.get("num_attention_heads", int),
            max_position_embeddings=config.get("max_position_embeddings", int),
            norm_eps=config.number("norm_eps", 1e-5),
            norm_bias=config.get("norm_bias", bool, default=False),
            attention_bias=config.get("attention_bias", bool, default=False),
            mlp_bias=config.get("mlp_bias", bool, default=False),
            hidden_activation=config.get("hidden_activation", str, "gelu"),
            local_attention=config.get("local_attention", int, 128),
            global_rope_theta=global_theta,
            local_rope_theta=local_theta,
            is_global=_is_global(config),
        )
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % (2 * found.num_attention_heads):
            raise config.unsupported("`hidden_size` is not an even multiple of the heads")
        if found.local_attention < 0 or min(global_theta, local_theta) <= 1:
            raise config.unsupported("`local_attention` or the base of a rotation is too small")
        return found

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""
        return self.max_position_embeddings


def _thetas(config: HFConfig) -> tuple[float, float]:
    """The bases of both rotations; transformers 5 writes them in groups."""
    both = [config.number("global_rope_theta", 160_000.0), config.number("local_rope_theta", 1e4)]
    if (parameters := config.group("rope_parameters")) is not None:
        for i, name in enumerate((_GLOBAL, _LOCAL)):
            if (group := parameters.group(name)) is not None:
                both[i] = group.number("rope_theta", both[i])
                group.expect("rope_type", "default")
                group.finish()
        parameters.finish()
    return both[0], both[1]


def _is_global(config: HFConfig) -> tuple[bool, ...]:
    """Each layer is listed, or the first of every so many sees everything."""
    count = config.get("num_hidden_layers", int)
    period = config.get("global_attn_every_n_layers", int, 3)
    if not (1 <= count <= 1024 and period > 0):
        raise config.unsupported("no model has so many layers, or so few")
    listed = config.strings("layer_types")
    if not listed:
        return tuple(i % period == 0 for i in range(count))
    if len(listed) != count or not all(kind in (_GLOBAL, _LOCAL) for kind in listed):
        raise config.unsupported(f"`layer_types` is not one of two for each of {count} layers")
    return tuple(kind == _GLOBAL for kind in listed)


def canonical_name(name: str) -> str | None:
    """Return a tensor's name without what models with a head put before it; None if it is unused."""
    name = name.removeprefix("model.")
    return None if _UNUSED.fullmatch(name) else name


def head_layout(kind: HeadKind, config: Config, keys: HFConfig) -> HeadLayout:
    """Return how a head is made: all have a dense layer and a norm in common.

    Raises:
        UnsupportedArchitectureError: a key is not handled.
    """
    keys.expect("classifier_pooling", "cls", "mean")
    pooling = keys.get("classifier_pooling", str, "cls")
    masked = HeadLayout(
        dense="head.dense",
        has_dense_bias=keys.get("classifier_bias", bool, default=False),
        activation=check_activation(keys, keys.get("classifier_activation", str, "gelu")),
        norm="head.norm",
        has_norm_bias=config.norm_bias,
        epsilon=config.norm_eps,
        output="decoder",
        output_bias="decoder.bias" if keys.get("decoder_bias", bool, default=True) else "",
        tied=WORDS if keys.get("tie_word_embeddings", bool, default=True) else None,
    )
    if kind == "masked":
        return masked
    labelled = replace(masked, output="classifier", output_bias="classifier.bias", tied=None)
    if kind == "token":
        return labelled
    return replace(labelled, pooling="mean" if pooling == "mean" else "cls")


def build(graph: Graph, weights: Weights, config: Config) -> tuple[Value, Value]:
    """Add the encoder to the graph, taking all of its weights.

    Returns:
        The last hidden state (B, T, E), which is an output too, and the attention mask (B, T) int64.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    width = config.hidden_size
    ids, mask = encoder.token_inputs(graph)
    name = "embeddings.tok_embeddings.weight"
    words = encoder.table(graph, weights, name, (config.vocab_size, width))
    x = blocks.embedding(graph, ids, words)
    x = blocks.layer_norm(graph, x, _norm(weights, "embeddings.norm", config), config.norm_eps)
    seen, shared = encoder.seen_tokens(graph, mask), _shared(graph, ids, config)
    update: Value | None = None
    for i, is_global in enumerate(config.is_global):
        rotation, distance = shared[is_global]
        attention = _Attention(seen, rotation, distance)
        x, update = _layer(graph, x, update, weights, config, f"layers.{i}.", attention)
    assert update is not None  # noqa: S101  there is a layer
    norm = _norm(weights, "final_norm", config)
    x, _ = blocks.add_layer_norm(graph, x, update, norm, config.norm_eps)
    return encoder.output_hidden_state(graph, x, width), mask


@dataclass(frozen=True, slots=True)
class _Attention:
    """What a layer's tokens see: seen (B, T) int32, distance (1, 1, T, T) float32 or everything."""

    seen: Value
    rotation: rotary.Rotation
    distance: Value | None


def _shared(
    graph: Graph, ids: Value, config: Config
) -> dict[bool, tuple[rotary.Rotation, Value | None]]:
    """Return how global layers (True) and local ones rotate, and what the latter see."""
    size = config.hidden_size // config.num_attention_heads

    def rotation(theta: float) -> rotary.Rotation:
        frequencies = rope.inverse_frequencies(theta, size)
        return encoder.rotation(graph, frequencies, config.max_position_embeddings)

    kinds: dict[bool, tuple[rotary.Rotation, Value | None]] = {}
    if True in config.is_global:
        kinds[True] = rotation(config.global_rope_theta), None
    if False in config.is_global:
        distance = _distance(graph, ids, config.local_attention // 2)
        kinds[False] = rotation(config.local_rope_theta), distance
    return kinds


def _distance(graph: Graph, ids: Value, reach: int) -> Value:
    """ids: (B, T) -> (1, 1, T, T) float32: 0 for neighbours so far away, and very low for others."""
    places = encoder.positions(graph, ids)
    axes = [graph.constant(np.array(which, np.int64), "axes") for which in ([0, 1, 3], [0, 1, 2])]
    rows, columns = (graph.op("Unsqueeze", (places, which))[0] for which in axes)
    (apart,) = graph.op("Abs", graph.op("Sub", (rows, columns)))
    bounds = graph.constant(np.array(reach, np.int64), "reach")
    (is_near,) = graph.op("LessOrEqual", (apart, bounds))
    near, far = (graph.constant(np.array(n, np.float32), "bias") for n in (0.0, -1e9))
    return graph.op("Where", (is_near, near, far))[0]


def _norm(weights: Weights, name: str, config: Config) -> list[Weight]:
    parts = ("weight", "bias") if config.norm_bias else ("weight",)
    return [weights.take(f"{name}.{part}", (config.hidden_size,)) for part in parts]


def _layer(
    graph: Graph,
    x: Value,
    update: Value | None,
    weights: Weights,
    config: Config,
    prefix: str,
    attention: _Attention,
) -> tuple[Value, Value]:
    """Return the residual stream and what is to be added to it, both (B, T, E)."""
    normed = x
    if update is not None:
        norm = _norm(weights, f"{prefix}attn_norm", config)
        normed, x = blocks.add_layer_norm(graph, x, update, norm, config.norm_eps)
    attended = _attend(graph, normed, weights, config, f"{prefix}attn.", attention)
    norm = _norm(weights, f"{prefix}mlp_norm", config)
    normed, x = blocks.add_layer_norm(graph, x, attended, norm, config.norm_eps)

    width, inner, has_bias = config.hidden_size, config.intermediate_size, config.mlp_bias
    both = _project(graph, normed, weights, f"{prefix}mlp.Wi", (2 * inner, width), has_bias)
    h, gate = blocks.split(graph, both, [inner, inner])
    (h,) = graph.op("Mul", (_ACTIVATIONS[config.hidden_activation](graph, h), gate))
    return x, _project(graph, h, weights, f"{prefix}mlp.Wo", (width, inner), has_bias)


def _attend(
    graph: Graph, x: Value, weights: Weights, config: Config, prefix: str, attention: _Attention
) -> Value:
    """x: (B, T, E) -> (B, T, E)."""
    width, has_bias = config.hidden_size, config.attention_bias
    qkv = _project(graph, x, weights, f"{prefix}Wqkv", (3 * width, width), has_bias)
    q, k, v = blocks.split(graph, qkv, [width] * 3)
    q, k = (rotary.rotate(graph, part, attention.rotation) for part in (q, k))
    heads = config.num_attention_heads
    mixed = encoder.attend(graph, (q, k, v), attention.seen, heads, attention.distance)
    return _project(graph, mixed, weights, f"{prefix}Wo", (width, width), has_bias)


def _project(
    graph: Graph,
    x: Value,
    weights: Weights,
    name: str,
    shape: tuple[int, int],
    has_bias: bool,  # noqa: FBT001  it is config.json's
) -> Value:
    """x: (B, T, K) -> (B, T, N)."""
    bias = weights.take(f"{name}.bias", shape[:1]) if has_bias else None
    return blocks.project(graph, x, weights.take(f"{name}.weight", shape), bias)
