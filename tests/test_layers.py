"""Imports go one way: a module imports what stands above it in this list, lazy imports included."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import weightpkg

PACKAGE = Path(weightpkg.__file__).parent

ORDER = [
    "errors", "progress", "confusable", "digest", "requirement", "tensor", "license_policy", "package", "document",
    "listing", "machine", "shapes", "memory", "hardware", "survey", "diagnosis", "page",
    "formats", "formats.mapped", "formats.strangers", "formats.ggml_grids", "formats.ggml_blocks",
    "formats.ggml", "formats.gguf_header", "formats.gguf",
    "formats.checkpoint_files", "formats.json_text", "formats.safetensors_header", "formats.safetensors",
    "formats.checkpoint", "formats.onnx_file",
    "files", "config", "catalog", "index", "placing", "spans", "partial", "store", "adopt", "footprint",
    "sources", "sources.watchdog", "sources.transport", "sources.remote", "sources.wheel",
    "sources.pip_config", "sources.https", "sources.local", "sources.pypi", "sources.hf",
    "sources.openers",
    "trust", "trust.memory", "trust.rules", "trust.origin", "trust.client", "trust.conformance", "trust.status", "trust.pages", "trust.index", "indexes",
    "contents", "replacement", "transfer", "fetch", "converted", "resolve", "reference", "retention",
    "licenses", "manifest", "lockfile", "signing", "signing.keys", "signing.plan", "signing.metadata", "signing.pages",
    "signing.workspace", "signing.publishing", "entries",
    "convert", "convert.plan", "convert.limits", "convert.graph", "convert.weights", "convert.quantize", "convert.rope", "convert.blocks",
    "convert.experts", "convert.rotary", "convert.hyperparameters", "convert.hf_config", "convert.hf_decoder",
    "convert.packed", "convert.small_floats", "convert.packings", "convert.encoder", "convert.sentence", "convert.heads", "convert.archs", "convert.archs.bert", "convert.archs.roberta", "convert.archs.distilbert", "convert.archs.modernbert", "convert.archs.nomic_bert", "convert.archs.llama", "convert.archs.qwen2", "convert.archs.qwen3", "convert.archs.phi3", "convert.archs.granite", "convert.archs.olmo2", "convert.archs.smollm3", "convert.archs.stablelm", "convert.archs.starcoder2", "convert.archs.gpt2", "convert.archs.falcon", "convert.archs.gemma2", "convert.archs.gemma3", "convert.archs.mixtral", "convert.archs.qwen3moe", "convert.archs.gpt_oss", "convert.archs.deepseek2",
    "convert.sentencepiece", "convert.wordpiece", "convert.unigram", "convert.tokenizer",
    "convert.hf_tokenizer", "convert.genai", "convert.directory", "convert.pipeline", "convert.checkpoints",
    "convert.messages", "convert.published", "convert.child_worker", "convert.child",
    "install", "verify", "repair", "settings", "enrolment", "seals", "locking", "project", "report",
    "syncing", "provenance", "publisher", "audit", "vouching", "bill", "bill.materials", "bill.cyclonedx", "bill.spdx",
    "mirror", "mirror.directory", "mirror.wanted", "mirror.making", "mirror.patching", "mirror.bundle_file", "mirror.bundle", "mirror.wheels", "run", "run.template_worker",
    "run.template", "run.documents", "run.providers", "run.scales", "run.windows", "run.tuning", "run.attention", "run.loading", "run.buffers", "run.session", "run.sampling",
    "run.lookup", "run.constraint", "run.generate", "run.batch", "run.tokenizing", "run.calibration", "run.model", "run.benchmark", "run.tasks", "run.tasks.tensors",
    "run.tasks.arrays", "run.tasks.text", "run.tasks.labels", "run.tasks.embedding", "run.tasks.classification",
    "run.tasks.tagging", "run.tasks.filling", "run.tasks.images", "run.tasks.opening", "listening",
    "listening.gate", "listening.connection", "listening.process", "mirror_server", "mirror_server.checked",
    "mirror_server.reply", "mirror_server.conditions", "mirror_server.holdings", "mirror_server.file_reply",
    "mirror_server.static", "mirror_server.hub", "mirror_server.registry", "mirror_server.metrics",
    "mirror_server.app", "mirror_server.connection", "mirror_server.listen", "api", "server", "server.wire",
    "server.counters", "server.guard", "server.calls", "server.completion", "server.engine", "server.served", "server.library",
    "server.pool", "server.service", "server.answers", "server.app", "server.models", "server.serving",
    "server.front", "server.replica", "server.cluster", "", "cli.table",
    "cli.console", "cli.texts", "cli.tasks", "cli.mirroring", "cli.kv_cache", "cli.chat", "cli.agreement", "cli.editing",
    "cli.names", "cli.project_rules", "cli.publisher_key", "cli.desk", "cli.entry_options", "cli.on_ray", "cli",
]  # fmt: skip

# what a part of the package must not import, beside what stands below it
FORBIDDEN = {
    "formats": {"weightpkg.index", "requests", "os"},
    "convert": {"weightpkg.index", "weightpkg.store", "weightpkg.sources", "weightpkg.fetch", "weightpkg.files", "requests"},
    "run": {"weightpkg.index", "weightpkg.store", "weightpkg.sources", "weightpkg.fetch", "weightpkg.convert", "requests"},
    "resolve": {"weightpkg.store", "weightpkg.sources", "weightpkg.fetch", "os", "pathlib"},
    "sources.transport": {"weightpkg.package", "weightpkg.store", "weightpkg.index"},
}  # fmt: skip
HEAVY = {
    "numpy",
    "onnx",
    "onnxruntime",
    "requests",
    "rich",
    "tokenizers",
    "pypi_simple",
    "jinja2",
    "huggingface_hub",
    "filelock",
    "reflink_copy",
    "tomlkit",
    "PIL",
    "tuf",
    "securesystemslib",
    "cryptography",
    "cyclonedx",
    "spdx_tools",
    "packageurl",
    "model_signing",
    "uvicorn",
    "h11",
    "ray",
}


def modules() -> dict[str, Path]:
    """Each module's name without the package's, and its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top, in functions, and for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = whole.removeprefix("weightpkg.") in MODULES
                yield whole if is_module else str(node.module)


