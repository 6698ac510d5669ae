"""BERT: post-norm encoder with learned positions and segments, biases everywhere, and GELU.

Every token sees every other that is not padding. The pooler on top (of the first token, through tanh)
and the head of the training are left out: sentence embeddings are made of the last hidden state.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks
from weightpkg.convert.hf_config import HFConfig, check_sizes
from weightpkg.convert.weights import Weights

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value

_ACTIVATIONS = {"gelu": "BiasGelu", "gelu_new": "FastGelu", "gelu_pytorch_tanh": "FastGelu"}
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*|cls\..*")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    hidden_act: str

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"])
        config.expect("hidden_act", *_ACTIVATIONS)
        config.expect("position_embedding_type", "absolute")
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=config.get("hidden_size", int),
            intermediate_size=config.get("intermediate_size", int),
            num_hidden_layers=config.get("num_hidden_layers", int),
            num_attention_heads=config.get("num_attention_heads", int),
            max_position_embeddings=config.get("max_position_embeddings", int),
            type_vocab_size=config.get("type_vocab_size", int, 2),
            layer_norm_eps=config.number("layer_norm_eps", 1e-12),
            hidden_act=config.get("hidden_act", str, "gelu"),
        )
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % found.num_attention_heads:
            raise config.unsupported("`hidden_size` is not a multiple of `num_attention_heads`")
        return found


def canonical_name(name: str) -> str | None:
    """Return a tensor's name without what models with a head put before it; None if it is unused."""
    name = name.removeprefix("bert.")
    stem, _, last = name.rpartition(".")
    name = f"{stem}.{_OLD_NAMES.get(last, last)}"
    return None if _UNUSED.fullmatch(name) else name


def build(graph: Graph, weights: Weights, config: Config) -> tuple[Value, Value]:
    """Add the encoder to the graph, taking all of its weights.

    Returns:
        The last hidden state (B, T, E), which is an output too, and the attention mask (B, T) int64.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    shape = ("batch_size", "sequence_length")
    ids = graph.input("input_ids", np.int64, shape)
    mask = graph.input("attention_mask", np.int64, shape)
    segments = graph.input("token_type_ids", np.int64, shape)
    x = _embeddings(graph, ids, segments, weights, config)
    (seen,) = graph.op("Cast", (mask,), attributes={"to": int(TensorProto.INT32)})
    for i in range(config.num_hidden_layers):
        x = _layer(graph, x, seen, weights, config, i)
    (x,) = graph.op("Identity", (x,), outputs=("last_hidden_state",))
    graph.output(x, np.float32, (*shape, config.hidden_size))
    return x, mask


def _embeddings(
    graph: Graph, ids: Value, segments: Value, weights: Weights, config: Config
) -> Value:
    """ids, segments: (B, T) int64 -> (B, T, E)."""
    width = config.hidden_size

    def table(name: str, rows: int) -> blocks.Matrix:
        weight = weights.take(f"embeddings.{name}_embeddings.weight", (rows, width))
        return blocks.add_matrix(graph, weight.name, [weight])

    words = blocks.embedding(graph, ids, table("word", config.vocab_size))
    kinds = blocks.embedding(graph, segments, table("token_type", config.type_vocab_size))
    positions = table("position", config.max_position_embeddings)
    places = blocks.embedding(graph, _positions(graph, ids), positions)  # (T, E)
    (x,) = graph.op("Add", (words, kinds))
    (x,) = graph.op("Add", (x, places))
    return _norm(graph, x, weights, "embeddings.LayerNorm", config)


def _positions(graph: Graph, ids: Value) -> Value:
    """ids: (B, T) -> 0 .. T - 1, (T,) int64."""
    (length,) = graph.op("Shape", (ids,), attributes={"start": 1, "end": 2})
    (length,) = graph.op("Squeeze", (length,))
    start, step = (graph.constant(np.array(n, np.int64), "range") for n in (0, 1))
    return graph.op("Range", (start, length, step))[0]


def _layer(graph: Graph, x: Value, seen: Value, weights: Weights, config: Config, i: int) -> Value:
    """x: (B, T, E), seen: (B, T) int32 -> (B, T, E)."""
    prefix, width, inner = f"encoder.layer.{i}.", config.hidden_size, config.intermediate_size

    attended = _attention(graph, x, seen, weights, config, f"{prefix}attention.self.")
    x = _add_and_norm(graph, x, attended, weights, f"{prefix}attention.output.", width, config)

    up = weights.take(f"{prefix}intermediate.dense.weight", (inner, width))
    bias = weights.take(f"{prefix}intermediate.dense.bias", (inner,))
    inputs = (blocks.project(graph, x, up), graph.constant(bias.dense(), bias.name))
    (h,) = graph.op(_ACTIVATIONS[config.hidden_act], inputs, domain=blocks.MICROSOFT)
    return _add_and_norm(graph, x, h, weights, f"{prefix}output.", inner, config)


def _attention(
    graph: Graph, x: Value, seen: Value, weights: Weights, config: Config, prefix: str
) -> Value:
    """x: (B, T, E), seen: (B, T) int32, 0 for padding -> (B, T, E)."""
    width, names = config.hidden_size, ("query", "key", "value")
    matrices = [weights.take(f"{prefix}{name}.weight", (width, width)) for name in names]
    biases = [weights.take(f"{prefix}{name}.bias", (width,)) for name in names]
    qkv = blocks.projections(graph, x, matrices, f"{prefix}qkv")
    bias = graph.constant(np.concatenate([bias.dense() for bias in biases]), f"{prefix}bias")
    (y,) = graph.op(
        "MultiHeadAttention",
        (*qkv, bias, seen),
        domain=blocks.MICROSOFT,
        attributes={"num_heads": config.num_attention_heads},
    )
    return y


def _add_and_norm(
    graph: Graph,
    x: Value,
    h: Value,
    weights: Weights,
    prefix: str,
    inputs: int,
    config: Config,
) -> Value:
    """x: (B, T, E), h: (B, T, inputs) -> norm(x + dense(h)), (B, T, E)."""
    width = config.hidden_size
    down = weights.take(f"{prefix}dense.weight", (width, inputs))
    y = blocks.project(graph, h, down)
    names = ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")
    vectors = [weights.take(f"{prefix}{name}", (width,)) for name in names]
    constants = [graph.constant(vector.dense(), vector.name) for vector in vectors]
    (normed,) = graph.op(
        "SkipLayerNormalization",
        (y, x, *constants),
        domain=blocks.MICROSOFT,
        attributes={"epsilon": config.layer_norm_eps},
    )
    return normed


def _norm(graph: Graph, x: Value, weights: Weights, name: str, config: Config) -> Value:
    """x: (B, T, E) -> (B, T, E), of mean 0 and variance 1 over E, times a weight, plus a bias."""
    vectors = [weights.take(f"{name}.{part}", (config.hidden_size,)) for part in ("weight", "bias")]
    constants = [graph.constant(vector.dense(), vector.name) for vector in vectors]
    attributes = {"axis": -1, "epsilon": config.layer_norm_eps}
    return graph.op("LayerNormalization", (x, *constants), attributes=attributes)[0]
