"""Make the golden numbers in tests/checkpoints/*.toml with transformers.

Usage: pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0, then
python scripts/make_golden_checkpoints.py [NAME ...]

Each tiny checkpoint is written as the tests write it and loaded by transformers from its directory, so
that a key of config.json means what transformers says that it means.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_checkpoint import PAGES, TinyCheckpoint  # noqa: E402  it is found by the line above

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_TOKENS = 40
COLUMNS = range(0, 302, 16)
"""Of the vocabulary, which is more than is needed to tell a wrong model from a right one."""


def main() -> None:
    """Write the section `golden` of each page, or of those that are named."""
    for path in sorted(PAGES.glob("*.toml")):
        if path.stem in sys.argv[1:] or not sys.argv[1:]:
            model = TinyCheckpoint.read(path.stem)
            page = path.read_text(encoding="utf-8").partition("[golden]")[0].rstrip()
            path.write_text(f"{page}\n\n{golden(model)}\n", encoding="utf-8")
            print(f"{path.name}: {path.stat().st_size:,} bytes")


def golden(model: TinyCheckpoint) -> str:
    """Return the section."""
    tokens = np.random.default_rng(model.seed).integers(3, 302, N_TOKENS)
    made = f"[golden] # transformers {transformers.__version__}, torch {torch.__version__}"
    with tempfile.TemporaryDirectory() as folder:
        directory = model.write(Path(folder) / "model")
        lines = [made, f"tokens = {tokens.tolist()}", *causal(directory, tokens)]
    return "\n".join(lines)


def causal(directory: Path, tokens: NDArray[np.int64]) -> list[str]:
    """The logits that follow each token, of some of the vocabulary."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens[None])).logits[0].numpy()
    columns = list(COLUMNS)
    return [f"columns = {columns}", "logits = [", *rows(logits[:, columns]), "]"]


def rows(values: NDArray[np.float32]) -> list[str]:
    """Lines of an array of TOML."""
    return ["  [" + ", ".join(f"{x:.6g}" for x in row) + "]," for row in values]


if __name__ == "__main__":
    main()
