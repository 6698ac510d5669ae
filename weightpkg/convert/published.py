"""Models that are ONNX already: checked, and put into a model directory as they are.

The model becomes `model.onnx`; its external data keep the names that it has for them. Of the other
files, those beside it and in the directories above come along: configurations, vocabularies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from weightpkg.convert import CONVERTER_VERSION, SourceFile
from weightpkg.convert.directory import MANIFEST, ModelDirectory, OutputFile, Prepared
from weightpkg.convert.limits import peak_memory
from weightpkg.convert.plan import Plan
from weightpkg.digest import READ_SIZE
from weightpkg.errors import UnsupportedFormatError
from weightpkg.formats.onnx_file import check_model
from weightpkg.formats.strangers import refuse_pickle
from weightpkg.progress import Advance, Progress

MODEL = "model.onnx"


@contextmanager
def prepare(sources: Sequence[SourceFile]) -> Iterator[Prepared]:
    """Check a model, to be copied with what belongs to it.

    Args:
        sources: the files; one of them is the model.

    Raises:
        OnnxError: the model is malformed, or could do harm.
        PickleError: a file is a Python pickle, whatever it is called.
        UnsupportedFormatError: there is not one model, or a file has a name that is taken.
    """
    model = _find_model(sources)
    around = _around(model, sources)
    place = PurePosixPath(model.name).parent
    beside = {n: s.path for n, s in around.items() if PurePosixPath(s.name).parent == place}
    locations = check_model(model.path, model.name, beside)
    if taken := {MODEL, MANIFEST}.intersection(around):
        raise UnsupportedFormatError(f"`{model.name}`: another file is called `{min(taken)}`")
    for name, source in around.items():
        if name not in locations and source.path.stat().st_size:
            refuse_pickle(source.path, name=source.name)
    copied = {MODEL: model, **around}
    total = sum(source.path.stat().st_size for source in copied.values())

    def write(output: ModelDirectory, progress: Progress) -> tuple[OutputFile, ...]:
        with progress.task(f"checked {model.name}, copying", total) as advance:
            for name, source in copied.items():
                _copy(source.path, output, name, advance)
        rows = [_row(n, s, is_data=n in locations) for n, s in copied.items()]
        return output.finish({"converter-version": CONVERTER_VERSION, "sources": rows})

    yield Prepared(Plan("onnx", total, total, (), peak_memory()), write)


def _find_model(sources: Sequence[SourceFile]) -> SourceFile:
    models = [source for source in sources if source.name.endswith(".onnx")]
    if len(models) != 1:
        raise UnsupportedFormatError(
            f"`{sources[0].name}`: {len(models)} of the files are ONNX models",
            hint="a variant has one model, and its external data",
        )
    return models[0]


def _around(model: SourceFile, sources: Sequence[SourceFile]) -> dict[str, SourceFile]:
    """Return the files beside the model and above it by their last names, the nearest of each."""
    parents = list(PurePosixPath(model.name).parents)
    found: dict[str, SourceFile] = {}
    for parent in parents:
        for source in sources:
            path = PurePosixPath(source.name)
            if source is not model and path.parent == parent:
                found.setdefault(path.name, source)
    return dict(sorted(found.items()))


def _copy(path: Path, output: ModelDirectory, name: str, advance: Advance) -> None:
    with path.open("rb") as stream, output.create(name, advance) as new:
        while piece := stream.read(READ_SIZE):
            new.write(piece)


def _row(name: str, source: SourceFile, *, is_data: bool) -> dict[str, str]:
    kind = "onnx" if name == MODEL else "onnx-data" if is_data else "file"
    return {"format": kind, "sha256": source.sha256().hex}
