"""Counts what durability tests injected and what was lost, for `docs/durability.md`."""

from __future__ import annotations

import json
import os
from pathlib import Path


def report(what: str, injected: int, lost: int) -> None:
    """Add a line to the file that WEIGHTPKG_DURABILITY_REPORT names, if it is set."""
    name = os.environ.get("WEIGHTPKG_DURABILITY_REPORT")
    if name:
        line = json.dumps({"what": what, "injected": injected, "lost": lost})
        with Path(name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
