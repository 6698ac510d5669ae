"""Caches of only the window, in layers that see no more: how many rows they have, and which go; pure.

A layer with a window of W positions needs W - 1 rows of the past. Its buffers have more: room for what is
taken back (an answer of which a chat's next turn has less, guesses that were wrong), and room for new
rows, so that the old ones are moved once in a while and not with every token. Positions stay those of
the text: only where a row lies in the buffer is counted from the first that is kept (`window_start`).

onnxruntime computes attention block by block of rows, each block's sums by themselves. Rows go in whole
blocks, so that every sum has the same terms in the same order as in a whole cache, and the logits are
the same to the bit. Kernels (1.31): online softmax over blocks that fit a quarter of the second-level
cache; with soft caps or sinks, a matrix product whose blocks are of 128 rows or more.

https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/onnxruntime/contrib_ops/cpu/bert/gqa_attention_base.h
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass

START = "window_start"
"""The input of a graph that says which position the first row of such a buffer has."""

METADATA = "weightpkg.windows"
"""The entry of a graph's metadata that says which layers have such buffers."""

RESERVE = 256
"""Tokens that can be taken back at least, without computing all that was before them again."""

# glibc's _SC_LEVEL2_CACHE_SIZE, which Python has no name for; onnxruntime asks for it
_L2_CACHE_SIZE = 191
_USUAL_L2 = 1 << 20
_LANES = 8  # values whose sums are taken together


@dataclass(frozen=True, slots=True)
class Windows:
    """Which layers see a window only.

    size: positions, the token's own included; the largest where they differ.
    layers: their numbers; head_size: D.
    is_tiled: computed by the online softmax, and not by whole products.
    """

    size: int
    layers: tuple[int, ...]
    head_size: int
    is_tiled: bool

    @classmethod
    def parse(cls, metadata: Mapping[str, str]) -> Windows | None:
        """Read a graph's metadata; None where no layer has such a buffer."""
        if METADATA not in metadata:
            return None
        found = json.loads(metadata[METADATA])
        return cls(found["size"], tuple(found["layers"]), found["head_size"], found["is_tiled"])

    def to_json(self) -> str:
        """What `parse` reads."""
        return json.dumps({key: getattr(self, key) for key in self.__slots__})

    def rows(self, step: int) -> int:
        """How many rows there must be for steps of so many tokens."""
        return self.size - 1 + RESERVE + self.block - 1 + step

    def first_needed(self, n_tokens: int) -> int:
        """The first position that the next token sees."""
        return max(0, n_tokens - (self.size - 1))

    def first_kept(self, n_tokens: int) -> int:
        """The first position that is kept, where old rows are dropped; the first of a block."""
        return max(0, self.first_needed(n_tokens) - RESERVE) // self.block * self.block

    @property
    def block(self) -> int:
        """How many rows go together."""
        return block_rows(self.head_size, second_level_cache(), is_tiled=self.is_tiled)


def block_rows(head_size: int, cache_size: int, *, is_tiled: bool) -> int:
    """Return of how many rows, or how many times so many, the kernel takes sums by themselves.

    >>> block_rows(256, 512 * 1024, is_tiled=True), block_rows(64, 512 * 1024, is_tiled=False)
    (64, 256)
    """
    if is_tiled:
        return math.lcm(max(1, cache_size // (32 * head_size)), _LANES)
    # narrower results have longer blocks: MLAS trades one for the other
    return next(
        (rows for least, rows in ((65, 128), (33, 256), (17, 512)) if head_size >= least), 1024
    )


def second_level_cache() -> int:
    """Return its size in bytes, as onnxruntime sees it; a usual one where nobody says."""
    if not sys.platform.startswith("linux"):
        return _USUAL_L2
    try:
        return max(os.sysconf(_L2_CACHE_SIZE), 0)
    except (OSError, ValueError):
        return _USUAL_L2
