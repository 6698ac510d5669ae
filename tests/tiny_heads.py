"""Tiny checkpoints with heads: those of tests/checkpoints/ and what is on top, by architecture and task.

Golden numbers are in tests/data/heads.json (scripts/make_golden_heads.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.numpy

from tiny_checkpoint import TinyCheckpoint, tokenizer_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "data" / "heads.json"
LABELS = {"0": "bad", "1": "so-so", "2": "good"}
MASK = "<|im_end|>"
"""Of the special tokens of the tiny vocabulary, one that stands for a gap here."""

E, V, L = 64, 302, 3


@dataclass(frozen=True)
class TinyHead:
    """A page, the class of transformers, and tensors that it has beside those of the page."""

    page: str
    architecture: str
    tensors: dict[str, tuple[int, ...]]
    config: dict[str, Any] = field(default_factory=dict)

    def drawn(self) -> dict[str, NDArray[np.float32]]:
        """All tensors: the encoder's as the page has them, under the names of a model with a head."""
        prefix = {"bert": "bert.", "distilbert": "", "roberta": "", "modernbert": ""}[self.page]
        page = TinyCheckpoint.read(self.page).tensors()
        heads = ("lm_head.", "vocab_", "head.", "decoder.", "cls.")
        found = {f"{prefix}{k}": v for k, v in page.items() if not k.startswith(heads)}
        random = np.random.default_rng(len(self.architecture))
        for name, shape in self.tensors.items():
            is_norm = len(shape) == 1 and name.endswith(("norm.weight", "Norm.weight"))
            spread = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
            found[name] = random.normal(float(is_norm), spread, shape).astype(np.float32)
        return found

    def write(self, directory: Path, **config: Any) -> Path:
        """Write a checkpoint into a new directory; return it."""
        page = TinyCheckpoint.read(self.page)
        labels = {} if self.architecture.endswith("MaskedLM") else {"id2label": LABELS}
        keys = {"architectures": [self.architecture], **labels, **self.config, **config}
        page.changed(**keys).write(directory)
        for name in ("modules.json", "sentence_bert_config.json"):
            (directory / name).unlink(missing_ok=True)
        tokenizer = {**tokenizer_config(), "mask_token": MASK}
        (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        safetensors.numpy.save_file(self.drawn(), directory / "model.safetensors", {"format": "pt"})
        return directory


def _linear(name: str, rows: int, width: int = E) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, width), f"{name}.bias": (rows,)}


def _norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (E,), f"{name}.bias": (E,)}


_BERT_WORDS = {
    **_linear("cls.predictions.transform.dense", E),
    **_norm("cls.predictions.transform.LayerNorm"),
    "cls.predictions.bias": (V,),
}
_MODERN = {"head.dense.weight": (E, E), "head.norm.weight": (E,)}
_SEQUENCE, _TOKEN, _MASKED = "ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"

HEADS = {
    "bert-sequence": TinyHead("bert", f"Bert{_SEQUENCE}", _linear("classifier", L)),
    "bert-token": TinyHead("bert", f"Bert{_TOKEN}", _linear("classifier", L)),
    "bert-masked": TinyHead("bert", f"Bert{_MASKED}", _BERT_WORDS),
    "bert-untied": TinyHead(
        "bert",
        f"Bert{_MASKED}",
        {
            **{name: shape for name, shape in _BERT_WORDS.items() if name[-6:] != "s.bias"},
            **_linear("cls.predictions.decoder", V),
        },
        {"tie_word_embeddings": False, "hidden_act": "gelu_new"},
    ),
    "distilbert-sequence": TinyHead(
        "distilbert",
        f"DistilBert{_SEQUENCE}",
        {**_linear("pre_classifier", E), **_linear("classifier", L)},
    ),
    "distilbert-token": TinyHead("distilbert", f"DistilBert{_TOKEN}", _linear("classifier", L)),
    "distilbert-masked": TinyHead(
        "distilbert",
        f"DistilBert{_MASKED}",
        {
            **_linear("vocab_transform", E),
            **_norm("vocab_layer_norm"),
            "vocab_projector.bias": (V,),
        },
    ),
    "roberta-sequence": TinyHead(
        "roberta",
        f"Roberta{_SEQUENCE}",
        {**_linear("classifier.dense", E), **_linear("classifier.out_proj", L)},
    ),
    "roberta-token": TinyHead("roberta", f"Roberta{_TOKEN}", _linear("classifier", L)),
    "roberta-masked": TinyHead(
        "roberta",
        f"Roberta{_MASKED}",
        {**_linear("lm_head.dense", E), **_norm("lm_head.layer_norm"), "lm_head.bias": (V,)},
    ),
    "modernbert-sequence": TinyHead(
        "modernbert", f"ModernBert{_SEQUENCE}", {**_MODERN, **_linear("classifier", L)}
    ),
    "modernbert-cls": TinyHead(
        "modernbert",
        f"ModernBert{_SEQUENCE}",
        {**_MODERN, "head.dense.bias": (E,), **_linear("classifier", L)},
        {"classifier_pooling": "cls", "classifier_bias": True, "classifier_activation": "relu"},
    ),
    "modernbert-token": TinyHead(
        "modernbert", f"ModernBert{_TOKEN}", {**_MODERN, **_linear("classifier", L)}
    ),
    "modernbert-masked": TinyHead(
        "modernbert", f"ModernBert{_MASKED}", {**_MODERN, "decoder.bias": (V,)}
    ),
}


def two_texts(page: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens (2, 20), of which the second text has 7, and their mask."""
    tiny = TinyCheckpoint.read(page)
    ids = np.array(tiny.golden["tokens"]).reshape(2, -1)
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = tiny.config["pad_token_id"]
    return ids, mask


def some(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """logits: (B, L), (B, T, L) or (B, T, V) -> those that golden numbers are of."""
    return logits if logits.ndim == 2 else logits[:, :7:3, ::40] if logits.shape[2] == V else logits[:, :7:2]  # fmt: skip
