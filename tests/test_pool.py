"""Models that come and go: one load for many, a budget of memory, nothing closed under anybody."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from weightpkg.errors import RunError
from weightpkg.server.pool import NoRoomError, Pool


class Loaded:
    def __init__(self, name: str) -> None:
        self.name = name
        self.is_idle = True
        self.is_alive = True
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


class Loader:
    def __init__(self) -> None:
        self.loaded: list[Loaded] = []
        self.wait_s = 0.0
        self.error: BaseException | None = None

    def __call__(self, name: str) -> Loaded:
        time.sleep(self.wait_s)
        if self.error:
            raise self.error
        self.loaded.append(Loaded(name))
        return self.loaded[-1]

    def pool(self, budget: int = 100) -> Pool:
        self.now_s = 0.0
        return Pool(self, lambda name: int(name[1:]), budget=budget, clock=lambda: self.now_s)


def test_many_who_ask_at_once_share_one_load() -> None:
    loader = Loader()
    loader.wait_s = 0.05
    pool = loader.pool()

    def ask(_: int) -> object:
        with pool.use("a10") as model:
            return model

    with ThreadPoolExecutor(8) as executor:
        models = set(executor.map(ask, range(32)))
    assert models == {loader.loaded[0]}
    assert len(loader.loaded) == 1


def test_whoever_was_not_asked_for_longest_makes_room() -> None:
    loader = Loader()
    pool = loader.pool(100)
    for name in ("a40", "b40", "c20"):
        loader.now_s += 1
        with pool.use(name):
            pass
    loader.now_s += 1
    with pool.use("a40"):
        pass
    with pool.use("d30"):
        assert set(pool.loaded()) == {"a40", "c20", "d30"}
    assert [model.name for model in loader.loaded if model.is_closed] == ["b40"]


def test_nobody_who_is_in_use_makes_room() -> None:
    loader = Loader()
    pool = loader.pool(100)
    with pool.use("a80"):
        with pytest.raises(NoRoomError), pool.use("b30"):
            pass
        assert not loader.loaded[0].is_closed
    loader.loaded[0].is_idle = False  # answers go on in its thread
    with pytest.raises(NoRoomError), pool.use("b30"):
        pass
    loader.loaded[0].is_idle = True
    with pool.use("b30"):
        assert set(pool.loaded()) == {"b30"}


def test_one_that_is_larger_than_all_memory_is_tried_alone() -> None:
    """An estimate is no promise: what is asked for alone may have all there is."""
    pool = Loader().pool(100)
    with pool.use("a500"):
        assert set(pool.loaded()) == {"a500"}
        with pytest.raises(NoRoomError), pool.use("b1"):
            pass
    with pool.use("b600"):
        assert set(pool.loaded()) == {"b600"}


def test_a_load_that_fails_is_told_to_all_who_wait_and_is_tried_again() -> None:
    loader = Loader()
    loader.error, loader.wait_s = RunError("broken"), 0.05
    pool = loader.pool()

    def ask(_: int) -> bool:
        with pytest.raises(RunError, match="broken"), pool.use("a10"):
            pass
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(ask, range(4)))
    loader.error = None
    with pool.use("a10") as model:
        assert model is loader.loaded[0]


def test_idle_models_leave() -> None:
    loader = Loader()
    pool = loader.pool()
    with pool.use("a10"):
        pass
    loader.now_s = 50
    with pool.use("b10"):
        pass
    loader.now_s = 70
    with pool.use("c10"):
        assert pool.unload_unused(60) == ["a10"]
    loader.now_s = 1000
    loader.loaded[1].is_idle = False
    assert pool.unload_unused(60) == ["c10"]
    pool.close()
    assert all(model.is_closed for model in loader.loaded)


def test_two_of_which_one_fits_take_turns_and_do_not_wait_for_ever() -> None:
    loader = Loader()
    pool = loader.pool(100)
    refused = threading.Event()

    def ask(name: str) -> None:
        for _ in range(50):
            try:
                with pool.use(name):
                    time.sleep(0.001)
            except NoRoomError:
                refused.set()

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(ask, ["a80", "b80", "a80", "b80"]))
    assert sum(not model.is_closed for model in loader.loaded) <= 1


def test_a_model_that_died_is_loaded_anew() -> None:
    loader = Loader()
    pool = loader.pool()
    with pool.use("a10") as first:
        loader.loaded[0].is_alive = False
        with pool.use("a10") as second:
            assert second is not first
    with pool.use("a10") as third:
        assert third is second
    assert [model.is_closed for model in loader.loaded] == [True, False]
