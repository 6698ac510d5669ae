"""`weightpkg mirror serve`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from weightpkg.errors import RunError
from weightpkg.settings import Settings


@click.command("serve")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, metavar="N", help="Where to listen; 0 for any free port.")  # fmt: skip
@click.option("--address", metavar="HOST", help="Where to listen; without it, this machine alone.")
@click.option("--url", metavar="URL", help="How clients reach it, if by another name: a proxy's.")
@click.option("--key-file", type=click.Path(path_type=Path), help="A file with the key that clients must have; or WEIGHTPKG_MIRROR_KEY.")  # fmt: skip
@click.option("--public", is_flag=True, help="Everybody who reaches it may read it.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    directory: Path,
    port: int,
    address: str | None,
    url: str | None,
    key_file: Path | None,
    public: bool,
) -> None:
    """Serve a mirror to weightpkg, Hugging Face's clients, Ollama and curl.

    DIRECTORY is what `weightpkg mirror create` made. Clients of the hub need `HF_ENDPOINT`. Where it
    listens is printed, and each answer is a line of the log. Ends on SIGTERM or Ctrl-C.
    """
    try:
        from weightpkg.listening.process import Listening, read_key
        from weightpkg.mirror_server.listen import MirrorServer
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"uvicorn", "h11"}:
            raise
        raise RunError(
            f"serving needs the library `{error.name}`",
            hint='`pip install "weightpkg[serve]"`, or serve the directory by any web server',
        ) from error
    key = read_key(key_file, Settings.from_environment().environ.get("WEIGHTPKG_MIRROR_KEY"))
    options = Listening(address=address, port=port, url=url, key=key, is_public=public)
    server = MirrorServer(directory, options, _log(quiet=quiet))
    for each in server.urls:
        click.echo(each)
    holdings = server.mirror.holdings
    if not quiet:
        click.echo(f"{len(holdings.repositories)} names, {len(holdings.sizes)} blobs", err=True)
    server.run()


def _log(*, quiet: bool) -> Callable[[str], None]:
    def log(line: str) -> None:
        if not quiet or line.startswith(("error", "warning")):
            click.echo(line, err=True)

    return log
