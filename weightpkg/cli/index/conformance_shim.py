"""`weightpkg index conformance-shim`: what the conformance suite of TUF calls; not for people."""

from __future__ import annotations

from pathlib import Path

import click

_DIRECTORY = click.Path(path_type=Path)


@click.command("conformance-shim", hidden=True)
@click.option("--metadata-dir", required=True, type=_DIRECTORY)
@click.option("--metadata-url", default="")
@click.option("--target-name", "names", multiple=True)
@click.option("--target-base-url", "targets_url", default="")
@click.option("--target-dir", type=_DIRECTORY, default=".")
@click.argument("action", type=click.Choice(["init", "refresh", "download"]))
@click.argument("root", type=_DIRECTORY, required=False)
@click.pass_context
def command(
    ctx: click.Context,
    metadata_dir: Path,
    metadata_url: str,
    names: tuple[str, ...],
    targets_url: str,
    target_dir: Path,
    action: str,
    root: Path | None,
) -> None:
    """Speak the client protocol of tuf-conformance."""
    from weightpkg.errors import WeightpkgError
    from weightpkg.sources.transport import Transport
    from weightpkg.trust.conformance import download, initialize, refresh

    try:
        if action == "init":
            initialize(metadata_dir, root or Path())
            return
        with Transport() as transport:
            session = refresh(metadata_dir, metadata_url, targets_url, transport)
            if action == "download":
                download(session, names, target_dir)
    except WeightpkgError as error:  # the suite knows 0 and 1 only
        click.echo(f"error: {error.message}", err=True)
        ctx.exit(1)
