"""`genai_config.json`: how onnxruntime-genai, and our own runner, see a decoder-only model.

Unknown keys anywhere make onnxruntime-genai refuse the file, so it holds nothing of our own.
https://github.com/microsoft/onnxruntime-genai/blob/v0.10.0/src/config.cpp
"""

from __future__ import annotations

import json
from typing import Protocol


class SpecialTokens(Protocol):
    """What a tokenizer says of ids that have a meaning."""

    @property
    def bos_token_id(self) -> int | None:
        """Of the token that texts begin with."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Of the tokens that end an answer."""

    @property
    def pad_token_id(self) -> int | None:
        """Of the token that fills up a shorter row."""


class DecoderConfig(Protocol):
    """What the `Config` of every decoder-only architecture has, by its names in config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int


def genai_config(config: DecoderConfig, tokenizer: SpecialTokens) -> bytes:
    """Return the content of `genai_config.json`."""
    model: dict[str, object] = {
        # a generic decoder: everything that differs between architectures is in the graph
        "type": "decoder",
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "decoder": {
            "filename": "model.onnx",
            "hidden_size": config.hidden_size,
            "head_size": config.head_dim,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "num_hidden_layers": config.num_hidden_layers,
            "session_options": {"provider_options": []},
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": list(tokenizer.eos_token_ids) or None,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model |= {key: value for key, value in ids.items() if value is not None}
    search = {
        "max_length": config.max_position_embeddings,
        "past_present_share_buffer": True,
    }
    document = {"model": model, "search": search}
    return (json.dumps(document, indent=2) + "\n").encode()
