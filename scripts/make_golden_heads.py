"""Make the golden numbers in tests/data/heads.json with transformers.

Usage: pip install torch==2.13.0 transformers==5.23.0 safetensors, then
python scripts/make_golden_heads.py

Each tiny checkpoint is written as the tests write it and loaded by transformers as the class that its
config.json names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_heads import GOLDEN, HEADS, TinyHead, some, two_texts  # noqa: E402  it is found by the line above


def main() -> None:
    """Write the file."""
    made = f"transformers {transformers.__version__}, torch {torch.__version__}"
    logits = {name: golden(head) for name, head in HEADS.items()}
    lines = [f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in logits.items()]
    GOLDEN.write_text('{"made": ' + json.dumps(made) + ",\n" + ",\n".join(lines) + "}\n")
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes")


def golden(head: TinyHead) -> object:
    """Return some of the logits of two texts; every second token id is of the second segment."""
    ids, mask = map(torch.from_numpy, two_texts(head.page))
    with tempfile.TemporaryDirectory() as folder:
        directory = head.write(Path(folder) / "model")
        kind = getattr(transformers, head.architecture)
        model, info = kind.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
    missing = set(info["missing_keys"]) - {"cls.predictions.bias"}  # of which another is used
    assert not missing, f"{head.architecture} has no {missing}"
    features = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        features["token_type_ids"] = ids % 2
    with torch.no_grad():
        logits = model.eval()(**features).logits
    return [float(f"{x:.6g}") for x in some(logits.numpy()).reshape(-1).tolist()]


if __name__ == "__main__":
    main()
