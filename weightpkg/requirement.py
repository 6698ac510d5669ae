"""What a user asks for: names, versions, and requirements made of both.

Names compare as PEP 503 has it (https://peps.python.org/pep-0503/#normalized-names); versions
and specifiers are PEP 440's, by the `packaging` library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NewType

from weightpkg.confusable import strange_letters
from weightpkg.errors import RequirementError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

NormalizedName = NewType("NormalizedName", str)
"""A name with case and `-`, `_`, `.` folded; the only form that is compared or used in a path."""

MAX_NAME = 100
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\Z")
_REQUIREMENT = re.compile(
    r"(?:(?P<namespace>[^/\s<>=!~]+)/)?(?P<name>[^/\s<>=!~]+)\s*(?P<spec>[<>=!~].*)?\Z"
)


def is_name(text: str) -> bool:
    """Whether text can name a model, a variant or a namespace."""
    return len(text) <= MAX_NAME and _NAME.match(text) is not None


def normalize_name(text: str) -> NormalizedName:
    """Fold a name to the form that is compared; ValueError if it is no name.

    >>> normalize_name("Llama3.1_8B")
    'llama3-1-8b'
    """
    if not is_name(text):
        raise ValueError(f"not a name: {text!r}")
    return NormalizedName(re.sub(r"[-_.]+", "-", text).lower())


@dataclass(frozen=True, slots=True)
class Requirement:
    """A model, perhaps with a variant at the end of its name, and the versions that will do.

    Which part of `name` is the model and which the variant only an index can tell. `str()` of it is
    the normal form, which reads as an equal requirement.

    versions: the specifier's text in its normal form; empty for any version.
    """

    text: str = field(compare=False)
    name: NormalizedName
    namespace: NormalizedName | None = None
    versions: str = ""

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read `[NAMESPACE/]NAME[SPECIFIER]`.

        Raises:
            RequirementError: the text is anything else.

        >>> Requirement.parse("acme/support-q8>=2").name
        'support-q8'
        """
        match = _REQUIREMENT.match(text.strip())
        if match is None:
            raise RequirementError(text, "a name is letters, digits, `-`, `_` and `.`")
        namespace, name, spec = match["namespace"], match["name"], match["spec"]
        for part in filter(None, (namespace, name)):
            if not is_name(part):
                strange = strange_letters(part)
                has = f": it has {strange}" if strange else ""
                raise RequirementError(text, f"`{part}` is not a name{has}")
        folded = normalize_name(namespace) if namespace else None
        return cls(text.strip(), normalize_name(name), folded, _normal_form(text, spec))

    @property
    def specifier(self) -> SpecifierSet:
        """The versions that will do, pre-releases as PEP 440 has them."""
        from packaging.specifiers import SpecifierSet  # noqa: PLC0415  slow, and most names have none

        return SpecifierSet(self.versions)

    def accepts(self, version: Version) -> bool:
        """Whether a version will do, a pre-release, too.

        >>> from packaging.version import Version
        >>> [Requirement.parse(text).accepts(Version("2rc1")) for text in ("a", "a>1", "a<1")]
        [True, True, False]
        """
        return not self.versions or self.specifier.contains(version, prereleases=True)

    @property
    def is_pinned(self) -> bool:
        """Whether exactly one version is asked for.

        >>> [Requirement.parse(f"a{spec}").is_pinned for spec in ("==1.0", "==1.*", ">=1,==1.0")]
        [True, False, True]
        """
        return bool(self.versions) and any(
            part.operator == "===" or (part.operator == "==" and not part.version.endswith(".*"))
            for part in self.specifier
        )

    def __str__(self) -> str:
        prefix = f"{self.namespace}/" if self.namespace else ""
        return f"{prefix}{self.name}{self.versions}"


def _normal_form(text: str, spec: str | None) -> str:
    if not spec:
        return ""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415  slow

    try:
        return str(SpecifierSet(spec))
    except InvalidSpecifier as error:
        raise RequirementError(text, f"`{spec}` is not a version specifier") from error
