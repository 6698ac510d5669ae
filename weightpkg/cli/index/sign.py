"""`weightpkg index sign`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.cli.console import make_progress
from weightpkg.cli.desk import (
    directory_option,
    now,
    open_keyring,
    open_workspace,
    passphrase_from,
    passphrase_option,
    print_standings,
)
from weightpkg.errors import SigningError

if TYPE_CHECKING:
    from weightpkg.signing.keys import Keyring
    from weightpkg.signing.workspace import Workspace


@click.command("sign")
@click.option(
    "--role",
    "roles",
    multiple=True,
    help="Sign only this role: root, targets, snapshot, timestamp or a namespace.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A private key to sign with, beside those that signing.toml has the places of.",
)
@click.option(
    "--refresh",
    is_flag=True,
    help="Renew the timestamp, and the snapshot, or each --role, when half its time is over.",
)
@click.option(
    "--export",
    "export",
    type=click.Path(path_type=Path),
    help="Copy what waits for signatures into a directory.",
)
@click.option(
    "--import",
    "imported",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Take signatures of a file, or a directory of them, that was signed elsewhere.",
)
@click.option(
    "--file",
    "alone",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Add the signatures of --key to an exported file, away from the maintainers' directory.",
)
@directory_option
@passphrase_option
@click.option("--dry-run", is_flag=True, help="Say what would be signed, and sign nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def command(
    quiet: bool,
    roles: tuple[str, ...],
    keys: tuple[Path, ...],
    refresh: bool,
    export: Path | None,
    imported: tuple[Path, ...],
    alone: tuple[Path, ...],
    directory: Path,
    passphrase_file: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Sign what changed: pages, keys, and whatever has expired.

    One changed page signs one role again, or one of its hash bins, the snapshot and the timestamp.
    What the keys at hand cannot sign waits: keys can sign one by one, on different machines.
    """
    if alone:
        _sign_files(alone, keys, passphrase_file)
        return
    workspace = open_workspace(directory)
    keyring = open_keyring(workspace, keys, passphrase_file)
    with workspace.locked():
        for role, count in workspace.take(_files(imported)).items():
            click.echo(f"{role}: {count} new signatures", err=True)
        _sign(
            workspace,
            keyring,
            roles,
            quiet=quiet,
            refresh=refresh,
            dry_run=dry_run,
            as_json=as_json,
        )
        if export is not None and not dry_run:
            _export(workspace, export)


def _sign(
    workspace: Workspace,
    keyring: Keyring,
    roles: Sequence[str],
    *,
    quiet: bool,
    refresh: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    from weightpkg.signing.plan import SNAPSHOT, TIMESTAMP
    from weightpkg.signing.workspace import SigningRun

    plan = workspace.plan
    unknown = set(roles) - {*plan.roles, *plan.namespaces}
    if unknown:
        raise SigningError(f"there is no role `{min(unknown)}`")
    with make_progress(quiet=quiet).task("reading pages", None) as advance:
        run = SigningRun(
            now=now(),
            signer_for=keyring.find,
            named=tuple(keyring.named.values()),
            refresh=(roles or (TIMESTAMP, SNAPSHOT)) if refresh else (),
            only=roles or None,
            advance=advance,
            is_dry=dry_run,
        )
        standings = workspace.sign(run)
    print_standings(standings, plan, as_json=as_json)
    if not standings:
        click.echo("everything is signed", err=True)


def _files(paths: Sequence[Path]) -> list[Path]:
    return [
        file
        for path in paths
        for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]


def _export(workspace: Workspace, directory: Path) -> None:
    from weightpkg import files

    for standing in workspace.waiting():
        if standing.is_complete:  # it waits for another role
            continue
        content = workspace.staged.content(standing.role, standing.version)
        path = directory / f"{standing.version}.{standing.role}.json"
        files.write_file(path, content, temporary=directory)
        click.echo(path)


def _sign_files(paths: Sequence[Path], keys: Sequence[Path], passphrase_file: Path | None) -> None:
    """Sign files as they are: their signer sees what they say, and the directory counts who may."""
    from weightpkg import files
    from weightpkg.signing import metadata as signing
    from weightpkg.signing.keys import load_signer

    if not keys:
        raise SigningError("no key was given", hint="`--key FILE`")
    signers = [load_signer(path, passphrase_from(passphrase_file)) for path in keys]
    for path in _files(paths):
        with files.mapped(path):
            content = path.read_bytes()
        role = path.name.split(".")[-2] if path.name.count(".") > 1 else path.stem
        metadata = signing.parse(content, signing.kind_of(role), path.name)
        for line in signing.summary(role, metadata):
            click.echo(line)
        for signer in signers:
            signing.sign(role, metadata, signer)
        files.write_file(path, metadata.to_bytes(), temporary=path.parent)
        click.echo(f"{path}: signed by {', '.join(signer.public_key.keyid for signer in signers)}")
