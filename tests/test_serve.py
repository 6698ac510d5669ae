"""`weightpkg serve` as its clients see it: the openai package, and clients that mean no good."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import tiny_llama
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.progress import Silence

CHAT = [{"role": "user", "content": "Hello"}]
MODEL = "tiny"


class Server:
    def __init__(self, process: subprocess.Popen[str], url: str, log: list[str]) -> None:
        self.process, self.url, self.log = process, url, log
        self.port = int(url.rpartition(":")[2])
        self.held = ExitStack()
        self.openai = self.client()

    def client(self, key: str = "none") -> openai.OpenAI:
        """A client, which is closed with the server."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)
        return self.held.enter_context(client)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    def memory(self) -> int:
        return int(psutil.Process(self.process.pid).memory_info().rss)


@contextmanager
def serving(home: Path, *arguments: str, **environ: str) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "weightpkg", "serve", "--port", "0", "--threads", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "WEIGHTPKG_HOME": str(home), **environ},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    log: list[str] = []
    reader = threading.Thread(target=log.extend, args=(process.stderr,), daemon=True)
    try:
        url = process.stdout.readline().strip()
        reader.start()
        assert url, process.stderr.read()
        server = Server(process, url, log)
        with server.held:
            yield server
    finally:
        process.terminate()
        process.wait(60)
        reader.join()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    source = tiny_llama(path / "tiny.gguf", context_length=512)
    (path / MODEL).mkdir()
    convert(source, Digest("sha256", 64 * "0"), path / MODEL, Silence())
    return path / MODEL


@pytest.fixture(scope="module")
def server(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, str(directory), "--rows", "4", "--queue", "8") as running:
        yield running


def ask(server: Server, **named: Any) -> Any:
    chosen = {"model": MODEL, "messages": CHAT, "max_tokens": 12, "temperature": 0, **named}
    return server.openai.chat.completions.create(**chosen)


def test_models_are_listed(server: Server) -> None:
    assert [model.id for model in server.openai.models.list()] == [MODEL]
    assert server.openai.models.retrieve(MODEL).owned_by == "weightpkg"


def test_an_answer_whole_and_in_parts(server: Server) -> None:
    whole = ask(server)
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    parts = list(ask(server, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage == whole.usage
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == "length"
    assert parts[0].choices[0].delta.role == "assistant"


def test_keys_and_values_in_int8(directory: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(directory), "--kv-cache", "int8") as running:
        assert ask(running).usage.completion_tokens == 12
    assert len(list((tmp_path / "cache" / "graphs").glob("*.scales"))) == 1


def test_several_answers_a_seed_and_stops(server: Server) -> None:
    warm = {"temperature": 1.5, "seed": 7, "n": 3}
    first, second = ask(server, **warm), ask(server, **warm)
    texts = [choice.message.content for choice in first.choices]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]
    whole = ask(server, max_tokens=40).choices[0].message.content
    middle = whole[len(whole) // 2 :][:3]
    stopped = ask(server, max_tokens=40, stop=[middle]).choices[0]
    assert stopped.message.content == whole[: whole.index(middle)]
    assert stopped.finish_reason == "stop"


def test_log_probabilities(server: Server) -> None:
    found = ask(server, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(found) == 12
    assert all(each.logprob == each.top_logprobs[0].logprob <= 0 for each in found)
    assert all(len(each.top_logprobs) == 3 for each in found)
    streamed = [
        each
        for part in ask(server, logprobs=True, top_logprobs=3, stream=True)
        if part.choices[0].logprobs
        for each in part.choices[0].logprobs.content
    ]
    assert [each.token for each in streamed] == [each.token for each in found]


def test_an_answer_has_the_form_that_was_asked_for(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": [1, 2, 3]}, "is_red": {"type": "boolean"}},
        "required": ["size", "is_red"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}
    found = ask(server, response_format=form, max_tokens=120, temperature=1.0, seed=1)
    thing = json.loads(found.choices[0].message.content)
    assert thing["size"] in {1, 2, 3}
    assert isinstance(thing["is_red"], bool)
    with pytest.raises(openai.BadRequestError, match="json-schema is not valid"):
        ask(server, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}})  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="json_schema"):
        ask(server, response_format={"type": "json_schema"})


def test_completions(server: Server) -> None:
    client = server.openai
    found = client.completions.create(
        model=MODEL, prompt=["One", "Two"], max_tokens=5, temperature=0, echo=True
    )
    assert [choice.text[:3] for choice in found.choices] == ["One", "Two"]
    ids = client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=3, temperature=0)
    assert ids.usage is not None
    assert ids.usage.prompt_tokens == 3


