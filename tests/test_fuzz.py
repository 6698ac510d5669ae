"""A thousand files of each kind that chance made of valid ones; scripts/fuzz.py reads more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "fuzz.py"


@pytest.mark.parametrize("kind", ["gguf", "safetensors", "index", "onnx"])
def test_a_thousand_files_end_well(kind: str) -> None:
    line = [sys.executable, str(SCRIPT), "1000", "--first", "1000000", "--only", kind]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{kind}: 1,000 files, ")
    assert ", 0 faults; " in done.stdout
