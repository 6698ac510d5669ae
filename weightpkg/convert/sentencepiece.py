"""SentencePiece's way of byte-pair encoding, in the terms of Hugging Face's `tokenizers`.

Text is cut into characters. Of all neighbours that make a token together, those of the best score
are joined first, the leftmost of the same token first, until no neighbours make one. A character
that is no token then becomes its bytes, `<0xE2>` and so on.
https://github.com/ggml-org/llama.cpp/blob/0c1e57098/src/llama-vocab.cpp `llm_tokenizer_spm_session`

`tokenizers` knows a list of pairs to join instead, the first ones first. A token's neighbours join in
the same order whatever stands around it, so there is one pair that it can be made of: the one that is
left of it, all by itself, before the last step. Other splits of it are never joined and not listed:
of Gemma's 513,511, 236,245 stay, which are read in three quarters of the time. Two tokens of one score are
another matter: which is joined first depends on the text. Only runs of one character, as Llama has
them of spaces, are settled: the leftmost run is the longest, and so longer ones come first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import repeat
from operator import add

from weightpkg.errors import UnsupportedFormatError

SPACE = "▁"
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))

Json = Mapping[str, object]


def merges(source: str, scores: Mapping[str, float]) -> list[str]:
    """Return the two tokens that each other one is made of, as `left right`, in the order of joining.

    Args:
        source: the file's name.
        scores: of each token that can be joined from others.

    Raises:
        UnsupportedFormatError: the tokens cannot be expressed by pairs.
    """
    if not all(map(math.isfinite, scores.values())):
        raise UnsupportedFormatError(f"`{source}`: the score of a token is not a number")
    if rest := sorted(set("".join(scores)) - scores.keys()):
        raise UnsupportedFormatError(f"`{source}`: tokens have {rest[0]!r}, which is none itself")
    longer = [token for token in scores if len(token) > 1]
    longer.sort(key=lambda token: (-scores[token], -len(token)))
    ranks = {token: rank for rank, token in enumerate(longer)}
    pairs: list[str] = []
    last = ""
    for token in longer:
        cut = _cut(token, ranks)
        if not cut:
            continue
        if last and scores[last] == scores[token] and len({*last, *token}) > 1:
            raise UnsupportedFormatError(
                f"`{source}`: tokens {last!r} and {token!r} have the same score"
            )
        pairs.append(f"{token[:cut]} {token[cut:]}")
        last = token
    return pairs


def _cut(token: str, ranks: Mapping[str, int]) -> int:
    """Return the length of the first of the two that a token is made of; 0 if it never is."""
    parts, none, get = list(token), len(ranks), ranks.get
    found = list(map(get, map(add, parts, parts[1:]), repeat(none)))
    while len(found) > 1:
        best = min(found)
        if best == none:
            return 0
        at = found.index(best)
        parts[at] += parts.pop(at + 1)
        del found[at]
        if at:
            found[at - 1] = get(parts[at - 1] + parts[at], none)
        if at < len(found):
            found[at] = get(parts[at] + parts[at + 1], none)
    return len(parts[0])


def normalizer(*, add_space_prefix: bool) -> Json:
    """Spaces become `▁`; with the prefix, so does the start of each text between special tokens."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if not add_space_prefix:
        return replace
    return _sequence("normalizers", [{"type": "Prepend", "prepend": SPACE}, replace])


def decoder(*, add_space_prefix: bool) -> Json:
    """The way back, to text without the prefix."""
    steps: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if add_space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return _sequence("decoders", steps)


def _sequence(name: str, steps: Sequence[Json]) -> Json:
    return {"type": "Sequence", name: steps}
