"""GGUF metadata to the tokenizer files that Hugging Face's `tokenizers` reads.

Those that join pairs of tokens are byte-level ones (`gpt2`) and SentencePiece's (`llama`); encoders have
WordPiece (`bert`) and SentencePiece's unigram model (`t5`) as well. A byte-level one names its pre-tokenizer (`tokenizer.ggml.pre`) and leaves its meaning to
llama.cpp; the table below spells each out as the model's own tokenizer.json does. One that is not in
the table is refused: a tokenizer that is nearly right makes a model quietly worse.

Names and behaviour: https://github.com/ggml-org/llama.cpp/blob/b6700/src/llama-vocab.cpp
File format: https://github.com/huggingface/tokenizers/tree/v0.22.0/tokenizers/src
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Literal

from weightpkg.convert import sentencepiece, unigram, wordpiece
from weightpkg.errors import GGUFError, UnsupportedFormatError

if TYPE_CHECKING:
    from weightpkg.formats.gguf import GGUFFile
    from weightpkg.formats.json_text import JSON

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
    "roberta-bpe": _BY_GPT_2,
    "smaug-bpe": _BY_WORD_AND_THREE_DIGITS,
    "smollm": _BY_DIGIT,
    "stablelm2": _BY_WORD_AND_DIGIT,
    "starcoder": _BY_DIGIT,
}

# llama.cpp takes a token that is in the vocabulary whole, without merging, for these, and puts the
# first token in front unless the file says otherwise.
_LLAMA_3 = {"falcon3", "llama-bpe", "llama-v3", "llama3"}

# Has a token before and behind each text, which older files do not say.
_ROBERTA = "roberta-bpe"


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmentation:
    """How text becomes tokens: the model of `tokenizers`, and what is done before and after.

    adds_bos, adds_eos: whether the first and the last token are added where the file does not say.
    """

    model: Json
    normalizer: Json | None = None
    pre_tokenizer: Json | None = None
    post_processor: Json | None = None
    decoder: Json
    adds_bos: bool = False
    adds_eos: bool = False
    tokenizer_class: str = "PreTrainedTokenizerFast"


Part = tuple[int | Literal["A", "B"], int]
"""A token's id, or a text, and the segment that it belongs to."""


@dataclass(frozen=True, slots=True)
class Template:
    """What stands around one text, and around two."""

    single: Sequence[Part]
    pair: Sequence[Part]

    def processor(self, tokens: Sequence[str]) -> Json | None:
        """Return what makes it, or None where it is the text alone."""
        ids = sorted({part for part, _ in (*self.single, *self.pair) if isinstance(part, int)})
        if not ids:
            return None
        names = [(tokens[i], i) for i in ids]
        return {
            "type": "TemplateProcessing",
            "single": [_piece(tokens, part) for part in self.single],
            "pair": [_piece(tokens, part) for part in self.pair],
            "special_tokens": {
                name: {"id": name, "ids": [i], "tokens": [name]} for name, i in names
            },
        }


