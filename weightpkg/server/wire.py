"""What requests may say, checked, and what answers look like: OpenAI's API as its clients use it.

https://platform.openai.com/docs/api-reference (chat, completions, embeddings, models). Keys that
change nothing here, such as `user` or `store`, are taken and ignored; what would change the answer
and is not there is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from weightpkg.run.sampling import Sampling

MAX_MESSAGES = 1_000
MAX_INPUTS = 2_048
_MAX_BRACKETS = 500

_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]


def _refuse(value: Any) -> Any:
    if value is not None:
        raise ValueError("is not understood here")
    return value


_NotThere = Annotated[Any, AfterValidator(_refuse)]
_Stop = Annotated[str, Field(min_length=1, max_length=1_000)]


class _Body(BaseModel):
    """A request's body; what is not named is ignored."""

    model_config = ConfigDict(extra="ignore", strict=False, frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=300)]


class _Generation(_Body):
    """What chat and completions share."""

    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: _Probability | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: _Probability | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=16)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: Annotated[dict[int, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1_000)] | None = None  # fmt: skip

    @model_validator(mode="after")
    def _options_are_for_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("`stream_options` belongs to `stream`")
        return self

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def n_answers(self) -> int:
        """How many answers are asked for."""
        return self.n

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, i: int) -> Sampling:
        """How to choose the tokens of the answer number `i`: each is drawn for itself."""
        defaults = Sampling()
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=defaults.top_k if self.top_k is None else self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            seed=None if self.seed is None else (self.seed + i) % 2**63,
        )


class StreamOptions(BaseModel):
    """What else is told in a stream."""

    include_usage: bool = False


class JsonSchema(BaseModel):
    """A schema that an answer must have."""

    name: str = ""
    schema_: Mapping[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(BaseModel):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def wanted_schema(self) -> Mapping[str, Any] | None:
        """The JSON schema that the answer must have; None for any text."""
        if self.type == "text":
            return None
        return self.json_schema.schema_ if self.json_schema else {"type": "object"}

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a format of type json_schema needs `json_schema`")
        return self


class Named(BaseModel):
    """What has a name."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(Named):
    """A function that an answer may call; `parameters` is the JSON schema of its arguments."""

    parameters: Mapping[str, Any] | None = None


class Tool(BaseModel):
    """A tool: of its kinds, the one that there is here."""

    type: Literal["function"]
    function: Function


class ToolChoice(BaseModel):
    """The tool that must be called."""

    type: Literal["function"]
    function: Named


class ChatRequest(_Generation):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    functions: _NotThere = None
    function_call: _NotThere = None
    audio: _NotThere = None
    web_search_options: _NotThere = None

    @field_validator("messages")
    @classmethod
    def _are_text(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_plain(i, message) for i, message in enumerate(messages)]

    @field_validator("tools")
    @classmethod
    def _are_functions(cls, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        for tool in tools or ():
            Tool.model_validate(tool)
        return tools  # as they came, for templates know more of them than we do

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` belongs to `logprobs`")
        must_call = self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)
        if must_call and not self.called_functions:
            raise ValueError("`tool_choice` asks for a tool that is not among `tools`")
        if self.called_functions and self.response_format and self.response_format.wanted_schema:
            raise ValueError("an answer that must call a tool has no `response_format`")
        return self

    @property
    def offered_tools(self) -> list[dict[str, Any]]:
        """The tools that an answer may call, as they came."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def tool_names(self) -> frozenset[str]:
        """What they are called."""
        return frozenset(tool["function"]["name"] for tool in self.offered_tools)

    @property
    def called_functions(self) -> Sequence[Mapping[str, Any]]:
        """The functions of which one must be called; none if the answer may be anything."""
        functions = [tool["function"] for tool in self.offered_tools]
        if isinstance(self.tool_choice, ToolChoice):
            name = self.tool_choice.function.name
            return [function for function in functions if function["name"] == name]
        return functions if self.tool_choice == "required" else []

    @property
    def limit(self) -> int | None:
        """How many tokens at most, if it says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_likely(self) -> int | None:
        """Of how many likely tokens to tell; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _plain(i: int, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as templates expect it: content as one text, arguments as an object."""
    role = message.get("role")
    if not isinstance(role, str):
        raise ValueError(f"messages[{i}] needs a `role`")  # noqa: TRY004  pydantic catches it
    plain = {**message, "role": "system" if role == "developer" else role}
    plain["content"] = _text(i, message.get("content"))
    if message.get("tool_calls"):
        plain["tool_calls"] = [_with_object(i, call) for call in _calls(i, message["tool_calls"])]
    return plain


def _text(i: int, content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise ValueError(f"messages[{i}].content must be a text or an array of parts")  # noqa: TRY004  the same
    parts = [part if isinstance(part, dict) else {} for part in content]
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
        raise ValueError(f"messages[{i}].content: only parts of type `text` are understood")
    return "".join(part["text"] for part in parts)


def _calls(i: int, calls: Any) -> list[dict[str, Any]]:
    is_list = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    if not is_list or not all(isinstance(call.get("function"), dict) for call in calls):
        raise ValueError(f"messages[{i}].tool_calls must be an array of calls of functions")
    found: list[dict[str, Any]] = calls
    return found


def _with_object(i: int, call: dict[str, Any]) -> dict[str, Any]:
    """Return a call whose arguments are no text: templates write them as JSON themselves."""
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    if arguments.count("{") + arguments.count("[") > _MAX_BRACKETS:
        raise ValueError(f"messages[{i}].tool_calls: arguments are nested too deep")
    try:
        read = json.loads(arguments)
    except ValueError:
        return call  # what a model wrote, and another one may see
    return {**call, "function": {**function, "arguments": read}}


_Prompt = str | list[int] | list[str] | list[list[int]]


class CompletionRequest(_Generation):
    """The body of `/v1/completions`."""

    prompt: _Prompt
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    suffix: _NotThere = None
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None

    @field_validator("prompt")
    @classmethod
    def _is_some(cls, prompt: _Prompt) -> _Prompt:
        if not prompt or (isinstance(prompt, list) and len(prompt) > MAX_INPUTS * 64):
            raise ValueError("must not be empty, nor endless")
        return prompt

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise ValueError("`logprobs` are those of answers: not to be had with `echo`")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        many = [each for each in self.prompt if not isinstance(each, int)]
        return [*many] or [[each for each in self.prompt if isinstance(each, int)]]

    @property
    def n_answers(self) -> int:
        """How many answers are asked for: `n` of each prompt."""
        return self.n * len(self.prompts)


class EmbeddingRequest(_Body):
    """The body of `/v1/embeddings`."""

    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[
            list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)
        ]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _is_text(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(each, int | list) for each in value):
            raise ValueError("tokens are not understood here: send texts")
        return value

    @property
    def texts(self) -> list[str]:
        """What to make vectors of."""
        return [self.input] if isinstance(self.input, str) else self.input


class RequestError(Exception):
    """A request that is answered by an error.

    status: of HTTP; kind, code: OpenAI's words for it; param: the part of the request at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
        self.body = error_body(message, kind=kind, code=code, param=param)


def error_body(
    message: str, *, kind: str, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """An error in OpenAI's form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def usage(n_prompt: int, n_tokens: int) -> dict[str, Any]:
    """How many tokens a request took."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_tokens,
        "total_tokens": n_prompt + n_tokens,
    }
