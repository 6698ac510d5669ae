"""Embeddings of sentence-transformers in a small file, and those of a converted model.

The file has float16 vectors of the texts below. They are of length 1, and rounding them to float16 changes a cosine by less than 1e-6.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

GOLDEN = Path(__file__).resolve().parent / "bench" / "golden" / "minilm-l6.npz"
TEXTS = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "Someone in a gorilla costume is playing a set of drums.",
    "The quick brown fox jumps over the lazy dog.",
    "the quick brown fox jumps over the lazy dog",
    "",
    "a",
    "42",
    "Où est la bibliothèque ?",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "机器学习是人工智能的一个分支。",
    "機械学習 and machine learning",
    "emoji 🙂🚀 and symbols €§±",
    "def main() -> None:\n    print('hello, world')",
    "SELECT name FROM users WHERE id = 7;",
    "https://example.org/a/path?with=query#fragment",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "\u0065\u0301 is not \u00e9 to every tokenizer",
    " ".join(f"word{i}" for i in range(120)),
    "A text that is longer than the model reads is cut off at its end. " * 40,
]


def load() -> NDArray[np.float32]:
    """Read the golden file: (texts, E)."""
    with np.load(GOLDEN) as golden:
        vectors: NDArray[np.float32] = golden["vectors"].astype(np.float32)
    return vectors


def save(vectors: NDArray[np.float32]) -> None:
    """Write the golden file."""
    np.savez_compressed(GOLDEN, vectors=vectors.astype(np.float16))


def cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """a, b: (N, E) -> the cosine of each pair (N,)."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(other, axis=1)
    result: NDArray[np.float64] = (wide * other).sum(axis=1) / lengths
    return result


def embed(directory: Path, texts: list[str], batch: int) -> NDArray[np.float32]:
    """Return a vector for each text: (N, E)."""
    session = ort.InferenceSession(directory / "model.onnx")
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_padding()
    rows = []
    for start in range(0, len(texts), batch):
        encodings = tokenizer.encode_batch(texts[start : start + batch])
        rows.append(session.run(["sentence_embedding"], inputs(encodings))[0])
    return np.concatenate(rows)


def inputs(encodings: list[Encoding]) -> dict[str, NDArray[np.int64]]:
    """Return what the model is fed: (B, T) each."""
    return {
        "input_ids": np.array([e.ids for e in encodings], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encodings], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encodings], np.int64),
    }
