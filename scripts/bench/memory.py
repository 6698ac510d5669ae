"""Peak memory of `weightpkg run`, against what `weightpkg resolve` says that a model needs.

Each model is run with a short prompt and with one that fills a context, in a process of its own; the
peak is the operating system's count. It is compared twice: with what is known of the installed model,
and with the estimate that an index with the file's size, architecture and quantisation gives before
the download. Ends with 1 if either differs by more than 15 %.

Usage: python scripts/bench/memory.py FILE=ARCHITECTURE:PARAMETERS:QUANTIZATION ... [--context 900]
For example: SmolLM2.gguf=llama:134515008:Q4_1 gemma.gguf=gemma3:268098176:Q4_K_M
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.version import Version

from measure import run
from weightpkg.footprint import installed_needs
from weightpkg.memory import Need, estimate
from weightpkg.package import File, Model, RelativePath, Release, Variant
from weightpkg.requirement import normalize_name
from weightpkg.settings import Settings

BAR = 0.15
SHORT = 16


@dataclass(frozen=True)
class Subject:
    """A file, and what an index would say of it."""

    path: Path
    architecture: str
    parameters: int
    quantization: str

    @classmethod
    def parse(cls, text: str) -> Subject:
        """Read an argument."""
        path, _, facts = text.rpartition("=")
        architecture, parameters, quantization = facts.split(":")
        return cls(Path(path), architecture, int(parameters), quantization)

    def estimate(self, context: int) -> Need:
        """What the index alone says that it needs."""
        file = File(
            path=RelativePath("model.gguf"),
            sha256=None,
            size=self.path.stat().st_size,
            sources=(),
        )
        name = normalize_name("model")
        variant = Variant(name=name, format="gguf", quantization=self.quantization, files=(file,))
        release = Release(version=Version("1"), date=date.min, changes="-", variants=(variant,))
        model = Model(
            name=name,
            summary="-",
            task="text-generation",
            architecture=self.architecture,
            parameters=self.parameters,
            license="MIT",
            default_variant=name,
            releases=(release,),
        )
        need = estimate(model, variant, context)
        assert need is not None
        return need


def peak(subject: Subject, home: Path, n_tokens: int) -> int:
    """Run a model with a prompt of about so many tokens; return its peak in bytes."""
    prompt = " ".join(["word"] * n_tokens)
    command = [
        *("env", f"WEIGHTPKG_HOME={home}", sys.executable, "-m", "weightpkg", "run"),
        *(str(subject.path.absolute()), prompt, "--raw", "--max-tokens", "4"),
    ]
    return run(command).peak_bytes


def compare(subject: Subject, home: Path, context: int) -> bool:
    """Print one model's rows; return whether all are within the bar."""
    is_good = True
    run(["env", f"WEIGHTPKG_HOME={home}", sys.executable, "-m", "weightpkg", "install", str(subject.path.absolute())])  # fmt: skip
    store = Settings.from_environment({"WEIGHTPKG_HOME": str(home)}).store()
    for n_tokens in (SHORT, context):
        (installed,) = installed_needs(store, n_tokens).values()
        measured = peak(subject, home, n_tokens)
        for need in (installed, subject.estimate(n_tokens)):
            error = need.total / measured - 1
            is_good &= abs(error) <= BAR
            print(
                f"{subject.path.name:24}{n_tokens:6} tokens{measured / 1e6:9.1f} MB measured"
                f"{need.total / 1e6:9.1f} MB by {need.basis:10}{error:+7.1%}"
            )
    return is_good


def main() -> int:
    """Compare all models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="+", type=Subject.parse)
    parser.add_argument("--context", type=int, default=900)
    arguments = parser.parse_args()
    results = []
    for subject in arguments.subjects:
        with tempfile.TemporaryDirectory() as directory:
            results.append(compare(subject, Path(directory), arguments.context))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
