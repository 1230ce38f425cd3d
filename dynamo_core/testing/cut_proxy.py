"""A network to cut: a proxy on the loopback that stops forwarding and tells nobody."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

__all__ = ["CutProxy"]


class CutProxy:
    """Forwards connections to ``127.0.0.1:port``.

    While it is cut in a direction, what is sent that way is held, an end of stream too: no FIN, no RST, as when a cable is
    pulled. It arrives when the cut heals. ``target`` may be set before the first connection.
    """

    def __init__(self, port: int = 0) -> None:
        self.target = port
        self.port = 0
        """Where it listens, from :meth:`start` on."""
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.heal()

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """``up`` is the way from who connects to who listens."""
        for wanted, gate in ((up, self._up), (down, self._down)):
            if wanted:
                gate.clear()

    def heal(self) -> None:
        self._up.set()
        self._down.set()

    async def start(self) -> int:
        """Listen on a free port, which is returned."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # for the type checker
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # by close(): start_server's own callback would report it
            await self._connect(reader, writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            await self._up.wait()
            beyond_reader, beyond = await asyncio.open_connection("127.0.0.1", self.target)
            writers.append(beyond)
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(reader, beyond, self._up))
                both.create_task(_pump(beyond_reader, writer, self._down))
        except* OSError:
            pass  # one side ended: so does the other
        finally:
            for one in writers:
                one.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event) -> None:
    while data := await reader.read(65536):
        await gate.wait()
        writer.write(data)
        await writer.drain()
    await gate.wait()
    writer.write_eof()
