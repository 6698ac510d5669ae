"""`weightpkg serve --ray`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from weightpkg.listening.process import Listening
    from weightpkg.server.models import Options
    from weightpkg.store import Store


def serve_on_ray(
    store: Store,
    directories: Mapping[str, Path] | None,
    options: Options,
    listening: Listening,
    log: Callable[[str], None],
    *,
    n_replicas: int,
    ray_address: str | None,
) -> None:
    """Serve by replicas until told to stop; what is installed here, where no models are named.

    Raises:
        RunError: Ray is not installed, or nothing is; or as `ClusterServer.run`.
    """
    if find_spec("ray") is None:
        hint = '`pip install "weightpkg[ray]"`'
        raise RunError("serving by replicas needs the library `ray`", hint=hint)
    from weightpkg.server.cluster import ClusterServer
    from weightpkg.server.library import Library
    from weightpkg.server.replica import Order, choose

    entries = Library(store, directories).entries()
    if not entries:
        raise RunError("nothing is installed here", hint="name what shall be served")
    chosen = tuple(choose(name, entry.directory, store) for name, entry in entries.items())
    order = Order(chosen, options)
    server = ClusterServer(order, n_replicas, listening, log, ray_address=ray_address)
    click.echo("starting replicas", err=True)
    output = sys.stdout  # while Ray runs, `sys.stdout` is not ours
    server.run(lambda urls: click.echo("\n".join(urls), file=output))
