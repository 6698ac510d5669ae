"""`https:` sources: a file at a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightpkg.package import HttpsSource
from weightpkg.sources import Content
from weightpkg.sources.remote import open_remote
from weightpkg.sources.transport import Transport, redacted


class HttpsOpener:
    """Opens URLs over a transport that is shared with other kinds of sources."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @contextmanager
    def open(
        self, source: HttpsSource, start: int = 0, end: int | None = None
    ) -> Iterator[Content]:
        """Open the URL.

        Raises:
            FetchError: it cannot be had.
        """
        name = redacted(source.text)
        with open_remote(self._transport, source.text, name, start, end) as content:
            yield content
