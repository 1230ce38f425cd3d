"""Plugin ``zmq``: the event plane over ZeroMQ, a publisher socket a process.

``ipc://`` in the run folder unless ``DYN_ZMQ_EVENT_HOST`` or ``[plugins.zmq] host`` names an address. A message is three frames:
topic, a little-endian ``u64`` that counts the publisher's messages of that topic from 0, payload. A subscriber that sees a gap in
the count (messages dropped, published before it connected, or by an earlier publisher on the address) is told by ``on_lost``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import zmq

from dynamo_core.config.settings import setting
from dynamo_core.errors import StartupError
from dynamo_core.hookspecs import hookimpl
from dynamo_core.runtime.planes.published import port_of, published_address
from dynamo_core.specs import EventPlaneSpec, PlaneContext

__all__ = ["ZmqConfig", "ZmqEvents", "dynamo_config", "dynamo_event_planes"]

_log = logging.getLogger(__name__)

_COUNT = struct.Struct("<Q")
_QUEUE_MESSAGES = 16_384
"""Kept for one subscriber that does not keep up; what comes after them is dropped and noticed as a gap."""
_BATCH = 256
"""Messages taken from a socket before other callbacks of the loop get their turn."""
_PATH_BYTES = 100
_LOOPBACK = "127.0.0.1"
_HEARTBEAT_MS = 3_000
_SILENCE_MS = 15_000


def _setting(doc: str, *env: str, flag: str) -> msgspec.Meta:
    return setting(doc, *env, flag=flag, commands=("worker", "frontend"))


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]


# fmt: off
class ZmqConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: Annotated[str | None, _setting("Address to publish events on over TCP; ipc in the run folder if not given.", "DYN_ZMQ_EVENT_HOST", flag="zmq-host")] = None
    port: Annotated[Port | None, _setting("Port to publish events on; a free one if not given.", "DYN_ZMQ_EVENT_PORT", flag="zmq-port")] = None
    advertise: Annotated[str | None, _setting("HOST or HOST:PORT that others dial for events; the address itself, or this machine's name for a wildcard.", "DYN_ZMQ_EVENT_ADVERTISE", flag="zmq-advertise")] = None
# fmt: on


class ZmqEvents:
    def __init__(self, config: ZmqConfig, context: PlaneContext) -> None:
        self._config = config
        self._plane = context
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._publisher: zmq.Socket[bytes] | None = None
        self._address = ""
        self._counts: dict[str, int] = {}
        self._sources: dict[str, _Source] = {}
        self._own_folder: str | None = None

    async def start(self) -> None:
        if self._publisher is not None:
            return
        self._context = zmq.Context(io_threads=1)
        publisher = self._context.socket(zmq.PUB)
        publisher.setsockopt(zmq.LINGER, 0)
        publisher.setsockopt(zmq.SNDHWM, _QUEUE_MESSAGES)
        _over_networks(publisher)
        wanted = self._wanted()
        try:
            publisher.bind(wanted)
        except zmq.ZMQError as error:
            publisher.close()
            text = f"cannot publish events on {wanted}: {error.strerror}; change DYN_ZMQ_EVENT_HOST or DYN_RUN_DIR"
            raise StartupError(text) from None
        self._publisher = publisher
        self._address = publisher.getsockopt_string(zmq.LAST_ENDPOINT)
        if wanted.startswith("ipc://"):
            await asyncio.to_thread(Path(wanted.removeprefix("ipc://")).chmod, 0o600)
        else:
            host, port = self._config.host or _LOOPBACK, int(self._address.rpartition(":")[2])
            self._address = f"tcp://{_bracketed(published_address(self._config.advertise, host, port))}"

    async def address(self) -> str:
        return self._address

    def publish(self, topic: str, payload: bytes) -> None:
        if self._publisher is None:
            raise RuntimeError("the event plane is not started")
        count = self._counts.get(topic, 0)
        self._counts[topic] = count + 1
        with contextlib.suppress(zmq.Again):
            self._publisher.send_multipart((topic.encode(), _COUNT.pack(count), payload), zmq.NOBLOCK, copy=True)

    def subscribe(
        self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None = None
    ) -> _Subscription:
        if self._context is None:
            raise RuntimeError("the event plane is not started")
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = _Source(self._context, address, lambda: self._sources.pop(address, None))
        return source.subscribe(topic, callback, on_lost)

    async def close(self) -> None:
        for source in tuple(self._sources.values()):
            source.close()
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None
            if self._address.startswith("ipc://"):
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(Path(self._address.removeprefix("ipc://")).unlink)
        if self._context is not None:
            self._context.term()
            self._context = None
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)

    def _wanted(self) -> str:
        if self._config.host is not None or self._config.port is not None:
            address = f"{self._config.host or _LOOPBACK}:{self._config.port or '*'}"
            return f"tcp://{_bracketed(address)}"
        path = Path(self._plane.run_dir).absolute() / f"{self._plane.instance_id:x}.events"
        if len(os.fsencode(path)) > _PATH_BYTES:
            self._own_folder = tempfile.mkdtemp(prefix="dynamo-")
            path = Path(self._own_folder) / path.name
        return f"ipc://{path}"


class _Subscription:
    def __init__(
        self, source: _Source, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None
    ) -> None:
        self._source = source
        self.topic = topic
        self.callback = callback
        self.on_lost = on_lost
        self.expected = 0

    def receive(self, count: int, payload: bytes) -> None:
        expected, self.expected = self.expected, count + 1
        try:
            if count != expected and self.on_lost is not None:
                self.on_lost()
            self.callback(payload)
        except Exception:  # noqa: BLE001  # one subscriber's bug must not reach the others
            _log.exception("a subscriber of topic %s failed", self.topic)

    def close(self) -> None:
        self._source.unsubscribe(self)


class _Source:
    """The socket that is connected to one publisher. ZeroMQ signals by the edge: after a signal it is read until it is empty."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, forget: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._forget = forget
        self._topics: dict[bytes, list[_Subscription]] = {}
        self._socket = socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVHWM, _QUEUE_MESSAGES)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        _over_networks(socket)
        try:
            socket.connect(address)
        except zmq.ZMQError as error:
            socket.close()
            raise ValueError(f"{address!r} is no address of the event plane zmq: {error.strerror}") from None
        self._descriptor = int(socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._read)

    def subscribe(self, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None) -> _Subscription:
        subscription = _Subscription(self, topic, callback, on_lost)
        subscriptions = self._topics.setdefault(topic.encode(), [])
        if subscriptions:
            subscription.expected = subscriptions[0].expected
        else:
            self._socket.setsockopt_string(zmq.SUBSCRIBE, topic)
            self._loop.call_soon(self._read)  # setting an option may have swallowed the edge
        subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: _Subscription) -> None:
        name = subscription.topic.encode()
        subscriptions = self._topics.get(name, [])
        if subscription in subscriptions:
            subscriptions.remove(subscription)
            if not subscriptions:
                del self._topics[name]
                self._socket.setsockopt_string(zmq.UNSUBSCRIBE, subscription.topic)
                self._loop.call_soon(self._read)
            if not self._topics:
                self.close()

    def close(self) -> None:
        if not self._socket.closed:
            self._loop.remove_reader(self._descriptor)
            self._socket.close()
            self._forget()

    def _read(self) -> None:
        for _ in range(_BATCH):
            if self._socket.closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) != 3 or len(frames[1]) != _COUNT.size:
                _log.warning("an event that is no event was ignored")
                continue
            (count,) = _COUNT.unpack(frames[1])
            for subscription in tuple(self._topics.get(frames[0], ())):
                subscription.receive(count, frames[2])
        self._loop.call_soon(self._read)


