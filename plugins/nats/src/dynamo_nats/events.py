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
        self._subscriptions: set[_Subscription] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        if self._link is None:
            link = Link(self._config, on_back=self._back)
            await link.connect()
            self._link = link
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
        subscription = _Subscription(self, topic, callback, on_lost)
        self._subscriptions.add(subscription)
        self._own(self._join(link, subscription, f"{base_subject(address)}.{_token(topic)}"))
        return subscription

    async def close(self) -> None:
        link, self._link = self._link, None
        for subscription in tuple(self._subscriptions):
            subscription.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if link is not None:
            await link.close()

    def release(self, subscription: _Subscription) -> None:
        self._subscriptions.discard(subscription)
        if subscription.interest is not None and self._link is not None:
            self._own(self._link.unsubscribe(subscription.interest))

    async def _join(self, link: Link, subscription: _Subscription, subject: str) -> None:
        interest = await link.subscribe(subject, subscription.receive)
        if subscription.closed:
            await link.unsubscribe(interest)
        else:
            subscription.interest = interest

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _back(self) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.lost()

    def _started(self) -> Link:
        if self._link is None:
            raise RuntimeError("the event plane is not started")
        return self._link


class _Subscription:
    def __init__(
        self, plane: NatsEvents, topic: str, callback: Callable[[bytes], None], on_lost: Callable[[], None] | None
    ) -> None:
        self.closed = False
        self.interest: Interest | None = None
        self._plane = plane
        self._topic = topic
        self._callback = callback
        self._on_lost = on_lost
        self._expected: int | None = 0
        """``None``: whatever comes, because its loss has been told."""

    def receive(self, message: Msg) -> None:
        if self.closed:
            return
        if len(message.data) < _COUNT.size:
            _log.warning("an event that is no event was ignored on %s", message.subject)
            return
        (count,) = _COUNT.unpack_from(message.data)
        if self._expected is not None and count != self._expected:
            self.lost()
        self._expected = count + 1
        try:
            self._callback(message.data[_COUNT.size :])
        except Exception:  # noqa: BLE001  # one subscriber's bug must not reach the others
            _log.exception("a subscriber of topic %s failed", self._topic)

    def lost(self) -> None:
        self._expected = None
        if self._on_lost is not None:
            try:
                self._on_lost()
            except Exception:  # noqa: BLE001  # as above
                _log.exception("a subscriber of topic %s failed", self._topic)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._plane.release(self)


def _token(topic: str) -> str:
    """A topic as one token of a subject."""
    return quote(topic, safe="").replace(".", "%2E").replace("~", "%7E")
