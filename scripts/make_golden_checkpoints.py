"""Make the golden numbers in tests/checkpoints/*.toml with transformers.

Usage: pip install torch==2.13.0 transformers==5.23.0 sentence-transformers==6.2.0 gguf==0.19.0, then
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
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from tiny_checkpoint import PAGES, TinyCheckpoint  # noqa: E402  it is found by the line above

if TYPE_CHECKING:
    from numpy.typing import NDArray

N_TOKENS = 40
POOLINGS = ("cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean")
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
        is_decoder = model.config["architectures"][0].endswith("ForCausalLM")
        numbers = causal(directory, tokens) if is_decoder else encoded(model, directory, tokens)
        lines = [made, f"tokens = {tokens.tolist()}", *numbers]
    return "\n".join(lines)


def causal(directory: Path, tokens: NDArray[np.int64]) -> list[str]:
    """The logits that follow each token, of some of the vocabulary."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(tokens[None])).logits[0]
    columns = list(COLUMNS)
    return [f"columns = {columns}", "logits = [", *rows(logits[:, columns]), "]"]


def encoded(model: TinyCheckpoint, directory: Path, tokens: NDArray[np.int64]) -> list[str]:
    """Two texts, of which one is shorter: the last hidden state of some tokens, and each pooling."""
    ids = torch.from_numpy(tokens.reshape(2, -1))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    ids[1, 7:] = model.config["pad_token_id"]
    hidden = hidden_states(directory, ids, mask)
    lines = states("hidden", hidden)
    lines += states("unmasked", hidden_states(directory, ids, None))
    for name, keys in model.changes.items():
        changed = model.changed(**keys).write(directory.with_name(name))
        lines += states(name, hidden_states(changed, ids, mask))
    if "modules.json" in model.documents:
        for mode in POOLINGS:
            lines += [f"{mode} = [", *rows(pooled(hidden, mask, mode)), "]"]
    return lines


def states(name: str, hidden: torch.Tensor) -> list[str]:
    """hidden: (B, T, E), of which some are kept."""
    return [f"{name} = [", *rows(hidden[:, :7:3, ::4].flatten(0, 1)), "]"]


def hidden_states(directory: Path, ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """ids, mask: (B, T) -> (B, T, E); every second token id is of the second segment, if there is one."""
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32)
    features = {"input_ids": ids, "attention_mask": mask}
    if getattr(model.config, "type_vocab_size", 1) > 1:
        features["token_type_ids"] = ids % 2
    with torch.no_grad():
        return model.eval()(**features).last_hidden_state


def pooled(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """hidden: (B, T, E) -> (B, E), of length 1, by sentence-transformers."""
    features = {"token_embeddings": hidden, "attention_mask": mask}
    features = Pooling(hidden.shape[-1], pooling_mode=mode)(features)
    return Normalize()(features)["sentence_embedding"]


def rows(values: torch.Tensor) -> list[str]:
    """Lines of an array of TOML."""
    return ["  [" + ", ".join(f"{x:.6g}" for x in row.tolist()) + "]," for row in values]


if __name__ == "__main__":
    main()
