"""`weightpkg run`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from weightpkg.api import load
from weightpkg.cli.chat import chat
from weightpkg.cli.console import make_progress, print_json
from weightpkg.run.sampling import Sampling

if TYPE_CHECKING:
    from weightpkg.run.model import Model, Stream
    from weightpkg.run.template import Message


@click.command("run")
@click.argument("name")
@click.argument("prompt", required=False)
@click.option("--system", help="The system message.")
@click.option("--max-tokens", type=click.IntRange(1), default=1024, show_default=True)
@click.option("--temperature", default=0.0, show_default=True, help="0: the most likely token.")
@click.option("--top-p", default=0.95, show_default=True, help="Only tokens that make up this.")
@click.option("--top-k", default=40, show_default=True, help="Only this many tokens; 0 for all.")
@click.option("--min-p", default=0.05, show_default=True, help="Least share of the best's chance.")
@click.option("--repeat-penalty", default=1.0, show_default=True, help="Above 1: repeat less.")
@click.option("--seed", type=click.IntRange(0), help="Draw the same tokens each time.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without a template.")
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each physical core.")
@click.option("--no-install", is_flag=True, help="Fail if the model is not installed.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer and figures as JSON.")
@click.option("-v", "--verbose", is_flag=True, help="Print the execution provider and speeds.")
@click.pass_obj
def command(
    quiet: bool,
    /,
    name: str,
    prompt: str | None,
    system: str | None,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    repeat_penalty: float,
    seed: int | None,
    raw: bool,
    threads: int,
    no_install: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run a model: answer PROMPT, or chat.

    NAME is installed if it is not; in a project, it is a role or a package of weights.lock. Without a PROMPT, standard input is the prompt, or, on a
    terminal, a chat begins: Ctrl-C stops an answer, /exit ends it.
    """
    is_chat = prompt is None and sys.stdin.isatty()
    text = prompt if prompt is not None or is_chat else sys.stdin.read()
    try:
        sampling = Sampling(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            seed=seed,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    progress = make_progress(quiet=quiet)
    with load(name, allow_install=not no_install, threads=threads, progress=progress) as model:
        if text is None:
            chat(model, system=system, max_tokens=max_tokens, sampling=sampling)
            return
        request: str | list[Message] = text if raw else [*_system(system), _user(text)]
        stream = model.stream(request, max_tokens=max_tokens, sampling=sampling)
        _print_answer(stream, as_json=as_json)
        if verbose:
            click.echo("\n".join(_figures(model, stream)), err=True)


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
        *model.session.explain(),
        f"loaded in {model.load_s:.2f} s",
        f"prefill {figures.n_prompt} tokens, {figures.prefill_rate:.0f} tokens/s",
        f"decode {len(figures.tokens)} tokens, {figures.decode_rate:.1f} tokens/s",
    ]
