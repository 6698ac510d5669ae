"""Models for other things than writing text, on the command line and from Python by their names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from factories import index_page
from test_tensors import Value, write_model
from tiny_checkpoint import TinyCheckpoint
from tiny_heads import HEADS, MASK, TinyHead
from weightpkg.api import load
from weightpkg.errors import NotInstalledError
from weightpkg.settings import Settings

Result = subprocess.CompletedProcess[bytes]
Weightpkg = Callable[..., Result]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An index of tiny models of several tasks, and a store."""
    root = tmp_path_factory.mktemp("tasks")
    models = root / "index" / "models"
    models.mkdir(parents=True)
    checkpoints: dict[str, TinyCheckpoint | TinyHead] = {"vectors": TinyCheckpoint.read("bert"), "mood": HEADS["bert-sequence"], "tags": HEADS["roberta-token"], "gaps": HEADS["bert-masked"]}  # fmt: skip
    for name, checkpoint in checkpoints.items():
        directory = checkpoint.write(root / "index" / name)
        files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
        page = index_page(name, {"f32": files}, architecture="bert", form="safetensors", below=name)
        models.joinpath(f"{name}.toml").write_text(page.replace("text-generation", "text-ranking"))
    nodes = [helper.make_node("Add", ["x", "state"], ["next"])]
    shape: list[Value] = [
        ("x", TensorProto.FLOAT, ["n", 2]),
        ("state", TensorProto.FLOAT, ["n", 2]),
    ]
    source = write_model(
        root / "index" / "adder", nodes, shape, [("next", TensorProto.FLOAT, ["n", 2])]
    )
    page = index_page("adder", {"onnx": [source / "model.onnx"]}, form="onnx", below="adder")
    models.joinpath("adder.toml").write_text(page.replace("text-generation", "text-classification"))
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    return {
        **kept,
        "WEIGHTPKG_HOME": str(root / "store"),
        "WEIGHTPKG_INDEX": str(root / "index"),
        "HOME": str(root / "home"),
        "COLUMNS": "100",
    }


@pytest.fixture
def weightpkg(environ: dict[str, str], tmp_path: Path) -> Weightpkg:
    """Run the command line in a directory of its own."""

    def run(*words: str, stdin: bytes = b"") -> Result:
        line = [sys.executable, "-m", "weightpkg", *words]
        return subprocess.run(
            line, env=environ, cwd=tmp_path, input=stdin, capture_output=True, check=False
        )

    return run


def lines(done: Result) -> list[Any]:
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


# embed


def test_vectors_are_lines_or_files(weightpkg: Weightpkg, tmp_path: Path) -> None:
    texts = ["the sky is blue", "a", "the quick brown fox"]
    vectors = np.array(lines(weightpkg("embed", "vectors", *texts)), np.float32)
    assert vectors.shape == (3, 64)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    for name in ("a.npy", "a.json", "a.jsonl"):
        done = weightpkg("embed", "vectors", "-f", "texts.txt", "-o", name)
        assert (done.returncode, done.stdout) == (0, b"")
    found = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert (found.dtype, found.shape) == (np.float32, (3, 64))
    np.testing.assert_array_equal(found, vectors)
    document = json.loads((tmp_path / "a.json").read_bytes())
    np.testing.assert_array_equal(np.array(document, np.float32), vectors)
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert rows == document
    done = weightpkg("embed", "vectors", "--json", stdin="\r\n".join(texts).encode())
    assert json.loads(done.stdout) == document
    assert json.loads(weightpkg("embed", "vectors", "--json").stdout) == []


def test_texts_of_arguments_come_before_those_of_files(
    weightpkg: Weightpkg, tmp_path: Path
) -> None:
    (tmp_path / "texts").write_text("the sky")
    both = lines(weightpkg("embed", "vectors", "a", "--file", "texts"))
    assert both == lines(weightpkg("embed", "vectors", "a", "the sky"))


