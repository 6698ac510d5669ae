"""`weightpkg index status`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from weightpkg.cli.console import print_json, print_table
from weightpkg.errors import NamespaceNotFoundError, TrustError
from weightpkg.indexes import state_of
from weightpkg.requirement import is_name, normalize_name
from weightpkg.settings import Settings

if TYPE_CHECKING:
    from weightpkg.trust.status import RoleStatus


_BIN = re.compile(r"-bin-[0-9a-f]+\Z")
_MANY = 8


@click.command("status")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, names: tuple[str, ...], as_json: bool) -> None:
    """Say what is held of signed indexes: roles, versions, dates and keys; offline.

    Ends with an error's exit code where something has expired, or nothing is held.
    """
    from weightpkg.trust.status import read_status

    settings = Settings.from_environment()
    signed = [index for index in settings.config().indexes if index.root_sha256]
    wanted = {normalize_name(name) if is_name(name) else name for name in names}
    for name in sorted(wanted - {index.name for index in signed}):
        raise NamespaceNotFoundError(name, "NAME", [index.name for index in signed])
    chosen = [index for index in signed if not wanted or index.name in wanted]
    now = datetime.now(UTC)
    rows = {
        index.name: read_status(
            state_of(settings.home, index.name), now, timedelta(days=index.max_staleness_days)
        )
        for index in chosen
    }
    if as_json:
        print_json({name: [role.as_json() for role in roles] for name, roles in rows.items()})
    elif chosen:
        lines = [line for name, roles in rows.items() for line in _lines(name, roles)]
        print_table([("INDEX", "ROLE", "VERSION", "EXPIRES", "KEYS", ""), *lines])
    is_bad = any(not roles or any(role.is_expired for role in roles) for roles in rows.values())
    ctx.exit(TrustError.exit_code if is_bad else 0)


def _lines(name: str, roles: list[RoleStatus]) -> Iterator[tuple[str, ...]]:
    if not roles:
        yield name, "-", "-", "-", "-", "nothing is held: `weightpkg index update`"
    bins = [role for role in roles if _BIN.search(role.name)]
    if len(bins) > _MANY:  # of which the one that expires first says enough
        roles = [role for role in roles if role not in bins]
        first = min(bins, key=lambda role: role.expires)
        roles.append(replace(first, name=f"{_BIN.sub('-bin', first.name)} ({len(bins)})"))
    for role in roles:
        keys = " ".join(key[:8] for key in role.keys)
        expires = role.expires.strftime("%Y-%m-%d %H:%M")
        state = "expired" if role.is_expired else ""
        signed = f"{role.threshold} of {len(role.keys)}: {keys}"
        yield name, role.name, str(role.version), expires, signed, state