ERRORS: list[tuple[dict[str, Any], type[openai.APIStatusError], str]] = [
    ({"model": "nope"}, openai.NotFoundError, "not served"),
    ({"messages": []}, openai.BadRequestError, "messages"),
    ({"messages": [{"content": "x"}]}, openai.BadRequestError, "role"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        openai.BadRequestError,
        "text",
    ),
    ({"temperature": -1}, openai.BadRequestError, "temperature"),
    ({"n": 1000}, openai.BadRequestError, "n:"),
    (
        {"messages": [{"role": "user", "content": "word " * 3000}]},
        openai.BadRequestError,
        "context",
    ),
]


@pytest.mark.parametrize(("named", "kind", "word"), ERRORS, ids=lambda value: str(value)[:30])
def test_errors_are_those_of_openai(
    server: Server, named: dict[str, Any], kind: type[openai.APIStatusError], word: str
) -> None:
    for is_streamed in (False, True):
        with pytest.raises(kind, match=word):
            ask(server, **named, stream=is_streamed)


@settings(max_examples=60)
@given(
    path=st.sampled_from(["chat/completions", "completions", "embeddings"]),
    body=st.dictionaries(
        st.sampled_from(
            [
                "model",
                "messages",
                "prompt",
                "input",
                "n",
                "stop",
                "temperature",
                "seed",
                "stream",
                "logit_bias",
                "max_tokens",
                "tools",
                "response_format",
                "logprobs",
            ]
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.text(max_size=5)
            | st.just(MODEL)
            | st.floats(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["role", "content", "type", "1"]), inner, max_size=3
                )
            ),
            max_leaves=6,
        ),
    ),
)
def test_no_body_is_an_error_of_the_server_s(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    named = {"model": MODEL, **body, "max_tokens": 2}
    response = httpx.post(
        f"{server.url}/v1/{path}",
        content=json.dumps(named),
        headers={"Content-Type": "application/json"},
        timeout=30,
    )
    assert response.status_code in {200, 400, 404, 422, 429}, response.text


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[1]", b"nul", b'{"model": "tiny"'])
def test_what_is_no_json(server: Server, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_another_site_s_page_gets_nothing(server: Server) -> None:
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}):
        response = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert response.status_code == 403
        assert MODEL not in response.text


def test_the_page_asks_nobody_else(server: Server) -> None:
    response = httpx.get(server.url)
    assert response.status_code == 200
    urls = re.findall(r"https?://[^\s'\"]+", response.text)
    assert set(urls) == {"http://www.w3.org/2000/svg"}  # a name, and no address
    assert response.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_log_says_nothing_of_what_was_said(server: Server) -> None:
    ask(server, messages=[{"role": "user", "content": "a secret about Zanzibar"}])
    time.sleep(0.2)
    assert any('"/v1/chat/completions"' in line for line in server.log)
    assert not any("Zanzibar" in line for line in server.log)


def test_a_key_is_needed_beyond_this_machine(directory: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "weightpkg",
            "serve",
            str(directory),
            "--address",
            "0.0.0.0",  # noqa: S104  it must not be bound
            "--port",
            "0",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "WEIGHTPKG_HOME": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert run.returncode == 9
    assert "no key was given" in run.stderr
    key = "k" * 20
    with serving(tmp_path, str(directory), WEIGHTPKG_API_KEY=key) as server:
        with pytest.raises(openai.AuthenticationError):
            server.openai.models.list()
        assert [model.id for model in server.client(key).models.list()] == [MODEL]
        assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}


def test_models_are_loaded_when_asked_for_and_leave(directory: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(directory), "--keep", "1") as server:
        assert server.metric("weightpkg_loaded") == 0
        ask(server)
        assert server.metric("weightpkg_loaded") == 1
        deadline = time.monotonic() + 30
        while server.metric("weightpkg_loaded") and time.monotonic() < deadline:
            time.sleep(0.5)
        assert server.metric("weightpkg_loaded") == 0
        ask(server)


def test_a_model_that_is_broken_is_an_error_and_not_the_end(
    directory: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in directory.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:1000])
    (broken / "genai_config.json").write_bytes((directory / "genai_config.json").read_bytes())
    with serving(tmp_path / "home", str(directory), str(broken)) as server:
        for _ in range(2):
            with pytest.raises(openai.InternalServerError):
                ask(server, model="broken")
        assert ask(server).usage.completion_tokens == 12


def test_nothing_to_install_without_the_extra(directory: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['fastapi'] = None; from weightpkg.cli import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "serve", str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, "WEIGHTPKG_HOME": str(tmp_path)},
        timeout=60,
        check=False,
    )
    assert run.returncode == 9
    assert 'pip install "weightpkg[serve]"' in run.stderr
