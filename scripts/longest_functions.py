"""Print the package's longest functions, docstrings aside: past 40 lines, look again."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 10


def functions(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the length of each function of a module, and where it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            start = node.lineno
            if ast.get_docstring(node, clean=False) is not None:
                start = node.body[0].end_lineno or start
            yield node.end_lineno - start, f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"


def main() -> None:
    """Print them, longest first."""
    found = [item for path in (ROOT / "weightpkg").rglob("*.py") for item in functions(path)]
    for length, where in sorted(found, reverse=True)[:SHOWN]:
        print(f"{length:4} lines  {where}")


if __name__ == "__main__":
    main()
