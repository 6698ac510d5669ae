"""Make bench/golden/minilm-l6.npz with sentence-transformers.

Usage: pip install torch==2.13.0 sentence-transformers==6.2.0 onnxruntime, then
python scripts/make_golden_embeddings.py CHECKPOINT
"""

from __future__ import annotations

import sys

import torch
from sentence_transformers import SentenceTransformer

import golden_embeddings
from golden_embeddings import GOLDEN, TEXTS


def main() -> None:
    """Write the file."""
    model = SentenceTransformer(
        sys.argv[1],
        device="cpu",
        model_kwargs={"dtype": torch.float32, "attn_implementation": "eager"},
    )
    golden_embeddings.save(model.encode(TEXTS, batch_size=4))
    print(f"{GOLDEN.name}: {GOLDEN.stat().st_size:,} bytes, texts cut at {model.max_seq_length}")


if __name__ == "__main__":
    main()
