"""A request plane with one listener a process and one connection a pair of processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.discovery import Instance
from dynamo_core.contracts.planes import RequestHandler, StreamReceiver
from dynamo_core.errors import CannotConnect, Disconnected, EngineShutdown
from dynamo_core.runtime.planes.client import ClientConnection, ConnectionStream
from dynamo_core.runtime.planes.server import Registration, ServerConnection

__all__ = ["MultiplexPlane"]

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0


class MultiplexPlane(ABC):
    """Everything but the bytes' way: subclasses listen and dial."""

    def __init__(self, instance_id: int) -> None:
        self._instance_id = instance_id
        self._endpoints: dict[str, Registration] = {}
        self._address: asyncio.Task[str] | None = None
        self._accepted: set[ServerConnection] = set()
        self._dialled: dict[str, ClientConnection] = {}
        self._dialling: set[asyncio.Task[None]] = set()
        self._watchers: list[Callable[[str, str], None]] = []
        self._closed = False

    @abstractmethod
    async def _listen(self, accept: Callable[[], ServerConnection]) -> str:
        """Start the listener; returns its address. Raises :class:`~dynamo_core.errors.StartupError`."""

    @abstractmethod
    async def _dial(self, address: str, connection: ClientConnection) -> None:
        """Connect ``connection``. Raises OSError or ValueError (an address that is none)."""

    @abstractmethod
    async def _stop_listening(self) -> None: ...

    async def serve(self, endpoint: str, handler: RequestHandler) -> str:
        if self._address is None:
            self._address = asyncio.create_task(self._listen(self._accept))
        address = await asyncio.shield(self._address)
        self._endpoints[endpoint] = Registration(endpoint, handler)
        return address

    async def unserve(self, endpoint: str) -> None:
        registration = self._endpoints.get(endpoint)
        if registration is None:
            return
        if not registration.closed:
            registration.closed = True
            for connection in self._accepted:
                connection.drain(endpoint)
        await registration.idle()

    def open(self, instance: Instance, request: Any, context: Context, receiver: StreamReceiver) -> ConnectionStream:
        connection = self._dialled.get(instance.address)
        if connection is None:
            connection = self._connection(instance.address)
        endpoint = f"{instance.namespace}.{instance.component}.{instance.endpoint}"
        return connection.open(endpoint, instance.instance_id, request, context, receiver)

    async def connect(self, instance: Instance) -> None:
        connection = self._dialled.get(instance.address) or self._connection(instance.address)
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await connection.answered()
        except TimeoutError:
            raise CannotConnect(f"{instance.address} does not answer") from None
        except Disconnected as error:
            raise CannotConnect(error.message) from None

    def on_gone(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        servers, clients = tuple(self._accepted), tuple(self._dialled.values())
        self._watchers.clear()
        for server in servers:
            server.shut_down(EngineShutdown("the worker shut down"))
        for client in clients:
            client.fail(CannotConnect("this process is shutting down"))
            client.close()
        for task in tuple(self._dialling):
            task.cancel()
        if self._address is not None:
            self._address.cancel()
            await asyncio.gather(self._address, return_exceptions=True)
        await asyncio.gather(*self._dialling, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.gather(*(connection.gone() for connection in (*servers, *clients)))
        for connection in (*servers, *clients):
            connection.abort()  # those whose peer does not read
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._stop_listening()

    def _accept(self) -> ServerConnection:
        return ServerConnection(self._instance_id, self._endpoints, self._accepted)

    def _connection(self, address: str) -> ClientConnection:
        connection = ClientConnection(address, self._gone)
        if self._closed:
            asyncio.get_running_loop().call_soon(connection.fail, CannotConnect("this process is shutting down"))
            return connection
        self._dialled[address] = connection
        task = asyncio.create_task(self._dial_in_time(address, connection))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)
        return connection

    async def _dial_in_time(self, address: str, connection: ClientConnection) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._dial(address, connection)
        except TimeoutError:
            connection.fail(CannotConnect(f"{address} did not accept a connection within {_CONNECT_SECONDS:g} s"))
        except (OSError, ValueError) as error:
            connection.fail(CannotConnect(f"no connection to {address}: {error}"))

    def _gone(self, connection: ClientConnection, endpoint: str) -> None:
        if not endpoint and self._dialled.get(connection.address) is connection:
            del self._dialled[connection.address]
        for watcher in tuple(self._watchers):
            try:
                watcher(connection.address, endpoint)
            except Exception:  # noqa: BLE001  # the streams' receivers must still hear
                _log.exception("a watcher of connections failed")
