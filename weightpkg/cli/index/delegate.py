"""`weightpkg index delegate`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.desk import (
    directory_option,
    key_name,
    open_workspace,
    passphrase_from,
    passphrase_option,
)
from weightpkg.errors import SigningError


@click.command("delegate")
@click.argument("namespace")
@click.option(
    "--key",
    "keys",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A key of the publisher: its file; once for each.",
)
@click.option("--threshold", default=1, show_default=True, help="How many of them must sign.")
@directory_option
@passphrase_option
@click.option("--dry-run", is_flag=True, help="Change nothing.")
def command(
    namespace: str,
    keys: tuple[Path, ...],
    threshold: int,
    directory: Path,
    passphrase_file: Path | None,
    dry_run: bool,
) -> None:
    """Take in another publisher, whose own keys sign the pages in NAMESPACE/models.

    Only these keys can sign pages of NAMESPACE, and pages of nothing else.
    """
    from weightpkg.signing.keys import PRIVATE, load_public
    from weightpkg.signing.plan import NamedKey, Role, add_key, check_namespace, set_role

    workspace = open_workspace(directory)
    plan, text = workspace.plan, workspace.plan_text()
    try:
        name = check_namespace(namespace)
    except ValueError as error:
        raise SigningError(str(error)) from error
    if name in plan.namespaces:
        raise SigningError(f"`{name}` is there already", hint="`weightpkg index key rotate`")
    names = []
    for path in keys:
        public = load_public(path, passphrase_from(passphrase_file))
        known = plan.name_of(public.id)
        names.append(known or key_name(path))
        if known is None:
            place = path.absolute() if path.suffix == PRIVATE else None
            text = add_key(text, names[-1], NamedKey(public, place))
    text = set_role(text, "namespaces", name, Role(tuple(names), threshold))
    if not dry_run:
        workspace.write_plan(text)
    would = "would delegate" if dry_run else "delegated"
    click.echo(f"{would} {name} to {', '.join(names)}; its pages belong in {name}/models")
