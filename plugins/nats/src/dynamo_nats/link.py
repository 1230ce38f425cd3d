"""One connection to NATS, written to from callbacks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
from collections import deque
from collections.abc import Callable

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error

from dynamo_core.errors import StartupError
from dynamo_nats.options import NatsConfig

__all__ = ["Interest", "Link", "base_subject"]

_log = logging.getLogger(__name__)

_SUBJECT = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_RECONNECT_SECONDS = 0.2
_CONNECT_SECONDS = 2
_PING_SECONDS = 5
"""NATS's own, to the server: one that is gone without a word is noticed within three of them."""
_CLOSE_SECONDS = 1.0
_FULL_BYTES = 1024 * 1024


def base_subject(address: str) -> str:
    """The subject in an address of discovery, ``nats:subject``. Raises ValueError."""
    kind, _, subject = address.partition(":")
    if kind != "nats" or not _SUBJECT.fullmatch(subject):
        raise ValueError(f"{address!r} is no address of NATS")
    return subject


class Interest:
    """A subscription that outlives connections."""

    __slots__ = ("callback", "joined", "subject")

    def __init__(self, subject: str, callback: Callable[[Msg], None]) -> None:
        self.subject = subject
        self.callback = callback
        self.joined: Subscription | None = None

    async def receive(self, message: Msg) -> None:
        self.callback(message)


