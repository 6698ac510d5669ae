"""What a large signed index costs: signing and publishing a release, and a client that updates.

Usage: python scripts/bench/signed_index.py [--models 100000] [--runs 5] [--directory DIR]

The index is generated, signed with keys made for it, and published in DIR, or in a temporary
directory; what is there is used again. A server on this machine counts what it sends, bodies and
headers. The client holds one page, of the model that is released. Bars: 100 kB and 1 s.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from pathlib import Path

from tuf.ngclient import Updater

from index import pages
from measure import run
from report import Report

NAMESPACE = "acme"
MAX_BYTES, MAX_S = 100_000, 1.0


class CountingServer(ThreadingHTTPServer):
    """Gives the files of a directory, and counts requests and bytes."""

    n_bytes = 0
    n_requests = 0

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(SimpleHTTPRequestHandler):
    """Answers, and has the server count."""

    protocol_version = "HTTP/1.1"
    server: CountingServer

    def setup(self) -> None:
        """Count what is written."""
        super().setup()
        self.wfile = _Counted(self.wfile, self.server)  # type: ignore[assignment]

    def send_response(self, code: int, message: str | None = None) -> None:
        """Count the request."""
        self.server.n_requests += 1
        super().send_response(code, message)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the library's name
        """Stay silent."""


class _Counted:
    def __init__(self, stream: BufferedIOBase, server: CountingServer) -> None:
        self._stream, self._server = stream, server

    def write(self, data: bytes) -> int:
        self._server.n_bytes += len(data)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextmanager
def served(directory: Path) -> Iterator[CountingServer]:
    """Serve a directory on this machine."""
    server = CountingServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class Bench:
    """An index, its maintainers' directory, and its clients."""

    def __init__(self, directory: Path, count: int) -> None:
        self.work, self.keys = directory / "work", directory / "keys"
        self.public, self.home = directory / "public", directory / "home"
        self.state = directory / "state"
        self.count = count
        self.name, self.page = next(pages(1))

    def index(self, *words: object) -> list[str]:
        """A command of the maintainers."""
        return [sys.executable, "-m", "weightpkg", "-q", "index", *map(str, words)]

    def timed(self, *words: object) -> float:
        """Run a command; return its seconds."""
        return run(self.index(*words)).wall_s

    def make(self, report: Report) -> None:
        """Write, sign and publish the index, if it is not there."""
        if not (self.work / "signing.toml").exists():
            self.timed("init", self.work, "--namespace", NAMESPACE, "--keys", self.keys)
        if not (self.public / "metadata" / "timestamp.json").exists():
            for name, page in pages(self.count):
                (self.work / "models" / f"{name}.toml").write_text(page)
            report.add("signing all of it, once", self.timed("sign", "-C", self.work), unit=" s")
            publish = self.timed("publish", self.public, "-C", self.work)
            report.add("publishing all of it, once", publish, unit=" s")

    def release(self, number: int) -> tuple[float, float]:
        """Change one page; return the seconds that signing and publishing took."""
        page = self.page.replace("first release", f"release {number} at {time.time_ns()}")
        (self.work / "models" / f"{self.name}.toml").write_text(page)
        sign = self.timed("sign", "-C", self.work)
        return sign, self.timed("publish", self.public, "-C", self.work)

    def update(self, url: str) -> float:
        """Update python-tuf's own client in this process; return its seconds."""
        for name in ("metadata", "targets"):
            (self.state / name).mkdir(parents=True, exist_ok=True)
        root = (self.public / "metadata" / "1.root.json").read_bytes()
        start = time.perf_counter()
        updater = Updater(
            str(self.state / "metadata"),
            f"{url}/metadata/",
            str(self.state / "targets"),
            f"{url}/targets/",
            bootstrap=root,
        )
        info = updater.get_targetinfo(f"models/{self.name}.toml")
        assert info is not None
        updater.download_target(info)
        return time.perf_counter() - start

    def enrol(self, url: str) -> bool:
        """Have weightpkg's own client follow the index, and hold its page; False if it has none."""
        os.environ["WEIGHTPKG_HOME"] = str(self.home)
        digest = hashlib.sha256((self.public / "metadata" / "1.root.json").read_bytes())
        words = ("add", url, "--name", NAMESPACE, "--sha256", digest.hexdigest())
        done = subprocess.run(self.index(*words), check=False, capture_output=True)
        show = [sys.executable, "-m", "weightpkg", "show", f"{NAMESPACE}/{self.name}"]
        return done.returncode == 0 and subprocess.run(show, check=False, stdout=subprocess.DEVNULL).returncode == 0  # fmt: skip


def measure(directory: Path, count: int, runs: int) -> int:
    """Measure, print, return the exit code."""
    report, bench = Report(), Bench(directory, count)
    bench.make(report)
    found: dict[str, list[float]] = defaultdict(list)
    with served(bench.public) as server:
        bench.update(server.url)
        report.add("a new client of one page", server.n_bytes / 1000, form=".1f", unit=" kB")
        has_own = bench.enrol(server.url)
        for number in range(runs):
            sign, publish = bench.release(number)
            found["sign"].append(sign)
            found["publish"].append(publish)
            server.n_bytes = server.n_requests = 0
            found["tuf"].append(bench.update(server.url))
            found["tuf bytes"].append(server.n_bytes / 1000)
            found["requests"].append(server.n_requests)
            if has_own:
                server.n_bytes = 0
                found["own"].append(run(bench.index("update", NAMESPACE)).wall_s)
                found["own bytes"].append(server.n_bytes / 1000)
    snapshots = bench.public.glob("metadata/*.snapshot.json")
    found["snapshot"] = [max(path.stat().st_size for path in snapshots) / 1000]
    _report(report, count, {name: sorted(each)[len(each) // 2] for name, each in found.items()})
    return report.end()


def _report(report: Report, count: int, found: Mapping[str, float]) -> None:
    def transferred(key: str) -> None:
        limit = MAX_BYTES / 1000
        report.at_most("  transferred, with headers", found[key], limit, form=".1f", unit=" kB")

    report.add(f"{count:,} models: signing a release", found["sign"], unit=" s")
    report.add("publishing it", found["publish"], unit=" s")
    report.at_most("update after it, python-tuf's client", found["tuf"], MAX_S, unit=" s")
    transferred("tuf bytes")
    report.add("  requests", found["requests"], form=".0f")
    report.add("  of which the snapshot", found["snapshot"], form=".1f", unit=" kB")
    if "own" in found:
        report.at_most("`weightpkg index update`, a process", found["own"], MAX_S, unit=" s")
        transferred("own bytes")


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--directory", type=Path)
    arguments = parser.parse_args()
    if arguments.directory:
        return measure(arguments.directory, arguments.models, arguments.runs)
    with tempfile.TemporaryDirectory() as directory:
        return measure(Path(directory), arguments.models, arguments.runs)


if __name__ == "__main__":
    sys.exit(main())
