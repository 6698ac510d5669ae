"""`weightpkg verify`."""

from __future__ import annotations

import click

from weightpkg.cli.console import make_progress, print_json
from weightpkg.settings import Settings
from weightpkg.verify import verify


@click.command("verify")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Hash everything installed again, offline; exit with 1 if anything is bad."""
    progress = make_progress(quiet=ctx.obj)
    problems = verify(Settings.from_environment().store(), progress)
    if as_json:
        print_json([{"kind": p.kind, "path": str(p.path), "models": p.models} for p in problems])
    else:
        click.echo("\n".join(map(str, problems)) or "everything installed is as it was installed")
    if problems:
        names = sorted({model for problem in problems for model in problem.models})
        again = " ".join(names)
        progress.note(f"hint: weightpkg uninstall {again}; weightpkg install {again}")
        ctx.exit(1)
