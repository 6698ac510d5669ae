"""Which files make a checkpoint, by their names in its directory or repository.

https://huggingface.co/docs/transformers/v4.57.0/main_classes/configuration
https://huggingface.co/docs/transformers/big_models#sharded-checkpoints (the index)
https://www.sbert.net/docs/sentence_transformer/usage/custom_models.html (modules.json)
"""

from __future__ import annotations

import re
from collections.abc import Collection

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

DOCUMENTS = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_MODULE_CONFIG = re.compile(r"\d{1,3}_[A-Za-z]{1,32}/config\.json\Z")
_SHARD = re.compile(r"[\w.-]+-\d{5,6}-of-\d{5,6}\.safetensors\Z")


def is_module_config(name: str) -> bool:
    """Whether a file configures one of the parts that sentence-transformers makes a model of."""
    return _MODULE_CONFIG.match(name) is not None


def is_weights(name: str) -> bool:
    """Whether a file has weights that may belong to a checkpoint."""
    return name.endswith(".safetensors") and "/" not in name


def is_checkpoint_file(name: str) -> bool:
    """Whether a file may belong to a checkpoint."""
    return is_weights(name) or name == INDEX_FILE or name in DOCUMENTS or is_module_config(name)


def is_checkpoint(names: Collection[str]) -> bool:
    """Whether files are a checkpoint: a configuration, and weights in one file or by an index."""
    return "config.json" in names and (SINGLE_FILE in names) != (INDEX_FILE in names)


def checkpoint_of(names: Collection[str]) -> frozenset[str]:
    """Return which files of a repository are its checkpoint, of which there may be none.

    Left out are weights that are there a second time, as in other formats or for other programs.
    """
    weights = {SINGLE_FILE} if SINGLE_FILE in names else {INDEX_FILE, *filter(_SHARD.match, names)}
    return frozenset(
        name for name in names if name in weights or name in DOCUMENTS or is_module_config(name)
    )
