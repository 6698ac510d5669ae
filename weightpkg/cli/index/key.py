"""`weightpkg index key`."""

from __future__ import annotations

from pathlib import Path

import click

from weightpkg.cli.console import print_json, print_table
from weightpkg.cli.desk import (
    directory_option,
    key_name,
    open_workspace,
    passphrase_from,
    passphrase_option,
    read_passphrase,
)
from weightpkg.errors import SigningError


@click.group("key")
def command() -> None:
    """Keys: make, list, replace and revoke them."""


@command.command("generate")
@click.argument("name")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="The private key's file; NAME.pem if not given.",
)
@click.option("--passphrase", "asks", is_flag=True, help="Encrypt the file; asks for a passphrase.")
@passphrase_option
def generate(name: str, output: Path | None, asks: bool, passphrase_file: Path | None) -> None:
    """Make a key: NAME.pem, which stays with its owner, and NAME.pub, which anybody may have."""
    from weightpkg.requirement import is_name
    from weightpkg.signing.keys import PRIVATE, PUBLIC, generate_key

    if not is_name(name):
        raise SigningError(f"`{name}` is not a name", hint="letters, digits, `-`, `_` and `.`")
    path = output or Path(f"{name}{PRIVATE}")
    if path.suffix != PRIVATE:
        raise SigningError(f"`{path}` must be called `...{PRIVATE}`")
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    if asks and passphrase is None:
        passphrase = click.prompt("passphrase", hide_input=True, confirmation_prompt=True, err=True)
    key = generate_key(path, passphrase)
    click.echo(f"{path.with_suffix(PUBLIC)}: key {key.id}")


@command.command("list")
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(directory: Path, as_json: bool) -> None:
    """List the keys of an index, and what they sign."""
    plan = open_workspace(directory).plan
    rows = [
        {"name": name, "keyid": key.public.id, "signs": [role for _, role in plan.uses_of(name)]}
        for name, key in plan.keys.items()
    ]
    if as_json:
        print_json(rows)
    elif rows:
        print_table([(str(r["name"]), str(r["keyid"]), ", ".join(r["signs"])) for r in rows])


@command.command("rotate")
@click.argument("role")
@click.option("--old", help="The key that goes; may be left out where there is only one.")
@click.option(
    "--new",
    type=click.Path(path_type=Path),
    required=True,
    help="The key that comes: its file, .pub or .pem.",
)
@directory_option
@passphrase_option
@click.option("--dry-run", is_flag=True, help="Change nothing.")
def rotate(
    role: str,
    old: str | None,
    new: Path,
    directory: Path,
    passphrase_file: Path | None,
    dry_run: bool,
) -> None:
    """Put a new key in the place of one of ROLE's; `weightpkg index sign` then signs with it.

    ROLE is root, targets, snapshot, timestamp or a namespace. A new root is signed by as many of the
    old keys as the old root asks for, and of the new ones.
    """
    from weightpkg.signing.keys import PRIVATE, load_public
    from weightpkg.signing.plan import NamedKey, Role, add_key, replaced, set_role

    workspace = open_workspace(directory)
    plan = workspace.plan
    namespaces = {str(name): own.role for name, own in plan.namespaces.items()}
    section = "namespaces" if role in namespaces else "roles"
    present = {**plan.roles, **namespaces}.get(role)
    if present is None:
        raise SigningError(
            f"there is no role `{role}`", hint=f"there are {', '.join([*plan.roles, *namespaces])}"
        )
    going = old or (present.keys[0] if len(present.keys) == 1 else None)
    if going not in present.keys:
        raise SigningError(
            f"`{going}` does not sign for `{role}`" if going else f"`{role}` has several keys",
            hint=f"`--old` is one of {', '.join(present.keys)}",
        )
    public = load_public(new, passphrase_from(passphrase_file))
    coming = plan.name_of(public.id) or key_name(new)
    text = workspace.plan_text()
    if plan.name_of(public.id) is None:
        place = new.absolute() if new.suffix == PRIVATE else None
        text = add_key(text, coming, NamedKey(public, place))
    keys = replaced(present.keys, str(going), coming)
    text = set_role(text, section, role, Role(keys, present.threshold))
    if not dry_run:
        workspace.write_plan(text)
    would = "would replace" if dry_run else "replaced"
    click.echo(f"{would} `{going}` of {role} by `{coming}`; `weightpkg index sign` signs it")


@command.command("revoke")
@click.argument("key")
@directory_option
@click.option("--dry-run", is_flag=True, help="Change nothing.")
def revoke(key: str, directory: Path, dry_run: bool) -> None:
    """Take KEY, a name or a key id, from every role; refused where too few keys would be left.

    What it signed counts no more with the next root or `targets` that is signed and published.
    """
    from weightpkg.signing.plan import remove_key, set_role, without

    workspace = open_workspace(directory)
    plan = workspace.plan
    name = key if key in plan.keys else plan.name_of(key)
    if name is None:
        raise SigningError(
            f"no key is called `{key}`, or has that id", hint="`weightpkg index key list`"
        )
    text = workspace.plan_text()
    roles = {
        **{("roles", role): keys for role, keys in plan.roles.items()},
        **{("namespaces", str(n)): own.role for n, own in plan.namespaces.items()},
    }
    uses = list(plan.uses_of(name))
    for section, role in uses:
        try:
            left = without(roles[section, role], name)
        except SigningError as error:
            raise SigningError(f"{role}: {error.message}", hint=error.hint) from error
        text = set_role(text, section, role, left)
    if not dry_run:
        workspace.write_plan(remove_key(text, name))
    would = "would revoke" if dry_run else "revoked"
    signed = ", ".join(role for _, role in uses) or "nothing"
    click.echo(
        f"{would} `{name}`, which signed for {signed}; `weightpkg index sign` signs the rest"
    )
