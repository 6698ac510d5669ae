"""`https:` sources: a file at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightpkg.package import HttpsSource
from weightpkg.sources import Stream
from weightpkg.sources.transport import Transport


class HttpsOpener:
    """Opens URLs over a transport that is shared with other kinds of sources."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @contextmanager
    def open(self, source: HttpsSource) -> Iterator[Stream]:
        """Open the URL.

        Raises:
            FetchError: it cannot be had.
        """
        with self._transport.get(source.text) as body:
            yield Stream(body.size, body.pieces)
