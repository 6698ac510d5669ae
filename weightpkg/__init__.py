"""weightpkg: the package manager for open model weights.

>>> import weightpkg
>>> model = weightpkg.load("smollm2-135m-q4")                                   # doctest: +SKIP
>>> print(model.chat([{"role": "user", "content": "Why is the sky blue?"}]))    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightpkg.api import load, path
    from weightpkg.errors import WeightpkgError
    from weightpkg.run.model import Answer, Model, Stream
    from weightpkg.run.sampling import Sampling
    from weightpkg.run.tasks.classification import Classifier
    from weightpkg.run.tasks.embedding import Embedder
    from weightpkg.run.tasks.filling import Filler, Filling
    from weightpkg.run.tasks.images import ImageClassifier
    from weightpkg.run.tasks.labels import Label
    from weightpkg.run.tasks.tagging import Span, Tagger
    from weightpkg.run.tasks.tensors import TensorModel, TensorSpec

# onnxruntime reports what it runs, from a database in the home, unless this is there when it is imported
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Classifier",
    "Embedder",
    "Filler",
    "Filling",
    "ImageClassifier",
    "Label",
    "Model",
    "Sampling",
    "Span",
    "Stream",
    "Tagger",
    "TensorModel",
    "TensorSpec",
    "WeightpkgError",
    "load",
    "path",
]

_MODULES = {
    "Answer": "weightpkg.run.model",
    "Classifier": "weightpkg.run.tasks.classification",
    "Embedder": "weightpkg.run.tasks.embedding",
    "Filler": "weightpkg.run.tasks.filling",
    "Filling": "weightpkg.run.tasks.filling",
    "ImageClassifier": "weightpkg.run.tasks.images",
    "Label": "weightpkg.run.tasks.labels",
    "Model": "weightpkg.run.model",
    "Sampling": "weightpkg.run.sampling",
    "Span": "weightpkg.run.tasks.tagging",
    "Stream": "weightpkg.run.model",
    "Tagger": "weightpkg.run.tasks.tagging",
    "TensorModel": "weightpkg.run.tasks.tensors",
    "TensorSpec": "weightpkg.run.tasks.tensors",
    "WeightpkgError": "weightpkg.errors",
    "load": "weightpkg.api",
    "path": "weightpkg.api",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that `import weightpkg` costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module `weightpkg` has no attribute `{name}`")
    return getattr(importlib.import_module(_MODULES[name]), name)
