"""`weightpkg serve --ray`: what stands before replicas, what replicas serve, and a local cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest

from factories import tiny_llama
from mirrors import MirrorDirectory, serve
from weightpkg.api import ensure
from weightpkg.convert.pipeline import convert
from weightpkg.digest import Digest
from weightpkg.errors import FetchError, IntegrityError, NotInstalledError, RunError
from weightpkg.progress import Silence
from weightpkg.server import front
from weightpkg.server.cluster import _start_error
from weightpkg.server.counters import Counters, Labels
from weightpkg.server.front import Asked, Done, Front, LostError, Part, Sent, Taken
from weightpkg.server.guard import Message
from weightpkg.server.models import Options
from weightpkg.server.replica import Chosen, Order, choose, make_models, provide, run_application
from weightpkg.server.wire import RequestError
from weightpkg.settings import Settings
from weightpkg.store import Installed, tree_digest

MODEL = "tiny"
CHAT = [{"role": "user", "content": "Hello"}]
KEY = "a-key-that-nobody-else-may-see"
SILENCE = Silence()
Said = list[Part | Exception | float]
HEAD: Message = {"type": "http.response.start", "status": 200, "headers": []}
STREAM: Message = {**HEAD, "headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}


class Replies:
    """What replicas say, one after the other; an exception is raised where it stands."""

    def __init__(self, *replies: Said) -> None:
        self.replies = list(replies)
        self.asked: list[Asked] = []
        self.n_cancelled = 0

    def __call__(self, asked: Asked) -> Replies:
        self.asked.append(asked)
        return self

    async def __aiter__(self) -> AsyncIterator[Part]:
        for part in self.replies.pop(0):
            if isinstance(part, Exception):
                raise part
            if isinstance(part, float):
                await asyncio.sleep(part)
            else:
                yield part

    def cancel(self) -> None:
        self.n_cancelled += 1


def body(text: str, *, is_last: bool = True) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": not is_last}


def sent(*messages: Message) -> Sent:
    return Sent("/v1/chat/completions", messages)


def ask(replies: Replies, counters: Counters, *, leaves: bool = False) -> list[Message]:
    """What a client gets; one that `leaves` does so at once."""
    got: list[Message] = []
    coming: list[Message] = [{"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> Message:
        if coming:
            return coming.pop()
        if not leaves:
            await asyncio.Event().wait()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        got.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"application/json")]
    scope: dict[str, object] = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(Front(replies, counters)(scope, receive, send))
    return got


def test_an_answer_comes_with_its_replica_and_what_it_counted() -> None:
    counts: dict[tuple[str, Labels], float] = {
        ("weightpkg_generated_tokens_total", (("model", MODEL),)): 3.0
    }
    replies, counters = Replies([Taken("r1"), sent(HEAD, body("yes")), Done(counts)]), Counters()
    start, end = ask(replies, counters)
    assert (b"x-weightpkg-replica", b"r1") in start["headers"]
    assert end["body"] == b"yes"
    text = counters.text({})
    assert 'weightpkg_generated_tokens_total{model="tiny"} 3' in text
    assert 'weightpkg_replica_requests_total{replica="r1"} 1' in text


def test_no_replica_gets_the_key() -> None:
    replies = Replies([Taken("r1"), sent(HEAD, body("yes")), Done({})])
    ask(replies, Counters())
    assert replies.asked[0].headers == ((b"content-type", b"application/json"),)
    assert KEY not in repr(replies.asked)


def test_another_replica_is_asked_where_one_is_lost_before_its_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front, "_PAUSE_S", 0.0)
    whole: Said = [Taken("r2"), sent(HEAD, body("yes")), Done({})]
    replies = Replies([LostError()], [Taken("r1"), LostError()], whole)
    start, end = ask(replies, Counters())
    assert (b"x-weightpkg-replica", b"r2") in start["headers"]
    assert end["body"] == b"yes"
    lost: list[Said] = [[LostError()] for _ in range(9)]
    with pytest.raises(RequestError, match="were lost") as caught:
        ask(Replies(*lost), Counters())
    assert caught.value.status == 503


def test_a_stream_whose_replica_is_lost_ends_with_an_error() -> None:
    parts: Said = [Taken("r1"), sent(STREAM, body("data: 1\n\n", is_last=False)), LostError()]
    *_, last = ask(Replies(parts), Counters())
    assert json.loads(last["body"].removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert not last.get("more_body")
    whole = ask(Replies([Taken("r1"), sent(HEAD), LostError()]), Counters())
    assert whole[-1]["type"] == "http.response.start"  # the connection's end says the rest


def test_nobody_waits_for_ever_for_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_TAKEN_S", 0.05)
    replies = Replies([60.0])
    with pytest.raises(RequestError, match="no replica took") as caught:
        ask(replies, Counters())
    assert caught.value.status == 503
    assert replies.n_cancelled == 1


@pytest.mark.parametrize(
    "parts", [[Taken("r1"), 60.0], [Taken("r1"), sent(STREAM, body("data", is_last=False)), 60.0]]
)
def test_a_client_that_goes_away_ends_its_answer(parts: Said) -> None:
    replies = Replies(parts)
    with suppress(RequestError):  # where nothing was sent yet
        ask(replies, Counters(), leaves=True)
    assert replies.n_cancelled == 1


def test_an_application_is_cancelled_with_its_reader() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Callable[[], Any], send: Callable[[Message], Any]) -> None:
        assert (await receive())["body"] == b"question"
        try:
            await send(HEAD)
            await send(body("1", is_last=False))
            await receive()
        finally:
            ended.append(scope["path"])

    async def read() -> list[Message]:
        reader = run_application(app, {"path": "/x"}, b"question")
        first = await anext(aiter(reader))
        await reader.aclose()  # type: ignore[attr-defined]  # it is a generator
        return first

    assert asyncio.run(read())[0]["type"] == "http.response.start"
    assert ended == ["/x"]


def elsewhere(settings: Settings, home: Path, **environ: str) -> Settings:
    """Another node's settings."""
    named = {**settings.environ, "WEIGHTPKG_HOME": str(home), "WEIGHTPKG_NO_ADOPT": "1"}
    return Settings.from_environment({**named, **environ})


