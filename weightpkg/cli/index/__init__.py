"""`weightpkg index`: a table of commands, each imported when it is used."""

from __future__ import annotations

import click

from weightpkg.cli.table import Commands

TABLE = {
    "add": "Have an index answer for a namespace.",
    "remove": "Have an index answer no more, and forget all that is held of it.",
    "list": "List the configured indexes, and whose signatures count.",
    "update": "Bring up to date what is held of indexes.",
    "status": "Say what is held of signed indexes: roles, versions, dates and keys.",
    "lint": "Check every rule of docs/index.md; say page and key of every fault.",
    "init": "Make a maintainers' directory, where a signed index is worked on.",
    "key": "Keys: make, list, replace and revoke them.",
    "delegate": "Take in another publisher, whose own keys sign its pages.",
    "add-model": "Make the page of a model of its files.",
    "release": "Add a release, or a variant of one, to a model's page.",
    "yank": "Say of a release why nobody should use it.",
    "sign": "Sign what changed: pages, keys, and whatever has expired.",
    "publish": "Write the signed index into a directory, as static files.",
    "serve": "Serve a published index on this machine, for trying out.",
}
"""Each command is `command` in the module of its name."""


@click.command("index", cls=Commands, table=TABLE, package=__name__, hidden=("conformance-shim",))
def command() -> None:
    """Work on an index."""
