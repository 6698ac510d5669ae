"""DistilBERT: BERT's layers under names of its own, without segments.

Positions are learned or sinusoidal, which is a matter of what the table was filled with. The head of
the training is left out.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/distilbert/modeling_distilbert.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, encoder
from weightpkg.convert.heads import HeadKind, HeadLayout
from weightpkg.convert.hf_config import HFConfig, check_sizes

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weights
    from weightpkg.formats.json_text import JSON

_EPSILON = 1e-12  # written into transformers' code
_UNUSED = re.compile(r"embeddings\.position_ids|vocab_(transform|layer_norm|projector)\..*")
HEADED: list[JSON] = [
    ["DistilBertForSequenceClassification"],
    ["DistilBertForTokenClassification"],
]
PREFIX = "distilbert."
WORDS = "embeddings.word_embeddings.weight"
_LAYER = re.compile(r"transformer\.layer\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_NAMES = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
"""To BERT's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The fields of config.json that shape the graph, by BERT's names for them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    layer_norm_eps: float
    hidden_act: str

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect("architectures", ["DistilBertModel"], ["DistilBertForMaskedLM"], *HEADED)
        config.expect("activation", *encoder.ACTIVATIONS)
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=config.get("dim", int),
            intermediate_size=config.get("hidden_dim", int),
            num_hidden_layers=config.get("n_layers", int),
            num_attention_heads=config.get("n_heads", int),
            max_position_embeddings=config.get("max_position_embeddings", int),
            layer_norm_eps=_EPSILON,
            hidden_act=config.get("activation", str, "gelu"),
        )
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        # what the table of positions was filled with at first; of training and of heads
        config.ignore("sinusoidal_pos_embds", "qa_dropout", "seq_classif_dropout", "tie_weights_")
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % found.num_attention_heads:
            raise config.unsupported("`dim` is not a multiple of `n_heads`")
        return found

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""
        return self.max_position_embeddings


def canonical_name(name: str) -> str | None:
    """Return a tensor's name as BERT has it; None if it is unused."""
    name = name.removeprefix("distilbert.")
    if found := _LAYER.fullmatch(name):
        i, part, last = found.groups()
        return f"encoder.layer.{i}.{_LAYER_NAMES.get(part, part)}.{last}"
    return None if _UNUSED.fullmatch(name) else name


def head_layout(kind: HeadKind, config: Config, keys: HFConfig) -> HeadLayout:
    """Return how a head is made."""
    if kind == "token":
        return HeadLayout(output="classifier", output_bias="classifier.bias")
    if kind == "sequence":
        return HeadLayout(
            dense="pre_classifier",
            activation="relu",
            output="classifier",
            output_bias="classifier.bias",
            pooling="cls",
        )
    tied = keys.get("tie_word_embeddings", bool, default=True)
    return HeadLayout(
        dense="vocab_transform",
        activation=config.hidden_act,
        norm="vocab_layer_norm",
        epsilon=config.layer_norm_eps,
        output="vocab_projector",
        output_bias="vocab_projector.bias",
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
    positions = table("position", config.max_position_embeddings)
    places = blocks.embedding(graph, encoder.positions(graph, ids), positions)  # (T, E)
    (x,) = graph.op("Add", (words, places))
    norm = weights.take_norm("embeddings.LayerNorm", width)
    return blocks.layer_norm(graph, x, norm, config.layer_norm_eps)
