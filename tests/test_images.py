"""Pictures to labels: made ready as the model says, and refused where they are no pictures."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from test_tensors import write_model
from weightpkg.errors import RunError
from weightpkg.run.tasks import images
from weightpkg.run.tasks.images import ImageClassifier, Preparation
from weightpkg.run.tasks.opening import open_model, task_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Image = pytest.importorskip("PIL.Image")

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A model that says which of three colours a picture has most of."""
    nodes = [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["logits"], keepdims=0)]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    shape = ["batch", 3, 8, 8]
    directory = write_model(
        tmp_path / "colours",
        nodes,
        [("pixel_values", TensorProto.FLOAT, shape)],
        [("logits", TensorProto.FLOAT, ["batch", 3])],
        [axes],
    )
    labels = {str(i): name for i, name in enumerate(("red", "green", "blue"))}
    config = {"architectures": ["ViTForImageClassification"], "id2label": labels}
    (directory / "config.json").write_text(json.dumps(config))
    preparation = {"size": {"height": 8, "width": 8}, **HALF}
    (directory / "preprocessor_config.json").write_text(json.dumps(preparation))
    return directory


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_says_what_is_in_a_picture(colours: Path, tmp_path: Path) -> None:
    assert task_of(colours) == "image-classification"
    files = [
        picture(tmp_path / f"{i}.{kind}", colour)
        for i, (kind, colour) in enumerate(
            [("png", (255, 0, 0)), ("jpg", (0, 255, 0)), ("webp", (0, 0, 255)), ("bmp", (9, 99, 9))] * 3
        )
    ]  # fmt: skip
    with open_model(colours) as model:
        assert isinstance(model, ImageClassifier)
        found = model.classify(files, top=2)
    assert [labels[0].label for labels in found] == ["red", "green", "blue", "green"] * 3
    assert {len(labels) for labels in found} == {2}
    expected = np.exp([1, -1, -1]) / np.exp([1, -1, -1]).sum()
    assert found[0][0].score == pytest.approx(expected[0], abs=1e-6)


def prepared(path: Path, tmp_path: Path, **fields: Any) -> NDArray[np.float32]:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HALF | fields))
    return Preparation.read(tmp_path).pixels(path)


def test_a_picture_is_made_ready_as_the_model_says(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (255, 51, 0), (40, 20))
    plain = prepared(path, tmp_path, size={"height": 4, "width": 6})
    assert (plain.shape, plain.dtype.name) == ((3, 4, 6), "float32")
    np.testing.assert_allclose(plain[:, 0, 0], [1, -0.6, -1], atol=1e-6)
    shorter = prepared(path, tmp_path, size={"shortest_edge": 10}, do_center_crop=True, crop_size=8)
    assert shorter.shape == (3, 8, 8)
    wider = prepared(path, tmp_path, do_resize=False, do_center_crop=True, crop_size={"height": 30, "width": 4})  # fmt: skip
    assert wider.shape == (3, 30, 4)
    np.testing.assert_allclose(wider[:, 0, 0], -1, atol=1e-6)  # beyond the picture
    np.testing.assert_allclose(wider[0, 15, 0], 1, atol=1e-6)
    raw = prepared(path, tmp_path, size=4, do_rescale=False, do_normalize=False)
    np.testing.assert_allclose(raw[:, 0, 0], [255, 51, 0])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": {"shortest_edge": 8}},
        {"size": {"height": 8}},
        {"size": 10**6},
        {"size": -1},
        {"size": "8"},
        {"size": 8, "resample": 99},
        {"size": 8, "resample": float("inf")},
        {"size": 8, "rescale_factor": 10**400},
        {"size": 8, "image_std": [1, 1, 10**400]},
        {"size": 8, "image_mean": [1, 2]},
        {"size": 8, "image_std": None},
        {"size": 8, "image_std": [0, 1, 1]},
        {"size": 8, "image_mean": ["a", "b", "c"]},
        {"do_resize": False},
    ],
)
def test_refuses_what_it_does_not_know(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = picture(tmp_path / "a.png", (0, 0, 0))
    with pytest.raises(RunError, match="says what is not handled"):
        prepared(path, tmp_path, **fields)


def png(width: int, height: int) -> bytes:
    """A picture that says it is so large, in some bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def content(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    return stream.getvalue()


BAD = {
    "nothing": (b"", "not a picture"),
    "text": (b"a picture", "not a picture"),
    "a bomb": (png(50_000, 50_000), "decompression bomb"),
    "a smaller bomb": (png(10_000, 10_000), r"10,000 x 10,000 pixels, more than"),
    "a narrow one": (png(60_000_000, 1), "not a picture|so narrow"),
    "cut": (content("PNG")[:43], "not a picture"),
    "a cut header": (content("PNG")[:20], "not a picture"),
    "another format": (content("TIFF"), "not a picture"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_what_is_no_picture(colours: Path, tmp_path: Path, name: str) -> None:
    data, reason = BAD[name]
    (tmp_path / "a.png").write_bytes(data)
    with ImageClassifier(colours) as model, pytest.raises(RunError, match=reason):
        model.classify([tmp_path / "a.png"])


def test_refuses_files_that_are_too_large(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 50)
    path = picture(tmp_path / "a.png", (1, 2, 3))
    with ImageClassifier(colours) as model, pytest.raises(RunError, match="more than 50 bytes"):
        model.classify([path])


def test_reads_or_refuses_any_mutation(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        whole = content(kind)
        for _ in range(60):
            mutated = bytearray(whole[: random.integers(1, len(whole) + 1)])
            mutated[random.integers(len(mutated))] = random.integers(256)
            (tmp_path / "a").write_bytes(mutated)
            try:
                assert prepared(tmp_path / "a", tmp_path, size=4).shape == (3, 4, 4)
            except RunError:
                continue


def test_says_what_is_missing_without_the_library(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with ImageClassifier(colours) as model, pytest.raises(RunError, match="`pillow`") as caught:
        model.classify([tmp_path / "a.png"])
    assert caught.value.hint == "pip install weightpkg[images]"