def test_many_texts_are_taken_in_parts(weightpkg: Weightpkg) -> None:
    texts = "".join(f"the sky is blue {i % 7}\n" for i in range(4200))
    long = "the sky is blue " * 20 + "\n"
    done = weightpkg("embed", "vectors", stdin=(texts + long).encode())
    vectors = np.array(lines(done), np.float32)
    assert vectors.shape == (4201, 64)
    np.testing.assert_allclose(vectors[0], vectors[4116 + 7 * 6], atol=1e-6)
    assert b"1 of 105 texts have more than the 32 tokens" in done.stderr
    assert b"were cut: 4201" in done.stderr


@pytest.mark.parametrize(
    ("words", "stdin", "code", "reason"),
    [
        ([], b"fine\n\xff\xfe\n", 9, "line 2 of standard input is not UTF-8 at its byte 0"),
        ([], b"fine\n\nfine\n", 9, "text 2 has no tokens"),
        (["-f", "missing"], b"", 9, "`missing` cannot be read: No such file"),
        (["-f", "."], b"", 9, "`.` cannot be read: Is a directory"),
        (["a", "-o", "a.txt"], b"", 2, "does not end in .npy, .json, .jsonl"),
        (["a", "-o", "/proc/none/a.npy"], b"", 5, "/proc/none"),
    ],
)
def test_what_cannot_be_embedded_is_said(
    weightpkg: Weightpkg, words: list[str], stdin: bytes, code: int, reason: str
) -> None:
    done = weightpkg("embed", "vectors", *words, stdin=stdin)
    assert reason in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert done.returncode != 0
    if code != 5:
        assert done.returncode == code


def test_a_failure_leaves_an_old_file_as_it_was(weightpkg: Weightpkg, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(b"old")
    assert weightpkg("embed", "vectors", "-o", "a.npy", stdin=b"fine\n\xff").returncode == 9
    assert (tmp_path / "a.npy").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


def test_other_models_make_no_vectors(weightpkg: Weightpkg) -> None:
    done = weightpkg("embed", "mood", "a")
    assert done.returncode == 9
    assert b"no output `sentence_embedding`" in done.stderr


# run


def test_a_classifier_labels_texts(weightpkg: Weightpkg) -> None:
    done = weightpkg("run", "mood", "the sky is blue", "--json")
    ((first, *rest),) = json.loads(done.stdout)
    assert {first["label"], *(each["label"] for each in rest)} == {"bad", "so-so", "good"}
    assert first["score"] >= rest[0]["score"]
    plain = weightpkg("run", "mood", "the sky is blue").stdout.decode().splitlines()
    assert plain[0] == f"{first['score']:.4f}\t{first['label']}"
    both = json.loads(weightpkg("run", "mood", "--json", stdin=b"the sky is blue\na\n").stdout)
    assert len(both) == 2
    assert both[0][0]["label"] == first["label"]


def test_a_tagger_and_a_filler_answer_too(weightpkg: Weightpkg) -> None:
    ((span, *_),) = json.loads(weightpkg("run", "tags", "the sky", "--json").stdout)
    assert (span["start"], "the sky".startswith(span["text"])) == (0, True)
    ((filling, *_),) = json.loads(weightpkg("run", "gaps", f"the {MASK}", "--json").stdout)
    assert filling["text"] == f"the {filling['token']}"


@pytest.mark.parametrize(
    ("words", "stdin", "code", "reason"),
    [
        (["mood"], b"\xff", 9, "standard input is not UTF-8 at byte 0"),
        (["mood", ""], b"", 9, "text 1 has no tokens"),
        (["gaps", "no gap"], b"", 9, "text 1 has 0 gaps"),
        (["vectors", "a"], b"", 9, "weightpkg embed"),
        (["adder", "a"], b"", 9, "it takes arrays"),
        (["adder"], b"", 9, "it takes arrays"),
        (["adder", "--input", "x"], b"", 2, "is not NAME=VALUE"),
        (["adder", "--input", "y=[[1, 2]]"], b"", 9, "no input `y`"),
        (["adder", "--input", "x=[[1, 2]]"], b"", 9, "input `state` is missing"),
        (["adder", "--input", "x=[[1, 2]", "--input", "state=zeros"], b"", 9, "is not JSON"),
        (["adder", "--input", "x=[[1, 2]]", "--input", "x=zeros"], b"", 2, "`x` is there twice"),
        (["adder", "--input", "x=[1, 2]", "--input", "state=zeros"], b"", 9, "has the shape [n, 2], not [2]"),
        (["adder", "--input", "x=none.npy", "--input", "state=zeros"], b"", 9, "cannot be read"),
        (["adder", "--input", "none.npz"], b"", 9, "cannot be read"),
        (["adder", "--input", "x=zeros", "--input", "state=zeros", "--output", "y"], b"", 9, "no output `y`"),
        (["adder", "--input", "x=zeros", "--input", "state=zeros", "--output", "next=a.txt"], b"", 2, "does not end in"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_said(
    weightpkg: Weightpkg, words: list[str], stdin: bytes, code: int, reason: str
) -> None:
    done = weightpkg("run", *words, stdin=stdin)
    assert reason in done.stderr.decode()
    assert (done.returncode, b"Traceback" in done.stderr) == (code, False)


def test_arrays_go_in_and_out(weightpkg: Weightpkg, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2]], np.float32))
    words = ("run", "adder", "--input", "x=x.npy")
    done = weightpkg(*words, "--input", "state=zeros", "--output", "next=s.npy")
    assert (done.returncode, done.stdout) == (0, b"")
    done = weightpkg(*words, "--input", "state=s.npy", "--json")
    assert json.loads(done.stdout) == {"next": [[2.0, 4.0]]}
    assert (
        weightpkg(*words, "--input", "state=s.npy").stdout == b"next: float32 [1, 2]\n[[2. 4.]]\n"
    )
    np.savez(tmp_path / "all.npz", x=np.ones((1, 2), np.float32), state=np.full((1, 2), np.nan, np.float32))  # fmt: skip
    done = weightpkg("run", "adder", "--input", "all.npz", "--json")
    assert json.loads(done.stdout) == {"next": [[None, None]]}
    (tmp_path / "x.json").write_text("[[1, 2]]")
    done = weightpkg("run", "adder", "--input", "x=x.json", "--input", "state=[[0.5, 1]]", "--output", "next=o.json")  # fmt: skip
    assert json.loads((tmp_path / "o.json").read_text()) == [[1.5, 3.0]]


def test_a_pickle_is_not_read(weightpkg: Weightpkg, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], object), allow_pickle=True)
    done = weightpkg("run", "adder", "--input", "x=x.npy", "--input", "state=zeros")
    assert done.returncode == 9
    assert b"holds Python objects, a pickle" in done.stderr


