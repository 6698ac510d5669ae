"""What routes do: find a model, have it loaded, have prompts answered.

Answers are made in the engines' threads; what a route waits for comes through a queue of its own
event loop. A client that goes away takes its answer with it: the row is free at the next step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ParamSpec, TypeVar

from weightpkg.errors import RunError
from weightpkg.run.constraint import Constraint
from weightpkg.server.completion import Completion, End, Event, Options
from weightpkg.server.counters import Counters
from weightpkg.server.engine import FullError
from weightpkg.server.library import Entry, Library
from weightpkg.server.pool import NoRoomError, Pool
from weightpkg.server.served import TextModel
from weightpkg.server.wire import RequestError

_RETRY_AFTER_S = 2
_THREADS = 2  # for each model, of the few that the event loop has

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(slots=True)
class Answers:
    """The answers to one request.

    events: of all of them, each with the number of its answer, in the order in which they came.
    """

    completions: list[Completion]
    n_prompt: int
    events: asyncio.Queue[tuple[int, Event]]
    n_tokens: int = 0

    async def __aiter__(self) -> AsyncIterator[tuple[int, Event]]:
        """Yield until all have ended; whoever stops earlier has them end, too."""
        left = len(self.completions)
        try:
            while left:
                i, event = await self.events.get()
                if isinstance(event, RunError):
                    raise event
                if isinstance(event, End):
                    left -= 1
                    self.n_tokens += event.n_tokens
                yield i, event
        finally:
            for each in self.completions:
                each.is_cancelled = True


class Post:
    """Carries events from engines' threads to the event loop, all of a step at one waking.

    To wake the loop is a system call, for which an engine would have to wait: one a token was 2 % of
    its time with eight answers.
    """

    def __init__(self) -> None:
        """Serve the event loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._events: list[tuple[asyncio.Queue[tuple[int, Event]], int, Event]] = []

    def send(self, queue: asyncio.Queue[tuple[int, Event]], i: int, event: Event) -> None:
        """Put an event of the answer number `i` into a queue, from any thread, soon."""
        with self._lock:
            self._events.append((queue, i, event))
            is_first = len(self._events) == 1
        if is_first:
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            events, self._events = self._events, []
        for queue, i, event in events:
            queue.put_nowait((i, event))


class Service:
    """What the routes do, over a library of models and the pool of those that are loaded."""

    def __init__(self, library: Library, pool: Pool, counters: Counters) -> None:
        self.library = library
        self.pool = pool
        self.counters = counters
        self._post: Post | None = None
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._turns = defaultdict[str, asyncio.Semaphore](partial(asyncio.Semaphore, _THREADS))

    def entry(self, name: str, *, is_text: bool) -> Entry:
        """Return a model that can do what is asked.

        Raises:
            RequestError: there is none, or it cannot.
        """
        entry = self.library.find(name)
        if entry is None:
            known = ", ".join(f"`{each}`" for each in list(self.library.entries())[:10])
            raise RequestError(
                404,
                f"the model `{name}` is not served here; there is {known or 'none'}",
                code="model_not_found",
                param="model",
            )
        if entry.is_text != is_text:
            does = "writes text" if entry.is_text else "makes vectors"
            raise RequestError(400, f"the model `{entry.name}` {does}", param="model")
        return entry

    async def open(self, stack: ExitStack, entry: Entry) -> Any:
        """Have a model, loaded if need be, as long as the stack is open."""
        try:
            if entry.name not in self.pool.loaded():
                await asyncio.shield(self._loading(entry.name))
            return await asyncio.to_thread(stack.enter_context, self.pool.use(entry.name))
        except NoRoomError as error:
            raise RequestError(
                503,
                f"there is no memory for `{entry.name}` beside the models that are answering",
                kind="server_error",
                headers={"Retry-After": "30"},
            ) from error

    def _loading(self, name: str) -> asyncio.Task[None]:
        """One load for all who wait for it: they take no threads that others need meanwhile."""
        if name not in self._loads:
            task = asyncio.create_task(asyncio.to_thread(self._load, name))
            task.add_done_callback(lambda _: self._loads.pop(name))
            self._loads[name] = task
        return self._loads[name]

    def _load(self, name: str) -> None:
        with self.pool.use(name):
            pass

    async def in_turn(
        self, name: str, work: Callable[P, T], *arguments: P.args, **named: P.kwargs
    ) -> T:
        """Have a model's work done in a thread; however slow it is, some are left for others."""
        async with self._turns[name]:
            return await asyncio.to_thread(work, *arguments, **named)

    @contextmanager
    def room(self, model: TextModel, count: int) -> Iterator[None]:
        """Keep room for so many answers until they are asked for; RequestError if there is none."""
        if count > model.n_most:
            reason = f"{count} answers were asked for at once, and at most {model.n_most} are given"
            raise RequestError(400, reason, param="n")
        with ExitStack() as stack:
            try:
                stack.enter_context(model.engine.room(count))
            except FullError as error:
                raise RequestError(
                    429,
                    "too many requests are waiting",
                    kind="rate_limit_error",
                    code="rate_limit_exceeded",
                    headers={"Retry-After": str(_RETRY_AFTER_S)},
                ) from error
            yield

    async def ask(
        self,
        model: TextModel,
        prompts: Sequence[Sequence[int]],
        options: Sequence[Options],
        constraint: Constraint | None = None,
    ) -> Answers:
        """Have prompts answered: of each, one answer for each of `options`, of the same form.

        Raises:
            ConstraintError: the form is not valid.
        """
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._post = self._post or Post()
        pairs = [(prompt, each) for prompt in prompts for each in options]
        tellers = [partial(self._post.send, events, i) for i in range(len(pairs))]

        def prepare() -> list[Completion]:
            told = zip(pairs, tellers, strict=True)
            return [model.completion(p, o, tell, constraint) for (p, o), tell in told]

        # a form takes a while to compile, and then waits for its turn
        completions = prepare() if constraint is None else await asyncio.to_thread(prepare)
        model.engine.submit(*completions)
        return Answers(completions, sum(map(len, prompts)), events)

    def count(self, entry: Entry, answers: Answers) -> None:
        """Count the tokens of answers."""
        self.counters.add("weightpkg_prompt_tokens_total", answers.n_prompt, model=entry.name)
        self.counters.add("weightpkg_generated_tokens_total", answers.n_tokens, model=entry.name)
