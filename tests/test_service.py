"""What requests for one model must not do to those for others."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from weightpkg.server.counters import Counters
from weightpkg.server.library import Entry
from weightpkg.server.pool import Pool
from weightpkg.server.service import Service
from weightpkg.store import Store

MANY = 100  # more than there are threads


class Model:
    is_idle = is_alive = True

    def close(self) -> None:
        pass


def entry(name: str) -> Entry:
    return Entry(name, Path(name), 0, is_text=True)


def service_of(load: Any) -> Service:
    library: Any = Store
    return Service(library, Pool(load, lambda _: 1, budget=10), Counters())


@pytest.mark.parametrize("fails", [False, True])
def test_those_who_wait_for_a_slow_load_keep_nobody_out(*, fails: bool) -> None:
    may_go = threading.Event()
    loads: list[str] = []

    def load(name: str) -> Model:
        loads.append(name)
        if name == "slow":
            may_go.wait(30)
            if fails:
                raise MemoryError
        return Model()

    async def ask() -> list[Any]:
        service = service_of(load)
        with ExitStack() as stack:
            waiting = [asyncio.create_task(service.open(stack, entry("slow"))) for _ in range(MANY)]
            await asyncio.sleep(0.05)
            for _ in range(3):
                assert await asyncio.wait_for(service.open(stack, entry("quick")), 10)
            assert not any(task.done() for task in waiting)
            may_go.set()
            return await asyncio.gather(*waiting, return_exceptions=True)

    found = asyncio.run(ask())
    assert sorted(loads) == ["quick", "slow"]
    kinds = {type(each) for each in found}
    assert kinds == ({MemoryError} if fails else {Model})


def test_slow_prompts_of_one_model_leave_threads_to_others() -> None:
    may_go = threading.Event()

    async def ask() -> None:
        service = service_of(lambda _: Model())
        slow = [asyncio.create_task(service.in_turn("slow", may_go.wait, 30)) for _ in range(MANY)]
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(service.in_turn("quick", lambda: 3), 10) == 3
        may_go.set()
        assert all(await asyncio.gather(*slow))

    asyncio.run(ask())
