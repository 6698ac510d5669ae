"""What the server counts, for Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping

Labels = tuple[tuple[str, str], ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_HELP = {
    "weightpkg_requests_total": ("counter", "Requests answered, by route and status."),
    "weightpkg_prompt_tokens_total": ("counter", "Tokens of prompts, by model."),
    "weightpkg_generated_tokens_total": ("counter", "Tokens of answers, by model."),
    "weightpkg_request_seconds_total": ("counter", "Seconds from request to answer, by route."),
    "weightpkg_replica_requests_total": ("counter", "Requests answered, by replica."),
    "weightpkg_waiting": ("gauge", "Requests that wait for a row, by model."),
    "weightpkg_loaded": ("gauge", "1 for each model that is loaded."),
}


class Counters:
    """Numbers that only go up, by name and labels; for any number of threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: defaultdict[tuple[str, Labels], float] = defaultdict(float)

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a number."""
        with self._lock:
            self._values[name, tuple(sorted(labels.items()))] += value

    def take(self) -> dict[tuple[str, Labels], float]:
        """Return all of them, and begin again at 0."""
        with self._lock:
            values, self._values = self._values, defaultdict(float)
        return dict(values)

    def text(self, gauges: Mapping[tuple[str, str], float]) -> str:
        """Return all of them, and values of this moment by name and model."""
        with self._lock:
            values = dict(self._values)
        for (name, model), value in gauges.items():
            values[name, (("model", model),)] = value
        return "\n".join(_lines(values)) + "\n"


def _lines(values: Mapping[tuple[str, Labels], float]) -> Iterator[str]:
    for name, (kind, text) in _HELP.items():
        rows = sorted((labels, value) for (each, labels), value in values.items() if each == name)
        if rows:
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
        for labels, value in rows:
            inner = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
            yield f"{name}{{{inner}}} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
