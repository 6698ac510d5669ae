"""Throughput of `weightpkg mirror serve` for one client and for many, beside nginx on the same files.

Usage: python scripts/bench/mirror_serve.py [--size 1e9] [--runs 3] [--clients 16]

The blobs lie in the system's cache when they are read. A client is curl, which writes to /dev/null;
many clients each take another blob. What we send is checked by BLAKE3 on the way, nginx checks nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from report import Report
from weightpkg.digest import fingerprint_file
from weightpkg.store import Store

BAR = 0.5  # of nginx, for one client
CURL = shutil.which("curl") or "curl"


def main() -> int:
    """Measure, print, return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--size", type=float, default=1e9, help="bytes that are read in each run")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16, help="how many there are at once")
    arguments = parser.parse_args()
    size = int(arguments.size)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work = Path(name)
        root = work / "mirror"
        one = [make_blob(root, size, seed=0)]
        many = [make_blob(root, size // arguments.clients, seed=i + 1) for i in range(arguments.clients)]  # fmt: skip
        servers = {"weightpkg": stack.enter_context(weightpkg(root))}
        if nginx := shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"):
            servers["nginx"] = stack.enter_context(serve_by_nginx(nginx, root, work))
        return compare(servers, {"1 client": one, f"{len(many)} clients": many}, arguments.runs)


def compare(servers: dict[str, str], loads: dict[str, list[str]], runs: int) -> int:
    """Print the speed of each server under each load; return the exit code."""
    report = Report()
    for load, paths in loads.items():
        rows: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(runs + 1):
            for name, url in servers.items():
                rows[name].append(speed([f"{url}/{path}" for path in paths]))
        speeds = {name: statistics.median(found[1:]) for name, found in rows.items()}
        for name, found in speeds.items():
            report.add(f"{name}, {load}", found / 1e6, form=",.0f", unit=" MB/s")
        if "nginx" in speeds:
            ratio = speeds["weightpkg"] / speeds["nginx"]
            if len(paths) == 1:
                report.at_least(f"times nginx, {load}", ratio, BAR, form=".2f")
            else:
                report.add(f"times nginx, {load}", ratio, form=".2f")
    if "nginx" not in servers:
        print("nginx is not installed: there is nothing to compare with", file=sys.stderr)
    return report.end()


def make_blob(root: Path, size: int, *, seed: int) -> str:
    """Put a blob of bytes that are nowhere the same; return its path below the mirror."""
    block = hashlib.shake_256(seed.to_bytes(4, "big")).digest(1 << 20)
    path = root / "new"
    root.mkdir(exist_ok=True)
    with path.open("wb") as stream:
        for i in range(-(-size // len(block))):
            stream.write((i.to_bytes(8, "big") + block)[: min(len(block), size - i * len(block))])
    fingerprint = fingerprint_file(path)
    store = Store(root)
    target = store.blob_path(fingerprint.sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
    store.write_chunks(fingerprint)
    return target.relative_to(root).as_posix()


def speed(urls: Sequence[str]) -> float:
    """Read all URLs at once; return bytes a second."""
    form = "%{http_code} %{size_download}\n"
    began = time.perf_counter()
    clients = [
        subprocess.Popen([CURL, "-s", "-o", os.devnull, "-w", form, url], stdout=subprocess.PIPE)
        for url in urls
    ]
    told = [client.communicate()[0].split() for client in clients]
    taken = time.perf_counter() - began
    if any(status != b"200" for status, _ in told):
        raise RuntimeError(f"not all was sent: {told}")
    return sum(int(size) for _, size in told) / taken


@contextmanager
def weightpkg(root: Path) -> Iterator[str]:
    """Serve by `weightpkg mirror serve`, with its access log."""
    line = [sys.executable, "-m", "weightpkg", "mirror", "serve", str(root), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield process.stdout.readline().decode().strip()
        process.terminate()


@contextmanager
def serve_by_nginx(program: str, root: Path, work: Path) -> Iterator[str]:
    """Serve by nginx, one worker, with sendfile and an access log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {work}/{kind};" for kind in kinds)
    configuration = work / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {work}/pid; error_log {work}/errors;\nevents {{}}\n"
        f"http {{ access_log {work}/log; sendfile on; tcp_nopush on; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    line = [program, "-c", str(configuration), "-e", f"{work}/errors"]
    with subprocess.Popen(line) as process:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        process.terminate()


if __name__ == "__main__":
    sys.exit(main())
