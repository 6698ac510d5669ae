"""The process that renders chat templates: reads a JSON line, writes two.

Run as a script, and imports nothing of weightpkg, so that it starts fast. The first line of an
answer says that the request was read, the second is `{"prompt": ...}` or `{"error": ...}`. Memory and
processor time are limited here; the parent limits the wall clock by killing this process.

The environment is the one that model publishers test their templates with:
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/utils/chat_template_utils.py
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # not on Windows, where the parent's clock is the only limit
    resource = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser

MAX_MEMORY = 512 * 1024 * 1024
MAX_CPU_S = 5


class Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training; here it is only its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        """Return the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def _limit_memory() -> None:
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _limit_cpu() -> None:
    """Allow some more seconds, in case that the parent is gone and cannot kill."""
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + MAX_CPU_S
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def render(source: str, variables: dict[str, object]) -> str:
    """Render a template; jinja2's errors and those of the template's own expressions come out."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, loopcontrols],
        autoescape=False,  # prompts are not HTML
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    limit = 64 * 1024 + 4 * len(json.dumps(variables))
    pieces: list[str] = []
    for piece in environment.from_string(source).generate(variables):
        pieces.append(piece)
        limit -= len(piece)
        if limit < 0:
            _raise_exception("its output is far longer than the messages")
    return "".join(pieces)


def _answer(line: str) -> dict[str, str]:
    request = json.loads(line)
    try:
        return {"prompt": render(request["source"], request["variables"])}
    except (MemoryError, RecursionError) as error:
        return {"error": type(error).__name__}
    except Exception as error:  # noqa: BLE001  a template's expressions can raise anything
        return {"error": str(error) or type(error).__name__}


def main() -> None:
    """Answer until the parent closes the pipe."""
    _limit_memory()
    for line in sys.stdin:
        _limit_cpu()
        _say("read")
        _say(json.dumps(_answer(line)))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
