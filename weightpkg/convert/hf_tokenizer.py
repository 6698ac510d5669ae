"""The tokenizer files of a checkpoint, carried over: what they say stays, how they are written may not.

`tokenizer.json` keeps its bytes, unless it cuts or pads texts, which is not the tokenizer's business
here. In `tokenizer_config.json` there is one chat template, and special tokens are strings, as the
runner and onnxruntime-genai want them; a checkpoint has these in several places and forms.
https://huggingface.co/docs/transformers/v4.57.0/chat_templating
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightpkg.convert.tokenizer import truncation
from weightpkg.formats.checkpoint import Checkpoint

if TYPE_CHECKING:
    from weightpkg.formats.json_text import JSON

# Gemma's, of 262,144 tokens, has 33 MB; each merge is a list of two.
_MAX_TOKENIZER_SIZE = 64 * 1024 * 1024
_MAX_TOKENIZER_MARKS = 4 * 1024 * 1024
_MAX_CONFIG_SIZE = 16 * 1024 * 1024  # added tokens, one by one, are in it too
_MAX_TEMPLATE_SIZE = 64 * 1024

_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class HFTokenizer:
    """What a model needs to turn text into ids and back, as the content of files."""

    tokenizer_json: bytes
    tokenizer_config_json: bytes
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    def files(self) -> dict[str, bytes]:
        """Return the content of each file by its name."""
        return {
            "tokenizer.json": self.tokenizer_json,
            "tokenizer_config.json": self.tokenizer_config_json,
        }


def read_tokenizer(
    checkpoint: Checkpoint, vocab_size: int, *, max_length: int | None = None
) -> HFTokenizer:
    """Read the tokenizer of a checkpoint.

    Args:
        checkpoint: its files.
        vocab_size: rows of the embedding; no token id may reach it.
        max_length: how many tokens of a text are kept; None for all.

    Raises:
        CheckpointError: a file is missing, malformed, too large, or points outside the vocabulary.
    """
    ids = _Ids(checkpoint, vocab_size)
    return HFTokenizer(
        tokenizer_json=_tokenizer_json(checkpoint, vocab_size, max_length),
        tokenizer_config_json=_tokenizer_config_json(checkpoint),
        bos_token_id=ids.one("bos_token_id"),
        eos_token_ids=ids.several("eos_token_id"),
        pad_token_id=ids.one("pad_token_id"),
    )


class _Ids:
    """Token ids of generation_config.json, or where that has none of config.json."""

    def __init__(self, checkpoint: Checkpoint, vocab_size: int) -> None:
        names = [name for name in ("generation_config.json", "config.json") if name in checkpoint]
        self._checkpoint = checkpoint
        self._vocab_size = vocab_size
        self._documents = {name: checkpoint.fields(name) for name in names}

    def several(self, key: str) -> tuple[int, ...]:
        """Return the ids; one alone is written without a list."""
        for name, fields in self._documents.items():
            value = fields.get(key)
            if value is None or value == -1:  # older files mean none by -1
                continue
            values = value if isinstance(value, list) else [value]
            return tuple(dict.fromkeys(self._checked(name, key, item) for item in values))
        return ()

    def one(self, key: str) -> int | None:
        """Return the id, or the first of several."""
        return next(iter(self.several(key)), None)

    def _checked(self, name: str, key: str, value: JSON) -> int:
        if type(value) is not int or not 0 <= value < self._vocab_size:
            reason = f"is not one of {self._vocab_size:,} tokens"
            raise self._checkpoint.error(name, reason, place=f"key `{key}`")
        return value


def _tokenizer_json(checkpoint: Checkpoint, vocab_size: int, max_length: int | None) -> bytes:
    name = "tokenizer.json"
    limits = {"max_bytes": _MAX_TOKENIZER_SIZE, "max_marks": _MAX_TOKENIZER_MARKS}
    fields = checkpoint.fields(name, **limits)
    largest = max(_vocabulary_ids(checkpoint, fields), default=-1)
    if largest >= vocab_size:
        reason = f"id {largest} is not one of {vocab_size:,} tokens"
        raise checkpoint.error(name, reason, place="vocabulary")
    # Gemma's has a token for images, which models that do not take any have no row for
    added = _added_tokens(checkpoint, fields)
    kept: list[JSON] = [token for i, token in added if i < vocab_size]
    changes: dict[str, JSON] = {"truncation": truncation(max_length), "padding": None}
    if len(kept) < len(added):
        changes["added_tokens"] = kept
    if all(fields.get(key) == value for key, value in changes.items()):
        return checkpoint.content(name, max_bytes=_MAX_TOKENIZER_SIZE)
    return _json(checkpoint, name, {**fields, **changes})


def _vocabulary_ids(checkpoint: Checkpoint, fields: dict[str, JSON]) -> list[int]:
    """Every id of the vocabulary, a table, or the last one of a list of tokens with scores."""
    model = fields.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):
        return [len(vocabulary) - 1]
    if not isinstance(vocabulary, dict):
        raise checkpoint.error("tokenizer.json", "has no `model.vocab`")
    return [_id(checkpoint, value) for value in vocabulary.values()]


def _added_tokens(checkpoint: Checkpoint, fields: dict[str, JSON]) -> list[tuple[int, JSON]]:
    """Each token that is added to the vocabulary, behind its id."""
    added = fields.get("added_tokens", [])
    if not isinstance(added, list):
        raise checkpoint.error("tokenizer.json", "has no list of added tokens")
    ids = (token.get("id") if isinstance(token, dict) else None for token in added)
    return [(_id(checkpoint, value), token) for value, token in zip(ids, added, strict=True)]


def _id(checkpoint: Checkpoint, value: JSON) -> int:
    if type(value) is not int or value < 0:
        raise checkpoint.error("tokenizer.json", "an id of a token is not a whole number")
    return value


def _tokenizer_config_json(checkpoint: Checkpoint) -> bytes:
    name = "tokenizer_config.json"
    fields: dict[str, JSON] = {}
    if name in checkpoint:
        fields = checkpoint.fields(name, max_bytes=_MAX_CONFIG_SIZE)
    special: dict[str, JSON] = {}
    if "special_tokens_map.json" in checkpoint:
        special = checkpoint.fields("special_tokens_map.json")
    fields |= {key: _plain(fields.get(key) or special.get(key)) for key in _SPECIAL_TOKENS}
    template = _chat_template(checkpoint, fields.pop("chat_template", None))
    if template is not None:
        fields["chat_template"] = template
    fields.pop("auto_map", None)  # says which code to run; none is
    fields = {key: value for key, value in fields.items() if value is not None}
    return _json(checkpoint, name, fields)


def _plain(token: JSON) -> str | None:
    """A token; where it is written with how it is to be matched, without that."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _chat_template(checkpoint: Checkpoint, value: JSON) -> str | None:
    """The template of that name, where there are several; a file of its own goes first."""
    if "chat_template.jinja" in checkpoint:
        content = checkpoint.content("chat_template.jinja", max_bytes=_MAX_TEMPLATE_SIZE)
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            reason = f"is not UTF-8 at byte {error.start:,}"
            raise checkpoint.error("chat_template.jinja", reason) from error
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
    if value is None:
        return None
    if not isinstance(value, str) or len(value.encode()) > _MAX_TEMPLATE_SIZE:
        reason = f"is not a string of at most {_MAX_TEMPLATE_SIZE:,} bytes"
        raise checkpoint.error("tokenizer_config.json", reason, place="key `chat_template`")
    return value


def _json(checkpoint: Checkpoint, name: str, fields: dict[str, JSON]) -> bytes:
    separators = (",", ":")
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=separators)
    except ValueError as error:
        raise checkpoint.error(name, "a number is too large") from error
    return text.encode()
