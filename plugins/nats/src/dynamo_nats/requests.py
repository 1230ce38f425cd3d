"""The request plane over NATS: frames, credit, cancellation and errors of the core's own planes, on pipes of messages.

A process that serves listens on a subject of its own. Who dials it says ``CONNECT`` there with the subject of the new pipe's near
end; the answer ``ACCEPT`` carries the far end's. All subjects of a process share one subscription.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable

from nats.aio.msg import Msg

from dynamo_core.errors import StartupError
from dynamo_core.runtime.planes import EVENTS_ENDPOINT, ClientConnection, MultiplexPlane, ServerConnection
from dynamo_core.specs import PlaneContext
from dynamo_nats.link import Link, base_subject
from dynamo_nats.options import NatsConfig
from dynamo_nats.pipe import HEADER_BYTES, Kind, Pipe, pack, unpack

__all__ = ["NatsRequests"]

_log = logging.getLogger(__name__)

_DOOR = "connect"


class NatsRequests(MultiplexPlane):
    def __init__(self, config: NatsConfig, context: PlaneContext) -> None:
        super().__init__(context.instance_id)
        self._config = config
        self._subject = f"{config.prefix}.rpc.{context.instance_id:x}-{secrets.token_hex(4)}"
        self._pipes: dict[str, Pipe] = {}
        self._names = 0
        self._full = False
        self._accepts: Callable[[], ServerConnection] | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._ticker: asyncio.Task[None] | None = None

    @property
    def out_since(self) -> float | None:
        """Monotonic time since which NATS is out of reach."""
        opening = self._opening
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        return opening.result().out_since

    async def _listen(self, accept: Callable[[], ServerConnection]) -> str:
        await self._open_link()
        self._accepts = accept
        return f"nats:{self._subject}"

    async def _dial(self, address: str, connection: ClientConnection) -> None:
        door = f"{base_subject(address)}.{_DOOR}"
        try:
            link = await self._open_link()
        except StartupError as error:
            raise OSError(error.message) from None
        if not link.up:
            raise OSError("NATS is out of reach")
        pipe = self._pipe(link, connection, door)
        pipe.accepted = asyncio.get_running_loop().create_future()
        link.publish(door, pack(Kind.CONNECT), pipe.own)
        try:
            await pipe.accepted
        except asyncio.CancelledError:
            pipe.close()
            raise
        self._connect(pipe)

    async def _stop_listening(self) -> None:
        opening, self._opening = self._opening, None
        self._accepts = None
        if opening is None:
            return
        if self._ticker is not None:
            self._ticker.cancel()
        opening.cancel()
        (link,) = await asyncio.gather(opening, return_exceptions=True)
        if isinstance(link, Link):
            await link.close()

    # --- the link ------------------------------------------------------------------------------------------------------------

    async def _open_link(self) -> Link:
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._make_link())
        return await asyncio.shield(self._opening)

    async def _make_link(self) -> Link:
        link = Link(self._config, on_lost=self._lost, on_full=self._hold)
        await link.connect()
        try:
            if link.max_payload <= HEADER_BYTES:
                raise StartupError(
                    f"NATS allows messages of {link.max_payload} bytes, which is too little: raise its max_payload"
                )
            await link.subscribe(f"{self._subject}.*", lambda message: self._receive(link, message))
        except BaseException:
            await link.close()
            raise
        self._ticker = asyncio.create_task(self._tick())
        return link

    def _lost(self) -> None:
        if self._opening is not None and self._opening.done():
            self._opening.result().clear()
        self._full = False
        for pipe in tuple(self._pipes.values()):
            pipe.end(ConnectionResetError("the connection to NATS was lost"))

    async def _tick(self) -> None:
        config = self._config
        while True:
            await asyncio.sleep(config.heartbeat_secs)
            for pipe in tuple(self._pipes.values()):
                pipe.look(active=_serves(pipe.protocol), heartbeat=config.heartbeat_secs, timeout=config.peer_timeout_secs)

    def _hold(self, full: bool) -> None:
        self._full = full
        for pipe in tuple(self._pipes.values()):
            if full:
                pipe.protocol.pause_writing()
            else:
                pipe.protocol.resume_writing()

    # --- pipes ---------------------------------------------------------------------------------------------------------------

    def _pipe(self, link: Link, protocol: ClientConnection | ServerConnection, peer: str) -> Pipe:
        self._names += 1
        name = f"{self._names:x}"
        pipe = Pipe(link, protocol, f"{self._subject}.{name}", peer, lambda: self._forget(name))
        self._pipes[name] = pipe
        return pipe

    def _forget(self, name: str) -> None:
        self._pipes.pop(name, None)

    def _connect(self, pipe: Pipe) -> None:
        pipe.protocol.connection_made(pipe)
        if self._full:
            pipe.protocol.pause_writing()

    def _receive(self, link: Link, message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        pipe = self._pipes.get(name)
        if not message.data:
            if pipe is not None and (message.headers or {}).get("Status") == "503":
                pipe.end(ConnectionRefusedError("nobody listens there"))
            return
        try:
            kind, number, data = unpack(message.data)
        except ValueError as error:
            _log.warning("garbage on %s of the request plane is ignored: %s", message.subject, error)
            if pipe is not None:
                pipe.fail("garbage arrived")
            return
        if name == _DOOR:
            self._knocked(link, kind, message.reply)
        elif pipe is None:
            if kind is not Kind.FIN and message.reply:
                link.publish(message.reply, pack(Kind.FIN))
        elif kind is Kind.ACCEPT:
            self._accepted_by(pipe, message.reply)
        else:
            pipe.take(kind, number, data)

    def _knocked(self, link: Link, kind: Kind, reply: str) -> None:
        if self._accepts is not None and kind is Kind.CONNECT and reply:
            pipe = self._pipe(link, self._accepts(), reply)
            link.publish(reply, pack(Kind.ACCEPT), pipe.own)
            self._connect(pipe)

    def _accepted_by(self, pipe: Pipe, peer: str) -> None:
        if pipe.accepted is not None and not pipe.accepted.done() and peer:
            pipe.peer = peer
            pipe.accepted.set_result(None)


def _serves(protocol: ClientConnection | ServerConnection) -> bool:
    """Requests run there; streams of events always do."""
    return any(stream.endpoint != EVENTS_ENDPOINT for stream in protocol.streams.values())