def place(name: str) -> int:
    """The place in the order: commands of the command line share the last one."""
    if name not in ORDER and name.startswith("cli."):
        return len(ORDER)
    return ORDER.index("" if name == "__main__" else name)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_stands_above_it(name: str) -> None:
    if name == "__main__":
        return
    for other in imports(MODULES[name]):
        if other.split(".")[0] == "weightpkg":
            below = other.removeprefix("weightpkg").removeprefix(".")
            is_version = not below  # of `weightpkg` itself, which imports nothing at once
            is_parent = name == "cli.completion" and below == "cli"
            assert is_version or is_parent or place(below) < place(name), f"{name} imports {other}"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_keeps_to_its_part(name: str) -> None:
    found = set(imports(MODULES[name]))
    for part, forbidden in FORBIDDEN.items():
        if name == part or name.startswith(f"{part}."):
            for other in found:
                assert not any(other == f or other.startswith(f"{f}.") for f in forbidden), other
    roots = {other.split(".")[0] for other in found}
    if not name.startswith("cli"):
        assert not roots & {"click", "rich"}
    if name not in {"settings", ""}:  # which tells onnxruntime to keep silent, before all else
        assert "os.environ" not in MODULES[name].read_text(encoding="utf-8")


def test_every_module_has_its_place() -> None:
    assert {name for name in MODULES if not name.startswith("cli.")} - {"__main__"} <= set(ORDER)
    assert set(ORDER) <= set(MODULES)


@pytest.mark.parametrize("line", ["import weightpkg", "import weightpkg.__main__ as m\nimport sys\nsys.argv = ['weightpkg', '--help']\ntry: m.main()\nexcept SystemExit: pass"], ids=["import", "help"])  # fmt: skip
def test_nothing_heavy_is_imported_for_nothing(line: str) -> None:
    program = f"{line}\nimport sys\nprint('\\n' + ' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}
    assert "weightpkg" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "weightpkg.")]
)
def test_examples_in_docstrings_are_true(name: str) -> None:
    if name != "weightpkg.__main__":
        assert doctest.testmod(importlib.import_module(name)).failed == 0
