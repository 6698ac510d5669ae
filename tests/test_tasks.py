"""Models for texts: vectors, labels, spans and fillings, from tiny random models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from test_checkpoints import convert, encode
from test_encoders import MODELS as GGUF_MODELS
from test_encoders import converted
from tiny_checkpoint import TinyCheckpoint, tokenizer_json
from tiny_heads import HEADS, MASK
from weightpkg.errors import RunError
from weightpkg.progress import Silence
from weightpkg.run.model import Model
from weightpkg.run.tasks.classification import Classifier
from weightpkg.run.tasks.embedding import OUTPUT, Embedder
from weightpkg.run.tasks.filling import Filler
from weightpkg.run.tasks.labels import Labels
from weightpkg.run.tasks.opening import TASKS, open_model, task_of
from weightpkg.run.tasks.tagging import Tagger, _spans, _Token
from weightpkg.run.tasks.tensors import TensorModel
from weightpkg.run.tasks.text import MAX_CHARACTERS, TextEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXTS = ["the sky is blue", "a", "the quick brown fox jumps over", "the sky", "is " * 9]


class Notes(Silence):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model directory of each head, of sentences, and of a decoder."""
    folder = tmp_path_factory.mktemp("models")
    found = {}
    for name in ("bert-sequence", "roberta-token", "bert-masked", "distilbert-sequence"):
        convert(HEADS[name].write(folder / f"{name}-source"), folder / name)
        found[name] = folder / name
    for name in ("bert", "qwen2", "distilbert"):
        convert(TinyCheckpoint.read(name).write(folder / f"{name}-source"), folder / name)
        found[name] = folder / name
    return found


