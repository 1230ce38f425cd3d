"""uvicorn, run as part of a larger program: no signal handlers, no log configuration, one socket that somebody else bound."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from litestar.types import ASGIApp

from dynamo_core.http.protocol import HttpProtocol

__all__ = ["HttpServer", "server_config"]

_KEEP_ALIVE_SECONDS = 75
_FIRST_WORD_SECONDS = 0.5
"""What a connection that was just made gets to send its request, when the server ends."""
_LOOK_SECONDS = 0.02


def server_config(app: ASGIApp, *, grace: float = 0, backlog: int = 4096, tls: tuple[str, str] | None = None) -> uvicorn.Config:
    """uvicorn's settings wherever it runs. ``tls``: paths of certificate and key."""
    return uvicorn.Config(
        cast("Any", app),
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # Who stands before the server is asked for only where somebody said whom to believe; unasked it costs every request.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        backlog=backlog,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
        timeout_graceful_shutdown=math.ceil(grace),
    )


class HttpServer:
    """Serves one application on one listening socket until it is stopped. ``tls``: paths of certificate and key."""

    def __init__(
        self, app: ASGIApp, sock: socket.socket, *, grace: float, backlog: int = 4096, tls: tuple[str, str] | None = None
    ) -> None:
        self._server = _Server(server_config(app, grace=grace, backlog=backlog, tls=tls))
        self._sock = sock
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        port: int = self._sock.getsockname()[1]
        return port

    async def start(self) -> None:
        """Returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._sock]), name="http server")
        up = asyncio.create_task(self._server.up.wait())
        await asyncio.wait((self._task, up), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if self._task.done():
            self._task.result()

    async def stop(self) -> None:
        """Accept nothing more, give running requests their grace time, cut the others off."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task

    async def wait(self) -> None:
        """Until the server ends by itself, which it does not do in good health."""
        if self._task is not None:
            await asyncio.shield(self._task)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the business of the process, which stops its frontend."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._take_last_arrivals(sockets or [])
        await super().shutdown(sockets)

    async def _take_last_arrivals(self, sockets: list[socket.socket]) -> None:
        """Close the door behind those who stand in it: a listening socket that is closed resets what it has not accepted, and
        a connection that has sent nothing yet would be closed although its request is on its way."""
        arrivals: list[socket.socket] = []
        for sock in sockets:
            with contextlib.suppress(OSError):  # nobody else is there
                while True:
                    arrivals.append(sock.accept()[0])
        for server in self.servers:
            server.close()
        loop, config = asyncio.get_running_loop(), self.config
        for arrival in arrivals:
            arrival.setblocking(False)
            with contextlib.suppress(OSError):  # it left again
                await loop.connect_accepted_socket(self._protocol, arrival, ssl=config.ssl)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WORD_SECONDS):
                while any(getattr(connection, "cycle", self) is None for connection in self.server_state.connections):  # noqa: ASYNC110  # uvicorn tells nobody
                    await asyncio.sleep(_LOOK_SECONDS)

    def _protocol(self) -> asyncio.Protocol:
        make = cast("Any", self.config.http_protocol_class)
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
        )
        return protocol
