"""Serving on more than one machine: replicas by Ray Serve, and what stands before them here.

Clients talk to this process: its address, key and limits are those of `ModelServer`, and Ray's own
proxies are not started. Ray only has replicas, hands them requests, and starts those anew that are
lost. A cluster that is started here is this machine's alone: its ports are on loopback, whoever
connects must know a token that is made for it, and it ends with the command. A cluster that is there
already is its keeper's affair.

Tested against Ray 2.60. Variables of the environment are the only way to tell it these things.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightpkg.errors import RunError
from weightpkg.listening.process import (
    DRAIN_S,
    Listening,
    listen,
    make_server,
    port_of,
    run_until_told,
    urls_of,
)
from weightpkg.server.counters import Counters
from weightpkg.server.front import Asked, Front, LostError, Part
from weightpkg.server.guard import Guard
from weightpkg.server.replica import Order, Replica, started_by
from weightpkg.server.serving import REMEDY, ModelConnection
from weightpkg.settings import set_variables

_NAME = "Weightpkg"
_LOOK_S = 0.2
_REACH_S = 10.0
_SCHEDULING_S = 120.0
_OBJECTS = 80 * 2**20  # bytes for what is larger than a message; near the least that Ray takes
_ROOM_FOR_SOCKETS = 28  # characters that a directory's name may have, as a socket's may have 107
_FAULT = re.compile(r"StartError: (\{.*\})")
_IS_WAITING = "to be scheduled"  # what Serve says of replicas for which there is no place
_MANY = 1000  # requests of a replica at once: its own limits are less, and are told to clients


class ClusterServer:
    """A server that listens here and has replicas answer, until it is told to stop."""

    def __init__(
        self,
        order: Order,
        n_replicas: int,
        listening: Listening,
        log: Callable[[str], None],
        *,
        ray_address: str | None,
    ) -> None:
        """Listen.

        Args:
            order: what replicas serve; with 0 threads, each has its share of the cluster's cores.
            n_replicas: how many.
            listening: where.
            log: told a line of JSON for each request.
            ray_address: of a running cluster; None to start one.

        Raises:
            RunError: the address cannot be had, or would let in who should not be.
        """
        listening.check(REMEDY)
        self._order, self._n_replicas, self._address = order, n_replicas, ray_address
        self._log, self._listening = log, listening
        self._sockets = listen(listening)

    def run(self, ready: Callable[[list[str]], None]) -> None:
        """Serve until SIGTERM or SIGINT; what is being answered then is answered.

        Args:
            ready: told where it listens, once all replicas are there.

        Raises:
            RunError: the cluster cannot be had or is too small, or a replica does not start.
        """
        _exit_on_sigterm()
        with cluster(self._address), _deployed(self._order, self._n_replicas) as ask:
            counters = Counters()
            gate = self._listening.gate(port_of(self._sockets))
            guard = Guard(Front(ask, counters), gate, counters, self._log)
            server = make_server(guard, protocol=ModelConnection)
            ready(urls_of(self._sockets))
            run_until_told(server, self._sockets)


class _Parts:
    """What a replica says of a request, as it comes through Ray."""

    def __init__(self, response: Any) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[Part]:
        from ray.exceptions import RayError  # noqa: PLC0415  ray is optional, and slow to import

        try:
            async for part in self._response:
                yield part
        except RayError as error:
            raise LostError from error

    def cancel(self) -> None:
        self._response.cancel()


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected with a cluster: a running one, or one of this machine's that ends with the `with`.

    Raises:
        RunError: it cannot be reached, or does not start.
    """
    if address is not None and address.startswith("ray://"):
        raise RunError(
            f"`{address}` is the address for clients outside of a cluster",
            hint="type the command on a node of it, with `--ray-address HOST:6379` or `auto`",
        )
    set_variables({"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"})
    with ExitStack() as stack:
        # Ray tells there what its processes die of, also when they are told to
        stack.enter_context(redirect_stdout(stack.enter_context(Path(os.devnull).open("w"))))
        if address is None:
            directory = Path(stack.enter_context(_short_directory()))
            set_variables(_own_variables(directory))
            named: dict[str, Any] = {
                "address": "local",
                "_temp_dir": str(directory / "r"),  # which Ray opens to everybody
                "include_dashboard": False,
                "object_store_memory": _OBJECTS,
            }
        else:
            _check_there(address)
            named = {"address": address}
        import ray  # noqa: PLC0415  optional, slow to import, and reads the variables then

        stack.callback(ray.shutdown)
        _connect(ray, named)
        yield