def _over_networks(socket: zmq.Socket[bytes]) -> None:
    """IPv6, and a peer that is cut off without a word is dialled again."""
    socket.setsockopt(zmq.IPV6, 1)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _SILENCE_MS)
    socket.setsockopt(zmq.HEARTBEAT_TTL, _SILENCE_MS)


def _bracketed(address: str) -> str:
    """ZeroMQ wants brackets around an IPv6 address."""
    host, _, port = address.rpartition(":")
    return f"[{host}]:{port}" if ":" in host else address


def _from_environment(config: ZmqConfig) -> ZmqConfig:
    environ = os.environ
    port = config.port
    if port is None and (text := environ.get("DYN_ZMQ_EVENT_PORT")):
        port = port_of("DYN_ZMQ_EVENT_PORT", text)
    host = config.host or environ.get("DYN_ZMQ_EVENT_HOST") or None
    advertise = config.advertise or environ.get("DYN_ZMQ_EVENT_ADVERTISE") or None
    return msgspec.structs.replace(config, host=host, port=port, advertise=advertise)


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return ZmqConfig


@hookimpl
def dynamo_event_planes() -> Iterable[EventPlaneSpec]:
    yield EventPlaneSpec(
        name="zmq",
        factory=lambda config, context: ZmqEvents(_from_environment(config or ZmqConfig()), context),
        description="ZeroMQ: ipc on one host, TCP between hosts.",
    )
