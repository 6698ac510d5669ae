"""Nothing leaves the machine, and nothing is written down that could: what onnxruntime does by itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.progress import Silence

PROGRAM = """
import sys
from pathlib import Path
from weightpkg.run.model import Model
with Model(Path(sys.argv[1]), threads=1) as model:
    print(model.generate("a", max_tokens=4).text)
"""


@pytest.mark.parametrize("before", ["", "import weightpkg.survey\n", "import weightpkg.api\n"])
def test_a_model_that_runs_leaves_nothing_behind(tmp_path: Path, before: str) -> None:
    source = tiny_llama(tmp_path / "tiny.gguf")
    (tmp_path / "onnx").mkdir()
    convert(source, Digest("sha256", 64 * "0"), tmp_path / "onnx", Silence())
    home = tmp_path / "home"
    home.mkdir()
    unset = {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "WEIGHTPKG_HOME"}
    environ = {name: value for name, value in os.environ.items() if name not in unset}
    environ |= {"HOME": str(home), "TMPDIR": str(home)}
    line = [sys.executable, "-c", before + PROGRAM, str(tmp_path / "onnx")]
    subprocess.run(line, check=True, env=environ)
    assert list(home.iterdir()) == []


def test_onnxruntime_is_told_before_it_is_imported() -> None:
    said = "import weightpkg, os, sys; print('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    environ = {**os.environ, "ORT_DISABLE_TELEMETRY": "0"}
    line = [sys.executable, "-c", said]
    told = subprocess.run(line, check=True, env=environ, capture_output=True, text=True)
    assert told.stdout.split() == ["False", "1"]
