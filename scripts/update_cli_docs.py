"""Write docs/cli.md from the commands' own help, the exit codes and the environment variables.

Usage: python scripts/update_cli_docs.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from weightpkg import errors
from weightpkg.cli import cli
from weightpkg.settings import VARIABLES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
INTRODUCTION = """\
# The command line

Made by `scripts/update_cli_docs.py` from the commands themselves. Data goes to standard output,
everything else to standard error; `--json` is for programs.
"""


def pages(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """Yield the help of a command and of those below it."""
    context = click.Context(
        command,
        info_name=name,
        parent=parent,
        terminal_width=90,
        help_option_names=["-h", "--help"],
    )
    level = "##" if parent is None else "###"
    yield f"{level} {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            below = command.get_command(context, child)
            assert below is not None
            yield from pages(below, child, context)


def exit_codes() -> str:
    """The table of exit codes, from the error classes."""
    kinds = {0: "all went well", 2: "the command line cannot be read", 130: "Ctrl-C"}
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.WeightpkgError):
            kinds[value.exit_code] = value.kind
    rows = "".join(f"| {code} | {kinds[code]} |\n" for code in sorted(kinds))
    return f"## Exit codes\n\n| code | meaning |\n| --- | --- |\n{rows}"


def variables() -> str:
    """The table of environment variables."""
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in VARIABLES.items())
    return f"## Environment\n\n| variable | meaning |\n| --- | --- |\n{rows}"


def main() -> int:
    """Write the page, or with --check say whether it is as it would be written."""
    parts = [INTRODUCTION, *pages(cli, "weightpkg", None), exit_codes(), variables()]
    text = "\n".join(parts)
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        print("docs/cli.md is as the commands say")
        return 0
    print("docs/cli.md is out of date: run scripts/update_cli_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