@pytest.fixture
def chosen(settings: Settings) -> Chosen:
    return choose("tiny-q4", ensure("tiny-q4", settings=settings), settings.store())


def test_a_node_installs_the_same_bytes(chosen: Chosen, settings: Settings, tmp_path: Path) -> None:
    assert isinstance(chosen.place, Installed)
    node = elsewhere(settings, tmp_path / "node")
    for _ in range(2):
        directory = provide(chosen, node, SILENCE)
        assert directory.is_relative_to(tmp_path / "node")
        assert tree_digest(directory) == chosen.tree
    record = node.store().find("tiny", "q4")
    assert record is not None
    assert record.conversion == chosen.place.conversion


def mirror_of(chosen: Chosen, settings: Settings, root: Path) -> MirrorDirectory:
    """A mirror of a model's files; where they came from is gone."""
    assert isinstance(chosen.place, Installed)
    mirror = MirrorDirectory(root)
    for file in chosen.place.files:
        mirror.blob(settings.store().blob_path(file.sha256).read_bytes())
    mirror.finish()
    for source in settings.index_dir.glob("*.gguf"):
        source.unlink()
    return mirror


def test_a_node_takes_from_its_mirror(chosen: Chosen, settings: Settings, tmp_path: Path) -> None:
    mirror = mirror_of(chosen, settings, tmp_path / "mirror")
    with serve(mirror.root) as served:
        mirrored = {"WEIGHTPKG_MIRROR": served.url, "WEIGHTPKG_MIRROR_ONLY": "1"}
        directory = provide(chosen, elsewhere(settings, tmp_path / "node", **mirrored), SILENCE)
        assert tree_digest(directory) == chosen.tree
        assert served.wait_for("/blobs/sha256/")
    with pytest.raises(FetchError):
        provide(chosen, elsewhere(settings, tmp_path / "other", **mirrored), SILENCE)


def test_a_node_that_cannot_have_a_model_says_so(
    chosen: Chosen, settings: Settings, tmp_path: Path
) -> None:
    node = elsewhere(settings, tmp_path / "node", WEIGHTPKG_INDEX=str(tmp_path / "nothing"))
    with pytest.raises(FetchError):
        provide(chosen, node, SILENCE)


