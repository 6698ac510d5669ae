"""What is asked for text and how the answers are written: chat and completions, whole or in parts."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from weightpkg.errors import RunError
from weightpkg.run.constraint import Constraint
from weightpkg.server.completion import Chance, Choice, End, Event, Options, Piece
from weightpkg.server.served import TextModel
from weightpkg.server.service import Answers, Service
from weightpkg.server.wire import ChatRequest, CompletionRequest, RequestError, error_body, usage


class Generation(ABC):
    """One request for text: what it asks, and how its answers are written."""

    kind: str
    whole_kind: str
    part_kind: str

    def __init__(self, service: Service, body: ChatRequest | CompletionRequest) -> None:
        self.service = service
        self.body = body
        self.name = body.model
        self.id = f"{self.kind}-{uuid.uuid4().hex}"
        self.created_s = int(time.time())

    async def begin(self, stack: ExitStack) -> Answers:
        """Load the model, read the prompt, and have it answered."""
        entry = await asyncio.to_thread(self.service.entry, self.body.model, is_text=True)
        self.entry, self.name = entry, entry.name
        model: TextModel = await self.service.open(stack, entry)
        prompts = await asyncio.to_thread(self.prompts, model)
        room = min(model.room(prompt) for prompt in prompts)
        options = [self.options(i, room) for i in range(self.body.n)]
        return self.service.ask(model, prompts, options, self.constraint())

    def constraint(self) -> Constraint | None:
        """The form that answers must have."""
        return None

    @abstractmethod
    def prompts(self, model: TextModel) -> list[list[int]]:
        """Return the prompts' tokens."""

    @abstractmethod
    def options(self, i: int, room: int) -> Options:
        """How to make the answer number `i` of a prompt; `room` is the most that it can have."""

    def _options(self, i: int, room: int, limit: int, n_likely: int | None) -> Options:
        return Options(
            sampling=self.body.sampling(i),
            max_tokens=min(limit, room),
            stop=self.body.stops,
            presence_penalty=self.body.presence_penalty,
            frequency_penalty=self.body.frequency_penalty,
            bias=self.body.logit_bias or {},
            n_likely=n_likely,
        )

    def first(self, i: int) -> dict[str, Any] | None:
        """What the stream of an answer begins with."""
        del i
        return None

    @abstractmethod
    def part(self, i: int, text: str, choices: Sequence[Choice]) -> dict[str, Any]:
        """A part of a streamed answer."""

    @abstractmethod
    def last(self, i: int, end: End) -> dict[str, Any]:
        """The end of a streamed answer."""

    @abstractmethod
    def whole(self, i: int, text: str, choices: Sequence[Choice], end: End) -> dict[str, Any]:
        """A whole answer."""

    def frame(self, choices: Sequence[dict[str, Any]], *, is_part: bool) -> dict[str, Any]:
        """What answers, and all parts of them, have round them."""
        return {
            "id": self.id,
            "object": self.part_kind if is_part else self.whole_kind,
            "created": self.created_s,
            "model": self.name,
            "choices": list(choices),
        }

    async def stream(self, answers: Answers, stack: ExitStack) -> AsyncIterator[str]:
        """Yield the parts of all answers as server-sent events."""
        with stack:
            for i in range(len(answers.completions)):
                if (first := self.first(i)) is not None:
                    yield _event(self.frame([first], is_part=True))
            try:
                async for i, event in answers:
                    for choice in self._parts(i, event):
                        yield _event(self.frame([choice], is_part=True))
            except RunError as error:
                yield _event(error_body(str(error), kind="server_error"))
                return
            if self.body.stream_options and self.body.stream_options.include_usage:
                yield _event({**self.frame([], is_part=True), "usage": _usage(answers)})
            self.service.count(self.entry, answers)
            yield "data: [DONE]\n\n"

    def _parts(self, i: int, event: Event) -> list[dict[str, Any]]:
        if isinstance(event, Piece):
            return [self.part(i, event.text, event.choices)]
        assert isinstance(event, End)  # noqa: S101  errors are raised
        return [self.last(i, event)]

    async def collect(self, answers: Answers) -> dict[str, Any]:
        """Return all answers when the last one has ended."""
        texts: list[str] = [""] * len(answers.completions)
        choices: list[list[Choice]] = [[] for _ in answers.completions]
        ends: dict[int, End] = {}
        async for i, event in answers:
            if isinstance(event, Piece):
                texts[i] += event.text
                choices[i] += event.choices
            elif isinstance(event, End):
                ends[i] = event
        self.service.count(self.entry, answers)
        rows = [self.whole(i, texts[i], choices[i], ends[i]) for i in range(len(texts))]
        return {**self.frame(rows, is_part=False), "usage": _usage(answers)}


