"""Write the tables of docs/formats.md from the code: what each type of number becomes.

Usage: python scripts/update_formats_docs.py
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from weightpkg.convert import packings as packing
from weightpkg.formats.ggml import GGML_TYPES, GGMLType
from weightpkg.formats.onnx_file import DOMAINS
from weightpkg.formats.safetensors_header import SAFETENSORS_TYPES
from weightpkg.tensor import DenseLayout, Layout

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def ggml_types() -> str:
    """The block types, how many bits a weight takes, and what it becomes."""
    header = ("type", "weights", "bytes", "bits a weight", "becomes", "bits a weight then", "exact")
    rows = (
        (
            kind.name,
            kind.block_size,
            kind.type_size,
            f"{8 * kind.type_size / kind.block_size:.4g}",
            *_becomes(kind.layout),
        )
        for kind in GGML_TYPES.values()
    )
    return _markdown(header, rows)


def ggml_layouts() -> str:
    """The bytes of each block type, as its decoder says."""
    kinds = (kind for kind in GGML_TYPES.values() if kind.decode is not None)
    return _markdown(("type", "bytes and meaning"), ((kind.name, _meaning(kind)) for kind in kinds))


def safetensors_types() -> str:
    """The types of safetensors that are weights."""
    header = ("type", "bits a weight", "becomes", "bits a weight then", "exact")
    rows = ((kind.name, kind.bits, *_becomes(kind.layout)) for kind in SAFETENSORS_TYPES.values())
    return _markdown(header, rows)


def packings() -> str:
    """The ways in which checkpoints pack matrices."""
    rows = ((f"`{name}`", _one_line(read)) for name, read in packing.METHODS.items())
    layouts = (inspect.getdoc(packing) or "").partition("\n\n")[2]
    return _markdown(("`quant_method`", "what is read"), rows) + f"\n```\n{layouts}\n```\n"


def operator_domains() -> str:
    """Whose operators a published model may have."""
    return _markdown(("domain of an operator",), ([f"`{name}`"] for name in DOMAINS if name))


TABLES = {
    table.__name__: table
    for table in (ggml_types, ggml_layouts, safetensors_types, packings, operator_domains)
}


def _becomes(layout: Layout | None) -> tuple[str, str, str]:
    """What a layout is in the graph, its bits a weight there, and how exact that is."""
    if layout is None:
        return "not converted", "", ""
    if isinstance(layout, DenseLayout):
        return str(layout), "32", "yes"
    bits = layout.bits + 32 * (1 + layout.has_offset) / layout.block_size
    exact = "but for one rounding of the offset" if layout.has_offset else "yes"
    return str(layout), f"{bits:.4g}", exact


def _meaning(kind: GGMLType) -> str:
    return _one_line(kind.decode).removeprefix(f"{kind.name}, ")


def _one_line(described: object) -> str:
    return " ".join((inspect.getdoc(described) or "").split())


def _markdown(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [tuple(header)]
    lines += [("---",) * len(lines[0])]
    lines += [tuple(map(str, row)) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def updated(text: str) -> str:
    """Return the page with its tables made anew."""
    return _PLACE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> int:
    """Write the page, return the exit code."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
