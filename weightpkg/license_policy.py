"""Which licenses may be used: SPDX identifiers that are allowed, or denied, against an expression.

An expression is allowed if it can be satisfied: one side of each `OR`, both of each `AND`.
https://spdx.github.io/spdx-spec/v3.0.1/annexes/spdx-license-expressions/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_TOKEN = re.compile(r"[()]|[^\s()]+")


@dataclass(frozen=True, slots=True)
class LicensePolicy:
    """What is allowed, or None for everything, less what is denied.

    An identifier stands for itself with any exception too, as exceptions only permit more.
    """

    allowed: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()

    def refusal(self, expression: str) -> str | None:
        """Return why an SPDX expression cannot be satisfied, or None if it can.

        >>> LicensePolicy(allowed=("MIT",)).refusal("MIT OR GPL-3.0-only")
        >>> LicensePolicy(allowed=("MIT",)).refusal("MIT AND GPL-3.0-only")
        '`GPL-3.0-only` is not allowed'
        """
        refused = {leaf: why for leaf in identifiers(expression) if (why := self._refuses(leaf))}
        if is_satisfied(expression, lambda leaf: leaf not in refused):
            return None
        return " and ".join(f"`{leaf}` is {why}" for leaf, why in refused.items())

    def _refuses(self, leaf: str) -> str | None:
        forms = {leaf.casefold(), leaf.casefold().partition(" with ")[0]}
        if forms & _folded(self.denied):
            return "denied"
        if self.allowed is not None and not forms & _folded(self.allowed):
            return "not allowed"
        return None


def identifiers(expression: str) -> list[str]:
    """Return the licenses that an expression is made of, each with its exception, in order.

    >>> identifiers("(MIT OR GPL-2.0-only WITH Classpath-exception-2.0) AND MIT")
    ['MIT', 'GPL-2.0-only WITH Classpath-exception-2.0']
    """
    found: dict[str, None] = {}

    def note(leaf: str) -> bool:
        found[leaf] = None
        return True

    is_satisfied(expression, note)
    return list(found)


def is_satisfied(expression: str, accepts: Callable[[str], bool]) -> bool:
    """Whether an expression can be satisfied with the licenses that are accepted.

    Args:
        expression: in SPDX's grammar: `AND` binds closer than `OR`, `WITH` closer than both.
        accepts: asked once for each license, with its exception.

    Raises:
        ValueError: it is no expression.
    """
    tokens = _TOKEN.findall(expression)
    tokens.reverse()
    satisfied = _any_of(tokens, accepts)
    if tokens:
        raise ValueError(f"not a license expression: {expression!r}")
    return satisfied


def _any_of(tokens: list[str], accepts: Callable[[str], bool]) -> bool:
    sides = [_all_of(tokens, accepts)]
    while _take(tokens, "or"):
        sides.append(_all_of(tokens, accepts))
    return any(sides)


def _all_of(tokens: list[str], accepts: Callable[[str], bool]) -> bool:
    sides = [_one(tokens, accepts)]
    while _take(tokens, "and"):
        sides.append(_one(tokens, accepts))
    return all(sides)


def _one(tokens: list[str], accepts: Callable[[str], bool]) -> bool:
    if _take(tokens, "("):
        satisfied = _any_of(tokens, accepts)
        if not _take(tokens, ")"):
            raise ValueError("a bracket of a license expression is not closed")
        return satisfied
    leaf = _identifier(tokens)
    if _take(tokens, "with"):
        leaf += f" WITH {_identifier(tokens)}"
    return accepts(leaf)


def _identifier(tokens: list[str]) -> str:
    if not tokens or tokens[-1].lower() in {"and", "or", "with", "(", ")"}:
        raise ValueError("a license expression lacks an identifier")
    return tokens.pop()


def _take(tokens: list[str], word: str) -> bool:
    if tokens and tokens[-1].lower() == word:
        tokens.pop()
        return True
    return False


def _folded(names: Iterable[str]) -> set[str]:
    return {name.casefold() for name in names}