@pytest.fixture
def copied(directories: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a directory of one's own, to be damaged."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(directories[name], tmp_path / name))

    return copy


def edit(directory: Path, name: str, **keys: Any) -> None:
    """Change a JSON file; None removes a key."""
    path = directory / name
    fields = json.loads(path.read_bytes()) | keys
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def alone(directory: Path, output: str, text: str) -> NDArray[np.float32]:
    """What the model makes of one text without batches and padding."""
    ids = np.array([TextEncoder(directory, ["input_ids"]).tokenizer.encode(text).ids])
    vector: NDArray[np.float32] = encode_plain(directory, output, ids)[0]
    return vector


def encode_plain(directory: Path, output: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    model = TensorModel(directory)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
    names = {spec.name for spec in model.inputs}
    found: Any = model.run({k: v for k, v in feeds.items() if k in names}, [output])[output]
    vectors: NDArray[np.float32] = np.asarray(found)
    return vectors


# What a directory is for


def test_a_directory_says_what_it_is_for(directories: dict[str, Path], tmp_path: Path) -> None:
    expected = {
        "bert-sequence": ("text-classification", Classifier),
        "distilbert-sequence": ("text-classification", Classifier),
        "roberta-token": ("token-classification", Tagger),
        "bert-masked": ("fill-mask", Filler),
        "bert": ("feature-extraction", Embedder),
        "qwen2": ("text-generation", Model),
        "distilbert": ("fill-mask", None),
    }
    for name, (task, kind) in expected.items():
        assert task_of(directories[name]) == task
        if kind is not None:
            with open_model(directories[name]) as model:
                assert type(model) is kind
                assert model.task == task
    assert {task for task, _ in expected.values()} < set(TASKS)


def test_any_model_takes_arrays_if_that_is_asked_for(directories: dict[str, Path]) -> None:
    for name in ("bert-sequence", "qwen2"):
        assert type(open_model(directories[name], task="tensors")) is TensorModel


def test_a_model_without_what_its_task_needs_takes_arrays(copied: Callable[[str], Path]) -> None:
    directory = copied("bert-sequence")
    (directory / "tokenizer.json").unlink()
    assert task_of(directory) == "tensors"


def test_a_text_model_that_lost_its_configuration_is_still_one(
    copied: Callable[[str], Path],
) -> None:
    directory = copied("qwen2")
    (directory / "genai_config.json").unlink()
    with pytest.raises(RunError, match=r"genai_config\.json` cannot be read: No such file"):
        open_model(directory)


@pytest.mark.parametrize(
    ("name", "task", "reason"),
    [
        ("bert-sequence", "feature-extraction", "no output `sentence_embedding`"),
        ("bert", "text-classification", "no output `logits`"),
        ("qwen2", "text-classification", "which are not the tokens of a text"),
        ("bert", "text-generation", "writes no text"),
        ("bert", "image-classification", "no output `logits`"),
        ("bert-sequence", "image-classification", "does not take pictures"),
        ("bert", "fill-mask", "no output `logits`"),
    ],
)
def test_refuses_another_task(
    directories: dict[str, Path], name: str, task: Any, reason: str
) -> None:
    with pytest.raises(RunError, match=reason):
        open_model(directories[name], task=task)


# Vectors


def test_vectors_of_many_texts_are_those_of_each(directories: dict[str, Path]) -> None:
    model = Embedder(directories["bert"], threads=2)
    assert (model.dimensions, model.max_tokens) == (64, 32)
    vectors = model.embed(TEXTS * 7)
    assert (vectors.shape, vectors.dtype.name) == ((35, 64), "float32")
    for i, text in enumerate(TEXTS):
        expected = alone(directories["bert"], "sentence_embedding", text)
        for vector in vectors[i :: len(TEXTS)]:
            np.testing.assert_allclose(vector, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def test_no_texts_have_no_vectors(directories: dict[str, Path]) -> None:
    assert Embedder(directories["bert"]).embed([]).shape == (0, 64)


def test_what_is_cut_is_said(directories: dict[str, Path]) -> None:
    notes = Notes()
    model = Embedder(directories["bert"])
    long = "the sky is blue " * 50
    vectors = model.embed(["a", long, "b", long + "and more"], progress=notes)
    assert notes.notes == [
        "2 of 4 texts have more than the 32 tokens that the model reads, and were cut: 2, 4"
    ]
    np.testing.assert_allclose(vectors[1], vectors[3], atol=1e-6)
    model.embed(["a"], progress=notes)
    assert len(notes.notes) == 1


def test_batches_have_every_text_once_and_bounded_sizes(directories: dict[str, Path]) -> None:
    encoder = TextEncoder(directories["bert"], ["input_ids", "attention_mask", "token_type_ids"])
    texts = [("the sky is blue " * (i % 9 + 1))[: i % 97 + 1] for i in range(200)]
    encodings = encoder.encode(texts, Silence())
    batches = list(encoder.batches(encodings, 64))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(200))
    for batch in batches:
        ids, mask = batch.feeds["input_ids"], batch.feeds["attention_mask"]
        assert ids.shape == mask.shape == batch.feeds["token_type_ids"].shape
        assert ids.size <= 64
        assert ids.shape[1] <= 32
        for place, row in enumerate(batch.rows):
            assert ids[place][mask[place] == 1].tolist() == encodings[row].ids
    padded = sum(batch.feeds["input_ids"].size for batch in batches)
    assert padded < 1.1 * sum(len(encoding.ids) for encoding in encodings)


def test_spans_do_not_depend_on_what_else_is_in_a_batch(directories: dict[str, Path]) -> None:
    directory = directories["roberta-token"]
    model = Tagger(directory)
    texts = ["the sky is blue " * 20, "a"]
    for text, spans in zip(texts, model.tag(texts), strict=True):
        (again,) = model.tag([text])
        assert [(s.label, s.start, s.end) for s in spans] == [
            (s.label, s.start, s.end) for s in again
        ]


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["fine", ""], "text 2 has no tokens"),
        (["a", "\udc80"], "text 2 has half of a character"),
        (["x" * (MAX_CHARACTERS + 1)], "text 1 has 4,194,305 characters"),
    ],
)
def test_refuses_texts(directories: dict[str, Path], texts: list[str], reason: str) -> None:
    model = Embedder(directories["bert"])
    with pytest.raises(RunError, match=reason):
        model.embed(texts)
    assert model.embed(["fine"]).shape == (1, 64)


