"""GPT-2: learned positions, layer norms and biases everywhere, a feed-forward with GELU.

q, k and v are one matrix. Matrices are (out, in): in checkpoints they are (in, out), and llama.cpp's
converter turns them round.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/gpt2/modeling_gpt2.py
https://github.com/ggml-org/llama.cpp/blob/0c1e57098bba43ac29e6e3b677cdceebdd22334f/src/models/gpt2.cpp
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from weightpkg.convert import blocks, hyperparameters
from weightpkg.convert.hf_config import HFConfig
from weightpkg.convert.hf_decoder import read_layers
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows
from weightpkg.convert.weights import expand_names, transposed

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile


# What is computed from the configuration, and was written out all the same.
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")

_OF_CLASSIFIERS = """
summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
"""

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
    layer_norm_epsilon: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `gpt2.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "gpt2")
        heads = keys.get("attention.head_count", int)
        hidden_size = keys.get("embedding_length", int)
        head_dim = keys.head_size(hidden_size // max(1, heads))
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=hidden_size,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim,
            max_position_embeddings=keys.get("context_length", int),
            layer_norm_epsilon=keys.get("attention.layer_norm_epsilon", float),
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
        config.expect("architectures", ["GPT2LMHeadModel"])
        config.expect("activation_function", "gelu_new", "gelu_pytorch_tanh")
        config.expect("scale_attn_weights", True)
        config.ignore("attn_pdrop", "reorder_and_upcast_attn")
        config.ignore("n_ctx", *_OF_CLASSIFIERS.split())
        heads, hidden_size = config.get("n_head", int), config.get("n_embd", int)
        found = cls(
            vocab_size=config.get("vocab_size", int),
            hidden_size=hidden_size,
            intermediate_size=config.get("n_inner", int, 4 * hidden_size),
            num_hidden_layers=read_layers(config, "n_layer"),
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden_size // max(1, heads),
            max_position_embeddings=config.get("n_positions", int),
            layer_norm_epsilon=config.number("layer_norm_epsilon"),
        )
        config.finish()
        hyperparameters.check(found, config.name)
        return found


_GGUF_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GGUF_LAYER_NAMES = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def canonical_name(name: str) -> str | None:
    """Return the canonical name of a checkpoint's tensor; None if there is no use for it."""
    if not name.startswith(("transformer.", "lm_head.")):
        name = f"transformer.{name}"  # checkpoints of the model without its head
    return None if _MASK.fullmatch(name) else name


def canonical_weight(weight: Weight) -> Weight:
    """Return a checkpoint's tensor as GGUF has it: the layers' matrices are stored columns first."""
    is_turned = ".c_" in weight.name and weight.name.endswith("weight")
    return transposed(weight) if is_turned else weight


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
    last, total = blocks.attention_lengths(graph, mask)
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    shared = blocks.AttentionInputs(last, total, None, None, *heads)

    table = weights.take("transformer.wte.weight", (vocabulary, width))
    embedding = blocks.add_matrix(graph, table.name, [table])
    table = weights.take("transformer.wpe.weight", (config.max_position_embeddings, width))
    places = blocks.add_matrix(graph, table.name, [table])
    positions = blocks.embedding(graph, _positions(graph, ids, mask), places)
    x = blocks.add(graph, blocks.embedding(graph, ids, embedding), positions)  # (B, T, E)
    update: Value | None = None
    for i in range(config.num_hidden_layers):
        x, update = _layer(graph, x, update, weights, config, i, shared)

    norm = weights.take_norm("transformer.ln_f", width)
    x, _ = blocks.add_layer_norm(graph, x, update, norm, config.layer_norm_epsilon)
    head = blocks.add_head(graph, weights, embedding)
    blocks.output_logits(graph, blocks.head(graph, x, head), vocabulary)


def _positions(graph: Graph, ids: Value, mask: Value) -> Value:
    """ids: (B, T), mask: (B, S) -> each token's position in its row (B, T) int64.

    As the attention operator counts them: the T tokens end where the row does, but for a prompt
    that is shorter than others of its batch, whose padding comes behind it.
    """
    zero, one = (graph.constant(np.array(n, np.int64)) for n in (0, 1))
    axis = graph.constant(np.array([1], np.int64), "axes")
    (length,) = graph.op("ReduceSum", (mask, axis), attributes={"keepdims": 1})  # (B, 1)
    (count,) = graph.op("Shape", (ids,), attributes={"start": 1, "end": 2})  # (1,), T
    (start,) = graph.op("Sub", (length, count))
    (start,) = graph.op("Max", (start, zero))
    (count,) = graph.op("Squeeze", (count,))
    (steps,) = graph.op("Range", (zero, count, one))  # (T,)
    return graph.op("Add", (start, steps))[0]  # (B, 1) + (T,) -> (B, T)


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
    width, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_epsilon

    def take(name: str, rows: int, columns: int) -> tuple[Weight, Weight]:
        prefix = f"transformer.h.{i}.{name}"
        weight = weights.take(f"{prefix}.weight", (rows, columns))
        return weight, weights.take(f"{prefix}.bias", (rows,))

    norm = weights.take_norm(f"transformer.h.{i}.ln_1", width)
    normed, x = blocks.add_layer_norm(graph, x, update, norm, epsilon)
    qkv, bias = take("attn.c_attn", 3 * width, width)
    heads = blocks.attention(graph, normed, (qkv,), i, shared, (bias,))
    attended = blocks.project(graph, heads, *take("attn.c_proj", width, width))

    norm = weights.take_norm(f"transformer.h.{i}.ln_2", width)
    normed, x = blocks.add_layer_norm(graph, x, attended, norm, epsilon)
    raised = blocks.project(graph, normed, *take("mlp.c_fc", inner, width))
    activated = blocks.gelu_tanh(graph, raised)
    return x, blocks.project(graph, activated, *take("mlp.c_proj", width, inner))