class Chat(Generation):
    """A request to `/v1/chat/completions`."""

    kind, whole_kind, part_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, service: Service, body: ChatRequest) -> None:
        super().__init__(service, body)
        self.chat = body

    def prompts(self, model: TextModel) -> list[list[int]]:
        """The one prompt that the template makes."""
        return [model.encode_chat(self.chat.messages, self.chat.tools)]

    def options(self, i: int, room: int) -> Options:
        """The limit is the context's, where the request has none."""
        return self._options(i, room, self.chat.limit or room, self.chat.n_likely)

    def constraint(self) -> Constraint | None:
        """A JSON schema."""
        form = self.chat.response_format
        schema = form.wanted_schema if form else None
        return None if schema is None else Constraint.json_schema(schema)

    def first(self, i: int) -> dict[str, Any]:
        """The role."""
        return {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def part(self, i: int, text: str, choices: Sequence[Choice]) -> dict[str, Any]:
        """A part of the text."""
        part: dict[str, Any] = {"index": i, "delta": {"content": text}, "finish_reason": None}
        return part | self._chances(choices)

    def last(self, i: int, end: End) -> dict[str, Any]:
        """Why it ended."""
        return {"index": i, "delta": {}, "finish_reason": end.reason}

    def whole(self, i: int, text: str, choices: Sequence[Choice], end: End) -> dict[str, Any]:
        """The message; what calls tools in it is taken apart."""
        message: dict[str, Any] = {"role": "assistant", "content": text}
        reason: str = end.reason
        if self.chat.tools and (calls := read_calls(text)):
            message, reason = {**message, "content": None, "tool_calls": calls}, "tool_calls"
        return {"index": i, "message": message, "finish_reason": reason} | self._chances(choices)

    async def stream(self, answers: Answers, stack: ExitStack) -> AsyncIterator[str]:
        """With tools, whether a text is a call is known at its end only, and told as a whole."""
        if not self.chat.tools:
            async for event in super().stream(answers, stack):
                yield event
            return
        with stack:
            try:
                answer = await self.collect(answers)
            except RunError as error:
                yield _event(error_body(str(error), kind="server_error"))
                return
            for choice in answer["choices"]:
                delta = dict(choice["message"])
                delta["tool_calls"] = [
                    {"index": n, **call} for n, call in enumerate(delta.get("tool_calls", ()))
                ]
                index, reason = choice["index"], choice["finish_reason"]
                for part, why in ((delta, None), ({}, reason)):
                    row = {"index": index, "delta": part, "finish_reason": why}
                    yield _event(self.frame([row], is_part=True))
            yield "data: [DONE]\n\n"

    def _chances(self, choices: Sequence[Choice]) -> dict[str, Any]:
        if not self.chat.logprobs:
            return {}
        rows = [
            {**_chance(choice.taken), "top_logprobs": [_chance(each) for each in choice.likely]}
            for choice in choices
        ]
        return {"logprobs": {"content": rows, "refusal": None}}


class Text(Generation):
    """A request to `/v1/completions`."""

    kind, whole_kind, part_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        super().__init__(service, body)
        self.text = body
        self._prompts: list[str] = []

    def prompts(self, model: TextModel) -> list[list[int]]:
        """The text, or the texts, or the tokens that it has."""
        prompt = self.text.prompt
        if isinstance(prompt, str):
            found: list[Any] = [prompt]
        elif isinstance(prompt[0], str):
            found = prompt
        else:
            found = [prompt]
        tokens = [model.encode(each) if isinstance(each, str) else list(each) for each in found]
        if any(not 0 <= token < model.config.vocab_size for each in tokens for token in each):
            raise RequestError(400, "a token is not in the vocabulary", param="prompt")
        if len(tokens) * self.text.n > model.n_rows * 16:
            raise RequestError(400, "so many prompts at once are not answered", param="prompt")
        self._prompts = [
            each if isinstance(each, str) else model.tokenizer.decode(each) for each in found
        ]
        return tokens

    def options(self, i: int, room: int) -> Options:
        """16 tokens where the request has no limit, as OpenAI's API has it."""
        return self._options(i, room, self.text.max_tokens or 16, self.text.logprobs)

    def part(self, i: int, text: str, choices: Sequence[Choice]) -> dict[str, Any]:
        """A part of the text."""
        return self._row(i, text, choices, None)

    def last(self, i: int, end: End) -> dict[str, Any]:
        """Why it ended."""
        return self._row(i, "", (), end.reason)

    def first(self, i: int) -> dict[str, Any] | None:
        """The prompt, if it is wanted again."""
        return self._row(i, self._echo(i), (), None) if self.text.echo else None

    def whole(self, i: int, text: str, choices: Sequence[Choice], end: End) -> dict[str, Any]:
        """The text."""
        return self._row(i, self._echo(i) + text, choices, end.reason)

    def _echo(self, i: int) -> str:
        return self._prompts[i // self.text.n] if self.text.echo else ""

    def _row(
        self, i: int, text: str, choices: Sequence[Choice], reason: str | None
    ) -> dict[str, Any]:
        chances = None
        if self.text.logprobs is not None:
            chances = {
                "tokens": [choice.taken.text for choice in choices],
                "token_logprobs": [choice.taken.log_probability for choice in choices],
                "top_logprobs": [
                    {each.text: each.log_probability for each in choice.likely}
                    for choice in choices
                ],
            }
        return {"index": i, "text": text, "logprobs": chances, "finish_reason": reason}


def read_calls(text: str) -> list[dict[str, Any]]:
    """Return the calls of tools that a text is, in OpenAI's form; none if it is something else.

    Hermes and Qwen write `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, Llama 3 the
    object alone with `parameters`, Mistral `[TOOL_CALLS][{...}]`.
    """
    body = text.strip().removeprefix("[TOOL_CALLS]").removeprefix("<|python_tag|>").strip()
    parts = re.findall(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", body, re.DOTALL) or [body]
    calls: list[Any] = []
    for part in parts:
        try:
            found = json.loads(part)
        except (ValueError, RecursionError):
            return []
        calls += found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in calls):
        return []
    return [_call(call) for call in calls]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments", call.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    function = {"name": call["name"], "arguments": text}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _chance(chance: Chance) -> dict[str, Any]:
    text = chance.text
    return {"token": text, "logprob": chance.log_probability, "bytes": list(text.encode())}


def _usage(answers: Answers) -> dict[str, Any]:
    return usage(answers.n_prompt, answers.n_tokens)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