def test_a_node_that_makes_other_bytes_is_refused(
    chosen: Chosen, settings: Settings, tmp_path: Path
) -> None:
    node = elsewhere(settings, tmp_path / "node")
    other = Digest("sha256", 64 * "a")
    with pytest.raises(IntegrityError):
        provide(replace(chosen, tree=other), node, SILENCE)
    assert isinstance(chosen.place, Installed)
    place = replace(chosen.place, conversion=64 * "b")
    with pytest.raises(IntegrityError):
        provide(replace(chosen, place=place), elsewhere(settings, tmp_path / "third"), SILENCE)
    order = Order((chosen,), Options(memory=0), version="0.0.1")
    with pytest.raises(RunError, match=r"weightpkg .*0\.0\.1"):
        make_models(order, node, SILENCE)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served")
    source = tiny_llama(path / "tiny.gguf", context_length=512)
    (path / MODEL).mkdir()
    convert(source, Digest("sha256", 64 * "0"), path / MODEL, SILENCE)
    return path / MODEL


def damaged(directory: Path, path: Path) -> Path:
    """A copy with another byte in its weights, which its manifest does not say."""
    path.mkdir()
    for file in directory.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    with (path / "model.onnx.data").open("r+b") as weights:
        weights.seek(100)
        byte = weights.read(1)[0]
        weights.seek(100)
        weights.write(bytes([byte ^ 1]))
    return path


def test_a_directory_must_be_the_same_on_each_node(
    directory: Path, settings: Settings, tmp_path: Path
) -> None:
    chosen = choose(MODEL, directory, settings.store())
    assert provide(chosen, settings, SILENCE) == directory
    with pytest.raises(NotInstalledError):
        provide(replace(chosen, place=tmp_path / "none"), settings, SILENCE)
    with pytest.raises(IntegrityError, match="damaged"):
        provide(replace(chosen, place=damaged(directory, tmp_path / "bad")), settings, SILENCE)
    with pytest.raises(IntegrityError, match="another model"):
        provide(replace(chosen, tree=Digest("sha256", 64 * "a")), settings, SILENCE)


class Cluster:
    """The command, with a cluster of its own, whose files are in `temporary`."""

    def __init__(self, process: subprocess.Popen[str], url: str, temporary: Path) -> None:
        self.process, self.url, self.temporary = process, url, temporary
        self.held = ExitStack()
        named: dict[str, Any] = {"api_key": KEY, "max_retries": 2, "timeout": 60}
        self.openai = self.held.enter_context(openai.OpenAI(base_url=f"{url}/v1", **named))

    def family(self) -> list[psutil.Process]:
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def replicas(self) -> list[psutil.Process]:
        return [each for each in self.family() if "ServeReplica" in " ".join(each.cmdline())]

    def chat(self, **named: Any) -> Any:
        chosen = {"model": MODEL, "messages": CHAT, "max_tokens": 8, "temperature": 0, **named}
        return self.openai.chat.completions.with_raw_response.create(**chosen)

    def who(self) -> str:
        """Ask something; return the replica that answered."""
        answer = self.chat()
        assert answer.parse().usage.completion_tokens == 8
        return str(answer.headers["x-weightpkg-replica"])

    def work(self) -> float:
        """Processor seconds that replicas have used."""
        return float(sum(sum(each.cpu_times()[:2]) for each in self.replicas()))

    def stream(self, n: int) -> Any:
        bias = {"2": -100}  # no end before its time
        named: dict[str, Any] = {"model": MODEL, "messages": CHAT, "logit_bias": bias}
        stream: Any = self.openai.chat.completions.create(**named, max_tokens=n, stream=True)
        next(stream)
        return stream


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def short_directory() -> Iterator[Path]:
    """Short, as names of sockets are limited."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as path:
        yield Path(path)


def command(model: Path | str, home: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    python = [sys.executable, "-m", "weightpkg", "serve", str(model), "--ray", "--port", "0"]
    own = {"WEIGHTPKG_HOME": str(home), "WEIGHTPKG_API_KEY": KEY, "RAY_ADDRESS": ""}
    return {"args": [*python, *arguments], "env": {**os.environ, **own, **environ}, "text": True}


@contextmanager
def clustered(directory: Path, home: Path, **environ: str) -> Iterator[Cluster]:
    cores = {"RAY_OVERRIDE_RESOURCES": '{"CPU": 3}'}  # to Ray that is a number, whatever there is
    options = ("--replicas", "2", "--rows", "2", "--queue", "4")
    with short_directory() as temporary, (temporary / "log").open("w+") as log:
        process = subprocess.Popen(
            **command(directory, home, *options, TMPDIR=str(temporary), **cores, **environ),
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url, (temporary / "log").read_text()
            threading.Thread(target=process.stdout.read, daemon=True).start()
            cluster = Cluster(process, url, temporary)
            with cluster.held:
                yield cluster
        finally:
            process.terminate()
            process.wait(90)
            process.stdout.close()


def listening(processes: Sequence[psutil.Process]) -> Iterator[tuple[str, int]]:
    for process in processes:
        for each in process.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN:
                yield each.laddr.ip, each.laddr.port


def check_nobody_else_gets_in(cluster: Cluster) -> None:
    """Ports are on loopback; those of Serve's that are not want the cluster's token."""
    family = [psutil.Process(cluster.process.pid), *cluster.family()]
    open_ports = [
        port for ip, port in listening(family) if ip not in {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    ]
    assert len(open_ports) <= len(cluster.replicas())
    for port in open_ports:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def check_the_key_is_kept(cluster: Cluster) -> None:
    """The key is in this command's own memory and environment, and nowhere else."""
    for process in cluster.family():
        assert KEY not in " ".join(process.cmdline())
        assert KEY not in str(process.environ())
    written = [path for path in cluster.temporary.rglob("*") if path.is_file()]
    assert written
    assert not any(KEY.encode() in path.read_bytes() for path in written)
    (private,) = cluster.temporary.glob("wp-*")
    assert private.stat().st_mode & 0o077 == 0
    with pytest.raises(openai.AuthenticationError):
        cluster.openai.with_options(api_key="another-key-altogether").models.list()
    response = httpx.get(f"{cluster.url}/v1/models", headers={"Host": "evil.example"})
    assert response.status_code == 403


