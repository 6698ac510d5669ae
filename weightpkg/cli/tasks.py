"""What `weightpkg run` prints of models that do other things than writing text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from weightpkg.cli.console import print_json
from weightpkg.cli.texts import write_pieces
from weightpkg.errors import RunError
from weightpkg.progress import Progress

if TYPE_CHECKING:
    from weightpkg.run.tasks.opening import AnyModel
    from weightpkg.run.tasks.tensors import Array, Feed, TensorModel

_PRINTED = 1000


class Answer(Protocol):
    """A label, a span, or a filling."""

    @property
    def score(self) -> float:
        """How sure the model is."""

    def as_json(self) -> dict[str, object]:
        """Return it for programs."""


def answer(
    model: AnyModel, prompt: str | None, text: str | None, progress: Progress, *, as_json: bool
) -> None:
    """Print what a model says of texts or pictures.

    Args:
        model: the model.
        prompt: the argument.
        text: the argument, or else standard input, of which each line is a text.
        progress: told which texts were cut.
        as_json: print a list of answers for each text.

    Raises:
        RunError: there is no text, or the model fails.
        UsageError: the model needs something else.
    """
    if text is None and model.task not in {"tensors", "feature-extraction"}:
        raise click.UsageError("the model needs a text or a picture, and does not chat")
    texts = [prompt] if prompt is not None else (text or "").splitlines()
    answers = _answers(model, texts, progress)
    if as_json:
        print_json([[each.as_json() for each in some] for some in answers])
        return
    for i, some in enumerate(answers):
        if i:
            click.echo()
        for each in some:
            values = (str(v) for k, v in each.as_json().items() if k != "score")
            click.echo("\t".join((f"{each.score:.4f}", *map(_printable, values))))


def _answers(
    model: AnyModel, texts: Sequence[str], progress: Progress
) -> Sequence[Sequence[Answer]]:
    from weightpkg.run.tasks.classification import Classifier
    from weightpkg.run.tasks.embedding import Embedder
    from weightpkg.run.tasks.filling import Filler
    from weightpkg.run.tasks.images import ImageClassifier
    from weightpkg.run.tasks.tagging import Tagger

    if isinstance(model, Classifier):
        return model.classify(texts, progress=progress)
    if isinstance(model, Tagger):
        return model.tag(texts, progress=progress)
    if isinstance(model, Filler):
        return model.fill(texts, progress=progress)
    if isinstance(model, ImageClassifier):
        return model.classify([Path(name) for name in texts])
    if isinstance(model, Embedder):
        raise RunError("the model makes vectors of texts", hint="weightpkg embed NAME TEXT")
    raise RunError(
        "the model is not one for texts: it takes arrays",
        hint="`--input NAME=VALUE` feeds them; `weightpkg show NAME` says which there are",
    )


def _printable(text: str) -> str:
    """A label as a terminal may have it: what a stranger called it could be anything."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def feed(
    model: TensorModel, inputs: Sequence[str], outputs: Sequence[str], *, as_json: bool
) -> None:
    """Run a model on arrays; write or print what it gives.

    Args:
        model: the model.
        inputs: `NAME=VALUE` each, or the name of a .npz file.
        outputs: `NAME` or `NAME=FILE` each; all if there are none.
        as_json: print every number.

    Raises:
        RunError: an input is not what the model takes, or it fails.
        UsageError: an option is not of that form.
    """
    places = dict(_named(text) for text in outputs)
    found = model.run(_feeds(model, inputs), list(places) or None)
    for name, place in places.items():
        if place is not None:
            _write(place, found.pop(name))
    if as_json:
        print_json({name: _plain(array) for name, array in found.items()})
        return
    for name, array in found.items():
        click.echo(f"{name}: {array.dtype} {list(array.shape)}")
        if array.size <= _PRINTED:
            click.echo(str(array))


def _feeds(model: TensorModel, inputs: Sequence[str]) -> Mapping[str, Feed]:
    from weightpkg.run.tasks.arrays import read_arrays

    feeds: dict[str, Feed] = {}
    for text in inputs:
        name, value = _named(text)
        if value is None and not name.endswith(".npz"):
            raise click.UsageError(f"`--input {text}` is not NAME=VALUE, or a .npz file")
        given = read_arrays(Path(name)) if value is None else {name: _value(model, name, value)}
        for key, array in given.items():
            if key in feeds:
                raise click.UsageError(f"input `{key}` is there twice")
            feeds[key] = array
    return feeds


def _named(text: str) -> tuple[str, str | None]:
    name, is_named, value = text.partition("=")
    return name, value if is_named else None


def _value(model: TensorModel, name: str, value: str) -> Feed:
    """A file's content, zeros, or what a value says itself."""
    from weightpkg.run.tasks.arrays import json_value, read_array, read_json_value

    spec, path = model.input(name), Path(value)
    if path.suffix == ".npy":
        return read_array(path)
    if path.suffix == ".json":
        return read_json_value(path)
    if value == "zeros":
        return spec.zeros()
    if spec.type == "string" and value[:1] not in {"[", '"'}:
        return value
    return json_value(value.encode(), f"the value of `{name}`, `{value[:40]}`,")


def _write(place: str, array: Array) -> None:
    import json

    from weightpkg.run.tasks.arrays import npy_bytes

    path = Path(place)
    if path.suffix == ".npy":
        write_pieces(path, [npy_bytes(array)])
    elif path.suffix == ".json":
        write_pieces(path, [json.dumps(_plain(array)).encode(), b"\n"])
    else:
        raise click.UsageError(f"`{place}` does not end in .npy or .json")


def _plain(array: Array) -> object:
    """An array as JSON has it, where what is not a number is null."""
    import numpy as np

    if array.dtype.kind == "f" and not np.isfinite(array).all():
        plain = array.astype(object)
        plain[~np.isfinite(array)] = None
        return plain.tolist()
    return array.tolist()
