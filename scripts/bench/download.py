"""Downloads from a server on this machine: speed, processor time and memory beside other clients.

Usage: python scripts/bench/download.py [--size 2e9] [--runs 3]

Every client runs as a whole process and writes to the same disk; files are removed in between.
weightpkg always verifies, and is asked twice: where the index gives BLAKE3, and where it gives
SHA-256 alone. `sha256sum` reads the file once, as the measure of the latter.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from file_server import sha256
from measure import Run, median, run
from report import Report
from weightpkg.digest import hash_file

HERE = Path(__file__).parent
NAME = "model.gguf"


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=float, default=2e9, help="bytes of the file")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        served = work / "served"
        served.mkdir()
        file = make_file(served / NAME, int(arguments.size))
        with serving(served) as url:
            commands = clients(work, url, file)
            rounds = [
                {client: measure(work, command) for client, command in commands.items()}
                for _ in range(arguments.runs)
            ]
        columns = {client: [each[client] for each in rounds] for client in commands}
        return report(columns, file.stat().st_size)


def make_file(path: Path, size: int) -> Path:
    """Write a file that no compression helps with, quickly."""
    block = os.urandom(16 * 1024 * 1024)
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
    return path


@contextmanager
def serving(directory: Path) -> Iterator[str]:
    """Run the server in a process of its own; enter its URL."""
    command = [sys.executable, str(HERE / "file_server.py"), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def clients(work: Path, url: str, file: Path) -> dict[str, list[str]]:
    """Return the command of each client that is here; all write below `work/out`."""
    out = work / "out"
    weightpkg = [sys.executable, "-m", "weightpkg", "-q", "install", "--no-convert", "big-q4"]
    found = {
        "sha256sum": ["sha256sum", str(file)],
        "curl": ["curl", "-s", "-o", str(out / "curl"), f"{url}/{NAME}"],
        "aria2c": ["aria2c", "-q", "-x8", "-s8", "-d", str(out), f"{url}/{NAME}"],
        "hf download": ["hf", "download", "bench/files", NAME, "--cache-dir", str(out / "hub")],
    }
    environment = {"HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HOME": str(out / "hf"), "WEIGHTPKG_HOME": str(out / "store")}
    os.environ.update(environment, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    found = {name: command for name, command in found.items() if shutil.which(command[0])}
    for digest in ("blake3", "sha256"):
        index = write_index(work / digest, url, file, with_blake3=digest == "blake3")
        found[f"weightpkg, {digest}"] = ["env", f"WEIGHTPKG_INDEX={index}", *weightpkg]
    return found


def write_index(directory: Path, url: str, file: Path, *, with_blake3: bool) -> Path:
    """Write an index with the file as its only model."""
    digests = f'sha256 = "{sha256(file)}"'
    if with_blake3:
        digests += f'\nblake3 = "{hash_file(file, "blake3").hex}"'
    pages = directory / "models"
    pages.mkdir(parents=True)
    (pages / "big.toml").write_text(f"""schema = 1
name = "big"
summary = "a large file"
task = "text-generation"
architecture = "llama"
license = "Apache-2.0"
default-variant = "q4"

[[releases]]
version = "1.0"
date = 2026-01-01
changes = "first"

[releases.variants.q4]
format = "gguf"

[[releases.variants.q4.files]]
path = "{NAME}"
size = {file.stat().st_size}
{digests}
sources = ["{url}/{NAME}"]
""")
    return directory


def measure(work: Path, command: list[str]) -> Run:
    """Run a client into an empty directory."""
    out = work / "out"
    out.mkdir()
    try:
        return run(command)
    finally:
        shutil.rmtree(out)


def report(columns: dict[str, list[Run]], size: int) -> int:
    """Print all figures, and how weightpkg's stand to the others'."""
    table = Report()
    speeds = {}
    for client, runs in columns.items():
        speeds[client] = size / median(runs, "wall_s") / 1e6
        table.add(client, speeds[client], form=".0f", unit=" MB/s")
        table.add("  processor", median(runs, "cpu_s") / size * 1e9, form=".2f", unit=" s/GB")
        table.add("  memory", median(runs, "peak_bytes") / 1e6, form=".0f", unit=" MB")
    with_blake3, with_sha256 = speeds["weightpkg, blake3"], speeds["weightpkg, sha256"]
    for client, own, bar in (
        ("curl", with_blake3, 0.9),
        ("sha256sum", with_sha256, 0.9),
        ("hf download", with_blake3, 1.0),
        ("hf download", with_sha256, 1.0),
    ):
        if client in speeds:
            kind = "blake3" if own is with_blake3 else "sha256"
            table.at_least(f"{kind}, ratio to {client}", own / speeds[client], bar, form=".2f")
    for kind in ("blake3", "sha256"):
        peak = median(columns[f"weightpkg, {kind}"], "peak_bytes") / 1e6
        table.at_most(f"{kind}, memory", peak, 120, form=".0f", unit=" MB")
    return table.end()


if __name__ == "__main__":
    sys.exit(main())
