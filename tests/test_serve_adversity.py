"""`weightpkg serve` in bad company and bad times: nothing wedged, a clear word, memory back."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import openai
import psutil
import pytest

from factories import tiny_llama
from test_serve import CHAT, Server, serving
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.progress import Silence

GIB = 1 << 30
ENDLESS = {"model": "long", "messages": CHAT, "stream": True, "logit_bias": {"2": -100}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`long` answers for seconds; the templates of `refusing` and `turning` fail and never end."""
    base = tmp_path_factory.mktemp("models")
    source = tiny_llama(base / "tiny.gguf", context_length=16384)
    (base / "long").mkdir()
    convert(source, Digest("sha256", 64 * "0"), base / "long", Silence())
    templates = {
        "refusing": "{{ raise_exception('only one message, please') }}",
        "turning": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    }
    for name, template in templates.items():
        shutil.copytree(base / "long", base / name)
        config = base / name / "tokenizer_config.json"
        told = json.loads(config.read_text()) | {"chat_template": template}
        config.write_text(json.dumps(told))
    return base


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    names = [str(models / name) for name in ("long", "refusing", "turning")]
    home = tmp_path_factory.mktemp("home")
    with serving(home, *names, "--rows", "2", "--queue", "2") as running:
        yield running


def ask(server: Server, model: str = "long", **named: Any) -> Any:
    chosen: dict[str, Any] = {"messages": CHAT, "max_tokens": 3, "timeout": 20, **named}
    return server.openai.chat.completions.create(model=model, **chosen)


def answers(server: Server) -> bool:
    """Whether it does what it is for, at once."""
    start = time.monotonic()
    return bool(ask(server).usage.completion_tokens) and time.monotonic() - start < 10


@contextmanager
def streaming(server: Server, **named: Any) -> Iterator[Iterator[str]]:
    """Be a client in the middle of an endless answer."""
    body = {**ENDLESS, **named}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=30) as found:
        assert found.status_code == 200
        lines = (line for line in found.iter_lines() if line)
        for _ in range(4):
            next(lines)
        yield lines


def test_clients_that_go_away_free_their_rows_at_once(server: Server) -> None:
    """There are two rows and two may wait: the fifth would be refused if the first four went on."""
    start = time.monotonic()
    for _ in range(12):
        with streaming(server):
            pass
    assert answers(server)
    assert time.monotonic() - start < 20
    assert server.metric("weightpkg_waiting") == 0


def test_clients_that_do_not_wait_for_a_whole_answer(server: Server) -> None:
    for _ in range(8):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json={**ENDLESS, "stream": False}, timeout=0.2)  # fmt: skip
        time.sleep(0.1)
    assert answers(server)


def test_who_waits_is_answered_and_who_is_too_many_is_told_so(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(streaming(server))
        with pytest.raises(openai.RateLimitError) as refused:
            ask(server, n=3, timeout=2)
        assert refused.value.response.headers["retry-after"] == "2"
        assert refused.value.code == "rate_limit_exceeded"
        with pytest.raises(openai.BadRequestError, match="at most 4"):
            ask(server, n=5)
    assert answers(server)


def test_five_hundred_at_once_are_all_told_something(server: Server) -> None:
    body = {"model": "long", "messages": CHAT, "max_tokens": 4}

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:
            asked = [client.post("/v1/chat/completions", json=body) for _ in range(500)]
            return await asyncio.gather(*asked)

    found = asyncio.run(ask_all())
    count = Counter(response.status_code for response in found)
    assert set(count) <= {200, 429}
    assert count[200] >= 4
    assert all("retry-after" in each.headers for each in found if each.status_code == 429)
    assert answers(server)


def test_half_open_connections_keep_nobody_out(server: Server) -> None:
    with ExitStack() as stack:
        halves = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            for _ in range(200)
        ]
        for i, half in enumerate(halves):
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX: "
            half.sendall(head[: 1 + i % len(head)] if i % 2 else b"")
        assert answers(server)
        for half in halves[:20]:  # and they are let go when their time is over
            with suppress(ConnectionError):
                assert half.recv(100) == b""


def head_of(server: Server, *lines: str) -> bytes:
    first = ("POST /v1/completions HTTP/1.1", f"Host: localhost:{server.port}")
    return "\r\n".join([*first, "Content-Type: application/json", *lines, "", ""]).encode()


