"""What requests may say, checked, and what answers look like: OpenAI's API as its clients use it.

https://platform.openai.com/docs/api-reference (chat, completions, embeddings, models). Keys that
change nothing here, such as `user` or `store`, are taken and ignored; what would change the answer
and is not there is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from weightpkg.run.sampling import Sampling

MAX_MESSAGES = 1_000
MAX_INPUTS = 2_048

_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
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


class ChatRequest(_Generation):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @field_validator("messages")
    @classmethod
    def _are_text(cls, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [_plain(i, message) for i, message in enumerate(messages)]

    @property
    def limit(self) -> int | None:
        """How many tokens at most, if it says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def n_likely(self) -> int | None:
        """Of how many likely tokens to tell; None for none at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


def _plain(i: int, message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its content as one text, as templates expect it."""
    if not isinstance(message.get("role"), str):
        raise ValueError(f"messages[{i}] needs a `role`")  # noqa: TRY004  pydantic catches it
    content = message.get("content")
    if content is None or isinstance(content, str):
        return message
    if not isinstance(content, list):
        raise ValueError(f"messages[{i}].content must be a text or an array of parts")  # noqa: TRY004  the same
    parts = [part if isinstance(part, dict) else {} for part in content]
    if any(part.get("type") != "text" or not isinstance(part.get("text"), str) for part in parts):
        raise ValueError(f"messages[{i}].content: only parts of type `text` are understood")
    return {**message, "content": "".join(part["text"] for part in parts)}


class CompletionRequest(_Generation):
    """The body of `/v1/completions`."""

    prompt: str | list[int] | list[str]
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @field_validator("prompt")
    @classmethod
    def _is_some(cls, prompt: str | list[int] | list[str]) -> str | list[int] | list[str]:
        if not prompt or (isinstance(prompt, list) and len(prompt) > MAX_INPUTS * 64):
            raise ValueError("must not be empty, nor endless")
        return prompt


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
