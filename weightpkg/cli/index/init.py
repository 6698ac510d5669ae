"""`weightpkg index init`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.cli.desk import key_name, passphrase_from, passphrase_option, read_passphrase
from weightpkg.errors import SigningError

if TYPE_CHECKING:
    from weightpkg.signing.plan import NamedKey

ROOT_KEYS = 3


@click.command("init")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--namespace", required=True, help="What the index owns: a name.")
@click.option("--title", help="What people call it.")
@click.option("--threshold", default=2, show_default=True, help="How many root keys must sign.")
@click.option(
    "--root-key",
    "root",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A root key's file, .pub or .pem; once for each.",
)
@click.option(
    "--pages-key",
    "pages",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A key that signs pages and who owns them.",
)
@click.option(
    "--online-key",
    "online",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A key that signs snapshot and timestamp.",
)
@click.option(
    "--keys",
    "key_dir",
    type=click.Path(path_type=Path),
    help="Make the keys that are not given, in this directory.",
)
@passphrase_option
def command(
    directory: Path,
    namespace: str,
    title: str | None,
    threshold: int,
    root: tuple[Path, ...],
    pages: tuple[Path, ...],
    online: tuple[Path, ...],
    key_dir: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Make a maintainers' directory, where a signed index is worked on.

    Three root keys, of which two must sign, a key for pages, and one for what is renewed all the
    time. docs/maintaining-an-index.md shows a key ceremony.
    """
    from weightpkg.files import make_directory
    from weightpkg.signing.plan import Role, check_namespace, new_plan
    from weightpkg.signing.workspace import Workspace

    workspace = Workspace(directory)
    if workspace.plan_path.exists():
        raise SigningError(f"`{workspace.plan_path}` is there already")
    try:
        name = check_namespace(namespace)
    except ValueError as error:
        raise SigningError(str(error)) from error
    count = len(root) or ROOT_KEYS
    if not 1 <= threshold <= count:
        raise SigningError(
            f"of {count} root keys, {threshold} cannot be the threshold",
            hint="it is at least 1 and at most the number of keys",
        )
    passphrase = read_passphrase(passphrase_file) if passphrase_file else None
    files = {
        "root": root or _made([f"root-{i + 1}" for i in range(ROOT_KEYS)], key_dir, passphrase),
        "pages": pages or _made(["pages"], key_dir, passphrase),
        "online": online or _made(["online"], key_dir, passphrase),
    }
    keys = _named({path for paths in files.values() for path in paths}, passphrase_file)
    roles = {use: Role(tuple(map(key_name, paths)), 1) for use, paths in files.items()}
    roles["root"] = Role(roles["root"].keys, threshold)
    roles |= {"targets": roles["pages"], "snapshot": roles["online"], "timestamp": roles["online"]}
    text = new_plan(name, keys, roles, title=title)
    make_directory(directory / "models")
    workspace.write_plan(text)
    click.echo(f"made {workspace.plan_path}: namespace {name}, root {threshold} of {count}")


def _made(names: Sequence[str], directory: Path | None, passphrase: str | None) -> tuple[Path, ...]:
    from weightpkg.signing.keys import PRIVATE, generate_key

    if directory is None:
        raise SigningError(
            f"no key is given for {', '.join(names)}",
            hint="give `--root-key`, `--pages-key` and `--online-key`, or `--keys DIR` to make them",
        )
    paths = tuple(directory / f"{name}{PRIVATE}" for name in names)
    for path in paths:
        generate_key(path, passphrase)
    return paths


def _named(paths: set[Path], passphrase_file: Path | None) -> dict[str, NamedKey]:
    from weightpkg.signing.keys import PRIVATE, load_public
    from weightpkg.signing.plan import NamedKey

    keys: dict[str, NamedKey] = {}
    for path in sorted(paths):
        if key_name(path) in keys:
            raise SigningError(f"two keys are called `{key_name(path)}`", hint="rename a file")
        public = load_public(path, passphrase_from(passphrase_file))
        is_private = path.suffix == PRIVATE
        keys[key_name(path)] = NamedKey(public, path.absolute() if is_private else None)
    return keys
