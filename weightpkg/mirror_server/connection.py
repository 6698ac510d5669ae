"""A connection that sends files by the system's `sendfile`, which the application gets as an extension.

uvicorn has no way to do so, and none to give up a reader that reads nothing. Tested against uvicorn
0.54; what is used beside its interface are the attributes `app`, `conn` and `transport` of its HTTP/1.1
protocol on h11.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

import h11

from weightpkg.listening.connection import Connection
from weightpkg.mirror_server.app import SENDFILE, Receive, Scope, Send
from weightpkg.mirror_server.checked import CheckedFile, DamagedError

PIECE_SIZE = 1024 * 1024
PIECE_TIMEOUT_S = 60.0  # a client must take 17 kB a second


@dataclass(frozen=True, slots=True)
class _Promised:
    """Stands for bytes that go past h11, so that it counts them."""

    size: int

    def __len__(self) -> int:
        return self.size


class FileConnection(Connection):
    """One connection of a client, by which files go out."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._inner = self.app
        self.app = cast("Any", self._with_sendfile)

    async def _with_sendfile(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["extensions"] = {SENDFILE: self.sendfile}
        await cast("Any", self._inner)(scope, receive, send)

    async def sendfile(self, file: CheckedFile, start: int, end: int) -> None:
        """Send a stretch of a file without copying it through this process.

        Raises:
            ConnectionError: the client has gone, or takes too little; the connection is closed.
            DamagedError: the file has become shorter; the same.
        """
        promised = cast("bytes", cast("Sized", _Promised(end - start)))
        try:
            self.conn.send_with_data_passthrough(h11.Data(data=promised))
        except h11.LocalProtocolError as error:  # it was closed before the answer began
            raise ConnectionError(str(error)) from error
        with open(file.descriptor, "rb", closefd=False, buffering=0) as stream:  # noqa: ASYNC230  it is open already
            while start < end:
                size = min(PIECE_SIZE, end - start)
                try:
                    async with asyncio.timeout(PIECE_TIMEOUT_S):
                        sent = await self.loop.sendfile(self.transport, stream, start, size)
                except (OSError, RuntimeError, TimeoutError) as error:
                    self.transport.abort()
                    raise ConnectionError(str(error)) from error
                if sent < size:
                    self.transport.abort()
                    raise DamagedError(f"`{file.path}`: ends at byte {start + sent:,}")
                start += size