def test_one_string_is_not_a_list_of_texts(directories: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match="not a list"):
        Embedder(directories["bert"]).embed("the sky")


def test_a_gguf_model_makes_vectors_too(tmp_path: Path) -> None:
    directory = converted(tmp_path / "out", GGUF_MODELS["bert"])
    with open_model(directory) as model:
        assert isinstance(model, Embedder)
        found = model.embed(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(vector, alone(directory, OUTPUT, text), rtol=0, atol=2e-6)


def test_several_threads_may_ask_at_once(directories: dict[str, Path]) -> None:
    model = Embedder(directories["bert"], threads=2)
    expected = model.embed(TEXTS * 20)
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: model.embed(TEXTS * 20), range(24)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_pairs_are_read_together(directories: dict[str, Path]) -> None:
    model = Classifier(directories["bert-sequence"])
    pair, other, alone = model.classify([("the sky", "is blue"), ("is blue", "the sky"), "the sky"])
    assert len({labels[0].score for labels in (pair, other, alone)}) == 3
    with pytest.raises(RunError, match="text 1 has half"):
        model.classify([("fine", "\ud800")])


# What is damaged


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "tokenizer.json` cannot be read"),
        (b"{}", "tokenizer.json` cannot be read|tokenizer fails"),
        (b"\xff\xfe", "tokenizer.json` cannot be read|tokenizer fails"),
        (b"[" * 100_000, "tokenizer.json` cannot be read|tokenizer fails"),
        (None, "tokenizer.json` cannot be read"),
    ],
)
def test_refuses_a_broken_tokenizer(
    copied: Callable[[str], Path], content: bytes | None, reason: str
) -> None:
    path = copied("bert") / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=reason):
        Embedder(path.parent)


def test_a_tokenizer_that_points_outside_the_vocabulary_is_an_error(
    copied: Callable[[str], Path],
) -> None:
    directory = copied("bert")
    document = tokenizer_json()
    document["model"]["vocab"] = {k: v + 5000 for k, v in document["model"]["vocab"].items()}
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": []}))
    with pytest.raises(RunError, match="the model failed with input_ids"):
        Embedder(directory).embed(["the sky is blue"])


def test_a_tokenizer_that_fails_at_a_text_is_an_error(copied: Callable[[str], Path]) -> None:
    directory = copied("bert")
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"a": 0}}  # fmt: skip
    document = tokenizer_json() | {"model": model, "added_tokens": [], "pre_tokenizer": None}
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="the tokenizer fails: WordPiece error"):
        Embedder(directory).embed(["b"])


def test_an_answer_that_is_not_a_number_is_an_error(copied: Callable[[str], Path]) -> None:
    directory = copied("bert")
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    (last,) = (n for n in graph.graph.node if n.output[0] == "sentence_embedding")
    last.op_type = "Log"  # some of the numbers are negative
    (directory / "model.onnx").unlink()
    onnx.save(graph, directory / "model.onnx")
    with pytest.raises(RunError, match=r"the model's answer to text [12] is not a number"):
        Embedder(directory).embed(["the sky", "a"])


def test_an_output_of_another_shape_is_an_error(copied: Callable[[str], Path]) -> None:
    """A graph that adds up its texts, and says that it does not."""
    directory = copied("bert-sequence")
    graph = onnx.load(directory / "model.onnx", load_external_data=False)
    (last,) = (n for n in graph.graph.node if n.output[0] == "logits")
    last.op_type = "ReduceMax"
    last.attribute.append(onnx.helper.make_attribute("keepdims", 1))
    axes = onnx.helper.make_tensor("all_texts", onnx.TensorProto.INT64, [1], [0])
    graph.graph.initializer.append(axes)
    last.input.append("all_texts")
    (directory / "model.onnx").unlink()
    onnx.save(graph, directory / "model.onnx")
    with pytest.raises(RunError, match=r"has the shape \[1, 3\] for tokens \[2, "):
        Classifier(directory).classify(["the sky", "the fox"])