def _piece(tokens: Sequence[str], part: Part) -> Json:
    what, segment = part
    if isinstance(what, int):
        return {"SpecialToken": {"id": tokens[what], "type_id": segment}}
    return {"Sequence": {"id": what, "type_id": segment}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """What a model needs to turn text into ids and back.

    special: ids by their names in tokenizer_config.json; max_length: how many tokens of a text are
    kept, None for all.
    """

    tokens: Sequence[str]
    token_types: Sequence[int]
    segmentation: Segmentation
    template: Template
    special: Mapping[str, int | None]
    eos_token_ids: tuple[int, ...]
    add_bos_token: bool
    chat_template: str | None
    max_length: int | None = None

    @property
    def bos_token_id(self) -> int | None:
        """Of the token that texts begin with."""
        return self.special.get("bos_token")

    @property
    def pad_token_id(self) -> int | None:
        """Of the token that fills up a shorter row."""
        return self.special.get("pad_token")

    @property
    def unk_token_id(self) -> int | None:
        """Of the token for what is none."""
        return self.special.get("unk_token")

    def files(self) -> dict[str, bytes]:
        """Return the content of each file by its name."""
        return {
            "tokenizer.json": self.tokenizer_json(),
            "tokenizer_config.json": self.tokenizer_config_json(),
        }

    def tokenizer_json(self) -> bytes:
        """Return the content of `tokenizer.json`."""
        document = {
            "version": "1.0",
            "truncation": truncation(self.max_length),
            "padding": None,
            "added_tokens": self._added_tokens(),
            "normalizer": self.segmentation.normalizer,
            "pre_tokenizer": self.segmentation.pre_tokenizer,
            "post_processor": self._post_processor(),
            "decoder": self.segmentation.decoder,
            "model": self.segmentation.model,
        }
        return _json(document)

    def tokenizer_config_json(self) -> bytes:
        """Return the content of `tokenizer_config.json`."""
        special = {name: None if i is None else self.tokens[i] for name, i in self.special.items()}
        document: dict[str, object] = {
            "tokenizer_class": self.segmentation.tokenizer_class,
            "clean_up_tokenization_spaces": False,
            "add_bos_token": self.add_bos_token,
            **special,
        }
        if self.chat_template is not None:
            document["chat_template"] = self.chat_template
        return _json(document)

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
        steps = (self.segmentation.post_processor, self.template.processor(self.tokens))
        found = [step for step in steps if step is not None]
        if len(found) < len(steps):
            return found[0] if found else None
        return {"type": "Sequence", "processors": found}


def truncation(max_length: int | None) -> JSON:
    """Return what cuts texts, by its name in `tokenizer.json`; None if nothing does."""
    if max_length is None:
        return None
    return {
        "direction": "Right",
        "max_length": max_length,
        "strategy": "LongestFirst",
        "stride": 0,
    }


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
    ids = {key: _token_id(file, name, kind, len(tokens)) for key, name in _SPECIAL_TOKENS.items()}
    if kind == "bert":
        return _wordpiece(file, tokens, types, ids)
    found = _segmentation(file, kind, tokens, types, ids["unk_token"])
    bos, eos = ids["bos_token"], ids["eos_token"]
    ends = [_token_id(file, name, kind, len(tokens)) for name in ("eos", "eot", "eom")]
    if kind == "llama":
        ends += [i for i, token in enumerate(tokens) if token == _END_OF_TURN]
    add_bos_token = file.get("tokenizer.ggml.add_bos_token", bool, found.adds_bos)
    add_eos_token = file.get("tokenizer.ggml.add_eos_token", bool, found.adds_eos)
    return Tokenizer(
        tokens=tokens,
        token_types=types,
        segmentation=found,
        template=_template(bos if add_bos_token else None, eos if add_eos_token else None),
        special=ids | _other_special_tokens(file, kind, len(tokens)),
        eos_token_ids=tuple(dict.fromkeys(end for end in ends if end is not None)),
        add_bos_token=add_bos_token,
        chat_template=file.get("tokenizer.chat_template", str, "") or None,
    )


def _segmentation(
    file: GGUFFile, kind: str, tokens: Sequence[str], types: Sequence[int], unknown: int | None
) -> Segmentation:
    if kind == "llama":
        return _sentencepiece(file, tokens, types)
    if kind == "t5":
        return _unigram(file, tokens, types, unknown)
    return _byte_level_bpe(file, tokens)


def _template(bos: int | None, eos: int | None) -> Template:
    """One token before each text and one behind it, or none.

    Between two texts that have both there are two of the latter, as RoBERTa has it.
    """
    first: list[Part] = [] if bos is None else [(bos, 0)]
    last: list[Part] = [] if eos is None else [(eos, 0)]
    single = [*first, ("A", 0), *last]
    if not last:
        return Template(single, [*single, *first, ("B", 1)])
    between = last if first else []
    return Template(single, [*single, *between, ("B", 0), *last])


def _other_special_tokens(file: GGUFFile, kind: str, count: int) -> dict[str, int | None]:
    """What a decoder has no use for, and is left out where the file does not name it."""
    names = {"cls_token": "cls", "sep_token": "seperator", "mask_token": "mask"}
    found = {key: _token_id(file, name, kind, count) for key, name in names.items()}
    return {key: i for key, i in found.items() if i is not None}


def _token_id(file: GGUFFile, name: str, kind: str, count: int) -> int | None:
    """Return the id of a token that has a meaning; None if there is none."""
    key = f"tokenizer.ggml.{name}_token_id"
    if key in file.metadata:
        return _checked_id(file, key, count)
    default = _DEFAULT_IDS[kind].get(name)
    return default if default is not None and default < count else None


# By their names in tokenizer_config.json.
_SPECIAL_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}

# The kinds of tokenizers, and the ids that llama.cpp takes where a file does not name them.
_DEFAULT_IDS: dict[str, Mapping[str, int]] = {
    "bert": {"bos": 101, "unknown": 100, "padding": 0, "seperator": 102, "mask": 103},
    "gpt2": {},
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}

# Ends an answer under whatever key the file has it, or under none: so do llama.cpp and Gemma.
_END_OF_TURN = "<end_of_turn>"


