"""Chat templates, rendered in a process of their own.

A template is code from a stranger in a language with loops. It runs in jinja2's sandbox, without
files, and because the sandbox knows no limits of time and memory, in a child process that has them:
https://huggingface.co/docs/transformers/v4.57.0/en/chat_templating_writing
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from weightpkg.errors import TemplateError

MAX_TEMPLATE_SIZE = 64 * 1024
RENDER_TIMEOUT_S = 2.0
START_TIMEOUT_S = 60.0

_WORKER = Path(__file__).with_name("template_worker.py")

Message = Mapping[str, object]


class ChatTemplate:
    """A template and the process that renders it, started early to be ready when needed."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Start the process.

        Args:
            source: the template.
            special_tokens: `bos_token`, `eos_token` and so on, which templates may use.

        Raises:
            TemplateError: the template is too long.
        """
        if len(source) > MAX_TEMPLATE_SIZE:
            raise TemplateError(
                f"the chat template is longer than {MAX_TEMPLATE_SIZE:,} characters"
            )
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._process: subprocess.Popen[str] | None = _start()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def render(self, messages: Sequence[Message], *, tools: Sequence[Message] | None = None) -> str:
        """Return the prompt that stands for the messages, ready for the assistant's turn.

        Args:
            messages: each with a `role` and a `content`.
            tools: what the assistant may call, as templates expect it: JSON schemas of functions.

        Raises:
            TemplateError: the template is broken, refuses the messages, or takes too long.
        """
        fresh, self._process = self._process, None
        process = fresh or _start()
        try:
            answer = self._ask(process, messages, tools)
        except TemplateError:
            process.kill()
            process.communicate()
            raise
        self._process = process
        if "error" in answer:
            raise TemplateError(f"the chat template fails: {answer['error']}", hint=_HINT)
        return answer["prompt"]

    def _ask(
        self,
        process: subprocess.Popen[str],
        messages: Sequence[Message],
        tools: Sequence[Message] | None,
    ) -> dict[str, str]:
        variables: dict[str, object] = {"messages": list(messages), "add_generation_prompt": True}
        if tools:
            variables["tools"] = list(tools)
        request = {"source": self._source, "variables": self._special_tokens | variables}
        assert process.stdin is not None  # noqa: S101  it is a pipe
        assert process.stdout is not None  # noqa: S101  the same
        try:
            with _killed_after(process, START_TIMEOUT_S):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
                process.stdout.readline()  # it is up and has the request
            with _killed_after(process, RENDER_TIMEOUT_S):
                line = process.stdout.readline()
        except OSError as error:
            raise TemplateError(f"the chat template's process ended: {error}") from error
        if not line:
            raise TemplateError(
                f"the chat template needs more than {RENDER_TIMEOUT_S:g} s or too much memory",
                hint=_HINT,
            )
        answer: dict[str, str] = json.loads(line)
        return answer


_HINT = "`--raw` gives the model the prompt as it is, without a template"


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        # -P: a `jinja2.py` in the current directory is not imported
        [sys.executable, "-P", str(_WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


@contextmanager
def _killed_after(process: subprocess.Popen[str], timeout_s: float) -> Iterator[None]:
    """Kill the process if the body takes longer, so that no read waits for ever."""
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