@pytest.mark.parametrize("is_chunked", [False, True], ids=["of a told length", "in chunks"])
def test_a_body_of_a_gib_is_refused_early(server: Server, *, is_chunked: bool) -> None:
    answers(server)
    before = server.memory()
    piece = bytes(0x10000)
    told = "Transfer-Encoding: chunked" if is_chunked else f"Content-Length: {GIB}"
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as endless:
        endless.sendall(head_of(server, told))
        with suppress(OSError):
            while sent < GIB:
                endless.sendall(b"10000\r\n" + piece + b"\r\n" if is_chunked else piece)
                sent += len(piece)
    assert sent < 64 << 20
    assert server.memory() - before < 48 << 20
    assert answers(server)


def test_a_body_that_is_told_too_large_is_answered_before_it_comes(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(head_of(server, f"Content-Length: {GIB}"))
        assert client.recv(100).startswith(b"HTTP/1.1 413")


def test_templates_that_fail_are_errors_of_the_request(server: Server) -> None:
    for is_streamed in (False, True):
        with pytest.raises(openai.BadRequestError, match="only one message, please") as refused:
            ask(server, "refusing", stream=is_streamed)
        assert refused.value.param == "messages"
    with pytest.raises(openai.BadRequestError, match="more than 2 s"):
        ask(server, "turning")
    assert answers(server)
    completion = server.openai.completions.create(model="refusing", prompt="x", max_tokens=2)
    assert completion.usage is not None


@contextmanager
def little_memory(server: Server, more: int) -> Iterator[None]:
    """Let the server have only so many bytes more than it has."""
    process = psutil.Process(server.process.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms + more, hard))
    try:
        yield
    finally:
        process.rlimit(psutil.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_no_memory_to_load_is_an_error_and_passes(models: Path, tmp_path: Path) -> None:
    heavy = shutil.copytree(models / "long", tmp_path / "heavy")
    graph = onnx.load(heavy / "model.onnx", load_external_data=False)
    ballast = onnx.numpy_helper.from_array(np.ones(24 << 20, np.float32), "ballast")
    graph.graph.initializer.append(ballast)
    onnx.save(graph, heavy / "model.onnx")
    with serving(tmp_path / "home", str(models / "long"), str(heavy)) as server:
        assert answers(server)
        with (
            little_memory(server, 64 << 20),
            pytest.raises(openai.InternalServerError, match="memory"),
        ):
            ask(server, "heavy")
        assert answers(server)
        assert ask(server, "heavy").usage.completion_tokens == 3


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process")
def test_no_memory_for_a_long_prompt_is_an_error_of_that_one(models: Path, tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "a " * 6000}]
    with serving(tmp_path, str(models / "long"), "--rows", "64") as server:
        assert answers(server)
        with (
            little_memory(server, 32 << 20),
            pytest.raises(openai.InternalServerError, match="memory"),
        ):
            ask(server, messages=prompt)
        assert answers(server)
        assert ask(server, messages=prompt).usage.completion_tokens == 3


def test_a_model_for_which_there_is_no_memory_now(models: Path, tmp_path: Path) -> None:
    names = [str(models / name) for name in ("long", "refusing")]
    with serving(tmp_path, *names, "--memory", "0.001") as server:
        with (
            streaming(server),
            pytest.raises(openai.InternalServerError, match="no memory") as refused,
        ):
            ask(server, "refusing")
        assert refused.value.status_code == 503
        assert refused.value.response.headers["retry-after"] == "30"
        time.sleep(1)  # until it has noticed that the client has gone
        completion = server.openai.completions.create(model="refusing", prompt="x", max_tokens=2)
        assert completion.usage is not None
        assert answers(server)


def test_sigterm_lets_answers_end_and_nobody_else_in(models: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(models / "long")) as server, ExitStack() as stack:
        streams = [stack.enter_context(streaming(server, max_tokens=2000)) for _ in range(3)]
        server.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
            except ConnectionRefusedError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("it still listens")
        assert server.process.poll() is None
        for lines in streams:
            *_, last, done = lines
            assert (
                json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
            )
            assert done == "data: [DONE]"
        assert server.process.wait(30) == 0