def _byte_level_bpe(file: GGUFFile, tokens: Sequence[str]) -> Segmentation:
    pre = file.get("tokenizer.ggml.pre", str, "gpt-2")
    if pre not in PRE_TOKENIZERS:
        raise UnsupportedFormatError(
            f"`{file.name}`: pre-tokenizer `{pre}` is not known",
            hint=f"those that are: {', '.join(sorted(PRE_TOKENIZERS))}",
        )
    byte_level = _byte_level(use_regex=True)
    return Segmentation(
        model=_bpe(tokens, _merges(file, set(tokens)), ignore_merges=pre in _LLAMA_3),
        pre_tokenizer={"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        post_processor=byte_level,
        decoder=byte_level,
        adds_bos=pre in _LLAMA_3 or pre == _ROBERTA,
        adds_eos=pre == _ROBERTA,
    )


def _sentencepiece(file: GGUFFile, tokens: Sequence[str], types: Sequence[int]) -> Segmentation:
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
    merges = sentencepiece.merges(file.name, candidates)
    return Segmentation(
        model=_bpe(tokens, merges, byte_fallback=True),
        normalizer=sentencepiece.normalizer(add_space_prefix=add_space_prefix),
        decoder=sentencepiece.decoder(add_space_prefix=add_space_prefix),
        adds_bos=True,
        # onnxruntime-genai joins pairs exactly under this name only
        tokenizer_class="LlamaTokenizer" if add_space_prefix else "GemmaTokenizer",
    )


def _bpe(
    tokens: Sequence[str],
    merges: Sequence[str],
    *,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    """Return what joins pairs of tokens; the vocabulary in order, as that is read sooner."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(sorted((token, i) for i, token in enumerate(tokens))),
        "merges": merges,
    }


def _unigram(
    file: GGUFFile, tokens: Sequence[str], types: Sequence[int], unknown: int | None
) -> Segmentation:
    scores = _scores(file, tokens)
    if unknown is None:
        raise file.error("tokenizer.ggml.unknown_token_id", "is missing (a whole number)")
    charsmap = _charsmap(file)
    # rows of the embedding that no token has are filled up with names and a score that is none
    count = len(tokens) - next(
        i for i, kind in enumerate((*reversed(types), 0)) if kind != TokenType.UNUSED
    )
    if unknown >= count:
        raise file.error("tokenizer.ggml.unknown_token_id", "is of no token")
    add_space_prefix = file.get("tokenizer.ggml.add_space_prefix", bool, default=True)
    merges_spaces = file.get("tokenizer.ggml.remove_extra_whitespaces", bool, default=False)
    merges_spaces = merges_spaces or not unigram.keeps_spaces(tokens)
    spaces = {"add_space_prefix": add_space_prefix, "merges_spaces": merges_spaces}
    return Segmentation(
        model=unigram.model(tokens[:count], scores[:count], unknown),
        normalizer=unigram.normalizer(charsmap, **spaces),
        pre_tokenizer=unigram.pre_tokenizer(**spaces),
        decoder=sentencepiece.decoder(add_space_prefix=add_space_prefix),
        adds_eos=True,
    )


def _charsmap(file: GGUFFile) -> bytes:
    """Return the table of what characters are replaced by; none is empty."""
    key = "tokenizer.ggml.precompiled_charsmap"
    values = file.array(key, int, [])
    if not all(-128 <= value < 256 for value in values):
        raise file.error(key, "is not of bytes")
    charsmap = bytes(value & 255 for value in values)
    if charsmap and not unigram.is_sound(charsmap):
        raise file.error(key, "leads out of its own bytes")
    return charsmap


def _scores(file: GGUFFile, tokens: Sequence[str]) -> Sequence[float]:
    scores = file.array("tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise file.error("tokenizer.ggml.scores", f"{len(scores)} scores, {len(tokens)} tokens")
    if not all(map(math.isfinite, scores)):
        raise file.error("tokenizer.ggml.scores", "the score of a token is not a number")
    return scores


def _wordpiece(
    file: GGUFFile,
    tokens: Sequence[str],
    types: Sequence[int],
    ids: Mapping[str, int | None],
) -> Tokenizer:
    """Tokens by words; a file that does not say whether letters become small shows it by its own."""
    cls, sep, mask = (
        _token_id(file, name, "bert", len(tokens)) for name in ("bos", "seperator", "mask")
    )
    unknown = ids["unk_token"]
    if cls is None or sep is None or unknown is None:
        raise file.error("tokenizer.ggml.tokens", "no token for the start, the end or the unknown")
    special = {i for i in (cls, sep, mask, unknown, ids["pad_token"]) if i is not None}
    special |= {i for i, kind in enumerate(types) if kind == TokenType.CONTROL}
    words = wordpiece.bert_spelling(tokens, special)
    if len(set(words)) != len(words):
        raise file.error("tokenizer.ggml.tokens", "the same token twice, with and without `▁`")
    lowercase = file.get(
        "tokenizer.ggml.normalizer.lowercase", bool, wordpiece.is_uncased(words, special)
    )
    strip_accents = file.get("tokenizer.ggml.normalizer.strip_accents", bool, lowercase)
    return Tokenizer(
        tokens=words,
        token_types=[
            TokenType.CONTROL if i in special else TokenType(kind) for i, kind in enumerate(types)
        ],
        segmentation=Segmentation(
            model=wordpiece.model(words, words[unknown]),
            normalizer=wordpiece.normalizer(lowercase=lowercase, strip_accents=strip_accents),
            pre_tokenizer=wordpiece.PRE_TOKENIZER,
            decoder=wordpiece.DECODER,
            tokenizer_class="BertTokenizer",
        ),
        template=Template(
            [(cls, 0), ("A", 0), (sep, 0)],
            [(cls, 0), ("A", 0), (sep, 0), ("B", 1), (sep, 1)],
        ),
        special={
            "unk_token": unknown,
            "pad_token": ids["pad_token"],
            "cls_token": cls,
            "sep_token": sep,
            "mask_token": mask,
        },
        eos_token_ids=(),
        add_bos_token=False,
        chat_template=None,
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
