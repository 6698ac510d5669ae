"""The command line: a table of commands, each imported when it is used, and the end of errors.

Data goes to stdout, everything else to stderr. A `WeightpkgError` becomes two lines and its exit
code here and nowhere else; any other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

from weightpkg import __version__
from weightpkg.cli.table import Commands
from weightpkg.errors import WeightpkgError

EXIT_INTERRUPTED = 130


TABLE = {
    "run": "Run a model: answer a prompt, or chat.",
    "embed": "Make vectors of texts.",
    "serve": "Serve models by OpenAI's API.",
    "bench": "Measure how fast a model is on this machine.",
    "install": "Fetch, verify, store and convert models.",
    "uninstall": "Remove installed models.",
    "list": "List installed models.",
    "init": "Make a project here.",
    "add": "Add models to the project, and lock them.",
    "remove": "Remove models from the project.",
    "lock": "Write what the project uses, exactly, into weights.lock.",
    "sync": "Install exactly what weights.lock says.",
    "outdated": "List what the project could upgrade.",
    "diff": "Show what changed between two lockfiles.",
    "tree": "Show the project's roles, packages and files.",
    "export": "Print the lockfile in another form.",
    "why": "Say why the project has something.",
    "search": "Search the index.",
    "resolve": "Say what a name means on this machine, and why.",
    "show": "Show what the index says of a model.",
    "audit": "Say where models come from, who vouches for them, and what is wrong.",
    "verify": "Hash models again, offline, and repair what is bad.",
    "adopt": "Install models from files that are here already.",
    "gc": "Remove what nothing needs.",
    "convert": "Convert a model that no index names.",
    "doctor": "Say what this machine has for models, and what is wrong.",
    "cache": "The store: where it is, and what takes the space.",
    "index": "Work on an index.",
    "bundle": "Carry all that lockfiles need in one file.",
    "mirror": "Make, check and use a directory that has all that lockfiles need.",
    "completion": "Print a shell's completion script.",
}
"""Each command is `command` in the module of its name."""


@click.command(
    cls=Commands,
    table=TABLE,
    package=__name__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="weightpkg")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but results and errors.")
@click.pass_context
def cli(ctx: click.Context, quiet: bool) -> None:
    """Weightpkg is the package manager for open model weights."""
    ctx.obj = quiet


def main() -> NoReturn:
    """Run the command line of this process."""
    try:
        sys.exit(_exit_code())
    except BrokenPipeError:
        # the reader of our output has gone: nothing is left to say, also not at interpreter exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _exit_code() -> int:
    try:
        code = cli.main(prog_name="weightpkg", standalone_mode=False)
        sys.stdout.flush()
    except WeightpkgError as error:
        click.echo(f"error: {error.message}", err=True)
        if error.hint:
            click.echo(f"hint: {error.hint}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