def joining(cluster: Cluster, model: Path | str, home: Path, *arguments: str) -> dict[str, Any]:
    """Another command, which uses the same cluster."""
    lines = [word for each in cluster.family() for word in each.cmdline()]
    address = next(w for w in lines if w.startswith("--gcs-address=")).partition("=")[2]
    token = next(cluster.temporary.glob("wp-*/token"))
    return command(
        model,
        home,
        *("--ray-address", address, *arguments),
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
    )


def joined(cluster: Cluster, directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One that ends by itself."""
    named = joining(cluster, directory, cluster.temporary / "home", *arguments)
    return subprocess.run(**named, capture_output=True, timeout=120, check=False)


def check_mirror(cluster: Cluster, chosen: Chosen, settings: Settings, node: Path) -> None:
    """A replica of what only the command's own store has takes it from its node's mirror."""
    assert isinstance(chosen.place, Installed)
    assert not (node / "models" / str(chosen.place.conversion)).exists()
    named = joining(cluster, chosen.name, settings.home)
    named["env"] |= settings.environ
    with subprocess.Popen(**named, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().strip()
        assert url, process.stderr.read()
        key = {"Authorization": f"Bearer {KEY}"}
        asked = {"model": chosen.name, "prompt": "Hello", "max_tokens": 8}
        answer = httpx.post(f"{url}/v1/completions", json=asked, headers=key, timeout=60)
        process.terminate()
    assert answer.json()["usage"]["completion_tokens"]
    assert tree_digest(node / "models" / str(chosen.place.conversion)) == chosen.tree


def check_errors(cluster: Cluster, directory: Path, bad: Path) -> None:
    """Commands that have to give up do so, and leave others' replicas alone."""
    run = joined(cluster, directory, "--replicas", "500")
    assert run.returncode == 9, run.stderr
    assert "500 replicas need a core each, and the Ray cluster has 3 on 1 nodes" in run.stderr
    run = joined(cluster, bad)
    assert run.returncode == 9, run.stderr
    assert "a replica cannot start" in run.stderr
    assert "model.onnx.data` is damaged on this node" in run.stderr
    assert not run.stdout
    until(lambda: len(cluster.replicas()) == 2)


def check_leaving(cluster: Cluster) -> None:
    """Answers that nobody reads end: ten of them are less work than a few whole ones."""
    start = cluster.work()
    list(cluster.stream(450))
    whole = cluster.work() - start
    start = cluster.work()
    for _ in range(10):
        cluster.stream(450).close()
    until(lambda: is_at_rest(cluster))
    left = cluster.work() - start
    assert left < 4 * whole, (left, whole)


def is_at_rest(cluster: Cluster) -> bool:
    before = cluster.work()
    time.sleep(1)
    return cluster.work() - before < 0.2


def check_many_at_once(cluster: Cluster) -> None:
    request = {"model": MODEL, "messages": CHAT, "max_tokens": 40, "logit_bias": {"2": -100}}
    named: dict[str, Any] = {"headers": {"Authorization": f"Bearer {KEY}"}, "timeout": 60}
    with (
        httpx.Client(base_url=cluster.url, **named) as client,
        ThreadPoolExecutor(60) as executor,
    ):
        asked = [
            executor.submit(client.post, "/v1/chat/completions", json=request) for _ in range(120)
        ]
        found = [each.result() for each in asked]
    assert {each.status_code for each in found} == {200, 429}
    assert all("retry-after" in each.headers for each in found if each.status_code == 429)
    assert len({each.headers["x-weightpkg-replica"] for each in found}) == 2


def end_of(stream: Any) -> str:
    try:
        return str(list(stream)[-1].choices[0].finish_reason)
    except openai.APIError as error:
        return error.message


def check_recovery(cluster: Cluster) -> None:
    """A killed replica's streams end with an error, others go on, and another one comes."""
    before = {cluster.who() for _ in range(12)}
    streams = [cluster.stream(450) for _ in range(4)]
    lost = cluster.replicas()[0]
    lost.send_signal(signal.SIGKILL)
    for stream in streams:
        assert end_of(stream) in {"length", "the replica that answered was lost"}
    assert cluster.who() in before
    until(lambda: cluster.who() not in before)


def test_two_replicas(directory: Path, tmp_path: Path, settings: Settings, chosen: Chosen) -> None:
    mirror = mirror_of(chosen, settings, tmp_path / "mirror")
    node = tmp_path / "node"
    environ = {"WEIGHTPKG_MIRROR": str(mirror.root), "WEIGHTPKG_MIRROR_ONLY": "1"}
    with clustered(directory, node, **environ) as cluster:
        assert [model.id for model in cluster.openai.models.list()] == [MODEL]
        until(lambda: len({cluster.who() for _ in range(8)}) == 2)
        parts = [part.choices[0] for part in cluster.stream(100)]
        assert len(parts) > 20  # it streams
        assert parts[-1].finish_reason == "length"
        check_leaving(cluster)
        check_many_at_once(cluster)
        check_nobody_else_gets_in(cluster)
        check_the_key_is_kept(cluster)
        check_errors(cluster, directory, damaged(directory, tmp_path / "bad"))
        check_mirror(cluster, chosen, settings, node)
        check_recovery(cluster)

        family = cluster.family()
        stream = cluster.stream(450)
        cluster.process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert cluster.process.wait(60) == 0
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive
        assert not list(cluster.temporary.glob("wp-*"))


def test_a_cluster_that_is_not_there(directory: Path, tmp_path: Path) -> None:
    for address, reason in (
        ("ray://127.0.0.1:1", "address for clients outside"),
        (f"127.0.0.1:{free_port()}", "cannot be reached"),
    ):
        named = command(directory, tmp_path / "home", "--ray-address", address)
        run = subprocess.run(**named, capture_output=True, timeout=120, check=False)
        assert run.returncode == 9, run.stderr
        assert reason in run.stderr


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            'x\nweightpkg.server.replica.StartError: {"message": "no disk", "hint": null}\ny',
            "no disk",
        ),
        ('StartError: {"message": "no di', "StartError"),
        ("ModuleNotFoundError: No module named 'weightpkg'", "a node has no weightpkg"),
        ("one\nlast words\n", "last words"),
        ("", "does not say why"),
    ],
)
def test_what_serve_says_of_a_replica_becomes_an_error(said: str, message: str) -> None:
    assert message in _start_error(said).message


def test_nothing_is_started_without_the_extra(directory: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from weightpkg.cli import main; main()"
    named = command(directory, tmp_path)
    named["args"] = [sys.executable, "-c", code, *named["args"][3:]]
    run = subprocess.run(**named, capture_output=True, timeout=60, check=False)
    assert run.returncode == 9
    assert 'pip install "weightpkg[ray]"' in run.stderr
    named["args"].remove("--ray")
    named["args"] += ["--replicas", "2"]
    run = subprocess.run(**named, capture_output=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "for --ray" in run.stderr
