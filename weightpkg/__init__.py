"""weightpkg: the package manager for open model weights.

>>> import weightpkg
>>> model = weightpkg.load("smollm2-135m-q4")                                   # doctest: +SKIP
>>> print(model.chat([{"role": "user", "content": "Why is the sky blue?"}]))    # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weightpkg.api import load, path
    from weightpkg.errors import WeightpkgError
    from weightpkg.run.model import Answer, Model, Stream
    from weightpkg.run.sampling import Sampling

__version__ = "0.1.0"
__all__ = ["Answer", "Model", "Sampling", "Stream", "WeightpkgError", "load", "path"]

_MODULES = {
    "Answer": "weightpkg.run.model",
    "Model": "weightpkg.run.model",
    "Sampling": "weightpkg.run.sampling",
    "Stream": "weightpkg.run.model",
    "WeightpkgError": "weightpkg.errors",
    "load": "weightpkg.api",
    "path": "weightpkg.api",
}


def __getattr__(name: str) -> object:
    """Import what is asked for when it is asked for, so that `import weightpkg` costs nothing."""
    if name not in _MODULES:
        raise AttributeError(f"module `weightpkg` has no attribute `{name}`")
    return getattr(importlib.import_module(_MODULES[name]), name)
