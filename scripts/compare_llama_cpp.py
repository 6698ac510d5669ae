"""Compare the golden logits in tests/archs/*.toml with llama.cpp's, on the same GGUF files.

Usage: pip install llama-cpp-python==0.3.36, then python scripts/compare_llama_cpp.py [NAME ...]

The files that the tests build say nothing about whether others would build them so. llama.cpp reads
the same keys and tensors, and what it computes shows that they are named and laid out as it wants
them. Its tables of half precision for GELU make a difference of some 0.001. Of encoders, vectors of
texts are compared with what the conversion computes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np
import onnxruntime as ort

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from factories import TinyModel  # noqa: E402  it is found by the line above
from weightpkg.convert.pipeline import convert  # noqa: E402
from weightpkg.digest import Digest  # noqa: E402
from weightpkg.progress import Silence  # noqa: E402

if TYPE_CHECKING:
    from numpy.typing import NDArray

BAR = 2e-3
NO_WINDOW = {"phi3", "starcoder2"}
"""Architectures whose sliding windows llama.cpp does not apply: compared as far as they reach."""

OTHERWISE = {"deepseek2-groups"}
"""Pages that it computes otherwise: a group of experts is as good as its two best, not as its best,
also where scores are a softmax; and queries without a low rank it expects in 27 layers only."""


def main() -> None:
    """Print the largest difference of each model; exit with 1 where one is above the bar."""
    worst = 0.0
    for path in sorted((ROOT / "tests" / "archs").glob("*.toml")):
        if path.stem in sys.argv[1:] or (not sys.argv[1:] and path.stem not in OTHERWISE):
            difference = compare(TinyModel.read(path))
            print(f"{path.stem:24} {difference:.1e} of the largest logit")
            worst = max(worst, difference)
    sys.exit(worst > BAR)


def compare(model: TinyModel) -> float:
    """Return the largest difference, as a part of the largest logit."""
    if "embedding" in model.golden:
        return compare_vectors(model)
    golden = np.array(model.golden["logits"])
    with tempfile.TemporaryDirectory() as folder:
        path = model.write(Path(folder) / "tiny.gguf", model.weights(), {})
        found = logits(path, model.golden["tokens"])[:, model.golden["columns"]]
    count = len(golden)
    if model.architecture in NO_WINDOW:
        count = int(str(model.metadata["attention.sliding_window"])) or count
    return float(np.abs(found - golden)[:count].max() / np.abs(golden).max())


def compare_vectors(model: TinyModel) -> float:
    """Return 1 less the cosine of an encoder's vectors, for a text in which segments do not matter."""
    tokens = [token // 2 * 2 for token in model.golden["tokens"][:20]]  # all of the first segment
    with tempfile.TemporaryDirectory() as folder:
        path = model.write(Path(folder) / "tiny.gguf", model.weights(), {})
        directory = Path(folder) / "out"
        directory.mkdir()
        convert(path, Digest("sha256", 64 * "0"), directory, Silence())
        session = ort.InferenceSession(directory / "model.onnx")
        ids = np.array([tokens])
        feed = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
        names = {value.name for value in session.get_inputs()}
        ours = session.run(
            ["sentence_embedding"], {key: ids for key, ids in feed.items() if key in names}
        )[0][0]
        other = llama_cpp.Llama(str(path), embedding=True, n_ctx=0, verbose=False)
        other.tokenize = lambda *_, **__: tokens
        found = np.array(other.embed("", normalize=True))
        other.close()
    return float(1 - found @ ours)


def logits(path: Path, tokens: list[int]) -> NDArray[np.float32]:
    """Return the logits that follow each token, with a cache in float32."""
    kind = llama_cpp.GGML_TYPE_F32
    model = llama_cpp.Llama(
        str(path),
        n_ctx=0,  # what the file says
        logits_all=True,
        flash_attn=False,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )
    model.eval(tokens)
    result = np.array(model.scores[: len(tokens)], np.float32)
    model.close()
    return result


if __name__ == "__main__":
    main()
