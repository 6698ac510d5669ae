"""BERT: post-norm encoder with learned positions and segments, biases everywhere, and GELU.

Every token sees every other that is not padding. The pooler on top (of the first token, through tanh)
and the head of the training are left out: sentence embeddings are made of the last hidden state.

GGUF has RoBERTa and XLM-RoBERTa under this name too, with the rows of their positions cut off that
no token has, so that they count from 0; and DistilBERT, without segments. It does not say which GELU is
meant: this is the exact one that all of these were trained with, where llama.cpp computes another.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/bert/modeling_bert.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, encoder, hyperparameters
from weightpkg.convert.heads import HeadKind, HeadLayout
from weightpkg.convert.hf_config import HFConfig, check_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows, segment_rows
from weightpkg.convert.weights import expand_names

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weights
    from weightpkg.formats.gguf import GGUFFile
    from weightpkg.formats.json_text import JSON

_UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*|cls\..*")
HEADED: list[JSON] = [["BertForSequenceClassification"], ["BertForTokenClassification"]]
PREFIX = "bert."
WORDS = "embeddings.word_embeddings.weight"
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
        config.expect(
            "architectures", ["BertModel"], ["BertForMaskedLM"], ["BertForPreTraining"], *HEADED
        )
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
        )
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % found.num_attention_heads:
            raise config.unsupported("`hidden_size` is not a multiple of `num_attention_heads`")
        return found

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `bert.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "bert")
        keys.must_see_everything()
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=keys.get("embedding_length", int),
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=keys.get("attention.head_count", int),
            max_position_embeddings=keys.get("context_length", int),
            type_vocab_size=segment_rows(file),
            layer_norm_eps=keys.get("attention.layer_norm_epsilon", float),
            hidden_act="gelu",
        )
        keys.ignore("pooling_type")  # of what is made of the last hidden state
        keys.finish()
        hyperparameters.check_encoder(config, file.name)
        return config

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""
        return self.max_position_embeddings


def canonical_name(name: str) -> str | None:
    """Return a tensor's name without what models with a head put before it; None if it is unused."""
    name = name.removeprefix("bert.")
    stem, _, last = name.rpartition(".")
    name = f"{stem}.{_OLD_NAMES.get(last, last)}"
    return None if _UNUSED.fullmatch(name) else name


def head_layout(kind: HeadKind, config: Config, keys: HFConfig) -> HeadLayout:
    """Return how a head is made: that of a text is on the pooler."""
    if kind == "token":
        return HeadLayout(output="classifier", output_bias="classifier.bias")
    if kind == "sequence":
        return HeadLayout(
            dense="pooler.dense", output="classifier", output_bias="classifier.bias", pooling="cls"
        )
    tied = keys.get("tie_word_embeddings", bool, default=True)
    return HeadLayout(
        dense="cls.predictions.transform.dense",
        activation=config.hidden_act,
        norm="cls.predictions.transform.LayerNorm",
        epsilon=config.layer_norm_eps,
        output="cls.predictions.decoder",
        output_bias="cls.predictions.bias",
        tied=WORDS if tied else None,
    )


_GGUF_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_GGUF_LAYER_NAMES = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
    n_layers = config.num_hidden_layers
    return expand_names(_GGUF_NAMES, _GGUF_LAYER_NAMES, n_layers, "encoder.layer")


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

    x = blocks.embedding(graph, ids, table("word", config.vocab_size))
    kinds: Value | None = None
    if config.type_vocab_size:
        kinds = encoder.segments(graph, weights, config.type_vocab_size, width)
    positions = table("position", config.max_position_embeddings)
    places = blocks.embedding(graph, encoder.positions(graph, ids), positions)  # (T, E)
    if kinds is not None:
        (x,) = graph.op("Add", (x, kinds))
    (x,) = graph.op("Add", (x, places))
    norm = weights.take_norm("embeddings.LayerNorm", width)
    return blocks.layer_norm(graph, x, norm, config.layer_norm_eps)