class Link:
    """``publish`` queues; what is queued leaves in order. ``queued`` is in bytes. While NATS is away the queue stands.

    ``on_lost`` and ``on_back`` are called when the connection breaks and when it is made again, ``on_full`` with True when more
    than a MiB is queued and with False when most of it has left.
    """

    def __init__(
        self,
        config: NatsConfig,
        *,
        on_lost: Callable[[], None] = lambda: None,
        on_back: Callable[[], None] = lambda: None,
        on_full: Callable[[bool], None] = lambda _full: None,
    ) -> None:
        self.queued = 0
        self._config = config
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_full = on_full
        self._full = False
        self._client = Client()
        self._tls: ssl.SSLContext | None = None
        self._interests: list[Interest] = []
        self._queue: deque[tuple[str, bytes, str]] = deque()
        self._filled = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._up = asyncio.Event()
        self._lost_at: float | None = None
        self._writer: asyncio.Task[None] | None = None
        self._opener: asyncio.Task[None] | None = None
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reason = "no answer"

    @property
    def out_since(self) -> float | None:
        """Monotonic time since which NATS is out of reach."""
        return None if self._up.is_set() else self._lost_at

    @property
    def up(self) -> bool:
        return self._up.is_set()

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    async def connect(self) -> None:
        """Raises StartupError."""
        config = self._config
        where = ", ".join(config.servers)
        self._tls = await asyncio.to_thread(_tls_context, config)
        connecting = asyncio.create_task(self._dial())
        try:
            await asyncio.wait(
                (connecting, self._refused), timeout=config.connect_timeout_secs, return_when=asyncio.FIRST_COMPLETED
            )
            if connecting.done():
                await connecting
            elif self._refused.done():
                reason = self._refused.result()
                raise StartupError(f"NATS at {where} refuses this process ({reason}): set NATS_AUTH_USERNAME or its like")
            else:
                seconds = f"{config.connect_timeout_secs:g} s"
                raise StartupError(f"no NATS answers within {seconds} at {where} ({self._reason}): start it, or set NATS_SERVER")
        except ImportError as error:
            raise StartupError(
                f"credentials and nkeys for NATS need a module that is not here ({error}): pip install nkeys"
            ) from None
        except (OSError, Error, ValueError) as error:
            raise StartupError(f"no connection to NATS at {where} ({error}): set NATS_SERVER") from None
        finally:
            if not self._client.is_connected:
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                await self._client.close()
        self._up.set()
        self._writer = asyncio.create_task(self._write())

    def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.queued += len(payload)
        self._queue.append((subject, payload, reply))
        self._filled.set()
        self._empty.clear()
        if not self._full and self.queued > _FULL_BYTES:
            self._full = True
            self._on_full(True)

    def drop_oldest(self) -> None:
        if self._queue:
            self.queued -= len(self._queue.popleft()[1])

    def clear(self) -> None:
        self._queue.clear()
        self.queued = 0
        self._full = False

    async def subscribe(self, subject: str, callback: Callable[[Msg], None]) -> Interest:
        interest = Interest(subject, callback)
        self._interests.append(interest)
        await self._join(interest)
        return interest

    async def unsubscribe(self, interest: Interest) -> None:
        if interest in self._interests:
            self._interests.remove(interest)
            if interest.joined is not None:
                with contextlib.suppress(Error, OSError):
                    await interest.joined.unsubscribe()

    async def _join(self, interest: Interest) -> None:
        try:
            interest.joined = await self._client.subscribe(interest.subject, cb=interest.receive)
        except (Error, OSError) as error:
            _log.debug("the subscription to %s waits for NATS: %s", interest.subject, error)

    async def close(self) -> None:
        """What is queued leaves first, if it can."""
        if self._writer is None:
            return
        with contextlib.suppress(TimeoutError, Error):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._empty.wait()
                await self._client.flush()
        tasks = [task for task in (self._writer, self._opener) if task is not None]
        self._writer = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError, Error, OSError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._client.close()

    async def _dial(self) -> None:
        config = self._config
        await self._client.connect(
            servers=list(config.servers),
            name="dynamo",
            error_cb=self._failed,
            disconnected_cb=self._lost,
            reconnected_cb=self._back,
            closed_cb=self._closed,
            connect_timeout=_CONNECT_SECONDS,
            reconnect_time_wait=_RECONNECT_SECONDS,  # type: ignore[arg-type]  # seconds for asyncio.sleep
            max_reconnect_attempts=-1,
            ping_interval=_PING_SECONDS,
            tls=self._tls,
            user=config.username,
            password=config.password,
            token=config.token,
            user_credentials=config.credentials,
            nkeys_seed=config.nkey,
        )

    async def _write(self) -> None:
        queue = self._queue
        while True:
            await self._filled.wait()
            await self._up.wait()
            if not queue:
                self._filled.clear()
                self._empty.set()
                continue
            subject, payload, reply = queue.popleft()
            self.queued -= len(payload)
            try:
                await self._client.publish(subject, payload, reply)
            except (Error, OSError) as error:
                _log.debug("a message to %s was lost: %s", subject, error)
            if self._full and self.queued < _FULL_BYTES // 4:
                self._full = False
                self._on_full(False)

    async def _failed(self, error: Exception) -> None:
        self._reason = str(error) or type(error).__name__
        if "auth" in self._reason.lower() and not self._refused.done():
            self._refused.set_result(self._reason)
        _log.debug("NATS: %s", self._reason)

    async def _lost(self) -> None:
        if self._up.is_set():
            self._up.clear()
            self._lost_at = time.monotonic()
            if self._writer is not None:
                _log.warning("the connection to NATS at %s was lost", ", ".join(self._config.servers))
            self._on_lost()

    async def _back(self) -> None:
        if not self._up.is_set():
            _log.warning("NATS at %s is back", ", ".join(self._config.servers))
            self._up.set()
            self._on_back()

    async def _closed(self) -> None:
        """The client gives up for good when the server says why it ends the connection, as to a slow consumer."""
        if self._writer is not None and (self._opener is None or self._opener.done()):
            self._opener = asyncio.create_task(self._open_again())

    async def _open_again(self) -> None:
        while True:
            await asyncio.sleep(_RECONNECT_SECONDS)
            self._client = Client()
            try:
                await self._dial()
                break
            except (OSError, Error) as error:
                _log.debug("NATS: %s", error)
        for interest in tuple(self._interests):
            await self._join(interest)
        await self._back()


def _tls_context(config: NatsConfig) -> ssl.SSLContext | None:
    wanted = any(server.startswith("tls:") for server in config.servers)
    if not wanted and config.tls_ca is None and config.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(cafile=config.tls_ca)
        if config.tls_cert is not None:
            context.load_cert_chain(config.tls_cert, config.tls_key)
    except OSError as error:
        raise StartupError(f"the certificates for NATS cannot be used: {error}; look at tls_ca, tls_cert and tls_key") from None
    return context
