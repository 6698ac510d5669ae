"""RoBERTa and XLM-RoBERTa: BERT's layers, and positions that count tokens and not places.

The first token that is not padding has the position behind padding's own, `pad_token_id`, and so
the last rows of the table are reached by texts of fewer tokens than it has rows. There is mostly one
segment only. The pooler and the head of the training are left out.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/roberta/modeling_roberta.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from weightpkg.convert import blocks, encoder
from weightpkg.convert.heads import HeadKind, HeadLayout
from weightpkg.convert.hf_config import HFConfig, check_sizes

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weights
    from weightpkg.formats.json_text import JSON

_ARCHITECTURES: list[JSON] = [
    ["RobertaModel"],
    ["RobertaForMaskedLM"],
    ["XLMRobertaModel"],
    ["XLMRobertaForMaskedLM"],
    ["RobertaForSequenceClassification"],
    ["RobertaForTokenClassification"],
    ["XLMRobertaForSequenceClassification"],
    ["XLMRobertaForTokenClassification"],
]
PREFIX = "roberta."
WORDS = "embeddings.word_embeddings.weight"
_UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*|lm_head\..*")


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
    pad_token_id: int

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", *_ARCHITECTURES)
        config.expect("hidden_act", *encoder.ACTIVATIONS)
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
            pad_token_id=config.get("pad_token_id", int, 1),
        )
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % found.num_attention_heads:
            raise config.unsupported("`hidden_size` is not a multiple of `num_attention_heads`")
        if found.pad_token_id < 0 or found.max_length < 1:
            raise config.unsupported("no position is left for a token behind `pad_token_id`")
        return found

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""
        return self.max_position_embeddings - self.pad_token_id - 1


def canonical_name(name: str) -> str | None:
    """Return a tensor's name without what models with a head put before it; None if it is unused."""
    name = name.removeprefix("roberta.")
    return None if _UNUSED.fullmatch(name) else name


def head_layout(kind: HeadKind, config: Config, keys: HFConfig) -> HeadLayout:
    """Return how a head is made; GELU is the exact one whatever the layers have."""
    if kind == "token":
        return HeadLayout(output="classifier", output_bias="classifier.bias")
    if kind == "sequence":
        return HeadLayout(
            dense="classifier.dense",
            output="classifier.out_proj",
            output_bias="classifier.out_proj.bias",
            pooling="cls",
        )
    tied = keys.get("tie_word_embeddings", bool, default=True)
    return HeadLayout(
        dense="lm_head.dense",
        activation="gelu",
        norm="lm_head.layer_norm",
        epsilon=config.layer_norm_eps,
        output="lm_head.decoder",
        output_bias="lm_head.bias",
        tied=WORDS if tied else None,
    )


def build(graph: Graph, weights: Weights, config: Config) -> tuple[Value, Value]:
    """Add the encoder to the graph, taking all of its weights.

    Returns:
        The last hidden state (B, T, E), which is an output too, and the attention mask (B, T) int64.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    ids, mask = encoder.token_inputs(graph)
    x = _embeddings(graph, ids, weights, config)
    x = encoder.post_norm_layers(graph, x, mask, weights, config)
    return encoder.output_hidden_state(graph, x, config.hidden_size), mask


def _embeddings(graph: Graph, ids: Value, weights: Weights, config: Config) -> Value:
    """ids: (B, T) int64 -> (B, T, E)."""
    width = config.hidden_size

    def table(name: str, rows: int) -> blocks.Matrix:
        return encoder.table(graph, weights, f"embeddings.{name}_embeddings.weight", (rows, width))

    words = blocks.embedding(graph, ids, table("word", config.vocab_size))
    kinds = encoder.segments(graph, weights, config.type_vocab_size, width)
    positions = table("position", config.max_position_embeddings)
    places = blocks.embedding(graph, _positions(graph, ids, config.pad_token_id), positions)
    (x,) = graph.op("Add", (words, kinds))
    (x,) = graph.op("Add", (x, places))
    norm = weights.take_norm("embeddings.LayerNorm", width)
    return blocks.layer_norm(graph, x, norm, config.layer_norm_eps)


def _positions(graph: Graph, ids: Value, padding: int) -> Value:
    """ids: (B, T) -> (B, T) int64: `padding` for padding, and counted from behind it for others."""
    pad = graph.constant(np.array(padding, np.int64), "pad_token_id")
    (is_padding,) = graph.op("Equal", (ids, pad))
    (is_token,) = graph.op("Not", (is_padding,))
    (token,) = graph.op("Cast", (is_token,), attributes={"to": int(TensorProto.INT64)})
    (count,) = graph.op("CumSum", (token, graph.constant(np.array(1, np.int64), "axis")))
    (count,) = graph.op("Mul", (count, token))
    return graph.op("Add", (count, pad))[0]
