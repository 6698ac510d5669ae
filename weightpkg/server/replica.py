"""A replica: the application over models of its node's store, which are what they shall be.

The same bytes are served by all of them: a model's conversion and the digest of its tree come with
the order. What a node does not have is installed there as `weightpkg sync --frozen` would, from where
the node's own configuration leads: its mirror, its index, the sources of the model's record.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightpkg import __version__, convert, files
from weightpkg.contents import read_model_rows
from weightpkg.digest import Digest, hash_file
from weightpkg.errors import IntegrityError, NotInstalledError, RunError, WeightpkgError
from weightpkg.lockfile import LockedPackage
from weightpkg.manifest import Manifest
from weightpkg.package import UNKNOWN, File, RelativePath, parse_source
from weightpkg.progress import Progress, Silence
from weightpkg.project import Indexes
from weightpkg.server.front import Asked, Done, Part, Sent, Taken
from weightpkg.server.guard import App, Message
from weightpkg.server.models import Models, Options
from weightpkg.settings import Settings
from weightpkg.store import MANIFEST, Installed, Store, tree_digest
from weightpkg.survey import this_machine
from weightpkg.syncing import plan_sync, sync

_UNKNOWN_ROOM = 4 * 1024**3  # where a system does not say what memory it has


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model as it is where the command was typed.

    tree: the digest of its directory, which has all the others.
    place: the record of what is installed; a directory for what is in no store.
    """

    name: str
    tree: Digest
    place: Installed | Path


@dataclass(frozen=True, slots=True)
class Order:
    """What replicas shall serve, and the version of weightpkg that says so.

    options: its threads are those of one replica; 0 bytes of memory are a share of its node's.
    """

    models: tuple[Chosen, ...]
    options: Options
    version: str = __version__


class StartError(Exception):
    """Why a replica does not start, in JSON, which is found again in Ray's text of the failure."""

    def __init__(self, error: WeightpkgError) -> None:
        super().__init__(json.dumps({"message": error.message, "hint": error.hint}))


class Replica:
    """What Ray Serve starts: it answers requests until it is told to end."""

    def __init__(self, order: Order) -> None:
        """Have the models of an order on this node.

        Raises:
            StartError: they cannot be had.
        """
        from ray import serve  # noqa: PLC0415  only replicas need it here

        try:
            self._models = make_models(order, Settings.from_environment(), Silence())
        except WeightpkgError as error:
            raise StartError(error) from error
        self._models.start()
        self._app: App = self._models.app()
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(self, asked: Asked) -> AsyncIterator[Part]:
        """Answer a request; whoever stops listening ends it."""
        yield Taken(self._name)
        scope = _scope(asked)
        async for messages in run_application(self._app, scope, asked.body):
            yield Sent(str(getattr(scope.get("route"), "path", "other")), tuple(messages))
        yield Done(self._models.counters.take())

    def __del__(self) -> None:
        """Unload what is loaded; Serve calls it when a replica ends."""
        if hasattr(self, "_app"):
            self._models.close()


def make_models(order: Order, settings: Settings, progress: Progress) -> Models:
    """Have the models of an order in this machine's store, ready to be served.

    Raises:
        WeightpkgError: they cannot be had, or would not be the same bytes.
    """
    if order.version != __version__:
        raise RunError(
            f"this node has weightpkg {__version__}, and the command's has {order.version}",
            hint="install the same version on all nodes",
        )
    chosen = {each.name: provide(each, settings, progress) for each in order.models}
    options = order.options
    if not options.memory:
        options = replace(options, memory=_share_of_memory(options.threads))
    return Models(settings.store(), chosen, options, lambda _: None)


def choose(name: str, directory: Path, store: Store) -> Chosen:
    """Return what replicas are told of a model that is here.

    Raises:
        StoreError: it cannot be read.
    """
    records = [record for record in store.installed() if record.conversion == directory.name]
    is_stored = records and store.model(directory.name) == directory
    return Chosen(name, tree_digest(directory), records[0] if is_stored else directory)


