"""Counters of a server in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 600.0)


class Metrics:
    """What was asked and sent since the server began; used by one thread alone."""

    def __init__(self) -> None:
        self.sent_bytes: Counter[str] = Counter()
        self.n_requests: Counter[tuple[str, str, int]] = Counter()
        self.n_damaged = 0
        self.n_broken = 0
        self.n_active = 0
        self._seconds: Counter[float] = Counter()
        self._total_s = 0.0

    def note(self, route: str, method: str, status: int, sent: int, seconds: float) -> None:
        """Count an answer.

        Args:
            route: a word of ours for what was asked, never what a client wrote.
            method: `GET`, `HEAD`, or `other`.
            status: what was answered.
            sent: bytes of its body that went out.
            seconds: from the head of the request to the end of the answer.
        """
        self.n_requests[route, method, status] += 1
        self.sent_bytes[route] += sent
        self._total_s += seconds
        self._seconds[next((b for b in _BUCKETS if seconds <= b), float("inf"))] += 1

    def text(self, facts: Mapping[str, int]) -> str:
        """Return all of it; `facts` are gauges by name."""
        return "".join(f"{line}\n" for line in self._lines(facts))

    def _lines(self, facts: Mapping[str, int]) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Requests that were answered.")
        for (route, method, status), n in sorted(self.n_requests.items()):
            labels = f'route="{route}",method="{method}",status="{status}"'
            yield f"weightpkg_mirror_requests_total{{{labels}}} {n}"
        yield from _head("sent_bytes_total", "counter", "Bytes of bodies that went out.")
        for route, n in sorted(self.sent_bytes.items()):
            yield f'weightpkg_mirror_sent_bytes_total{{route="{route}"}} {n}'
        yield from _head("damaged_total", "counter", "Answers that ended as bytes were damaged.")
        yield f"weightpkg_mirror_damaged_total {self.n_damaged}"
        yield from _head("broken_total", "counter", "Answers that clients did not take to the end.")
        yield f"weightpkg_mirror_broken_total {self.n_broken}"
        yield from self._histogram()
        for name, n in {"active_requests": self.n_active, **facts}.items():
            yield from _head(name, "gauge", name.replace("_", " ").capitalize() + ".")
            yield f"weightpkg_mirror_{name} {n}"

    def _histogram(self) -> Iterator[str]:
        yield from _head("request_seconds", "histogram", "How long answers took.")
        total = 0
        for bucket in _BUCKETS:
            total += self._seconds[bucket]
            yield f'weightpkg_mirror_request_seconds_bucket{{le="{bucket:g}"}} {total}'
        total += self._seconds[float("inf")]
        yield f'weightpkg_mirror_request_seconds_bucket{{le="+Inf"}} {total}'
        yield f"weightpkg_mirror_request_seconds_sum {self._total_s:.6f}"
        yield f"weightpkg_mirror_request_seconds_count {total}"


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP weightpkg_mirror_{name} {text}"
    yield f"# TYPE weightpkg_mirror_{name} {kind}"
