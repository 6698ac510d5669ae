"""Make tests/configs/transformers-5/*.json: the published configurations as transformers 5 writes them.

Usage: pip install torch==2.13.0 transformers==5.23.0, then python scripts/make_golden_configs.py

Between them and the ones in tests/configs/, nothing but the spelling differs, so that what is read
from the one must be what is read from the other.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import transformers

CONFIGS = Path(__file__).resolve().parents[1] / "tests" / "configs"


def main() -> None:
    """Write one file for each that is published."""
    for path in sorted(CONFIGS.glob("*.json")):
        keys = respelled(json.loads(path.read_bytes()))
        lines = [f'  "{key}": {json.dumps(value)}' for key, value in sorted(keys.items())]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        (CONFIGS / "transformers-5" / path.name).write_text(text, encoding="utf-8")


def respelled(keys: dict[str, object]) -> dict[str, object]:
    """Return what transformers makes of it; code of its own is not fetched."""
    known = {key: value for key, value in keys.items() if key != "auto_map"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(known), encoding="utf-8")
        transformers.AutoConfig.from_pretrained(folder).save_pretrained(folder)
        result: dict[str, object] = json.loads(path.read_bytes())
    return result


if __name__ == "__main__":
    main()
