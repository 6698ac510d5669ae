"""Real models for other things than writing text, from the Python package index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden_embeddings import TEXTS, cosines
from golden_embeddings import load as golden_embeddings
from test_network import command, settings
from weightpkg.api import load, path

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("home")
    done = command(directory, "install", "silero-vad", "magika", "minilm-l6")
    assert done.returncode == 0, done.stderr
    return directory


def test_minilm_embeds_as_sentence_transformers_does(home: Path, tmp_path: Path) -> None:
    with load("minilm-l6", task="feature-extraction", settings=settings(home)) as model:
        assert cosines(model.embed(TEXTS), golden_embeddings()).min() >= 0.99999
    done = command(home, "embed", "minilm-l6", *TEXTS, "-o", str(tmp_path / "a.npy"))
    assert done.returncode == 0, done.stderr
    assert "2 of 20 texts have more than the 256 tokens" in done.stderr
    vectors = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert cosines(vectors, golden_embeddings()).min() >= 0.99999


def test_silero_hears_no_speech_in_silence(home: Path) -> None:
    shown = command(home, "show", "silero-vad").stdout
    assert "  input: float [?, ?]\n  state: float [2, ?, 128]\n  sr: int64 []\n" in shown
    with load("silero-vad", settings=settings(home)) as model:
        assert model.task == "tensors"
        state: Any = model.input("state").zeros()
        first = state
        for _ in range(10):
            silence = np.zeros((1, 576), np.float32)
            found: Any = model.run({"input": silence, "state": state, "sr": 16000})
            state = found["stateN"]
            assert found["output"].shape == (1, 1)
            assert 0 <= found["output"][0, 0] < 0.1
        assert state.shape == first.shape
        assert np.abs(state).max() > 0


def test_magika_tells_python(home: Path, tmp_path: Path) -> None:
    directory = path("magika", settings=settings(home))
    config = json.loads((directory / "config.min.json").read_bytes())
    content = Path(os.__file__).read_bytes().strip()
    ends = content[: config["beg_size"]], content[-config["end_size"] :]
    np.save(tmp_path / "bytes.npy", np.frombuffer(b"".join(ends), np.uint8).astype(np.int32)[None])
    line = ("run", "magika", "--input", f"bytes={tmp_path / 'bytes.npy'}", "--json")
    done = command(home, *line)
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads(done.stdout)["target_label"]
    assert config["target_labels_space"][int(np.argmax(scores))] == "python"
    np.save(tmp_path / "bytes.npy", np.zeros((1, 2048), np.int64))
    refused = command(home, *line)
    assert refused.returncode == 9
    assert "input `bytes` is of type int32, not int64" in refused.stderr