@pytest.mark.parametrize("count", [2, 4])
def test_refuses_more_or_fewer_numbers_than_labels(tmp_path: Path, count: int) -> None:
    """Where the graph does not say how many there are, it is found out when it runs."""
    labels = {str(i): str(i) for i in range(count)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    found = Labels.read(tmp_path, None)
    assert found.scores(np.zeros((5, count), np.float32)).shape == (5, count)
    with pytest.raises(RunError, match=f"3 numbers for {count} labels"):
        found.scores(np.zeros((5, 3), np.float32))


def test_a_head_of_another_task_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(RunError, match="not numbers of texts: logits: float"):
        Classifier(directories["roberta-token"])
    with pytest.raises(RunError, match="not numbers of tokens: logits: float"):
        Tagger(directories["bert-sequence"])


def test_refuses_documents_that_are_too_large(copied: Callable[[str], Path]) -> None:
    directory = copied("bert-sequence")
    (directory / "config.json").unlink()
    (directory / "config.json").write_bytes(b" " * (2**24 + 1))
    with pytest.raises(RunError, match=r"config\.json` has more than 16,777,216 bytes"):
        Classifier(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff"])
def test_refuses_broken_documents(copied: Callable[[str], Path], name: str, content: bytes) -> None:
    directory = copied("bert-sequence")
    (directory / name).unlink()
    (directory / name).write_bytes(content)
    with pytest.raises(RunError, match=name.replace(".", r"\.")):
        open_model(directory, task="text-classification")


# Labels


def test_labels_are_those_of_the_highest_numbers(directories: dict[str, Path]) -> None:
    directory = directories["bert-sequence"]
    model = Classifier(directory)
    answers = model.classify(TEXTS)
    for text, labels in zip(TEXTS, answers, strict=True):
        logits = alone(directory, "logits", text).astype(np.float64)
        shares = np.exp(logits) / np.exp(logits).sum()
        order = np.argsort(-shares)
        assert [label.label for label in labels] == [model.labels.names[i] for i in order]
        assert [label.score for label in labels] == pytest.approx(list(shares[order]), abs=1e-5)
    assert [len(labels) for labels in model.classify(TEXTS, top=1)] == [1] * 5


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (None, [0.0, 1.0]),
        ("single_label_classification", [0.0, 1.0]),
        ("multi_label_classification", [0.0, 0.5]),
        ("regression", [-1000.0, 0.0]),
    ],
)
def test_scores_are_what_the_problem_asks_for(
    tmp_path: Path, problem: str | None, expected: list[float]
) -> None:
    fields = {"id2label": {"0": "a", "1": "b"}, "problem_type": problem}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    labels = Labels.read(tmp_path, 2)
    found = labels.scores(np.array([-1000, 0], np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_label_is_a_question_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"id2label": {"0": "spam"}}')
    assert Labels.read(tmp_path, 1).scoring == "sigmoid"


@pytest.mark.parametrize(
    "table", [{}, {"0": "a"}, {"0": "a", "1": 2}, {"0": "a", "2": "b"}, "ab", {"0": "a", "x": "b"}]
)
def test_refuses_labels_that_do_not_fit(tmp_path: Path, table: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"id2label": table}))
    with pytest.raises(RunError, match="does not have 2 labels"):
        Labels.read(tmp_path, 2)


def test_labels_are_not_made_up_without_end(tmp_path: Path) -> None:
    assert len(Labels.read(tmp_path, 1000).names) == 1000
    with pytest.raises(RunError, match="does not have 1000000000000 labels"):
        Labels.read(tmp_path, 10**12)


# Spans


def tokens(*rows: tuple[str, int, int]) -> Any:
    return iter([_Token(label, 0.5, start, end) for label, start, end in rows])


