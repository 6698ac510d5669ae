"""SentencePiece's unigram model, which T5 and XLM-RoBERTa have, in the terms of `tokenizers`.

Of all ways to cut a text into tokens, the one with the best sum of scores. Before, characters are
replaced as a compiled table says (GGUF has SentencePiece's own, byte for byte), and spaces become `▁`.

transformers cuts texts at any white space for these models, whatever `remove_extra_whitespaces` says,
and llama.cpp's converter writes false for many that are cut so. Runs of spaces are therefore kept only
if the file says so and there is a token for them.
https://github.com/google/sentencepiece/blob/v0.2.0/src/normalizer.cc
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp `llm_tokenizer_ugm_session`
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

import numpy as np

from weightpkg.convert import sentencepiece
from weightpkg.convert.sentencepiece import SPACE

Json = Mapping[str, object]


def model(tokens: Sequence[str], scores: Sequence[float], unknown: int) -> Json:
    """Return what finds the tokens."""
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[token, score] for token, score in zip(tokens, scores, strict=True)],
        "byte_fallback": set(sentencepiece.BYTES) <= set(tokens),
    }


def keeps_spaces(tokens: Sequence[str]) -> bool:
    """Whether there is a token for several spaces."""
    return any(2 * SPACE in token for token in tokens)


def normalizer(charsmap: bytes, *, add_space_prefix: bool, merges_spaces: bool) -> Json | None:
    """Replace characters, and make `▁` of spaces where that is not left to `pre_tokenizer`."""
    steps: list[Json] = []
    if charsmap:
        table = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": table})
    if merges_spaces and not add_space_prefix:
        steps += [
            {"type": "Strip", "strip_left": True, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]
    if not (merges_spaces and add_space_prefix):
        steps.append(sentencepiece.normalizer(add_space_prefix=add_space_prefix))
    return {"type": "Sequence", "normalizers": steps} if steps else None


def pre_tokenizer(*, add_space_prefix: bool, merges_spaces: bool) -> Json | None:
    """Cut at white space, and put a `▁` before each word; None where spaces are `▁` already."""
    if not (merges_spaces and add_space_prefix):
        return None
    return {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE]}


_METASPACE: Json = {
    "type": "Metaspace",
    "replacement": SPACE,
    "prepend_scheme": "always",
    "split": True,
}


def is_sound(charsmap: bytes) -> bool:
    """Whether a table can be walked by any text without leaving it.

    It is a size, so many bytes of a double array, and the replacements, each with a zero behind it. A
    unit of the array leads to another one by two exclusive ors: with a number of its own, and with a
    byte of the text.
    """
    size = int.from_bytes(charsmap[:4], "little")
    array, text = charsmap[4 : 4 + size], charsmap[4 + size :]
    if not size or size % 4 or len(array) != size or not text.endswith(b"\0"):
        return False
    units = np.frombuffer(array, "<u4").astype(np.int64)
    is_value = units >> 31 == 1
    reach = (np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))) | 255
    values = units[is_value] & 0x7FFFFFFF
    if reach[~is_value].max(initial=0) >= len(units) or values.max(initial=0) >= len(text):
        return False
    begins = np.frombuffer(text, np.uint8)[values] & 0xC0 != 0x80  # where a character begins
    return bool(begins.all()) and _is_utf8(text)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
