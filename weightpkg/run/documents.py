"""The JSON files of a model directory, which are as its publisher made them: bounded, and objects or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from weightpkg.errors import RunError

# A tokenizer's configuration lists added tokens, one by one.
_MAX_DOCUMENT = 16 * 1024 * 1024


def read_document(directory: Path, name: str, *, is_needed: bool = False) -> dict[str, Any]:
    """Return the fields of a JSON file of a model; none if there is no such file, unless it is needed.

    Raises:
        RunError: the file is not JSON, no object, too large, or missing where it is needed.
    """
    path = directory / name
    try:
        if path.stat().st_size > _MAX_DOCUMENT:
            raise RunError(f"`{path}` has more than {_MAX_DOCUMENT:,} bytes")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, FileNotFoundError) and not is_needed:
            return {}
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"`{path}` cannot be read: {reason}",
            hint="`weightpkg verify` tells whether the model is damaged",
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"`{path}` is not an object of JSON")
    return value
