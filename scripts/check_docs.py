"""Check that relative links in the documentation lead somewhere, and tables are as the code says."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import update_formats_docs

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
    formats = update_formats_docs.PAGE.read_text(encoding="utf-8")
    if update_formats_docs.updated(formats) != formats:
        faults.append("docs/formats.md is out of date: run scripts/update_formats_docs.py")
    print("\n".join(faults) or f"{len(pages)} pages, every relative link leads somewhere")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
