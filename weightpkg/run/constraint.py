"""Answers that must be of a form: of a JSON schema, of a regular expression, or any JSON.

llguidance compiles the form and says, after each token, which ones may follow; it is imported when it is
needed. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from numpy.typing import NDArray

Kind = Literal["json-schema", "regex"]
_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must be: the text of a JSON schema, or a regular expression."""

    kind: Kind
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | str) -> Constraint:
        """An answer that a JSON schema allows; `{}` allows any JSON.

        Raises:
            RunError: the schema is not JSON, or not an object.
        """
        try:
            parsed = json.loads(schema) if isinstance(schema, str) else schema
            text = json.dumps(parsed)
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(f"the JSON schema is not JSON: {error}") from error
        if not isinstance(parsed, Mapping):
            raise RunError("the JSON schema is not an object", hint='`{"type": "object"}` is one')
        return cls("json-schema", text)

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """An answer that a regular expression matches whole."""
        return cls("regex", pattern)


class HasText(Protocol):
    """A tokenizer that can be written as text: `tokenizers.Tokenizer`."""

    def to_str(self) -> str:
        """Return its tokenizer.json."""


class Grammars:
    """Compiles constraints for one tokenizer, which takes llguidance a while to read, once."""

    def __init__(self, tokenizer: HasText, vocab_size: int, eos: Sequence[int]) -> None:
        self._text = tokenizer.to_str
        self._vocab_size = vocab_size
        self._eos = list(eos)
        self._tokenizer: LLTokenizer | None = None

    def start(self, constraint: Constraint) -> Matcher:
        """Begin an answer.

        Raises:
            RunError: the constraint is not valid, or too large, or llguidance is missing.
        """
        try:
            import llguidance  # noqa: PLC0415  only for answers that have a form
        except ImportError as error:
            raise RunError(
                "answers of a given form need `llguidance`", hint="pip install llguidance"
            ) from error
        if len(constraint.source) > _LONGEST:
            raise RunError(f"the {constraint.kind} has more than {_LONGEST:,} characters")
        try:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    self._text(), n_vocab=self._vocab_size, eos_token=self._eos or None
                )
            grammar = (
                llguidance.LLMatcher.grammar_from_json_schema(constraint.source)
                if constraint.kind == "json-schema"
                else llguidance.LLMatcher.grammar_from_regex(constraint.source)
            )
            matcher = llguidance.LLMatcher(self._tokenizer, grammar, log_level=0)
        except ValueError as error:
            raise RunError(f"the {constraint.kind} is not valid: {error}") from error
        return Matcher(matcher, constraint.kind, self._vocab_size)


class Matcher:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: LLMatcher, kind: Kind, vocab_size: int) -> None:
        self._matcher = matcher
        self._kind = kind
        self._bits = np.zeros(-(-vocab_size // 32), np.int32)
        self._vocab_size = vocab_size
        self._check()

    def mask(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """logits: (V,) float32 -> the same, minus infinity where a token may not follow.

        Raises:
            RunError: the grammar ran out of its limits, or leaves no token.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        self._check()
        allowed = np.unpackbits(
            self._bits.view(np.uint8), count=self._vocab_size, bitorder="little"
        )
        if not allowed.any():
            raise RunError(f"no token can go on with the {self._kind}")
        return np.where(allowed.view(np.bool_), logits, np.float32(-np.inf))

    def take(self, token: int) -> None:
        """Go on with a token that the mask allowed.

        Raises:
            RunError: the grammar refuses it.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_done(self) -> bool:
        """Whether nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().splitlines()[0]
            raise RunError(f"the {self._kind} is not valid: {reason}")
