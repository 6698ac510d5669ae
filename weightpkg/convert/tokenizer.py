"""GGUF metadata to the tokenizer files that Hugging Face's `tokenizers` reads.

Two kinds are known, both of which join pairs of tokens: byte-level ones (`gpt2`), and SentencePiece's
(`llama`). A byte-level one names its pre-tokenizer (`tokenizer.ggml.pre`) and leaves its meaning to
llama.cpp; the table below spells each out as the model's own tokenizer.json does. One that is not in
the table is refused: a tokenizer that is nearly right makes a model quietly worse.

Names and behaviour: https://github.com/ggml-org/llama.cpp/blob/b6700/src/llama-vocab.cpp
File format: https://github.com/huggingface/tokenizers/tree/v0.22.0/tokenizers/src
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from weightpkg.convert import sentencepiece
from weightpkg.errors import GGUFError, UnsupportedFormatError

if TYPE_CHECKING:
    from weightpkg.formats.gguf import GGUFFile

Json = Mapping[str, object]


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _byte_level(*, use_regex: bool) -> Json:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(pattern: str) -> Json:
    regex = {"Regex": pattern}
    return {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}


# Words, digits in groups of so many, punctuation with the line ends that follow, line ends, spaces.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As above, but words begin where capitals do, and contractions belong to them. llama.cpp tells only
# the capitals of ASCII from small letters here; this is the model's own expression.
_GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Letters that are capital or small, as DeepSeek's first tokenizers list them.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5"
    "\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_CASED}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}+",
)
_DEEPSEEK_CODER = (
    r"[\r\n]",
    r"\s?\p{L}+",
    r"\s?\p{P}+",
    "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
    r"\p{N}",
)
_DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    (
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
)


def _splits(patterns: Sequence[str]) -> Sequence[Json]:
    """Split by one expression after the other."""
    return (*map(_split, patterns), _byte_level(use_regex=False))


_BY_GPT_2 = (_byte_level(use_regex=True),)
_BY_DIGIT = ({"type": "Digits", "individual_digits": True}, *_BY_GPT_2)
_BY_WORD_AND_DIGIT = (_split(_WORDS % ""), _byte_level(use_regex=False))
_BY_WORD_AND_THREE_DIGITS = (_split(_WORDS % "{1,3}"), _byte_level(use_regex=False))
_BY_PUNCTUATION = (_split(r"[\p{P}$+<=>^~|`]+"), *_BY_GPT_2, _split("[0-9][0-9][0-9]"))

PRE_TOKENIZERS: dict[str, Sequence[Json]] = {
    "dbrx": _BY_WORD_AND_THREE_DIGITS,
    "deepseek-coder": _splits(_DEEPSEEK_CODER),
    "deepseek-llm": _splits(_DEEPSEEK_LLM),
    "deepseek-r1-qwen": _BY_WORD_AND_DIGIT,
    "deepseek-v3": _splits(_DEEPSEEK_V3),
    "falcon": _BY_PUNCTUATION,
    "falcon3": _BY_WORD_AND_THREE_DIGITS,
    "gpt-2": _BY_GPT_2,
    "gpt-4o": (_split(_GPT_4O), _byte_level(use_regex=False)),
    "llama-bpe": _BY_WORD_AND_THREE_DIGITS,
    "llama-v3": _BY_WORD_AND_THREE_DIGITS,
    "llama3": _BY_WORD_AND_THREE_DIGITS,
    "megrez": _BY_WORD_AND_DIGIT,
    "mpt": _BY_GPT_2,
    "olmo": _BY_GPT_2,
    "phi-2": _BY_GPT_2,
    "qwen2": _BY_WORD_AND_DIGIT,
    "refact": _BY_DIGIT,
    "smaug-bpe": _BY_WORD_AND_THREE_DIGITS,
    "smollm": _BY_DIGIT,
    "stablelm2": _BY_WORD_AND_DIGIT,
    "starcoder": _BY_DIGIT,
}

# llama.cpp takes a token that is in the vocabulary whole, without merging, for these, and puts the
# first token in front unless the file says otherwise.
_LLAMA_3 = {"falcon3", "llama-bpe", "llama-v3", "llama3"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """How text becomes tokens by joining pairs, and what is done before and after.

    adds_bos: whether the first token is put in front where the file does not say.
    """

    merges: Sequence[str]
    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    post_processor: Json | None = None
    decoder: Json
    byte_fallback: bool = False
    ignore_merges: bool = False
    adds_bos: bool
    tokenizer_class: str = "PreTrainedTokenizerFast"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """What a model needs to turn text into ids and back."""

    tokens: Sequence[str]
    token_types: Sequence[int]
    pairs: Pairs
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    unk_token_id: int | None
    add_bos_token: bool
    chat_template: str | None

    def tokenizer_json(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": self._added_tokens(),
            "normalizer": self.pairs.normalizer,
            "pre_tokenizer": self.pairs.pre_tokenizer,
            "post_processor": self._post_processor(),
            "decoder": self.pairs.decoder,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": self.pairs.byte_fallback,
                "ignore_merges": self.pairs.ignore_merges,
                "vocab": {token: i for i, token in enumerate(self.tokens)},
                "merges": self.pairs.merges,
            },
        }
        return _json(document)

    def tokenizer_config_json(self) -> bytes:
        """Return the content of `tokenizer_config.json`."""
        document: dict[str, object] = {
            "tokenizer_class": self.pairs.tokenizer_class,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.add_bos_token,
            "bos_token": self._token(self.bos_token_id),
            "eos_token": self._token(self.eos_token_ids[0] if self.eos_token_ids else None),
            "unk_token": self._token(self.unk_token_id),
            "pad_token": self._token(self.pad_token_id),
        }
        if self.chat_template is not None:
            document["chat_template"] = self.chat_template
        return _json(document)

    def _token(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]

    def _added_tokens(self) -> list[Json]:
        special = {TokenType.CONTROL: True, TokenType.UNKNOWN: True, TokenType.USER_DEFINED: False}
        return [
            {
                "id": i,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special[TokenType(kind)],
            }
            for i, (token, kind) in enumerate(zip(self.tokens, self.token_types, strict=True))
            if kind in special
        ]

    def _post_processor(self) -> Json | None:
        first_step = self.pairs.post_processor
        if not self.add_bos_token or self.bos_token_id is None:
            return first_step
        bos = self.tokens[self.bos_token_id]
        first: Json = {"SpecialToken": {"id": bos, "type_id": 0}}
        template = {
            "type": "TemplateProcessing",
            "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                first,
                {"Sequence": {"id": "A", "type_id": 0}},
                first,
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {bos: {"id": bos, "ids": [self.bos_token_id], "tokens": [bos]}},
        }
        if first_step is None:
            return template
        return {"type": "Sequence", "processors": [first_step, template]}


def _json(document: Json) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def read_gguf(file: GGUFFile, vocab_size: int) -> Tokenizer:
    """Read the tokenizer out of a GGUF file's metadata.

    Args:
        file: an open file.
        vocab_size: rows of the embedding; no token id may reach it.

    Raises:
        GGUFError: a key is missing, of the wrong type, or points outside the vocabulary.
        UnsupportedFormatError: a kind of tokenizer, or a pre-tokenizer, that is not known.
    """
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in _DEFAULT_IDS:
        raise UnsupportedFormatError(f"`{file.name}`: tokenizer `{kind}` is not converted yet")
    tokens = file.array("tokenizer.ggml.tokens", str)
    types = file.array("tokenizer.ggml.token_type", int, len(tokens) * [int(TokenType.NORMAL)])
    _check_vocabulary(file, tokens, types, vocab_size)
    is_sentencepiece = kind == "llama"
    pairs = (
        _sentencepiece(file, tokens, types) if is_sentencepiece else _byte_level_bpe(file, tokens)
    )

    def token_id(name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        if key in file.metadata:
            return _checked_id(file, key, len(tokens))
        default = _DEFAULT_IDS[kind].get(name)
        return default if default is not None and default < len(tokens) else None

    ends = [token_id(name) for name in ("eos", "eot", "eom")]
    if is_sentencepiece:
        ends += [i for i, token in enumerate(tokens) if token == _END_OF_TURN]
    return Tokenizer(
        tokens=tokens,
        token_types=types,
        pairs=pairs,
        bos_token_id=token_id("bos"),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        pad_token_id=token_id("padding"),
        unk_token_id=token_id("unknown"),
        add_bos_token=file.get("tokenizer.ggml.add_bos_token", bool, pairs.adds_bos),
        chat_template=file.get("tokenizer.chat_template", str, "") or None,
    )


# The kinds of tokenizers, and the ids that llama.cpp takes where a file does not name them.
_DEFAULT_IDS: dict[str, Mapping[str, int]] = {
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
}

# Ends an answer under whatever key the file has it, or under none: so do llama.cpp and Gemma.
_END_OF_TURN = "<end_of_turn>"


def _byte_level_bpe(file: GGUFFile, tokens: Sequence[str]) -> Pairs:
    pre = file.get("tokenizer.ggml.pre", str, "gpt-2")
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedFormatError(
            f"`{file.name}`: pre-tokenizer `{pre}` is not known",
            hint=f"those that are: {', '.join(sorted(PRE_TOKENIZERS))}",
        )
    byte_level = _byte_level(use_regex=True)
    return Pairs(
        merges=_merges(file, set(tokens)),
        pre_tokenizer={"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        post_processor=byte_level,
        decoder=byte_level,
        ignore_merges=pre in _LLAMA_3,
        adds_bos=pre in _LLAMA_3,
    )


def _sentencepiece(file: GGUFFile, tokens: Sequence[str], types: Sequence[int]) -> Pairs:
    scores = file.array("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise file.error("tokenizer.ggml.scores", f"{len(scores)} scores, {len(tokens)} tokens")
    if missing := sorted(set(sentencepiece.BYTES).difference(tokens)):
        raise file.error("tokenizer.ggml.tokens", f"there is no {missing[0]}")
    if file.get("tokenizer.ggml.add_eos_token", bool, default=False):
        raise UnsupportedFormatError(f"`{file.name}`: a token after each text is not handled")
    # other types are never joined: special tokens are found in the text before, bytes come after
    joined = {TokenType.NORMAL, TokenType.UNUSED}
    candidates = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind in joined and " " not in token  # text has none by then
    }
    add_space_prefix = file.get("tokenizer.ggml.add_space_prefix", bool, default=True)
    return Pairs(
        merges=sentencepiece.merges(file.name, candidates),
        normalizer=sentencepiece.normalizer(add_space_prefix=add_space_prefix),
        decoder=sentencepiece.decoder(add_space_prefix=add_space_prefix),
        byte_fallback=True,
        adds_bos=True,
        # onnxruntime-genai joins pairs exactly under this name only
        tokenizer_class="LlamaTokenizer" if add_space_prefix else "GemmaTokenizer",
    )


def _check_vocabulary(
    file: GGUFFile, tokens: Sequence[str], types: Sequence[int], vocab_size: int
) -> None:
    key = "metadata key `tokenizer.ggml.tokens`"
    if not 0 < len(tokens) <= vocab_size:
        raise GGUFError(file.name, key, f"{len(tokens)} tokens for {vocab_size} embeddings")
    if len(set(tokens)) != len(tokens):
        raise GGUFError(file.name, key, "the same token twice")
    if len(types) != len(tokens) or not set(types) <= set(TokenType):
        key = "metadata key `tokenizer.ggml.token_type`"
        raise GGUFError(file.name, key, "not a type from 1 to 6 for each token")


def _checked_id(file: GGUFFile, key: str, count: int) -> int:
    value = file.get(key, int)
    if not 0 <= value < count:
        raise GGUFError(file.name, f"metadata key `{key}`", f"{value} is not one of {count} tokens")
    return value


def _merges(file: GGUFFile, tokens: set[str]) -> Sequence[str]:
    """Return the merges, each checked to join two tokens into a third."""
    merges = file.array("tokenizer.ggml.merges", str)
    for i, merge in enumerate(merges):
        left, space, right = merge.partition(" ")
        if not space or left not in tokens or right not in tokens or left + right not in tokens:
            place = f"metadata key `tokenizer.ggml.merges`, item {i}"
            raise GGUFError(file.name, place, f"{merge!r} does not join two tokens into a third")
    return merges
