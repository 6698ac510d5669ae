"""What a model directory is for, and the class that does it.

A model says so itself: by the files that it has, by `config.json`, and by what its graph gives. What an
index says decides nothing, as a model without its tokenizer classifies no text, whatever it is called.
"""

from __future__ import annotations

import importlib
import mmap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, cast, get_args

from weightpkg.errors import RunError
from weightpkg.run.documents import read_document
from weightpkg.run.tasks.embedding import OUTPUT

if TYPE_CHECKING:
    from weightpkg.memory import KvCache
    from weightpkg.run.model import Model
    from weightpkg.run.tasks.classification import Classifier
    from weightpkg.run.tasks.embedding import Embedder
    from weightpkg.run.tasks.filling import Filler
    from weightpkg.run.tasks.images import ImageClassifier
    from weightpkg.run.tasks.tagging import Tagger
    from weightpkg.run.tasks.tensors import TensorModel

AnyModel: TypeAlias = (
    "Model | Embedder | Classifier | Tagger | Filler | ImageClassifier | TensorModel"
)
"""What a model is loaded as, by its task; each is a context manager."""

Task: TypeAlias = Literal[
    "text-generation",
    "feature-extraction",
    "text-classification",
    "token-classification",
    "fill-mask",
    "image-classification",
    "tensors",
]
TASKS: tuple[Task, ...] = get_args(Task)
"""Hugging Face's names, where it has one; `sentence-similarity` is `feature-extraction` here."""

_CLASSES: dict[Task, tuple[str, str]] = {
    "text-generation": ("weightpkg.run.model", "Model"),
    "feature-extraction": ("weightpkg.run.tasks.embedding", "Embedder"),
    "text-classification": ("weightpkg.run.tasks.classification", "Classifier"),
    "token-classification": ("weightpkg.run.tasks.tagging", "Tagger"),
    "fill-mask": ("weightpkg.run.tasks.filling", "Filler"),
    "image-classification": ("weightpkg.run.tasks.images", "ImageClassifier"),
    "tensors": ("weightpkg.run.tasks.tensors", "TensorModel"),
}
_HEADS: dict[str, tuple[Task, str]] = {
    "ForSequenceClassification": ("text-classification", "tokenizer.json"),
    "ForTokenClassification": ("token-classification", "tokenizer.json"),
    "ForMaskedLM": ("fill-mask", "tokenizer.json"),
    "ForImageClassification": ("image-classification", "preprocessor_config.json"),
}
"""The end of a class of transformers to the task, and the file without which it cannot be done."""

_TEXT_CONFIG, _MANIFEST = "genai_config.json", "weightpkg.toml"


def open_model(
    directory: Path,
    *,
    task: Task | None = None,
    threads: int = 0,
    device: str = "auto",
    cache: Path | None = None,
    kv_cache: KvCache = "float",
) -> AnyModel:
    """Load a model directory as what it is for.

    Args:
        directory: as a conversion made it.
        task: what it is to do; what it is for if not given.
        threads: how many to compute with; 0 is one for each physical core.
        device: what to compute on, `auto` or as `run.providers` has it; only models that write text
            run on anything but the processor.
        cache: where graphs are kept that were made for this machine, of models that write text.
        kv_cache: what such models keep keys and values as.

    Raises:
        RunError: a file is missing or broken, the model is not one for that task, the device cannot
            run it, or there is not enough memory.
    """
    task = task or task_of(directory)
    module, name = _CLASSES[task]
    make = cast("Callable[..., AnyModel]", getattr(importlib.import_module(module), name))
    if task == "text-generation":
        return make(directory, threads=threads, device=device, cache=cache, kv_cache=kv_cache)
    if device.lower() not in {"auto", "cpu"}:
        raise RunError(
            f"`{device}`: models for {task} run on the processor", hint="leave --device out"
        )
    if kv_cache != "float":
        raise RunError(f"models for {task} keep no keys and values", hint="leave --kv-cache out")
    return make(directory, threads=threads)


def task_of(directory: Path) -> Task:
    """Return what a model directory is for; `tensors` where it does not say.

    Raises:
        RunError: a file of it is broken.
    """
    if _promises(directory, _TEXT_CONFIG):
        return "text-generation"
    names = read_document(directory, "config.json").get("architectures")
    for name in names if isinstance(names, list) else ():
        for suffix, (task, file) in _HEADS.items():
            if str(name).endswith(suffix) and (directory / file).is_file():
                return task
    if (directory / "tokenizer.json").is_file() and _makes_vectors(directory / "model.onnx"):
        return "feature-extraction"
    return "tensors"


def _promises(directory: Path, name: str) -> bool:
    """Whether a model has a file, or had it when it was made."""
    if (directory / name).exists():
        return True
    try:
        manifest = tomllib.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(file.get("path") == name for file in manifest.get("files", []))


def _makes_vectors(path: Path) -> bool:
    """Whether a graph names that output: a look that costs less than loading it."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as m:
            return m.rfind(OUTPUT.encode()) >= 0
    except (OSError, ValueError):
        return False
