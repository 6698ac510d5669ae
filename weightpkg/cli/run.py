"""`weightpkg run`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightpkg.api import load
from weightpkg.cli.chat import chat
from weightpkg.cli.console import make_progress, print_json
from weightpkg.cli.kv_cache import USED, kv_cache_option
from weightpkg.cli.mirroring import mirror_options, settings_with
from weightpkg.cli.tasks import answer, feed
from weightpkg.cli.texts import read_stdin
from weightpkg.run.constraint import Constraint
from weightpkg.run.sampling import Sampling

if TYPE_CHECKING:
    from weightpkg.memory import KvCache
    from weightpkg.run.generate import TokenLogprob
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
@click.option("--input", "inputs", multiple=True, metavar="NAME=VALUE", help="Feed an input: .npy, .json, JSON, zeros; or a .npz.")  # fmt: skip
@click.option("--output", "outputs", multiple=True, metavar="NAME[=FILE]", help="Only this output, perhaps to a .npy or .json.")  # fmt: skip
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text.")
@click.option(
    "--json-schema",
    metavar="SCHEMA",
    help="Have JSON that a schema allows: its text, or @FILE; {} for any JSON.",
)
@click.option("--regex", metavar="PATTERN", help="Have what a regular expression matches whole.")
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    metavar="N",
    help="With --json: log-probabilities, and those of the N most likely tokens.",
)
@click.option(
    "--lookup",
    is_flag=True,
    help="Guess tokens from the text so far: sooner where the answer repeats the prompt.",
)
@click.option("-n", "--samples", type=click.IntRange(1, 64), default=1, help="So many answers.")
@click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, gpu, npu, or a provider."
)
@kv_cache_option(USED)
@click.option("--threads", type=click.IntRange(0), default=0, help="0 for each physical core.")
@click.option("--no-install", is_flag=True, help="Fail if the model is not installed.")
@mirror_options
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
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    stop: tuple[str, ...],
    json_schema: str | None,
    regex: str | None,
    logprobs: int | None,
    lookup: bool,
    samples: int,
    device: str,
    kv_cache: KvCache,
    threads: int,
    no_install: bool,
    mirror: str | None,
    mirror_only: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Run a model: answer PROMPT, or chat; or what else it is for.

    NAME is installed if it is not; in a project, it is a role or a package of weights.lock. Without a PROMPT, standard input is the prompt, or, on a
    terminal, a chat begins: Ctrl-C stops an answer, /exit ends it.

    A classifier labels PROMPT, or each line of standard input; one of pictures takes a file's name.
    Any model takes arrays by --input, as `weightpkg show NAME` says them.
    """
    progress = make_progress(quiet=quiet)
    settings = settings_with(mirror, is_only=mirror_only)
    if inputs or outputs:
        with load(
            name,
            task="tensors",
            allow_install=not no_install,
            threads=threads,
            settings=settings,
            progress=progress,
        ) as tensors:
            feed(tensors, inputs, outputs, as_json=as_json)
        return
    is_chat = prompt is None and sys.stdin.isatty()
    text = prompt if prompt is not None or is_chat else read_stdin()
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
    if not all(stop):
        raise click.UsageError("--stop: an empty text stops nothing")
    if logprobs is not None and not as_json:
        raise click.UsageError("--logprobs goes with --json")
    constraint = _constraint(json_schema, regex)
    with load(
        name,
        allow_install=not no_install,
        threads=threads,
        device=device,
        kv_cache=kv_cache,
        settings=settings,
        progress=progress,
    ) as model:
        if model.task != "text-generation":
            answer(model, prompt, text, progress, as_json=as_json)
            return
        ask = partial(
            model.stream,
            max_tokens=max_tokens,
            stop=stop,
            logprobs=logprobs,
            lookup=lookup,
            constraint=constraint,
        )
        if text is None:
            chat(partial(ask, sampling=sampling), system=system)
            return
        request: str | list[Message] = text if raw else [*_system(system), _user(text)]
        rows = []
        for i in range(samples):
            stream = ask(request, sampling=sampling.shifted(i))
            if as_json:
                rows.append(_as_json(model, stream, with_logprobs=logprobs is not None))
            else:
                _print_answer(stream, is_first=i == 0)
            if verbose:
                click.echo("\n".join(_figures(model, stream)), err=True)
        if as_json:
            print_json(rows[0] if samples == 1 else rows)


def _constraint(json_schema: str | None, regex: str | None) -> Constraint | None:
    if json_schema is not None and regex is not None:
        raise click.UsageError("--json-schema and --regex do not go together")
    if regex is not None:
        return Constraint.regex(regex)
    if json_schema is None:
        return None
    if json_schema.startswith("@"):
        try:
            json_schema = Path(json_schema[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(f"--json-schema {json_schema}: {error}") from error
    return Constraint.json_schema(json_schema)


def _system(text: str | None) -> list[Message]:
    return [] if text is None else [{"role": "system", "content": text}]


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _print_answer(stream: Stream, *, is_first: bool) -> None:
    if not is_first:
        click.echo()
    for piece in stream:
        click.echo(piece, nl=False)
    click.echo()


def _as_json(model: Model, stream: Stream, *, with_logprobs: bool) -> dict[str, object]:
    text = "".join(stream)
    figures = stream.statistics
    row: dict[str, object] = {
        "text": text,
        "tokens": figures.tokens,
        "finish-reason": figures.finish_reason,
        "prompt-tokens": figures.n_prompt,
        "prefill-s": round(figures.prefill_s, 4),
        "decode-s": round(figures.decode_s, 4),
    }
    if with_logprobs:
        row["logprobs"] = [_logprob(model, each) for each in figures.logprobs]
    return row


def _logprob(model: Model, each: TokenLogprob) -> dict[str, object]:
    def one(token: int, logprob: float) -> dict[str, object]:
        return {"token": token, "text": model.token_text(token), "logprob": round(logprob, 5)}

    return {**one(each.token, each.logprob), "top": [one(*other) for other in each.top]}


def _figures(model: Model, stream: Stream) -> list[str]:
    figures = stream.statistics
    return [
        *model.session.explain(),
        f"loaded in {model.load_s:.2f} s",
        f"prefill {figures.n_prompt} tokens, {figures.prefill_rate:.0f} tokens/s",
        f"decode {len(figures.tokens)} tokens, {figures.decode_rate:.1f} tokens/s",
        *(
            [f"guessed {figures.n_guessed} tokens, {figures.n_right} right"]
            if figures.n_guessed
            else []
        ),
    ]
