"""What a search shows of a model, and what it looks at: no more than a line of a list.

A signed index has it beside each page's digest (`custom` of a TUF target), so that a search needs no
pages. What is there comes from whoever signed the role, and a key that is missing or odd is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightpkg.digest import Digest
from weightpkg.package import Model
from weightpkg.requirement import is_name, normalize_name

_MAX_TEXT = 1000
_MAX_ITEMS = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """A model in a list.

    variant, size: its default variant of the newest release, and how many bytes that has.
    digests: SHA-256 of its files, as far as they are known here.
    """

    name: str
    summary: str = ""
    task: str = ""
    architecture: str = ""
    license: str = ""
    base_model: str = ""
    tags: tuple[str, ...] = ()
    variant: str = ""
    size: int | None = None
    digests: frozenset[Digest] = frozenset()

    @classmethod
    def of(cls, model: Model) -> Listing:
        """What a page says."""
        variants = [variant for release in model.releases for variant in release.variants]
        newest = {variant.name: variant for variant in model.releases[0].variants}
        return cls(
            name=model.name,
            summary=model.summary,
            task=model.task,
            architecture=model.architecture,
            license=model.license,
            base_model=model.base_model or "",
            tags=model.tags,
            variant=model.default_variant,
            size=newest[model.default_variant].size,
            digests=frozenset(f.sha256 for v in variants for f in v.files if f.sha256),
        )

    @property
    def full_name(self) -> str:
        """The name of the default variant."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def words(self) -> tuple[str, ...]:
        """What is looked at beside name and summary."""
        return (self.task, self.architecture, self.license, self.base_model, *self.tags)

    def as_custom(self) -> dict[str, object]:
        """What a target's `custom` has of it; empty keys are left out."""
        values: dict[str, object] = {
            "name": self.name,
            "summary": self.summary,
            "task": self.task,
            "architecture": self.architecture,
            "license": self.license,
            "base-model": self.base_model,
            "tags": list(self.tags),
            "variant": self.variant,
            "size": self.size,
        }
        return {key: value for key, value in values.items() if value not in (None, "", [])}


def read_listing(name: str, custom: object) -> Listing:
    """Read a target's `custom`.

    Args:
        name: of the page.
        custom: what there is, of any kind.
    """
    values: Mapping[object, object] = custom if isinstance(custom, Mapping) else {}

    def text(key: str) -> str:
        value = values.get(key)
        is_plain = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
        return str(value) if is_plain else ""

    tags, size = values.get("tags"), values.get("size")
    items = tags[:_MAX_ITEMS] if isinstance(tags, list) else []
    shown = text("name")
    return Listing(
        name=shown if _is_same(shown, name) else name,
        summary=text("summary"),
        task=text("task"),
        architecture=text("architecture"),
        license=text("license"),
        base_model=text("base-model"),
        tags=tuple(t for t in items if isinstance(t, str) and t.isprintable()),
        variant=text("variant"),
        size=size if isinstance(size, int) and not isinstance(size, bool) and size >= 0 else None,
    )


def _is_same(shown: str, name: str) -> bool:
    return is_name(shown) and normalize_name(shown) == name
