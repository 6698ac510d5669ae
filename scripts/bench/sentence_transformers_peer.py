"""What sentence-transformers takes for the benchmark of embeddings: a process that embeds on request.

Reads a line of JSON, {"checkpoint", "texts", "threads"}; says so when it is ready; then for each line
embeds the texts and answers with the seconds; at the end, saves the vectors where a line says.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Answer until the input ends."""
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = SentenceTransformer(job["checkpoint"], device="cpu")
    texts = job["texts"]
    vectors = model.encode(texts[:8])
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() != "run":
            np.save(line.strip(), vectors)
            print("saved", flush=True)
            continue
        start = time.perf_counter()
        vectors = model.encode(texts)  # its own batches: sorted by length, 32 texts each
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
