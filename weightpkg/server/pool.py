"""Models of the server: loaded when somebody asks for one, and unloaded when nobody does.

What is loaded together stays within a budget of memory: whoever was not asked for longest goes
first, and never one that is answering.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


class Served(Protocol):
    """A loaded model."""

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed without anybody noticing."""

    @property
    def is_alive(self) -> bool:
        """Whether it can answer; if not, it is to be loaded anew."""

    def close(self) -> None:
        """Free what it holds."""


class NoRoomError(Exception):
    """A model does not fit beside those that are answering."""


@dataclass(slots=True)
class _Place:
    """A model that is there, or is being loaded."""

    size: int
    users: int = 0
    used: float = 0.0
    model: Served | None = None
    error: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)


class Pool:
    """Loaded models by name; for any number of threads."""

    def __init__(
        self,
        load: Callable[[str], Served],
        size_of: Callable[[str], int],
        *,
        budget: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with none.

        Args:
            load: loads one; its errors come out where it was asked for.
            size_of: how many bytes one will need.
            budget: how many bytes all may need.
            clock: in seconds.
        """
        self._load = load
        self._size_of = size_of
        self._budget = budget
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()

    @contextmanager
    def use(self, name: str) -> Iterator[Served]:
        """Have a model, loading it if it is not there; it stays as long as it is used.

        Raises:
            NoRoomError: it does not fit beside those in use.
        """
        place, is_mine = self._enter(name)
        try:
            if is_mine:
                self._fill(name, place)
            place.ready.wait()
            if place.error is not None:
                raise place.error
            assert place.model is not None  # noqa: S101  it is ready and not in error
            yield place.model
        finally:
            with self._lock:
                place.users -= 1
                place.used = self._clock()

    def _enter(self, name: str) -> tuple[_Place, bool]:
        """Take a place, and say whether it is to be filled by whoever took it."""
        with self._lock:
            if (place := self._join(name)) is not None:
                return place, False
        size = self._size_of(name)  # reads the disk, and so without the lock
        with self._lock:
            if (place := self._join(name)) is not None:
                return place, False
            leaving = self._make_room(size)
            place = self._places[name] = _Place(size, users=1, used=self._clock())
        for model in leaving:
            model.close()
        return place, True

    def _join(self, name: str) -> _Place | None:
        """Take part in a place that is there; one whose model is dead is left to its users."""
        place = self._places.get(name)
        if place is None:
            return None
        if place.model is not None and not place.model.is_alive:
            del self._places[name]
            place.model.close()
            return None
        place.users += 1
        return place

    def _make_room(self, size: int) -> list[Served]:
        """Take out models until `size` bytes are free; the caller closes them."""
        leaving: list[Served] = []
        total = sum(place.size for place in self._places.values())
        by_age = sorted(self._places, key=lambda name: self._places[name].used)
        candidates = [name for name in by_age if _is_unused(self._places[name])]
        freed = sum(self._places[name].size for name in candidates)
        if len(candidates) < len(self._places) and total - freed + size > self._budget:
            raise NoRoomError
        for name in candidates:
            if total + size <= self._budget:
                break
            place = self._places.pop(name)
            total -= place.size
            if place.model is not None:
                leaving.append(place.model)
        return leaving

    def _fill(self, name: str, place: _Place) -> None:
        try:
            place.model = self._load(name)
        except BaseException as error:
            place.error = error
            with self._lock:
                del self._places[name]
            raise
        finally:
            place.ready.set()

    def unload_unused(self, older_than_s: float) -> list[str]:
        """Close models that nobody has asked for so long; return their names."""
        now = self._clock()
        with self._lock:
            names = [
                name
                for name, place in self._places.items()
                if _is_unused(place) and now - place.used >= older_than_s
            ]
            leaving = [self._places.pop(name) for name in names]
        for place in leaving:
            if place.model is not None:
                place.model.close()
        return names

    def loaded(self) -> dict[str, Served]:
        """The models that are ready, by name."""
        with self._lock:
            return {name: p.model for name, p in self._places.items() if p.model is not None}

    def close(self) -> None:
        """Close all of them."""
        with self._lock:
            places, self._places = list(self._places.values()), {}
        for place in places:
            if place.model is not None:
                place.model.close()


def _is_unused(place: _Place) -> bool:
    return not place.users and place.ready.is_set() and (place.model is None or place.model.is_idle)
