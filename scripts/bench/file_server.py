"""A local server that gives files as fast as the machine can: plain URLs, and the hub's routes.

Usage: python scripts/bench/file_server.py DIRECTORY    prints its port, and serves until killed

    /FILE                                  a file of the directory, ranges and ETag included
    /api/models/bench/files/...            what a hub says of the repository `bench/files`
    /bench/files/resolve/COMMIT/FILE       the file, as a hub gives it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c" * 40
ROOT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


@cache
def sha256(path: Path) -> str:
    """The digest of a file, which a hub knows."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def do_HEAD(self) -> None:
        """Answer with headers alone."""
        self._answer(with_body=False)

    def do_GET(self) -> None:
        """Answer with a file, or with what a hub says."""
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if match := re.match(r"/api/models/bench/files/(revision|tree)/", path):
            self._json(_revision() if match[1] == "revision" else _tree())
            return
        is_hub = path.startswith("/bench/files/resolve/")
        file = ROOT / path.rpartition("/")[2]
        if not file.is_file():
            self.send_error(404)
            return
        extra = {"X-Repo-Commit": COMMIT} if is_hub else {}
        self._file(file, extra, with_body=with_body)

    def _json(self, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _file(self, file: Path, extra: dict[str, str], *, with_body: bool) -> None:
        total = file.stat().st_size
        start, end, status = 0, total, 200
        if match := re.match(r"bytes=(\d+)-(\d*)\Z", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            end = min(int(match[2]) + 1, total) if match[2] else total
            extra = extra | {"Content-Range": f"bytes {start}-{end - 1}/{total}"}
        self.send_response(status)
        headers = {"Content-Length": end - start, "ETag": f'"{sha256(file)}"'} | extra
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if with_body:
            self._send(file, start, end)

    def _send(self, file: Path, start: int, end: int) -> None:
        self.wfile.flush()
        with file.open("rb") as stream:
            while start < end:
                start += os.sendfile(self.connection.fileno(), stream.fileno(), start, end - start)


def _revision() -> dict[str, object]:
    names = [{"rfilename": path.name} for path in sorted(ROOT.iterdir())]
    return {"id": "bench/files", "sha": COMMIT, "siblings": names}


def _tree() -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for path in sorted(ROOT.iterdir()):
        size = path.stat().st_size
        lfs = {"oid": sha256(path), "size": size, "pointerSize": 134}
        rows.append({"type": "file", "path": path.name, "size": size, "oid": "0" * 40, "lfs": lfs})
    return rows


def main() -> None:
    """Serve until killed."""
    for path in ROOT.iterdir():
        sha256(path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
