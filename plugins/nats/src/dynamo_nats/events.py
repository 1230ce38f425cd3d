"""The event plane over core NATS: a subject a publisher and topic, a number in front of each payload.

The number is a little-endian ``u64`` that counts the publisher's payloads of that topic from 0. A subscriber that sees a gap
(payloads dropped by NATS or by the publisher's full queue, published before the subscription, or by an earlier publisher) is
told by ``on_lost``; so is every subscriber when the connection to NATS was lost and is back.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import struct
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import quote

from nats.aio.msg import Msg

from dynamo_core.specs import PlaneContext
from dynamo_nats.link import Interest, Link, base_subject
from dynamo_nats.options import NatsConfig

__all__ = ["NatsEvents"]

_log = logging.getLogger(__name__)

_COUNT = struct.Struct("<Q")
_QUEUE_BYTES = 16 * 1024 * 1024
"""Kept while NATS does not keep up; beyond it the oldest payloads are dropped, and noticed as a gap."""


class NatsEvents:
    def __init__(self, config: NatsConfig, context: PlaneContext) -> None:
        self._config = config
        self._subject = f"{config.prefix}.events.{context.instance_id:x}-{secrets.token_hex(4)}"
        self._link: Link | None = None
        self._counts: dict[str, int] = {}
        self._sources: dict[str, _Source] = {}
        """By subject: all subscriptions to a publisher's topic share one of NATS."""
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def out_since(self) -> float | None:
        """Monotonic time since which NATS is out of reach."""
        return None if self._link is None else self._link.out_since

    async def start(self) -> None:
        if self._link is None:
            link = Link(self._config, on_back=self._back)
            await link.connect()
            self._link = link

    async def address(self) -> str:
        return f"nats:{self._subject}"

    def publish(self, topic: str, payload: bytes) -> None:
        link = self._started()
        count = self._counts.get(topic, 0)
        self._counts[topic] = count + 1
        if len(payload) + _COUNT.size > link.max_payload:
            _log.error(
                "an event of topic %s is dropped: NATS takes at most %d bytes, it has %d", topic, link.max_payload, len(payload)
            )
            return
        link.publish(f"{self._subject}.{_token(topic)}", _COUNT.pack(count) + payload)
        while link.queued > _QUEUE_BYTES:
            link.drop_oldest()

    def subscribe(
        self, address: str, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None = None
    ) -> _Subscription:
        """Raises ValueError for an address that is none of NATS."""
        link = self._started()
        subject = f"{base_subject(address)}.{_token(topic)}"
        source = self._sources.get(subject)
        if source is None:
            source = self._sources[subject] = _Source(subject, lambda source: self._leave(link, source))
            self._own(self._join(link, source))
        subscription = _Subscription(source, callback, on_lost)
        source.subscriptions.append(subscription)
        return subscription

    async def close(self) -> None:
        link, self._link = self._link, None
        for source in tuple(self._sources.values()):
            for subscription in tuple(source.subscriptions):
                subscription.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if link is not None:
            await link.close()

    async def _join(self, link: Link, source: _Source) -> None:
        interest = await link.subscribe(source.subject, source.receive)
        if source.subscriptions:
            source.interest = interest
        else:
            await link.unsubscribe(interest)

    def _leave(self, link: Link, source: _Source) -> None:
        if self._sources.get(source.subject) is source:
            del self._sources[source.subject]
        if source.interest is not None:
            self._own(link.unsubscribe(source.interest))

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _back(self) -> None:
        for source in tuple(self._sources.values()):
            source.lost()

    def _started(self) -> Link:
        if self._link is None:
            raise RuntimeError("the event plane is not started")
        return self._link


class _Subscription:
    def __init__(self, source: _Source, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None) -> None:
        self.callback = callback
        self.on_lost = on_lost
        self._source = source

    def close(self) -> None:
        self._source.release(self)


class _Source:
    """One publisher's topic, and who listens to it here. ``on_idle`` is called when nobody does any more."""

    def __init__(self, subject: str, on_idle: Callable[[_Source], None]) -> None:
        self.subject = subject
        self.subscriptions: list[_Subscription] = []
        self.interest: Interest | None = None
        self._on_idle = on_idle
        self._expected: int | None = 0
        """``None``: whatever comes, because its loss has been told."""

    def receive(self, message: Msg) -> None:
        if len(message.data) < _COUNT.size:
            _log.warning("an event that is no event was ignored on %s", self.subject)
            return
        (count,) = _COUNT.unpack_from(message.data)
        if self._expected is not None and count != self._expected:
            self.lost()
        self._expected = count + 1
        payload = message.data[_COUNT.size :]
        for subscription in tuple(self.subscriptions):
            self._tell(subscription.callback, payload)

    def lost(self) -> None:
        self._expected = None
        for subscription in tuple(self.subscriptions):
            if subscription.on_lost is not None:
                self._tell(subscription.on_lost)

    def release(self, subscription: _Subscription) -> None:
        if subscription in self.subscriptions:
            self.subscriptions.remove(subscription)
            if not self.subscriptions:
                self._on_idle(self)

    def _tell(self, callback: Callable[..., None], *payload: bytes) -> None:
        try:
            callback(*payload)
        except Exception:  # noqa: BLE001  # one subscriber's bug must not reach the others
            _log.exception("a subscriber of %s failed", self.subject)


def _token(topic: str) -> str:
    """A topic as one token of a subject."""
    return quote(topic, safe="").replace(".", "%2E").replace("~", "%7E")
