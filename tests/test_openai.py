"""What OpenAI's API says of chat, tools, completions and embeddings, held against `weightpkg serve`.

https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from factories import tiny_llama
from test_encoders import MODELS, converted
from test_serve import CHAT, Server, serving
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import RunError
from weightpkg.progress import Silence
from weightpkg.server.answers import Chat
from weightpkg.server.completion import End
from weightpkg.server.engine import Engine
from weightpkg.server.wire import ChatRequest

NEVER_ENDS = {"2": -100}


def tool(name: str, *sizes: int) -> dict[str, Any]:
    """A function whose argument is one of a few sizes."""
    parameters = {
        "type": "object",
        "properties": {"size": {"enum": list(sizes)}},
        "required": ["size"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("grow", 1, 2), tool("shrink", 8, 9)]
SHRINK = {"type": "function", "function": {"name": "shrink"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("served")
    source = tiny_llama(base / "tiny.gguf", context_length=512)
    (base / "tiny").mkdir()
    convert(source, Digest("sha256", 64 * "0"), base / "tiny", Silence())
    converted(base / "vectors", MODELS["bert"])
    with serving(base / "home", str(base / "tiny"), str(base / "vectors")) as running:
        yield running


def ask(server: Server, **named: Any) -> Any:
    chosen = {"model": "tiny", "messages": CHAT, "max_tokens": 60, "temperature": 0, **named}
    return server.openai.chat.completions.create(**chosen)


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json={"model": "tiny", **body}, timeout=30)


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"grow", "shrink"}), (SHRINK, {"shrink"})]
)
def test_a_tool_that_must_be_called_is(server: Server, choice: Any, names: set[str]) -> None:
    answer = ask(server, tools=TOOLS, tool_choice=choice, temperature=1.0, seed=3)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.function.name in names
    sizes = {"grow": {1, 2}, "shrink": {8, 9}}[call.function.name]
    assert json.loads(call.function.arguments)["size"] in sizes


def test_a_call_is_streamed_as_it_is_whole_and_usage_comes_last(server: Server) -> None:
    named = {"tools": TOOLS, "tool_choice": SHRINK, "temperature": 1.0, "seed": 3}
    whole = ask(server, **named)
    parts = list(ask(server, **named, stream=True, stream_options={"include_usage": True}))
    assert parts[0].choices[0].delta.role == "assistant"
    [call] = [c for p in parts if p.choices for c in p.choices[0].delta.tool_calls or ()]
    assert call.index == 0
    assert call.id.startswith("call_")
    assert (
        call.function.model_dump() == whole.choices[0].message.tool_calls[0].function.model_dump()
    )
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == "tool_calls"
    assert (parts[-1].choices, parts[-1].usage) == ([], whole.usage)
    assert all(part.usage is None for part in parts[:-1])


def test_with_tools_plain_text_still_comes_piece_by_piece(server: Server) -> None:
    named = {"tools": TOOLS, "max_tokens": 12, "n": 2, "logprobs": True, "seed": 5}
    whole = ask(server, **named, temperature=1.0)
    parts = list(
        ask(server, **named, temperature=1.0, stream=True, stream_options={"include_usage": True})
    )
    assert parts[-1].usage == whole.usage
    for choice in whole.choices:
        mine = [p.choices[0] for p in parts if p.choices and p.choices[0].index == choice.index]
        texts = [each.delta.content for each in mine if each.delta.content]
        assert len(texts) > 1
        assert "".join(texts) == choice.message.content
        assert sum(len(each.logprobs.content) for each in mine if each.logprobs) == 12
        assert mine[-1].finish_reason == "length"


def test_tools_that_may_not_be_called_are_not_in_the_prompt(server: Server) -> None:
    none = ask(server, tools=TOOLS, tool_choice="none", max_tokens=4)
    assert none.usage == ask(server, max_tokens=4).usage
    assert none.choices[0].message.tool_calls is None


def test_one_call_alone_where_several_are_not_wanted() -> None:
    service: Any = None
    call = '{"name": "grow", "arguments": {"size": 1}}'
    body: dict[str, Any] = {"model": "x", "messages": CHAT, "tools": TOOLS}
    for named, count in (({}, 2), ({"parallel_tool_calls": False}, 1)):
        chat = Chat(service, ChatRequest.model_validate({**body, **named}))
        answer = chat.whole(0, f"[{call}, {call}]", (), End("stop", 9))
        assert len(answer["message"]["tool_calls"]) == count


def test_an_agent_s_round_with_calls_and_results(server: Server) -> None:
    """As clients send it back: arguments as a text, no content, a role that templates do not know."""
    call = {"id": "call_1", "type": "function", "function": {"name": "grow", "arguments": '{"size": 1}'}}  # fmt: skip
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        *CHAT,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    assert ask(server, messages=messages, max_tokens=3).usage.completion_tokens == 3
    for bad in ([1], "x", [{"id": "x"}], [{"function": {"arguments": "[" * 600}}]):
        messages[2] = {"role": "assistant", "tool_calls": bad}
        with pytest.raises(openai.BadRequestError, match="tool_calls"):
            ask(server, messages=messages)


def test_a_stream_has_the_role_first_and_one_reason_for_each_answer(server: Server) -> None:
    parts = list(ask(server, n=3, max_tokens=5, stream=True, logit_bias=NEVER_ENDS))
    assert {part.object for part in parts} == {"chat.completion.chunk"}
    assert len({(part.id, part.created, part.model) for part in parts}) == 1
    for i in range(3):
        mine = [part.choices[0] for part in parts if part.choices[0].index == i]
        assert mine[0].delta.role == "assistant"
        assert [each.finish_reason for each in mine if each.finish_reason] == ["length"]
        assert mine[-1].finish_reason == "length"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("chat/completions", {"tool_choice": "required"}, "tool_choice"),
    ("chat/completions", {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "among `tools`"),
    ("chat/completions", {"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
    ("chat/completions", {"tools": [{"type": "custom"}]}, "tools"),
    ("chat/completions", {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
    ("chat/completions", {"tools": TOOLS, "tool_choice": SHRINK, "response_format": {"type": "json_object"}}, "response_format"),
    ("chat/completions", {"functions": [{"name": "x"}]}, "functions"),
    ("chat/completions", {"top_logprobs": 2}, "logprobs"),
    ("chat/completions", {"stream_options": {"include_usage": True}}, "stream"),
    ("chat/completions", {"logit_bias": {"9999999": 1}}, "vocabulary"),
    ("chat/completions", {"logit_bias": {"-1": 1}}, "vocabulary"),
    ("chat/completions", {"messages": [{"role": "user", "content": "\ud800"}]}, "half of a character"),
    ("completions", {"prompt": "\ud800"}, "half of a character"),
    ("completions", {"prompt": "x", "suffix": "y"}, "suffix"),
    ("completions", {"prompt": "x", "best_of": 3}, "best_of"),
    ("completions", {"prompt": "x", "echo": True, "logprobs": 1}, "echo"),
    ("completions", {"prompt": [1, 99999]}, "vocabulary"),
    ("completions", {"prompt": [[1], []]}, "empty"),
    ("embeddings", {"model": "vectors", "input": "x", "dimensions": 7}, "64 numbers"),
    ("embeddings", {"model": "vectors", "input": [1, 2]}, "tokens"),
    ("embeddings", {"model": "vectors", "input": [[1, 2]]}, "tokens"),
    ("embeddings", {"model": "vectors", "input": []}, "input"),
    ("embeddings", {"model": "vectors", "input": ["x", ""]}, "input"),
    ("embeddings", {"model": "vectors", "input": "\ud800"}, "unicode"),
    ("embeddings", {"input": "x"}, "writes text"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "word"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_understood_is_refused(
    server: Server, path: str, body: dict[str, Any], word: str
) -> None:
    full = {"model": "tiny", "messages": CHAT, "max_tokens": 2, **body}
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/{path}", content=json.dumps(full), headers=headers)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert word in error["message"]
    assert ask(server, max_tokens=1).usage.completion_tokens == 1


def test_errors_have_openai_s_codes(server: Server) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(server, model="nope")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        ask(server, messages=[{"role": "user", "content": "word " * 3000}])
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    assert post(server, "nothing").json()["error"]["type"] == "invalid_request_error"


def test_completions_of_tokens_and_with_a_stream(server: Server) -> None:
    completions = server.openai.completions
    lists = completions.create(model="tiny", prompt=[[5, 6], [7]], max_tokens=3, temperature=0)
    assert [choice.index for choice in lists.choices] == [0, 1]
    assert lists.usage is not None
    assert lists.usage.prompt_tokens == 3
    whole = completions.create(model="tiny", prompt="One", max_tokens=6, temperature=0, logprobs=2)
    stream = completions.create(model="tiny", prompt="One", max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True})  # fmt: skip
    parts = list(stream)
    text = "".join(part.choices[0].text for part in parts if part.choices)
    assert text == whole.choices[0].text
    assert parts[-1].usage == whole.usage
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or ()) == 6


def test_embeddings_in_both_encodings(server: Server) -> None:
    texts = ["the sky", "is blue"]
    asked: dict[str, Any] = {"model": "vectors", "input": texts}
    told = server.openai.embeddings.create(**asked)  # this client asks for base64 by itself
    floats = post(server, "embeddings", **asked, encoding_format="float", dimensions=64).json()
    coded = post(server, "embeddings", **asked, encoding_format="base64").json()
    assert [row["index"] for row in floats["data"]] == [0, 1]
    for mine, row, code in zip(told.data, floats["data"], coded["data"], strict=True):
        vector = np.frombuffer(base64.b64decode(code["embedding"]), "<f4")
        assert len(vector) == 64
        np.testing.assert_array_equal(vector, np.array(row["embedding"], np.float32))
        np.testing.assert_array_equal(vector, np.array(mine.embedding, np.float32))
    assert told.usage.prompt_tokens == floats["usage"]["total_tokens"] > 0


class Failing:
    """A batch with a bug."""

    n_free, is_idle = 1, True

    def __init__(self) -> None:
        self.told: list[RunError] = []

    def add(self, _: Any) -> None:
        self.is_idle = False

    def step(self) -> None:
        raise IndexError("a bug")

    def fail_all(self, error: RunError) -> None:
        self.told.append(error)


class Asked:
    """A request that waits."""

    prompt: Sequence[int] = (1,)
    is_cancelled = False

    def __init__(self) -> None:
        self.told: list[RunError] = []

    def take(self, logits: Any, tokens: Any, /) -> int | None:
        raise NotImplementedError

    def fail(self, error: RunError, /) -> None:
        self.told.append(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_a_bug_ended() -> None:
    batch: Any = Failing()
    batch.n_free = 0
    engine = Engine(batch, n_waiting=4)
    waiting = Asked()
    engine.submit(waiting)
    engine._thread.join(10)
    assert not engine.is_alive
    assert len(batch.told) == len(waiting.told) == 1
    with pytest.raises(RunError):
        engine.submit(Asked())
    engine.close()
