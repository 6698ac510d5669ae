"""WordPiece, BERT's way of finding tokens, in the terms of Hugging Face's `tokenizers`.

Text is cut into words and signs; a word is the longest token that begins it, the longest one that goes
on from there, and so on, or unknown as a whole. BERT marks tokens that go on with `##`, GGUF those that
begin with `▁`, which is undone here, and says at most whether letters become small.

Where llama.cpp does otherwise than BERT's own tokenizer, this follows the latter: words of over 100
characters are unknown, and Korean syllables keep all of their letters.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp `llm_tokenizer_wpm_session`
https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/tokenization.py
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

Json = Mapping[str, object]

_BEGINNING = "▁"
_CONTINUATION = "##"
_MAX_WORD = 100  # characters; a longer one is unknown


def bert_spelling(tokens: Sequence[str], whole: Collection[int]) -> list[str]:
    """Return tokens as BERT spells them.

    Args:
        tokens: as GGUF has them.
        whole: ids of those that are no part of words, which are spelled the same in both.

    >>> bert_spelling(["[CLS]", "▁sky", "s", "[unused0]"], {0})
    ['[CLS]', 'sky', '##s', '[unused0]']
    """
    return [
        token.removeprefix(_BEGINNING) if i in whole else _spelling(token)
        for i, token in enumerate(tokens)
    ]


def _spelling(token: str) -> str:
    # older files leave everything in brackets as it is; no word goes on with a bracket
    if token.startswith("[") and token.endswith("]"):
        return token
    if token.startswith(_BEGINNING):
        return token.removeprefix(_BEGINNING)
    return _CONTINUATION + token


def is_uncased(tokens: Sequence[str], special: Collection[int]) -> bool:
    """Whether a vocabulary is one of text in small letters."""
    words = (token for i, token in enumerate(tokens) if i not in special and token[:1] != "[")
    return all(token == token.lower() for token in words)


def model(tokens: Sequence[str], unknown: str) -> Json:
    """Return what finds the tokens of a word."""
    return {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": _CONTINUATION,
        "max_input_chars_per_word": _MAX_WORD,
        "vocab": {token: i for i, token in enumerate(tokens)},
    }


def normalizer(*, lowercase: bool, strip_accents: bool) -> Json:
    """Control characters are left out, and Chinese ones become words."""
    return {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strip_accents,
        "lowercase": lowercase,
    }


PRE_TOKENIZER: Json = {"type": "BertPreTokenizer"}
DECODER: Json = {"type": "WordPiece", "prefix": _CONTINUATION, "cleanup": True}
