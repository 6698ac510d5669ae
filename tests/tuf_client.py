"""python-tuf's own client, as an independent one, of an index in a directory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile


class DirectoryFetcher(FetcherInterface):
    """Reads files below a directory, and counts what was read."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.read: dict[str, int] = {}

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self.directory / url.removeprefix("index:/")
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        content = path.read_bytes()
        self.read[path.name] = len(content)
        yield content


class Client:
    """A client with a state of its own, that trusts the first root that it is given."""

    def __init__(self, published: Path, state: Path, root: bytes | None = None) -> None:
        self.fetcher = DirectoryFetcher(published)
        self.state = state
        self._root = root or (published / "metadata" / "1.root.json").read_bytes()
        (state / "metadata").mkdir(parents=True, exist_ok=True)
        (state / "targets").mkdir(exist_ok=True)

    def updater(self, now: datetime | None = None) -> Updater:
        updater = Updater(
            str(self.state / "metadata"),
            "index:/metadata/",
            str(self.state / "targets"),
            "index:/targets/",
            self.fetcher,
            bootstrap=self._root,
        )
        if now is not None:
            updater._trusted_set.reference_time = now
        return updater

    def refresh(self, now: datetime | None = None) -> Updater:
        self.fetcher.read.clear()
        updater = self.updater(now)
        updater.refresh()
        return updater

    def find(self, path: str, now: datetime | None = None) -> TargetFile | None:
        return self.refresh(now).get_targetinfo(path)

    def page(self, path: str, now: datetime | None = None) -> str:
        updater = self.refresh(now)
        found = updater.get_targetinfo(path)
        assert found is not None, f"no {path}"
        return Path(updater.download_target(found)).read_text()