def test_spans_are_neighbours_of_one_label() -> None:
    text = "Ada Lovelace met Bob in New York"
    found = _spans(
        text,
        tokens(
            ("B-PER", 0, 3), ("I-PER", 3, 12), ("O", 13, 16), ("B-PER", 17, 20), ("O", 21, 23),
            ("B-LOC", 24, 27), ("I-LOC", 28, 32),
        ),
    )  # fmt: skip
    assert [(s.label, s.text, text[s.start : s.end] == s.text) for s in found] == [
        ("PER", "Ada Lovelace", True),
        ("PER", "Bob", True),
        ("LOC", "New York", True),
    ]


def test_a_new_beginning_ends_a_span() -> None:
    found = list(_spans("ab cd", tokens(("B-X", 0, 2), ("B-X", 3, 5))))
    assert [s.text for s in found] == ["ab", "cd"]
    found = list(_spans("ab cd", tokens(("I-X", 0, 2), ("I-Y", 2, 5))))
    assert [(s.label, s.text) for s in found] == [("X", "ab"), ("Y", "cd")]
    assert list(_spans("", tokens())) == []


def test_labels_without_beginnings_are_spans_too() -> None:
    found = list(_spans("ab cd", tokens(("NOUN", 0, 2), ("NOUN", 2, 5))))
    assert [s.text for s in found] == ["ab cd"]


def test_spans_of_a_model_cover_the_text(directories: dict[str, Path]) -> None:
    """Its labels are none of them O, so that every character belongs to a span."""
    for text, spans in zip(TEXTS, Tagger(directories["roberta-token"]).tag(TEXTS), strict=True):
        assert spans
        assert "".join(s.text for s in spans).replace(" ", "") == text.replace(" ", "")
        assert all(0 < s.score <= 1 and text[s.start : s.end] == s.text for s in spans)


# Fillings


def test_fillings_are_the_most_likely_words(directories: dict[str, Path]) -> None:
    directory = directories["bert-masked"]
    model = Filler(directory)
    assert model.mask == MASK
    text = f"the sky {MASK} blue"
    (found,) = model.fill([text], top=3)
    logits = alone(directory, "logits", text)
    ids = TextEncoder(directory, ["input_ids"]).tokenizer.encode(text).ids
    tokenizer = TextEncoder(directory, ["input_ids"]).tokenizer
    token = tokenizer.token_to_id(MASK)
    assert token is not None
    gap = ids.index(token)
    best = np.argsort(-logits[gap])[:3]
    assert [f.token for f in found] == [tokenizer.decode([int(i)]).strip() for i in best]
    assert found[0].text == f"the sky {found[0].token} blue"
    assert 1 > found[0].score >= found[1].score >= found[2].score > 0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no gap", "text 2 has 0 gaps"),
        (f"{MASK} {MASK}", "text 2 has 2 gaps"),
        ("the sky is blue " * 50 + MASK, "text 2 is cut before its gap"),
    ],
)
def test_refuses_texts_without_one_gap(
    directories: dict[str, Path], text: str, reason: str
) -> None:
    with pytest.raises(RunError, match=reason) as caught:
        Filler(directories["bert-masked"]).fill([MASK, text])
    assert MASK in str(caught.value.hint)


def test_a_tokenizer_without_a_gap_fills_none(copied: Callable[[str], Path]) -> None:
    directory = copied("bert-masked")
    (directory / "tokenizer_config.json").chmod(0o644)
    for mask in (None, "<not a token>"):
        edit(directory, "tokenizer_config.json", mask_token=mask)
        with pytest.raises(RunError, match="no `mask_token`"):
            Filler(directory)


def test_encode_is_what_the_tests_believe(directories: dict[str, Path]) -> None:
    """The comparison above does not use the code that it tests, but for the tokenizer's file."""
    ids = np.array([[5, 6, 7]])
    (found,) = encode(directories["distilbert"], ["logits"], ids, np.ones_like(ids))
    again = encode_plain(directories["distilbert"], "logits", ids)
    np.testing.assert_allclose(found, again, atol=1e-6)