def provide(chosen: Chosen, settings: Settings, progress: Progress) -> Path:
    """Return the directory of a model on this machine, installing it if it is not there.

    Raises:
        FetchError: no source has a file.
        IntegrityError: what is here, or comes, is not what was chosen.
        NotInstalledError: it is in no store, and not here.
    """
    if isinstance(chosen.place, Path):
        return _check_directory(chosen, chosen.place)
    _check_conversion(chosen.place)
    store, indexes = settings.store(), Indexes(Path(), Manifest(), settings)
    (record,) = sync(
        plan_sync([_package(chosen, chosen.place)], indexes, store), settings, progress
    )
    directory = store.model(record.conversion) if record.conversion else None
    if directory is None or record.tree != chosen.tree:
        raise IntegrityError(
            f"`{record}` is {record.tree} here, and {chosen.tree} where the command was typed"
        )
    return directory


def _check_conversion(record: Installed) -> None:
    key = convert.conversion_key({file.path: file.sha256 for file in record.files})
    if key != record.conversion:
        raise IntegrityError(
            f"`{record}` would be another conversion here than where the command was typed",
            hint="have the same weightpkg on all nodes, and install the model anew",
        )


def _package(chosen: Chosen, record: Installed) -> LockedPackage:
    """What a lockfile would say of it."""
    return LockedPackage(
        name=record.name,
        version=record.version,
        variant=record.variant,
        index=None,
        reference=record.reference,
        license=UNKNOWN,
        format=convert.format_of([file.path for file in record.files]),
        architecture=UNKNOWN,
        conversion=record.conversion,
        converter=convert.CONVERTER_VERSION,
        tree=chosen.tree,
        files=tuple(
            File(
                path=RelativePath(file.path),
                sha256=file.sha256,
                size=file.size,
                blake3=file.blake3,
                sources=tuple(tuple(map(parse_source, parts)) for parts in file.sources),
            )
            for file in record.files
        ),
    )


def _check_directory(chosen: Chosen, directory: Path) -> Path:
    """Return a directory that is in no store, if it has the bytes that were chosen."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise NotInstalledError(str(directory))
    if tree_digest(directory) != chosen.tree:
        raise IntegrityError(f"`{directory}` is another model on this node")
    entries, _ = read_model_rows(manifest.read_bytes(), source=str(manifest))
    for entry in entries:
        path = directory / entry.path
        with files.mapped(path):
            if hash_file(path, "blake3", all_cores=True) != entry.blake3:
                raise IntegrityError(f"`{path}` is damaged on this node")
    return directory


def _share_of_memory(threads: int) -> int:
    """Return as much of this machine's memory as the threads are of its cores."""
    cores = os.cpu_count() or 1
    return (this_machine().room or _UNKNOWN_ROOM) * min(threads, cores) // cores


def _scope(asked: Asked) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": asked.path,
        "raw_path": asked.path.encode(),
        "query_string": asked.query,
        "root_path": "",
        "headers": list(asked.headers),
        "client": None,
        "server": None,
    }


async def run_application(
    app: App, scope: dict[str, Any], body: bytes
) -> AsyncIterator[list[Message]]:
    """Yield what an application sends, each time all that is there; it is cancelled with the reader."""
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    is_given = False

    async def receive() -> Message:
        nonlocal is_given
        if is_given:
            await asyncio.Event().wait()  # who goes away cancels all of it
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    task = asyncio.ensure_future(app(scope, receive, sent.put))
    task.add_done_callback(lambda _: sent.put_nowait(None))
    try:
        while not (sent.empty() and task.done()):
            messages = [await sent.get()]
            while not sent.empty():
                messages.append(sent.get_nowait())
            if there := [message for message in messages if message is not None]:
                yield there
        task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def started_by(error: Mapping[str, Any]) -> RunError:
    """Return what `StartError` said, as an error of this process."""
    return RunError(f"a replica cannot start: {error['message']}", hint=error["hint"])
