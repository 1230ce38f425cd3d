"""Canary requests: an idle endpoint proves from time to time that it still answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.planes import RequestHandler, ResponseSink
from dynamo_core.errors import DynamoError
from dynamo_core.runtime.response import ResponseStream

if TYPE_CHECKING:
    from dynamo_core.runtime.served import Served

__all__ = ["Canary", "CanarySettings", "Pulse"]

_log = logging.getLogger(__name__)

_AGAIN_SECONDS = 1.0
"""At most, between two canaries of an instance that has failed one."""


_LOOKS = 4
"""For items of responses, in the time after which a canary is due."""


class CanarySettings(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = True
    wait: float = 10.0
    """Seconds without any item of a response after which a canary is due."""
    timeout: float = 3.0
    """Seconds that it may take to its first item."""


class Pulse:
    """Signs of an endpoint's life: requests that ended, and items of those that run."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.at = self._loop.time()
        """When it last showed one, as far as was looked."""
        self.moved = False
        """An item left since somebody looked. A flag and no time, because it is set for every token."""

    def beat(self) -> None:
        self.at = self._loop.time()

    def look(self) -> bool:
        """Whether an item left since the last look, which then counts as a beat."""
        moved, self.moved = self.moved, False
        if moved:
            self.beat()
        return moved

    def watching(self, handler: RequestHandler) -> RequestHandler:
        """``handler``, with an eye on its responses. A canary's own items are no sign of other requests' life."""

        def handle(request: Any, context: Context, sink: ResponseSink) -> None:
            canary = context.metadata.get("canary", False)
            # pyright takes the attribute item for a method.
            handler(request, context, sink if canary else _WatchedSink(sink, self))  # pyright: ignore[reportArgumentType]

        return handle


class _WatchedSink:
    __slots__ = ("_pulse", "_sink", "item", "ready")

    def __init__(self, sink: ResponseSink, pulse: Pulse) -> None:
        self._sink = sink
        self._pulse = pulse
        self.ready = sink.ready
        self.item = _moving(pulse, sink.item)

    def end(self) -> None:
        self._pulse.beat()
        self._sink.end()

    def error(self, error: DynamoError) -> None:
        self._sink.error(error)


def _moving(pulse: Pulse, put: Callable[[Any], None]) -> Callable[[Any], None]:
    def item(value: Any) -> None:
        pulse.moved = True
        put(value)

    return item


class Canary:
    """Sends ``payload`` to the instance through its own request plane whenever nothing came from it for a while.

    An instance that answers with an error, or with nothing in time, is taken out of discovery; the next canary that it answers
    lets it back in. It is the only one that decides about this reason. A canary that waits behind other requests says nothing
    about an instance that answers those: while their items leave, its silence is no failure.
    """

    reason = "canary"

    def __init__(self, served: Served, payload: Any, pulse: Pulse, settings: CanarySettings) -> None:
        self.healthy = True
        self._served = served
        self._payload = payload
        self._pulse = pulse
        self._settings = settings
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._run(), name=f"canary of {served.endpoint.path}")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._over():
            if "asleep" in self._served.suspended:
                self._pulse.beat()  # nobody expects an answer, and the next is due a whole wait after the waking
                await asyncio.sleep(min(_AGAIN_SECONDS, self._settings.wait))
                continue
            if not self.healthy:
                await asyncio.sleep(min(_AGAIN_SECONDS, self._settings.wait))
            else:
                self._pulse.look()
                rest = self._pulse.at + self._settings.wait - loop.time()
                if rest > 0:
                    await asyncio.sleep(min(rest, self._settings.wait / _LOOKS))
                    continue
            failure = await self._failure()
            if self._over():
                return
            self._pulse.beat()
            await self._decide(failure)

    def _over(self) -> bool:
        return self._served.left

    async def _decide(self, failure: str | None) -> None:
        path, healthy = self._served.endpoint.path, failure is None
        if healthy == self.healthy:
            return
        try:
            if healthy:
                await self._served.resume(self.reason)
                _log.info("%s answers its canary again and is back in discovery", path)
            else:
                _log.error("%s failed its canary and leaves discovery until it answers: %s", path, failure)
                await self._served.suspend(self.reason)
        except Exception as error:  # noqa: BLE001  # the store is down: the next round tells it
            _log.warning("the health of %s could not be told to discovery: %s", path, error)
            return
        self.healthy = healthy

    async def _failure(self) -> str | None:
        """What is wrong; ``None`` when it answered."""
        served, context = self._served, Context(metadata={"canary": True})
        plane = served.endpoint.runtime.request_plane
        stream = ResponseStream(
            lambda receiver: plane.open(served.instance, self._payload, context, receiver), context, annotated=False
        )
        try:
            async with asyncio.timeout(self._settings.timeout):
                async for _ in stream:
                    break
        except TimeoutError:
            return None if self._pulse.look() else f"nothing within {self._settings.timeout:g} s"
        except DynamoError as error:
            return error.message
        finally:
            await stream.aclose()
        return None
