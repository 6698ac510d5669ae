"""`weightpkg index serve`."""

from __future__ import annotations

import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click

from weightpkg.errors import SigningError


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def list_directory(self, path: object) -> None:  # noqa: ARG002  the library's signature
        """Show no directories: an index needs none."""
        self.send_error(404)


@click.command("serve")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--port", default=8000, show_default=True, help="0 takes a free one.")
def command(directory: Path, port: int) -> None:
    """Serve a published index on this machine, for trying out.

    Any web server can serve it for others: it is static files.
    """
    if not (directory / "metadata" / "timestamp.json").is_file():
        raise SigningError(
            f"`{directory}` is not a published index",
            hint="`weightpkg index publish DIR` makes one",
        )
    try:
        handler = functools.partial(_Handler, directory=str(directory))
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise SigningError(f"port {port} cannot be used: {error}", hint="`--port 0`") from error
    with server:
        click.echo(f"http://127.0.0.1:{server.server_address[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
