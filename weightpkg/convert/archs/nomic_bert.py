"""Nomic BERT: BERT's post-norm layers with rotary positions, SwiGLU, and no biases but those of norms.

Its checkpoints come with code of their own (`auto_map`), whose names and configuration are GPT-2's;
transformers 5 has the same model under other names. Both are read; the code is not.
https://huggingface.co/nomic-ai/nomic-bert-2048/blob/main/modeling_hf_nomic_bert.py
https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/nomic_bert/modeling_nomic_bert.py
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert import blocks, encoder, hyperparameters, rope, rotary
from weightpkg.convert.hf_config import HFConfig, check_sizes
from weightpkg.convert.hyperparameters import Hyperparameters, embedding_rows, segment_rows
from weightpkg.convert.weights import expand_names

if TYPE_CHECKING:
    from weightpkg.convert.graph import Graph, Value
    from weightpkg.convert.weights import Weight, Weights
    from weightpkg.formats.gguf import GGUFFile
    from weightpkg.formats.json_text import JSON

_UNUSED = re.compile(r"pooler\..*|cls\..*|.*rotary_emb\..*")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_LAYER_NAMES = {
    "attn.Wqkv": "self_attn.qkv_proj",
    "attn.out_proj": "self_attn.o_proj",
    "mlp.fc11": "mlp.up_proj",
    "mlp.fc12": "mlp.gate_proj",
    "mlp.fc2": "mlp.down_proj",
    "norm1": "post_attention_layernorm",
    "norm2": "post_mlp_layernorm",
}

# What other code computes is not known; this is it.
_CODE = {
    "AutoConfig": "configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "modeling_hf_nomic_bert.NomicBertModel",
    "AutoModelForMaskedLM": "modeling_hf_nomic_bert.NomicBertForPreTraining",
    "AutoModelForSequenceClassification": "modeling_hf_nomic_bert.NomicBertForSequenceClassification",
    "AutoModelForMultipleChoice": "modeling_hf_nomic_bert.NomicBertForMultipleChoice",
    "AutoModelForQuestionAnswering": "modeling_hf_nomic_bert.NomicBertForQuestionAnswering",
    "AutoModelForTokenClassification": "modeling_hf_nomic_bert.NomicBertForTokenClassification",
}
_REPOSITORIES = ("", "nomic-ai/nomic-bert-2048--")

# Of training, of heads, or of how that code computes.
_IGNORED = """
attn_pdrop dense_seq_output fused_bias_fc fused_dropout_add_ln max_trained_positions
pad_vocab_size_multiple reorder_and_upcast_attn summary_activation summary_first_dropout
summary_proj_to_labels summary_type summary_use_proj use_flash_attn use_xentropy
"""


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
    rope_theta: float
    rope_factor: float

    @classmethod
    def from_hf(cls, config: HFConfig) -> Config:
        """Read config.json.

        Raises:
            CheckpointError: a key is missing or of the wrong type.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        config.expect(
            "architectures",
            ["NomicBertModel"],
            ["NomicBertForMaskedLM"],
            ["NomicBertForPreTraining"],
        )
        _expect_known_code(config)
        config.expect("tie_word_embeddings", True, False)  # of a head that is left out
        found = _by_gpt_2_names(config) if "n_embd" in config else _by_own_names(config)
        config.finish()
        check_sizes(found, config)
        if found.hidden_size % (2 * found.num_attention_heads) or found.rope_theta <= 1:
            raise config.unsupported(
                "the heads are not of an even size, or rope_theta is too small"
            )
        return found

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Config:
        """Read the `nomic-bert.*` keys.

        Raises:
            GGUFError: a key is missing or of the wrong type.
            TensorMismatchError: there is no embedding.
            UnsupportedArchitectureError: a key changes the mathematics in a way not known here.
        """
        keys = Hyperparameters(file, "nomic-bert")
        keys.must_see_everything()
        heads, width = keys.get("attention.head_count", int), keys.get("embedding_length", int)
        keys.check_whole_heads_rotate(width // max(1, heads))
        config = cls(
            vocab_size=embedding_rows(file),
            hidden_size=width,
            intermediate_size=keys.get("feed_forward_length", int),
            num_hidden_layers=keys.layers(),
            num_attention_heads=heads,
            max_position_embeddings=keys.get("context_length", int),
            type_vocab_size=segment_rows(file),
            layer_norm_eps=keys.get("attention.layer_norm_epsilon", float),
            rope_theta=keys.get("rope.freq_base", float, 10000.0),
            rope_factor=keys.linear_rope_factor(),
        )
        keys.ignore("pooling_type")  # of what is made of the last hidden state
        keys.finish()
        hyperparameters.check_encoder(config, file.name)
        return config

    @property
    def max_length(self) -> int:
        """How many tokens a text may have."""
        return self.max_position_embeddings


def _by_gpt_2_names(config: HFConfig) -> Config:
    expected: dict[str, JSON] = {
        "activation_function": "swiglu",
        "rotary_emb_fraction": 1,
        "scale_attn_weights": True,
    }
    for key, handled in expected.items():
        config.expect(key, handled)
    config.ignore(*_IGNORED.split())
    found = Config(
        vocab_size=config.get("vocab_size", int),
        hidden_size=config.get("n_embd", int),
        intermediate_size=config.get("n_inner", int),
        num_hidden_layers=config.get("n_layer", int),
        num_attention_heads=config.get("n_head", int),
        max_position_embeddings=config.get("n_positions", int),
        type_vocab_size=config.get("type_vocab_size", int, 2),
        layer_norm_eps=config.number("layer_norm_epsilon"),
        rope_theta=config.number("rotary_emb_base"),
        rope_factor=1.0,
    )
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        config.expect(key, getattr(found, key))  # written a second time
    config.expect("max_position_embeddings", found.max_position_embeddings)
    config.expect("layer_norm_eps", found.layer_norm_eps)
    config.expect("hidden_act", "silu")
    return found


def _by_own_names(config: HFConfig) -> Config:
    config.expect("hidden_act", "silu")
    theta = 1000.0
    if (group := config.group("rope_parameters")) is not None:
        theta = group.number("rope_theta", theta)
        group.expect("rope_type", "default")
        group.finish()
    found = Config(
        vocab_size=config.get("vocab_size", int),
        hidden_size=config.get("hidden_size", int),
        intermediate_size=config.get("intermediate_size", int),
        num_hidden_layers=config.get("num_hidden_layers", int),
        num_attention_heads=config.get("num_attention_heads", int),
        max_position_embeddings=config.get("max_position_embeddings", int),
        type_vocab_size=config.get("type_vocab_size", int, 2),
        layer_norm_eps=config.number("layer_norm_eps", 1e-12),
        rope_theta=theta,
        rope_factor=1.0,
    )
    config.expect("head_dim", found.hidden_size // max(1, found.num_attention_heads))
    return found


def _expect_known_code(config: HFConfig) -> None:
    group = config.group("auto_map")
    if group is not None:
        for key, code in _CODE.items():
            group.expect(key, *(f"{repository}{code}" for repository in _REPOSITORIES))
        group.finish()


def canonical_name(name: str) -> str | None:
    """Return a tensor's name as transformers 5 has it; None if it is unused."""
    name = re.sub(r"^(nomic_)?bert\.", "", name)
    if _UNUSED.fullmatch(name):
        return None
    if found := _LAYER.fullmatch(name):
        i, part, last = found.groups()
        return f"layers.{i}.{_LAYER_NAMES.get(part, part)}.{last}"
    return re.sub(r"^emb_ln\.", "embeddings.LayerNorm.", name)


_GGUF_NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_GGUF_LAYER_NAMES = {
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_output_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_down": "mlp.down_proj",
    "layer_output_norm": "post_mlp_layernorm",
}


def gguf_names(config: Config) -> dict[str, str]:
    """Return each GGUF tensor name with its canonical name."""
    return expand_names(_GGUF_NAMES, _GGUF_LAYER_NAMES, config.num_hidden_layers, "layers")


def build(graph: Graph, weights: Weights, config: Config) -> tuple[Value, Value]:
    """Add the encoder to the graph, taking all of its weights.

    Returns:
        The last hidden state (B, T, E), which is an output too, and the attention mask (B, T) int64.

    Raises:
        TensorMismatchError: a tensor is missing or has another shape than the configuration says.
    """
    ids, mask = encoder.token_inputs(graph)
    x = _embeddings(graph, ids, weights, config)
    size = config.hidden_size // config.num_attention_heads
    frequencies = rope.inverse_frequencies(config.rope_theta, size) / config.rope_factor
    rotation = encoder.rotation(graph, frequencies, config.max_position_embeddings)
    seen = encoder.seen_tokens(graph, mask)
    for i in range(config.num_hidden_layers):
        x = _layer(graph, x, seen, weights, config, f"layers.{i}.", rotation)
    return encoder.output_hidden_state(graph, x, config.hidden_size), mask


def _embeddings(graph: Graph, ids: Value, weights: Weights, config: Config) -> Value:
    """ids: (B, T) int64 -> (B, T, E)."""
    width, name = config.hidden_size, "embeddings.word_embeddings.weight"
    words = encoder.table(graph, weights, name, (config.vocab_size, width))
    x = blocks.embedding(graph, ids, words)
    if config.type_vocab_size:
        kinds = encoder.segments(graph, weights, config.type_vocab_size, width)
        (x,) = graph.op("Add", (x, kinds))
    norm = weights.take_norm("embeddings.LayerNorm", width)
    return blocks.layer_norm(graph, x, norm, config.layer_norm_eps)


def _layer(
    graph: Graph,
    x: Value,
    seen: Value,
    weights: Weights,
    config: Config,
    prefix: str,
    rotation: rotary.Rotation,
) -> Value:
    """x: (B, T, E), seen: (B, T) int32 -> (B, T, E)."""
    width, inner, epsilon = config.hidden_size, config.intermediate_size, config.layer_norm_eps

    def take(name: str, *shape: int) -> Weight:
        return weights.take(f"{prefix}{name}.weight", shape)

    q, k, v = _heads(graph, x, weights, width, f"{prefix}self_attn.")
    q, k = rotary.rotate(graph, q, rotation), rotary.rotate(graph, k, rotation)
    mixed = encoder.attend(graph, (q, k, v), seen, config.num_attention_heads)
    attended = blocks.project(graph, mixed, take("self_attn.o_proj", width, width))
    norm = weights.take_norm(f"{prefix}post_attention_layernorm", width)
    x = encoder.add_and_norm(graph, attended, x, norm, epsilon)

    pair = [take(f"mlp.{part}_proj", inner, width) for part in ("gate", "up")]
    down = take("mlp.down_proj", width, inner)
    h = blocks.swiglu_mlp(graph, x, pair, down, f"{prefix}gate_up")
    norm = weights.take_norm(f"{prefix}post_mlp_layernorm", width)
    return encoder.add_and_norm(graph, h, x, norm, epsilon)


def _heads(graph: Graph, x: Value, weights: Weights, width: int, prefix: str) -> tuple[Value, ...]:
    """x: (B, T, E) -> queries, keys and values, each (B, T, E), by one matrix or by three."""
    whole = f"{prefix}qkv_proj.weight"
    if whole in weights:
        qkv = blocks.project(graph, x, weights.take(whole, (3 * width, width)))
        return blocks.split(graph, qkv, [width] * 3)
    names = [f"{prefix}{part}_proj.weight" for part in "qkv"]
    parts = [weights.take(name, (width, width)) for name in names]
    return blocks.projections(graph, x, parts, f"{prefix}qkv")