def _check_there(address: str) -> None:
    """Refuse at once what Ray would try for minutes: an address where nobody listens.

    Raises:
        RunError: so it is.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return  # `auto`, and other words of Ray's
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise RunError(f"the Ray cluster cannot be reached at `{address}`: {error}") from error


def _connect(ray: Any, named: dict[str, Any]) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "namespace": "weightpkg"}
    is_own = named["address"] == "local"
    # on a busy machine Ray's own 30 s are not enough for a first start; the next reads no disk
    for is_last in (False, True) if is_own else (True,):
        try:
            ray.init(**named, **quiet)
        except Exception as error:  # Ray raises all kinds here, and `Exception` itself
            ray.shutdown()
            if is_last:
                where = "start" if is_own else f"be reached at `{named['address']}`"
                lines = str(error).splitlines() or [type(error).__name__]
                hint = (
                    None if is_own else "if it wants a token: RAY_AUTH_MODE=token, as on its nodes"
                )
                raise RunError(f"the Ray cluster cannot {where}: {lines[0]}", hint=hint) from error
        else:
            return


@contextmanager
def _short_directory() -> Iterator[str]:
    base = tempfile.gettempdir()
    base = base if len(base) <= _ROOM_FOR_SOCKETS else "/tmp"  # noqa: S108  it gets a new directory
    with tempfile.TemporaryDirectory(prefix="wp-", dir=base, ignore_cleanup_errors=True) as path:
        yield path


def _own_variables(directory: Path) -> dict[str, str | None]:
    """Return what tells Ray to let nobody else in; our keys are not for its processes."""
    token = directory / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everywhere: listen on loopback
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_AUTH_TOKEN": None,
        "RAY_ADDRESS": None,
        "RAY_agent_register_timeout_ms": "100000",
        "RAY_enable_metrics_collection": "false",
        "WEIGHTPKG_API_KEY": None,
        "WEIGHTPKG_MIRROR_KEY": None,
    }


@contextmanager
def _deployed(order: Order, n_replicas: int) -> Iterator[Callable[[Asked], _Parts]]:
    """Have replicas, as long as the `with` lasts; what asks them is returned.

    Raises:
        RunError: there is no room for them, or one does not start.
    """
    try:
        from ray import serve  # noqa: PLC0415  optional, and slow to import
    except ModuleNotFoundError as error:
        hint = '`pip install "weightpkg[ray]"`'
        raise RunError(f"Ray Serve needs the library `{error.name}`", hint=hint) from error
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    order = replace(order, options=replace(order.options, threads=_threads(order, n_replicas)))
    is_ours = not _has_serve()
    name = f"weightpkg-{secrets.token_hex(4)}"
    quiet = {"log_level": "WARNING", "enable_access_log": False}
    deployment = serve.deployment(
        name=_NAME,
        num_replicas=n_replicas,
        ray_actor_options={"num_cpus": order.options.threads},
        max_ongoing_requests=_MANY,
        max_constructor_retry_count=1,
        graceful_shutdown_timeout_s=DRAIN_S,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=2,
        health_check_timeout_s=60,
        logging_config=quiet,
    )(Replica)
    if is_ours:
        serve.start(proxy_location="Disabled", logging_config=quiet)
    target = serve.RunTarget(deployment.bind(order), name=name, route_prefix=None)
    try:
        (handle,) = serve.run_many(
            [target],
            wait_for_ingress_deployment_creation=True,
            wait_for_applications_running=False,
        )
        _await_replicas(serve, name)
        answer = handle.options(stream=True).answer
        yield lambda asked: _Parts(answer.remote(asked))
    finally:
        _remove(serve, name, is_ours=is_ours)


def _remove(serve: Any, name: str, *, is_ours: bool) -> None:
    if is_ours:
        serve.shutdown()
    else:
        serve.delete(name)


def _has_serve() -> bool:
    import ray  # noqa: PLC0415  optional, and slow to import

    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


def _threads(order: Order, n_replicas: int) -> int:
    """Return how many cores each replica has: all that there are, if nobody says.

    Raises:
        RunError: there are not enough.
    """
    import ray  # noqa: PLC0415  optional, and slow to import

    cores = [
        int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node.get("Alive", False)
    ]
    most, wanted = share(cores, n_replicas), order.options.threads
    if most < max(wanted, 1):
        each = f"{wanted} cores each" if wanted > 1 else "a core each"
        raise RunError(
            f"{n_replicas} replicas need {each}, and the Ray cluster has {sum(cores)} on "
            f"{len(cores)} nodes",
            hint="start fewer of them, give `--threads`, or add nodes",
        )
    free = int(ray.available_resources().get("CPU", 0))  # others may have the rest
    return wanted or max(1, min(most, free // n_replicas))


def share(cores: Sequence[int], n_replicas: int) -> int:
    """Return the most cores that each replica can have on nodes with so many; 0 if that is none.

    >>> share([8, 8], 3), share([2], 2), share([2], 3), share([8, 2], 2)
    (4, 1, 0, 4)
    """
    fits = (
        n for n in range(max(cores, default=0), 0, -1) if sum(c // n for c in cores) >= n_replicas
    )
    return next(fits, 0)


def _await_replicas(serve: Any, name: str) -> None:
    """Wait until all replicas are there, however long they fetch; not for a place to start them.

    Raises:
        RunError: one does not start, or has no place.
    """
    start = time.monotonic()
    while True:
        status = serve.status().applications[name]
        if status.status == "RUNNING":
            return
        said = "\n".join([status.message, *(d.message for d in status.deployments.values())])
        if status.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
            raise _start_error(said)
        if _IS_WAITING in said and time.monotonic() - start > _SCHEDULING_S:
            raise RunError(
                "the Ray cluster has no free cores for the replicas",
                hint="`ray status` says what has them",
            )
        time.sleep(_LOOK_S)


def _start_error(said: str) -> RunError:
    """Return why a replica does not start, as far as Serve's text of it says."""
    if match := _FAULT.search(said):
        try:
            return started_by(json.loads(match[1]))
        except ValueError:
            pass  # Serve has cut it
    if "No module named" in said:
        return RunError(
            "a replica cannot start: a node has no weightpkg",
            hint='`pip install "weightpkg[ray]"` on every node, in the Python that Ray runs with',
        )
    lines = said.strip().splitlines()
    return RunError(f"a replica cannot start: {lines[-1] if lines else 'Ray does not say why'}")


def _exit_on_sigterm() -> None:
    """Have SIGTERM end the program in order, so that what was started is ended, too."""
    if threading.current_thread() is threading.main_thread():

        def leave(*_: object) -> None:
            raise SystemExit(128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, leave)
