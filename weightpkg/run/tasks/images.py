"""Images to labels: what is in a picture.

The picture is made the size and scale that `preprocessor_config.json` says, as transformers' fast and
slow processors do. A picture says how large it is before it is unpacked; one too large is refused then.
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/models/vit/image_processing_vit.py
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from weightpkg.errors import RunError
from weightpkg.run.documents import read_document
from weightpkg.run.tasks.labels import Label, Labels, last_size
from weightpkg.run.tasks.tensors import Held, TensorModel

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 64 * 1024 * 1024
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
"""What is unpacked; the library knows many more, whose readers are seldom looked at."""

_NAME = "preprocessor_config.json"
_BATCH = 8
_LARGEST_SIDE = 4096


class ImageClassifier(Held):
    """A model that says what is in a picture. Needs the extra `images`.

    >>> model = weightpkg.load("NAME", task="image-classification")             # doctest: +SKIP
    >>> model.classify([Path("cat.jpg")])[0][0].label                           # doctest: +SKIP
    """

    task: Literal["image-classification"] = "image-classification"

    def __init__(self, directory: Path, *, threads: int = 0) -> None:
        """Load a model directory.

        Raises:
            RunError: a file is missing or broken, or the model is not one for pictures.
        """
        super().__init__()
        self._model = TensorModel(directory, threads=threads)
        (self._output,) = self._model.output_names(["logits"])
        if [len(spec.dims) for spec in self._model.inputs] != [4]:
            raise RunError("the model does not take pictures, as (batch, colours, height, width)")
        (spec,) = (spec for spec in self._model.outputs if spec.name == self._output)
        self.labels = Labels.read(directory, last_size(spec.dims))
        self._preparation = Preparation.read(directory)

    def classify(self, images: Sequence[Path], *, top: int | None = 5) -> list[list[Label]]:
        """Return the labels of each picture, the best first.

        Args:
            images: files.
            top: how many labels; None for all.

        Raises:
            RunError: a file is no picture or too large, or the model fails.
        """
        answers = []
        for start in range(0, len(images), _BATCH):
            pixels = np.stack([self._preparation.pixels(p) for p in images[start : start + _BATCH]])
            name = self._model.inputs[0].name
            logits: Any = self._model.run({name: pixels}, [self._output])[self._output]
            if not np.isfinite(logits).all():
                raise RunError("the model's answer is not a number")
            scores = self.labels.scores(logits)
            answers += [self.labels.ranked(row, top) for row in scores]
        return answers


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What is done with a picture. size: height and width, or the shorter side and None."""

    size: tuple[int, int | None] | None
    resample: int
    crop: tuple[int, int] | None
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, directory: Path) -> Preparation:
        """Read `preprocessor_config.json`.

        Raises:
            RunError: there is none, or it says what is not handled.
        """
        path = directory / _NAME
        fields = read_document(directory, _NAME)
        if not fields:
            raise RunError(f"`{path}` is missing: how a picture is made ready is not known")
        try:
            return cls._of(fields)
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise RunError(f"`{path}` says what is not handled: {error}") from error

    @classmethod
    def _of(cls, fields: dict[str, Any]) -> Preparation:
        size = crop = None
        if fields.get("do_resize", True):
            size = _size(fields["size"])
        if fields.get("do_center_crop"):
            crop = _both(fields["crop_size"])
        if crop is None and (size is None or size[1] is None):
            raise ValueError("pictures would be of different sizes")
        is_scaled, is_normal = fields.get("do_rescale", True), fields.get("do_normalize", True)
        resample = int(fields.get("resample", 2))
        if not 0 <= resample <= 5:
            raise ValueError(f"resample {resample}")
        std = _three(fields["image_std"] if is_normal else [1.0] * 3)
        if 0 in std:
            raise ValueError("a deviation of 0")
        return cls(
            size=size,
            resample=resample,
            crop=crop,
            scale=float(fields.get("rescale_factor", 1 / 255)) if is_scaled else 1.0,
            mean=_three(fields["image_mean"] if is_normal else [0.0] * 3),
            std=std,
        )

    def pixels(self, path: Path) -> NDArray[np.float32]:
        """Return a picture: (3, height, width) float32.

        Raises:
            RunError: the file is no picture, or too large.
        """
        image = _cropped(self._resized(_opened(path)), self.crop)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        values: Any = np.asarray(image, np.float32) * np.float32(self.scale)
        values = (values - mean) / std
        return np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)

    def _resized(self, image: Image) -> Image:
        if self.size is None:
            return image
        height, width = self.size
        if width is None:  # the shorter side, and the longer one as it follows
            ratio = height / min(image.size)
            width, height = (max(1, int(side * ratio)) for side in image.size)
            if width * height > MAX_PIXELS:
                raise RunError("a picture is so narrow that it would become too large")
        return image.resize((width, height), self.resample)


def _opened(path: Path) -> Image:
    """Unpack a picture, in red, green and blue."""
    try:
        from PIL import Image  # noqa: PLC0415  an extra
    except ImportError as error:
        raise RunError(
            "pictures need the package `pillow`", hint="pip install weightpkg[images]"
        ) from error
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RunError(f"`{path}` has more than {MAX_BYTES:,} bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    size = f"{width:,} x {height:,} pixels"
                    raise RunError(f"`{path}` has {size}, more than {MAX_PIXELS:,} together")
                return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError, Image.DecompressionBombError) as error:  # fmt: skip
        raise RunError(f"`{path}` is not a picture that can be read: {error}") from error


def _cropped(image: Image, crop: tuple[int, int] | None) -> Image:
    """Keep the middle; what is beyond a picture is black."""
    if crop is None:
        return image
    height, width = crop
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _size(value: Any) -> tuple[int, int | None]:
    if isinstance(value, dict) and "shortest_edge" in value:
        return _side(value["shortest_edge"]), None
    return _both(value)


def _both(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        return _side(value["height"]), _side(value["width"])
    return _side(value), _side(value)


def _side(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= _LARGEST_SIDE:
        raise ValueError(f"a side of {value} pixels")
    return value


def _three(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(n) for n in values)
    if len(numbers) != 3 or not np.isfinite(numbers).all():
        raise ValueError(f"{numbers} are not three numbers")
    return numbers
