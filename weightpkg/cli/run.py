"""`weightpkg run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from weightpkg.api import load
from weightpkg.cli.chat import chat
from weightpkg.cli.console import make_progress, print_json

if TYPE_CHECKING:
    from weightpkg.run.model import Model, Stream
    from weightpkg.run.sampling import Sampling
    from weightpkg.run.template import Message

Command = Callable[..., None]


def _sampling_options(command: Command) -> Command:
    for option in (
        click.option("--seed", type=click.IntRange(0), help="Draw the same tokens each time."),
        click.option("--repeat-penalty", type=float, help="Above 1: repeat less. [1.0]"),
        click.option(
            "--min-p", type=float, help="Least share of the best one's likelihood. [0.05]"
        ),
        click.option("--top-k", type=int, help="Only that many tokens; 0 for all. [40]"),
        click.option("--top-p", type=float, help="Only tokens that make up that much. [0.95]"),
        click.option("--temperature", type=float, help="0 for the most likely token. [0.0]"),
    ):
        command = option(command)
    return command


@click.command("run")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--system", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True)
@_sampling_options
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a template.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each physical core.")
@click.option("--no-install", is_flag=True, help="Fail if the model is not installed.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer and figures as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Print the execution provider and speeds.")
@click.pass_obj
def command(
    quiet: bool,
    name: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    raw: bool,
    threads: int,
    no_install: bool,
    as_json: bool,
    verbose: bool,
    **sampling: float | None,
) -> None:
    """Run a model: answer PROMPT, or chat.

    NAME is installed if it is not. Without a PROMPT, standard input is the prompt, or, on a
    terminal, a chat begins: Ctrl-C stops an answer, /exit ends it.
    """
    is_chat = prompt is None and sys.stdin.isatty()
    text = prompt if prompt is not None or is_chat else sys.stdin.read()
    chosen = _sampling(sampling)
    progress = make_progress(quiet=quiet)
    with load(name, allow_install=not no_install, threads=threads, progress=progress) as model:
        if text is None:
            chat(model, system=system, max_tokens=max_tokens, sampling=chosen)
            return
        request: str | list[Message] = text if raw else [*_system(system), _user(text)]
        stream = model.stream(request, max_tokens=max_tokens, sampling=chosen)
        _print_answer(stream, as_json=as_json)
        if verbose:
            click.echo("\n".join(_figures(model, stream)), err=True)


def _sampling(given: dict[str, float | None]) -> Sampling:
    """Take what was given on the command line, and the defaults for the rest."""
    from weightpkg.run.sampling import Sampling

    try:
        return Sampling(**{k: v for k, v in given.items() if v is not None})  # type: ignore[arg-type]  click made them
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _print_answer(stream: Stream, *, as_json: bool) -> None:
    if not as_json:
        for piece in stream:
            click.echo(piece, nl=False)
        click.echo()
        return
    text = "".join(stream)
    figures = stream.statistics
    print_json(
        {
            "text": text,
            "tokens": figures.tokens,
            "finish-reason": figures.finish_reason,
            "prompt-tokens": figures.n_prompt,
            "prefill-s": round(figures.prefill_s, 4),
            "decode-s": round(figures.decode_s, 4),
        }
    )


def _figures(model: Model, stream: Stream) -> list[str]:
    figures = stream.statistics
    return [
        f"{model.session.provider}: {model.session.reason}",
        f"loaded in {model.load_s:.2f} s",
        f"prefill {figures.n_prompt} tokens, {figures.prefill_rate:.0f} tokens/s",
        f"decode {len(figures.tokens)} tokens, {figures.decode_rate:.1f} tokens/s",
    ]
