"""The calling side of an endpoint: who serves it, and streams to them."""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import random
import socket
from collections.abc import AsyncIterable, Callable, Collection
from typing import TYPE_CHECKING, Any

import msgspec

from dynamo_core.contracts.context import Context
from dynamo_core.contracts.discovery import Deleted, Instance, Put, Synced
from dynamo_core.contracts.planes import ClientStream, RequestPlane, StreamReceiver
from dynamo_core.errors import CannotConnect, DynamoError, NoInstances
from dynamo_core.runtime.bidirectional import bidirectional_stream
from dynamo_core.runtime.response import ResponseStream

if TYPE_CHECKING:
    from dynamo_core.runtime.component import Endpoint

__all__ = ["Client", "nearest_endpoints"]

_log = logging.getLogger(__name__)
_decode = msgspec.json.Decoder(Instance).decode


class _Extra(msgspec.Struct):
    """Of a model card, what this module reads."""

    extra: dict[str, Any] = {}


_MODELS = "models/"
_decode_extra = msgspec.json.Decoder(_Extra).decode

_PROBE_SECONDS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
"""Pauses before the attempts to reach an instance whose connection was lost; the last repeats while discovery lists it."""


_RETRY_SECONDS = 1.0
_SYNC_SECONDS = 30.0


class Client:
    """Follows discovery. An instance whose connection breaks is withdrawn at once and comes back when it answers again."""

    def __init__(self, endpoint: Endpoint, plane: RequestPlane, *, mode: str = "round-robin") -> None:
        self.endpoint = endpoint
        self._mode = mode
        self._plane = plane
        self._known: dict[str, Instance] = {}
        """By discovery key: what discovery lists."""
        self._usable: dict[int, Instance] = {}
        self._added: list[Callable[[Instance], None]] = []
        self._removed: list[Callable[[int], None]] = []
        self._changed = asyncio.Event()
        self._synced = asyncio.Event()
        self._failed: asyncio.Future[DynamoError] = asyncio.get_running_loop().create_future()
        """Why the first list did not come."""
        self._next = 0
        self._probes: dict[int, asyncio.Task[None]] = {}
        self._unwatch = plane.on_gone(self._gone)
        self._watcher: asyncio.Task[None] | None = asyncio.create_task(self._watch())

    # --- who serves ----------------------------------------------------------------------------------------------------------

    def instances(self) -> list[Instance]:
        return list(self._usable.values())

    def instance_ids(self) -> list[int]:
        return list(self._usable)

    async def wait_for_instances(self, timeout: float | None = None) -> list[int]:  # noqa: ASYNC109  # Dynamo's name
        """Wait until somebody serves. Raises :class:`NoInstances` after ``timeout`` seconds, with the nearest endpoints alive."""
        try:
            async with asyncio.timeout(timeout):
                while not self._usable:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise NoInstances(f"nobody serves {self.endpoint.path} after {timeout:g} s; {await self._why_nobody()}") from None
        return self.instance_ids()

    async def wait_for_endpoints(self, timeout: float | None = None) -> list[int]:  # noqa: ASYNC109  # Dynamo's name
        """:meth:`wait_for_instances` in an older spelling."""
        return await self.wait_for_instances(timeout)

    async def wait_for_instances_by_runtime_data(
        self, key: str, value: Any, min_count: int = 1, timeout_s: float | None = None
    ) -> list[int]:
        """Wait until ``min_count`` of those that serve have registered a model whose ``runtime_config.runtime_data`` has this
        value; returns their ids. Raises :class:`NoInstances` after ``timeout_s``, with how many there are."""
        prefix = f"{_MODELS}{self.endpoint.path.replace('.', '/')}/"
        told = asyncio.Event()
        unwatch = self.on_change(lambda _: told.set(), lambda _: told.set())
        having: set[int] = set()
        found: list[int] = []
        watcher = asyncio.create_task(self._watch_runtime_data(prefix, key, value, having, told))
        try:
            async with asyncio.timeout(timeout_s):
                while len(found := [one for one in self._usable if one in having]) < min_count:
                    told.clear()
                    await told.wait()
            return found
        except TimeoutError:
            text = f"{len(found)} of {min_count} instances of {self.endpoint.path} have {key} = {value!r} after {timeout_s:g} s"
            raise NoInstances(text) from None
        finally:
            unwatch()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def wait_for_instance_by_runtime_data(self, key: str, value: Any, timeout_s: float | None = None) -> int:
        """The first of :meth:`wait_for_instances_by_runtime_data`."""
        return (await self.wait_for_instances_by_runtime_data(key, value, 1, timeout_s))[0]

    async def synced(self) -> Client:
        """Wait until what discovery holds is known. Raises what the store says when it cannot tell; the client goes on asking."""
        synced = asyncio.ensure_future(self._synced.wait())
        try:
            await asyncio.wait((synced, self._failed), return_when=asyncio.FIRST_COMPLETED, timeout=_SYNC_SECONDS)
        finally:
            synced.cancel()
        if self._synced.is_set():
            return self
        if self._failed.done():
            raise self._failed.result()
        raise CannotConnect(f"discovery does not tell within {_SYNC_SECONDS:g} s who serves {self.endpoint.path}")

    def on_change(
        self, added: Callable[[Instance], None] | None = None, removed: Callable[[int], None] | None = None
    ) -> Callable[[], None]:
        """``added`` is called at once with the instances of the moment. A changed record of a known instance is removed,
        then added. Returns what unregisters both."""
        if added is not None:
            self._added.append(added)
            for instance in self.instances():
                added(instance)
        if removed is not None:
            self._removed.append(removed)

        def unregister() -> None:
            if added is not None and added in self._added:
                self._added.remove(added)
            if removed is not None and removed in self._removed:
                self._removed.remove(removed)

        return unregister

    # --- requests ------------------------------------------------------------------------------------------------------------

    def open(self, instance_id: int, request: Any, context: Context, receiver: StreamReceiver) -> ClientStream:
        """The hot path: no task, no queue. Raises :class:`NoInstances` for an instance that is not there."""
        instance = self._usable.get(instance_id)
        if instance is None:
            raise NoInstances(f"instance {instance_id:x} does not serve {self.endpoint.path}")
        return self._plane.open(instance, request, context, receiver)

    def open_beside(
        self, instance_id: int, endpoint: str, request: Any, context: Context, receiver: StreamReceiver
    ) -> ClientStream:
        """As :meth:`open`, at another endpoint of the same component, which the instance's process serves if it answers."""
        instance = self._usable.get(instance_id)
        if instance is None:
            raise NoInstances(f"instance {instance_id:x} does not serve {self.endpoint.path}")
        return self._plane.open(msgspec.structs.replace(instance, endpoint=endpoint), request, context, receiver)

    def direct(self, request: Any, instance_id: int, annotated: bool = True, context: Context | None = None) -> ResponseStream:
        context = context or Context()
        return ResponseStream(lambda receiver: self.open(instance_id, request, context, receiver), context, annotated=annotated)

    def round_robin(self, request: Any, annotated: bool = True, context: Context | None = None) -> ResponseStream:
        self._next += 1
        ids = self._ids()
        return self.direct(request, ids[self._next % len(ids)], annotated, context)

    def random(self, request: Any, annotated: bool = True, context: Context | None = None) -> ResponseStream:
        return self.direct(request, random.choice(self._ids()), annotated, context)

    def generate(self, request: Any, annotated: bool = True, context: Context | None = None) -> ResponseStream:
        if self._mode == "random":
            return self.random(request, annotated, context)
        return self.round_robin(request, annotated, context)

    def bidirectional(
        self,
        requests: AsyncIterable[Any],
        annotated: bool = True,
        context: Context | None = None,
        *,
        instance_id: int | None = None,
    ) -> ResponseStream:
        """Call an endpoint that was served by ``serve_bidirectional_endpoint``: ``requests`` are sent while responses come.

        Their end is no cancellation. What they raise ends the stream as an ``EngineError``.
        """
        if instance_id is None:
            self._next += 1
            ids = self._ids()
            instance_id = ids[self._next % len(ids)]
        instance = self._usable.get(instance_id)
        if instance is None:
            raise NoInstances(f"instance {instance_id:x} does not serve {self.endpoint.path}")
        return bidirectional_stream(self._plane, instance, requests, context or Context(), annotated=annotated)

    def static(self, request: Any, annotated: bool = True, context: Context | None = None) -> ResponseStream:
        """The first instance, always."""
        return self.direct(request, self._ids()[0], annotated, context)

    async def close(self) -> None:
        """Streams that run go on."""
        self.endpoint.runtime.clients.discard(self)
        self._unwatch()
        tasks = [*self._probes.values(), *([self._watcher] if self._watcher else [])]
        self._watcher = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ids(self) -> list[int]:
        if not self._usable:
            raise NoInstances(f"nobody serves {self.endpoint.path}")
        return list(self._usable)

    async def _why_nobody(self) -> str:
        """For the end of a sentence."""
        if self._known:
            listed = sorted(instance.address for instance in self._known.values())
            return f"{len(listed)} listed in discovery cannot be reached, at {', '.join(listed[:3])}"
        return nearest_endpoints(self.endpoint.path, await self._endpoints_alive())

    async def _endpoints_alive(self) -> set[str]:
        try:
            keys = await self.endpoint.runtime.discovery.get_prefix("instances/")
        except Exception as error:  # noqa: BLE001  # a store that is out of reach must not hide that nobody serves
            _log.warning("discovery cannot say who is alive: %s", error)
            return set()
        return {".".join(key.split("/")[1:4]) for key in keys}

    # --- following discovery -------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        prefix = f"instances/{self.endpoint.path.replace('.', '/')}/"
        while True:
            try:
                async for event in self.endpoint.runtime.discovery.watch(prefix):
                    if isinstance(event, Put):
                        self._put(event.key, event.value)
                    elif isinstance(event, Deleted):
                        self._forget(event.key)
                    elif isinstance(event, Synced):
                        self._synced.set()
            except DynamoError as error:
                _log.warning("following %s in discovery: %s; trying again", prefix, error)
                if not self._failed.done():
                    self._failed.set_result(error)
            except Exception:  # noqa: BLE001  # a store's bug must not end the watch
                _log.exception("following %s in discovery failed; trying again", prefix)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _watch_runtime_data(self, prefix: str, key: str, value: Any, having: set[int], told: asyncio.Event) -> None:
        async for event in self.endpoint.runtime.discovery.watch(prefix):
            if isinstance(event, Synced):
                continue
            instance_id = int(event.key.rpartition("/")[2], 16)
            having.discard(instance_id)
            if isinstance(event, Put):
                with contextlib.suppress(msgspec.MsgspecError):
                    if _decode_extra(event.value).extra.get(key) == value:
                        having.add(instance_id)
            told.set()

    def _put(self, key: str, value: bytes) -> None:
        try:
            instance = _decode(value)
        except msgspec.MsgspecError as error:
            _log.warning("%s in discovery is ignored: %s", key, error)
            return
        if self._known.get(key) == instance and instance.instance_id in self._usable:
            return
        self._forget(key)
        self._known[key] = instance
        if instance.request_plane != self.endpoint.runtime.request_plane_name:
            _log.warning(
                "instance %x of %s is ignored: it uses the request plane %s, this process %s",
                instance.instance_id, self.endpoint.path, instance.request_plane, self.endpoint.runtime.request_plane_name,
            )  # fmt: skip
            return
        self._add(instance)
        self._probe(instance)  # connects ahead of the first request, and its death will be noticed without one

    def _forget(self, key: str) -> None:
        instance = self._known.pop(key, None)
        if instance is not None:
            probe = self._probes.pop(instance.instance_id, None)
            if probe is not None:
                probe.cancel()
            self._remove(instance.instance_id)

    def _gone(self, address: str, endpoint: str) -> None:
        if endpoint not in {"", self.endpoint.path}:
            return
        for instance in [instance for instance in self._known.values() if instance.address == address]:
            self._remove(instance.instance_id)
            if not endpoint:
                self._probe(instance)
            elif (probe := self._probes.pop(instance.instance_id, None)) is not None:
                probe.cancel()  # that the process answers does not mean that it takes requests

    def _probe(self, instance: Instance) -> None:
        if self._watcher is not None and instance.instance_id not in self._probes:
            self._probes[instance.instance_id] = asyncio.create_task(self._reach(instance))

    async def _reach(self, instance: Instance) -> None:
        attempt = 0
        try:
            while instance in self._known.values():
                await asyncio.sleep(_PROBE_SECONDS[min(attempt, len(_PROBE_SECONDS) - 1)])
                attempt += 1
                try:
                    await self._plane.connect(instance)
                except DynamoError as error:
                    _log.debug("instance %x of %s: %s", instance.instance_id, self.endpoint.path, error)
                    if attempt == 1 and instance.address.startswith("unix:") and instance.host != socket.gethostname():
                        hint = f"it listens on a Unix socket of host {instance.host}; set DYN_TCP_RPC_HOST there"
                        _log.warning("instance %x of %s cannot be reached: %s", instance.instance_id, self.endpoint.path, hint)
                    self._remove(instance.instance_id)
                else:
                    self._add(instance)
                    return
        finally:
            if self._probes.get(instance.instance_id) is asyncio.current_task():
                del self._probes[instance.instance_id]

    def _add(self, instance: Instance) -> None:
        if instance.instance_id not in self._usable:
            self._usable[instance.instance_id] = instance
            self._changed.set()
            for added in tuple(self._added):
                added(instance)

    def _remove(self, instance_id: int) -> None:
        if self._usable.pop(instance_id, None) is not None:
            for removed in tuple(self._removed):
                removed(instance_id)


def nearest_endpoints(path: str, alive: Collection[str]) -> str:
    """For the end of a sentence: what was probably meant."""
    if not alive:
        return "no endpoint at all is alive in this discovery store"
    name = path.rpartition(".")[2]
    nearest = difflib.get_close_matches(path, alive, 3, 0.4) or sorted(alive, key=lambda other: (not other.endswith(name), other))
    return f"alive are {', '.join(nearest[:3])}"
