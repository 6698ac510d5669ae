"""Names that a reader takes for another name: `acrne` for `acme`, or with letters of another script.

Names of weightpkg have plain letters only, so what is left to confuse them is letters that look
alike, which `skeleton` folds. A name with letters of other scripts is no name; of such a one
`lookalike` says whose it pretends to be. The table follows Unicode's confusables
(https://www.unicode.org/reports/tr39/), as far as plain letters are what is imitated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from weightpkg.errors import TrustError

# which letters look like each plain one, after NFKC and lower case
_LOOKS = {
    "a": "\u0430\u03b1\u0251\u237a", "b": "\u044c\u03b2\u0432", "c": "\u0441\u03c2\u1d04",
    "d": "\u0501", "e": "\u0435\u0454\u212e\u03b5", "g": "\u0261\u0581", "h": "\u04bb\u043d\u0570",
    "i": "\u0456\u03b9\u0131\u0269", "j": "\u0458\u03f3", "k": "\u043a\u03ba", "l": "\u04cf\u01c0\u029f",
    "m": "\u043c", "n": "\u0578\u043f\u03b7", "o": "\u043e\u03bf\u0585\u03c3", "p": "\u0440\u03c1",
    "q": "\u051b\u0563", "r": "\u0433\u1d26", "s": "\u0455\ua731", "t": "\u0442\u03c4", "u": "\u057d\u03c5\u028b",
    "v": "\u0475\u03bd\u1d20", "w": "\u051d\u0461\u03c9", "x": "\u0445\u03c7", "y": "\u0443\u03b3\u0443",
    "z": "\u1d22",
}  # fmt: skip
_LETTERS = str.maketrans({strange: plain for plain, all_ in _LOOKS.items() for strange in all_})
_ALIKE = (("rn", "m"), ("vv", "w"), ("cl", "d"), ("0", "o"), ("1", "l"), ("i", "l"), ("5", "s"))


def skeleton(name: str) -> str:
    """Fold a name to what it looks like; names that are confused have the same.

    >>> skeleton("acrne") == skeleton("acme"), skeleton("paypa1") == skeleton("PayPal")
    (True, True)
    """
    text = unicodedata.normalize("NFKC", name).lower()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    text = re.sub(r"[-_.\s\u2010-\u2015\u00ad\u200b-\u200d]+", "", text.translate(_LETTERS))
    for looks, means in _ALIKE:
        text = text.replace(looks, means)
    return text


def lookalike(name: str, known: Iterable[str]) -> str | None:
    """Return which of the known names a name could be taken for; None for one of them itself.

    >>> lookalike("\u0430cme", ["acme"]), lookalike("acme", ["acme"]), lookalike("b", ["acme"])
    ('acme', None, None)
    """
    known = list(known)
    if name in known:
        return None
    folded = skeleton(name)
    return next((other for other in known if skeleton(other) == folded), None)


def strange_letters(name: str) -> str:
    """Say which letters of a name are not plain ones, for messages; empty where all are."""
    strange = dict.fromkeys(c for c in name if not c.isascii())
    return ", ".join(f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" for c in strange)


def check_distinct(names: Iterable[str]) -> None:
    """Refuse namespaces of which one could be taken for another.

    Raises:
        TrustError: there are two.
    """
    seen: list[str] = []
    for name in names:
        if other := lookalike(name, seen):
            raise TrustError(
                name,
                name,
                f"could be taken for `{other}`, which is another index",
                hint=f"`weightpkg index remove {name}`, if you did not mean to have both",
            )
        seen.append(name)
