"""What is asked for text and how the answers are written: chat and completions, whole or in parts."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from typing import Any

from weightpkg.errors import RunError
from weightpkg.run.constraint import Constraint
from weightpkg.server.calls import Divided, calling_schema, read_calls
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
        if any(not 0 <= token < model.config.vocab_size for token in self.body.logit_bias or ()):
            raise RequestError(400, "a token is not in the vocabulary", param="logit_bias")
        with self.service.room(model, self.body.n_answers):
            prompts = await self.service.in_turn(self.name, self.prompts, model)
            room = min(model.room(prompt) for prompt in prompts)
            options = [self.options(i, room) for i in range(self.body.n)]
            return await self.service.ask(model, prompts, options, self.constraint())

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
        framed = {
            "id": self.id,
            "object": self.part_kind if is_part else self.whole_kind,
            "created": self.created_s,
            "model": self.name,
            "choices": list(choices),
        }
        return {**framed, "usage": None} if is_part and self.body.tells_usage else framed

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
            if self.body.tells_usage:
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
        self._divided: defaultdict[int, Divided] = defaultdict(Divided)
        self._untold: defaultdict[int, list[Choice]] = defaultdict(list)

    def prompts(self, model: TextModel) -> list[list[int]]:
        """The one prompt that the template makes."""
        return [model.encode_chat(self.chat.messages, self.chat.offered_tools)]

    def options(self, i: int, room: int) -> Options:
        """The limit is the context's, where the request has none."""
        return self._options(i, room, self.chat.limit or room, self.chat.n_likely)

    def constraint(self) -> Constraint | None:
        """A JSON schema: the one that is asked for, or a tool's that must be called."""
        form = self.chat.response_format
        schema = form.wanted_schema if form else None
        if functions := self.chat.called_functions:
            try:
                schema = calling_schema(functions)
            except ValueError as error:
                raise RequestError(400, str(error), param="tools") from error
        return None if schema is None else Constraint.json_schema(schema)

    def first(self, i: int) -> dict[str, Any]:
        """The role."""
        return {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def part(self, i: int, text: str, choices: Sequence[Choice]) -> dict[str, Any]:
        """A part of the text."""
        part: dict[str, Any] = {"index": i, "delta": {"content": text}, "finish_reason": None}
        return part | self._chances(choices)

    def last(self, i: int, end: End, reason: str | None = None) -> dict[str, Any]:
        """Why it ended."""
        return {"index": i, "delta": {}, "finish_reason": reason or end.reason}

    def whole(self, i: int, text: str, choices: Sequence[Choice], end: End) -> dict[str, Any]:
        """The message; what calls tools in it is taken apart."""
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        reason: str = end.reason
        if self.chat.offered_tools:
            divided = Divided(text)
            if calls := self._calls(divided.rest):
                message |= {"content": divided.plain.strip() or None, "tool_calls": calls}
                reason = "tool_calls"
        return {"index": i, "message": message, "finish_reason": reason} | self._chances(choices)

    def _parts(self, i: int, event: Event) -> list[dict[str, Any]]:
        """Text as it comes; what may be a call of a tool at the end, when it is known which."""
        if not self.chat.offered_tools:
            return super()._parts(i, event)
        divided, untold = self._divided[i], self._untold[i]
        if isinstance(event, Piece):
            untold += event.choices
            text = divided.add(event.text)
            parts = [self.part(i, text, untold)] if text else []
        else:
            assert isinstance(event, End)  # noqa: S101  errors are raised
            calls = self._calls(divided.rest)
            if calls:
                parts = [self._calling(i, calls, untold), self.last(i, event, "tool_calls")]
            else:
                rest = [self.part(i, divided.rest, untold)] if divided.rest or untold else []
                parts = [*rest, self.last(i, event)]
        if parts:
            untold.clear()
        return parts

    def _calls(self, text: str) -> list[dict[str, Any]]:
        calls = read_calls(text, self.chat.tool_names)
        return calls if self.chat.parallel_tool_calls else calls[:1]

    def _calling(
        self, i: int, calls: Sequence[dict[str, Any]], choices: Sequence[Choice]
    ) -> dict[str, Any]:
        rows = [{"index": n, **call} for n, call in enumerate(calls)]
        part = {"index": i, "delta": {"tool_calls": rows}, "finish_reason": None}
        return part | self._chances(choices)

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
        found = self.text.prompts
        tokens = [model.encode(each) if isinstance(each, str) else list(each) for each in found]
        if any(not 0 <= token < model.config.vocab_size for each in tokens for token in each):
            raise RequestError(400, "a token is not in the vocabulary", param="prompt")
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


def _chance(chance: Chance) -> dict[str, Any]:
    text = chance.text
    # a part of a character has no text, and its bytes are not known any more
    told = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    return {"token": text, "logprob": chance.log_probability, "bytes": told}


def _usage(answers: Answers) -> dict[str, Any]:
    return usage(answers.n_prompt, answers.n_tokens)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False, separators=(',', ':'))}\n\n"
