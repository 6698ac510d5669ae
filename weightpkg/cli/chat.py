"""A conversation on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from weightpkg.errors import RunError

if TYPE_CHECKING:
    from weightpkg.run.template import Message

_PROMPT = "> "
_END = {"/exit", "/quit", "/bye"}


Ask = Callable[["list[Message]"], Iterable[str]]


def chat(ask: Ask, *, system: str | None) -> None:
    """Read, answer, and remember, until the end of input or `/exit`."""
    _enable_line_editing()
    history: list[Message] = [{"role": "system", "content": system}] if system else []
    click.echo("Ctrl-C stops an answer, /exit ends the chat", err=True)
    while (text := _read()) is not None:
        if not text:
            continue
        messages = [*history, {"role": "user", "content": text}]
        try:
            answer = _answer(ask, messages)
        except RunError as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"hint: {error.hint}", err=True)
            continue
        history = [*messages, {"role": "assistant", "content": answer}]


def _answer(ask: Ask, messages: list[Message]) -> str:
    """Print an answer as it is made; return what was printed before it ended or was stopped."""
    pieces: list[str] = []
    try:
        for piece in ask(messages):
            pieces.append(piece)
            click.echo(piece, nl=False)
    except KeyboardInterrupt:
        click.echo(" [stopped]", nl=False, err=True)
    click.echo()
    return "".join(pieces)


def _read() -> str | None:
    """The next line, None at the end."""
    try:
        text = input(_PROMPT).strip()
    except EOFError:
        click.echo(err=True)
        return None
    except KeyboardInterrupt:
        click.echo("\n/exit ends the chat", err=True)
        return ""
    return None if text in _END else text


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  importing it is what gives `input` its line editing
    except ImportError:  # not on Windows, whose terminal edits lines itself
        return