def test_show_says_what_a_model_takes(weightpkg: Weightpkg) -> None:
    assert weightpkg("install", "adder").returncode == 0
    shown = weightpkg("show", "adder").stdout.decode()
    assert "  x: float [n, 2]\n  state: float [n, 2]\nand gives:\n  next: float [n, 2]\n" in shown
    tensors = json.loads(weightpkg("show", "adder", "--json").stdout)["tensors"]
    assert [spec["shape"] for spec in tensors["adder-onnx"]["inputs"]] == [["n", 2], ["n", 2]]


# Python


def test_a_program_gets_the_class_of_the_task(environ: dict[str, str]) -> None:
    settings = Settings.from_environment(environ)
    with load("vectors", task="feature-extraction", settings=settings) as model:
        assert model.embed(["the sky"]).shape == (1, 64)
    with load("mood", task="text-classification", settings=settings) as classifier:
        assert classifier.classify(["the sky"], top=1)[0][0].label in {"bad", "so-so", "good"}
    with load("tags", task="token-classification", settings=settings) as tagger:
        assert tagger.tag(["the sky"])[0]
    with load("gaps", task="fill-mask", settings=settings) as filler:
        assert len(filler.fill([f"the {filler.mask}"])[0]) == 5
    with load("adder", task="tensors", settings=settings) as tensors:
        assert tensors.run({"x": [[1, 2]], "state": [[1, 2]]})["next"].shape == (1, 2)
    with load("mood", settings=settings) as some:
        assert some.task == "text-classification"
    environ = {**environ, "WEIGHTPKG_HOME": f"{environ['WEIGHTPKG_HOME']}-empty"}
    with pytest.raises(NotInstalledError):
        load("mood", settings=Settings.from_environment(environ), allow_install=False)
