"""Figures beside their bars: one table, one exit code; and where the benchmark's model is."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from weightpkg.api import ensure
from weightpkg.settings import Settings

MODEL = "smollm2-135m-q4"


@dataclass
class Report:
    """Collects figures; `end` prints them and says whether every bar was met."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    missed: bool = False

    def add(self, name: str, value: float, *, form: str = ".3f", unit: str = "") -> None:
        """A figure without a bar."""
        self.rows.append((name, f"{value:{form}}{unit}", ""))

    def at_most(
        self, name: str, value: float, bar: float, *, form: str = ".3f", unit: str = ""
    ) -> None:
        """A figure that must not be larger than its bar."""
        self._bar(name, f"{value:{form}}{unit}", f"at most {bar:g}{unit}", is_met=value <= bar)

    def at_least(
        self, name: str, value: float, bar: float, *, form: str = ".3f", unit: str = ""
    ) -> None:
        """A figure that must not be smaller than its bar."""
        self._bar(name, f"{value:{form}}{unit}", f"at least {bar:g}{unit}", is_met=value >= bar)

    def _bar(self, name: str, value: str, bar: str, *, is_met: bool) -> None:
        self.missed = self.missed or not is_met
        self.rows.append((name, value, f"{bar}: {'yes' if is_met else 'NO'}"))

    def end(self) -> int:
        """Print the table; return the exit code."""
        widths = [max(len(row[i]) for row in self.rows) for i in range(3)]
        for name, value, bar in self.rows:
            print(f"{name:{widths[0]}}  {value:>{widths[1]}}  {bar}".rstrip())
        return 1 if self.missed else 0


def model_arguments(parser: argparse.ArgumentParser) -> None:
    """Let another model than the installed one be named."""
    parser.add_argument("--gguf", type=Path, help=f"the source; that of {MODEL} if not given")
    parser.add_argument("--model", type=Path, help="its conversion; that of the same if not given")


def installed_model() -> tuple[Path, Path]:
    """Return the GGUF file and the model directory of the benchmark's model, installing it."""
    directory = ensure(MODEL)
    store = Settings.from_environment().store()
    (record,) = [record for record in store.installed() if record.full_name == MODEL]
    return store.blob_path(record.files[0].sha256), directory
