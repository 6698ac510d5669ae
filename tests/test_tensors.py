"""Any ONNX model with arrays: names, types and shapes are looked at; files of strangers are bounded."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from weightpkg.errors import RunError
from weightpkg.run.tasks import arrays
from weightpkg.run.tasks.arrays import (
    json_value,
    npy_bytes,
    read_array,
    read_arrays,
    read_json_value,
)
from weightpkg.run.tasks.tensors import DTYPES, TensorModel, TensorSpec, signature

if TYPE_CHECKING:
    from collections.abc import Sequence

Value = tuple[str, int, "Sequence[Any] | None"]
F, I64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def write_model(
    directory: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    initializers: Sequence[Any] = (),
) -> Path:
    """Write a model directory of a graph."""
    directory.mkdir(exist_ok=True)
    values = [[helper.make_tensor_value_info(*value) for value in some] for some in (inputs, outputs)]  # fmt: skip
    graph = helper.make_graph(list(nodes), "g", values[0], values[1], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)], ir_version=10)  # fmt: skip
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return directory


@pytest.fixture
def stateful(tmp_path: Path) -> Path:
    """A model like a detector in a stream: it adds what it hears to a state, times a scale."""
    nodes = [
        helper.make_node("Cast", ["rate"], ["scale"], to=F),
        helper.make_node("Mul", ["audio", "scale"], ["scaled"]),
        helper.make_node("ReduceSum", ["scaled", "axes"], ["heard"], keepdims=1),
        helper.make_node("Mul", ["heard", "gain"], ["louder"]),
        helper.make_node("Add", ["state", "louder"], ["next"]),
    ]
    initializers = [
        helper.make_tensor("axes", I64, [1], [1]),
        helper.make_tensor("gain", F, [], [1.0]),
    ]
    inputs: list[Value] = [
        ("audio", F, ["batch", None]),
        ("state", F, ["batch", 1]),
        ("rate", I64, []),
        ("gain", F, []),
    ]
    return write_model(tmp_path / "model", nodes, inputs, [("next", F, ["batch", 1])], initializers)


def test_a_model_says_what_it_takes_and_gives(stateful: Path) -> None:
    inputs, outputs = signature(stateful)
    assert list(map(str, inputs)) == [
        "audio: float [batch, ?]",
        "state: float [batch, 1]",
        "rate: int64 []",
        "gain: float [], optional",
    ]
    assert [spec.as_json() for spec in outputs] == [
        {"name": "next", "type": "float", "shape": ["batch", 1], "optional": False}
    ]


def test_a_state_goes_from_one_step_to_the_next(stateful: Path) -> None:
    with TensorModel(stateful) as model:
        state: Any = model.input("state").zeros()
        assert (state.shape, state.dtype) == ((1, 1), np.float32)
        for _ in range(3):
            audio = np.ones((1, 4), np.float32)
            state = model.run({"audio": audio, "state": state, "rate": 2})["next"]
        assert state.tolist() == [[24.0]]
        again = model.run({"audio": audio, "state": state, "rate": 2, "gain": 0.0}, ["next"])
        assert again["next"].tolist() == [[24.0]]


AUDIO = np.ones((1, 4), np.float32)
GOOD: dict[str, Any] = {"audio": AUDIO, "state": [[0.5]], "rate": 1}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adio": AUDIO}, "no input `adio`"),
        ({"audio": None}, "input `audio` is missing"),
        ({"audio": AUDIO.astype(np.float64)}, "`audio` is of type float, not float64"),
        ({"audio": AUDIO.astype(np.int32)}, "`audio` is of type float, not int32"),
        ({"audio": AUDIO.astype(bool)}, "`audio` is of type float, not bool"),
        ({"audio": AUDIO.astype("U")}, "`audio` is of type float, not <U"),
        ({"audio": AUDIO.astype(object)}, "`audio` is of type float, not object"),
        ({"audio": AUDIO[0]}, r"`audio` has the shape \[batch, \?\], not \[4\]"),
        ({"audio": AUDIO[None]}, r"not \[1, 1, 4\]"),
        ({"state": [[1.0, 2.0]]}, r"`state` has the shape \[batch, 1\], not \[1, 2\]"),
        ({"state": [[1.0], [2.0, 3.0]]}, "input `state`"),
        ({"state": [["a"]]}, "`state` is of type float, not <U1"),
        ({"state": [[True]]}, "`state` is of type float, not bool"),
        ({"state": [[1e300]]}, "`state`"),
        ({"rate": 1.5}, "`rate` is of type int64, not float64"),
        ({"rate": 2**70}, "`rate`"),
        ({"rate": [1]}, r"`rate` has the shape \[\], not \[1\]"),
        ({"rate": "1"}, "`rate` is of type int64, not <U1"),
        ({"rate": {}}, "`rate`"),
    ],
)
def test_refuses_what_the_model_does_not_take(
    stateful: Path, changes: dict[str, Any], reason: str
) -> None:
    feeds = {k: v for k, v in (GOOD | changes).items() if v is not None}
    with TensorModel(stateful) as model, pytest.raises(RunError, match=reason):
        model.run(feeds)
    with TensorModel(stateful) as model:
        assert model.run(GOOD)["next"].tolist() == [[4.5]]


def test_refuses_outputs_that_there_are_not(stateful: Path) -> None:
    with TensorModel(stateful) as model, pytest.raises(RunError, match="no output `last`") as caught:  # fmt: skip
        model.run(GOOD, ["next", "last"])
    assert "next: float [batch, 1]" in str(caught.value.hint)


def test_what_the_model_cannot_compute_is_an_error(stateful: Path) -> None:
    with TensorModel(stateful) as model, pytest.raises(RunError, match=r"failed with audio \[2, 4\]"):  # fmt: skip
        model.run({"audio": np.ones((2, 4), np.float32), "state": np.zeros((3, 1), np.float32), "rate": 1})  # fmt: skip


def test_numbers_that_are_none_go_in_and_come_out(stateful: Path) -> None:
    with TensorModel(stateful) as model:
        found: Any = model.run(GOOD | {"state": np.array([[np.nan]], np.float32)})["next"]
    assert np.isnan(found).all()


def test_integers_that_are_too_large_for_a_type_are_refused() -> None:
    for name, value in (("uint8", 256), ("uint8", -1), ("int8", 128), ("int32", 2**31)):
        with pytest.raises(RunError, match="too large"):
            TensorSpec("x", name, ()).array(value)
        assert TensorSpec("x", name, ()).array(7).dtype == DTYPES[name]


def test_strings_go_in_and_come_out(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["words"], ["same"])]
    inputs: list[Value] = [("words", STRING, ["n"])]
    write_model(tmp_path, nodes, inputs, [("same", STRING, ["n"])])
    with TensorModel(tmp_path) as model:
        assert model.run({"words": ["a", "böse"]})["same"].tolist() == ["a", "böse"]
        with pytest.raises(RunError, match="not int64"):
            model.run({"words": [1]})
        with pytest.raises(RunError, match="no zero"):
            model.input("words").zeros()


def test_outputs_that_are_no_arrays_are_left_out(tmp_path: Path) -> None:
    zipmap = helper.make_node("ZipMap", ["x"], ["table"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])  # fmt: skip
    nodes = [helper.make_node("Identity", ["x"], ["y"]), zipmap]
    write_model(tmp_path, nodes, [("x", F, [1, 2])], [("y", F, [1, 2])])
    import onnx  # noqa: PLC0415

    model = onnx.load(tmp_path / "model.onnx")
    value = onnx.ValueInfoProto(name="table")
    value.type.sequence_type.elem_type.map_type.key_type = I64
    value.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = F
    model.graph.output.append(value)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with TensorModel(tmp_path) as loaded:
        assert list(loaded.run({"x": [[1.0, 2.0]]})) == ["y"]
        with pytest.raises(RunError, match=r"`table` is of type seq\(map"):
            loaded.run({"x": [[1.0, 2.0]]}, ["table"])


@pytest.mark.parametrize("content", [b"", b"\x08", b"not a model" * 100])
def test_refuses_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(RunError, match="onnxruntime cannot load"):
        TensorModel(tmp_path)


# Files


ARRAYS: dict[str, Any] = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    "scalar": np.array(7, np.int32),
    "nothing": np.zeros((0, 3), np.float16),
    "big end first": np.arange(3, dtype=">f8"),
    "words": np.array(["a", "böse"]),
    "truth": np.array([True, False]),
    "not numbers": np.array([np.nan, np.inf], np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_reads_what_numpy_writes(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name], allow_pickle=False)
    found = read_array(tmp_path / "a.npy")
    np.testing.assert_array_equal(found, ARRAYS[name])
    assert found.dtype == ARRAYS[name].dtype.newbyteorder("=")
    assert found.shape == ARRAYS[name].shape
    (tmp_path / "b.npy").write_bytes(npy_bytes(found))
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy", allow_pickle=False), found)


def header(descr: str = "'<f4'", shape: str = "(2,)", *, tail: str = ", }", version: int = 1) -> bytes:  # fmt: skip
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}{tail}".encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


BAD = {
    "nothing": (b"", "not a .npy file"),
    "a pickle": (pickle.dumps([1, 2, 3]), "Python pickle"),
    "text": (b"1, 2, 3", "not a .npy file"),
    "cut in the header": (header()[:20], "a header that is not"),
    "cut behind the version": (header()[:8], "a header that is not"),
    "cut in the numbers": (header() + b"1234", "has 4 bytes of numbers, not 8"),
    "too much": (header() + bytes(9), "has more bytes of numbers, not 8"),
    "objects": (header("'|O'") + pickle.dumps(1), "holds Python objects"),
    "a huge shape": (header(shape="(99999999999, 99999999)"), "bytes of numbers, more than"),
    "an endless shape": (header(shape=f"({'1, ' * 1000})"), "shape that no array has"),
    "a negative shape": (header(shape="(-1,)"), "a header that is not"),
    "a shape of calls": (header(shape="(__import__('os').abort(),)"), "a header that is not"),
    "a deep header": (header(shape="(" * 3000), "a header that is not"),
    "fields": (header("[('a', '<f4')]"), "a header that is not"),
    "an unknown type": (header("'<c8'") + bytes(16), "a header that is not"),
    "a time": (header("'<M8[s]'") + bytes(16), "a header that is not"),
    "a type of no bytes": (header("'<U0'"), "a header that is not"),
    "nothing, many times": (
        header(shape="(0, 999999999999999, 999999999999999)"),
        "array is too|too large|too big|cannot|maximum",
    ),
    "another version": (header(version=9), "version 9"),
    "a huge header": (b"\x93NUMPY\x02\0" + struct.pack("<I", 2**31), "a header of 2,147,483,648"),
    "halves of characters": (header("'<U1'") + struct.pack("<2I", 0xD800, 65), "not Unicode"),
    "beyond characters": (header("'<U1'") + struct.pack("<2I", 0x7FFFFFFF, 65), "not Unicode"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_a_file(tmp_path: Path, name: str) -> None:
    content, reason = BAD[name]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(RunError, match=reason) as caught:
        read_array(tmp_path / "a.npy")
    assert len(str(caught.value)) < 400


def test_refuses_or_reads_any_mutation_of_a_file(tmp_path: Path) -> None:
    content, path = npy_bytes(ARRAYS["matrix"]), tmp_path / "a.npy"
    random = np.random.default_rng(0)
    for _ in range(400):
        mutated = bytearray(content[: random.integers(1, len(content) + 1)])
        mutated[random.integers(len(mutated))] = random.integers(256)
        path.write_bytes(mutated)
        try:
            assert read_array(path).size <= 6
        except RunError:
            continue


def test_refuses_what_is_no_file(tmp_path: Path) -> None:
    for path, reason in ((tmp_path, "cannot be read|is no file"), (tmp_path / "none.npy", "No such file"), (Path("/dev/zero"), "is no file")):  # fmt: skip
        with pytest.raises(RunError, match=reason):
            read_array(path)


def test_refuses_files_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_BYTES", 1000)
    np.save(tmp_path / "a.npy", np.zeros(1000, np.uint8))
    with pytest.raises(RunError, match="1,128 bytes, more than 1,000"):
        read_array(tmp_path / "a.npy")
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(100_000, np.uint8))
    with pytest.raises(RunError, match="unpacks to 100,128 bytes, more than 1,000"):
        read_arrays(tmp_path / "a.npz")


def test_reads_archives(tmp_path: Path) -> None:
    for name, save in (("a.npz", np.savez), ("b.npz", np.savez_compressed)):
        save(tmp_path / name, matrix=ARRAYS["matrix"], scalar=ARRAYS["scalar"])
        found = read_arrays(tmp_path / name)
        assert list(found) == ["matrix", "scalar"]
        np.testing.assert_array_equal(found["matrix"], ARRAYS["matrix"])


def archive(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def lying(content: bytes) -> bytes:
    """A bomb: an archive that says its member is smaller than it is."""
    packed = archive({"a.npy": npy_bytes(np.zeros(100_000, np.uint8))})
    size = struct.pack("<I", 100_128)
    assert packed.count(size) == 2
    return packed.replace(size, struct.pack("<I", 200)) + content


BAD_ARCHIVES = {
    "nothing": (b"", "not a .npz file"),
    "no archive": (b"PK\3\4" + bytes(100), "not a .npz file"),
    "cut": (archive({"a.npy": npy_bytes(ARRAYS["matrix"])})[:-30], "not a .npz file"),
    "a pickle": (archive({"a.npy": pickle.dumps([1])}), "array `a`: is a Python pickle"),
    "another file": (archive({"a.txt": b"a"}), "not a .npy file"),
    "many": (archive({f"{i}.npy": b"" for i in range(300)}), "300 arrays"),
    "lying": (lying(b""), "not a .npz file|not of the size"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_refuses_an_archive(tmp_path: Path, name: str) -> None:
    content, reason = BAD_ARCHIVES[name]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(RunError, match=reason):
        read_arrays(tmp_path / "a.npz")


def test_refuses_a_damaged_archive(tmp_path: Path) -> None:
    content = bytearray(archive({"a.npy": npy_bytes(np.arange(1000))}))
    content[60] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"not a \.npz file"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not JSON"),
        (b"[1, 2", "is not JSON"),
        (b"NaN", "NaN is not a number"),
        (b"[Infinity]", "Infinity"),
        (b"null", "is not a number, a string, or a list"),
        (b'{"a": 1}', "is not a number"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 50, "50 digits"),
        (b'"\\ud800"', "half of a character"),
    ],
)
def test_refuses_json(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(RunError, match=reason):
        read_json_value(tmp_path / "a.json")


def test_reads_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([[1, 2.5], [3, 4]]))
    assert read_json_value(tmp_path / "a.json") == [[1, 2.5], [3, 4]]
    assert json_value(b"16000", "x") == 16000
    deep: Any = json_value(b"[" * 70 + b"]" * 70, "x")
    with pytest.raises(RunError):
        TensorSpec("x", "float", (1,)).array(deep)
