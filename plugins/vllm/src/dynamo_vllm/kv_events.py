"""Receives vLLM's KV events over ZMQ, in order and without holes, and passes them on as ours."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio

from dynamo_core.contracts import KvEvent
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_vllm.args import Addresses

__all__ = ["KvEventFeed"]

_log = logging.getLogger(__name__)

_REPLAY_SECONDS = 5.0
"""vLLM looks for replay requests between two batches, at least every 0.1 s."""
_END = (-1).to_bytes(8, "big", signed=True)


class KvEventFeed:
    """Subscriber of one publisher. Batches are numbered from 0; what is missing is asked for again at the replay address.

    What cannot be had again voids all that was said (:class:`~dynamo_core.contracts.KvCleared`): better to know too little than
    to send requests where their prefix is not.
    """

    def __init__(
        self, addresses: Addresses, translator: VllmEventTranslator, publish: Callable[[Sequence[KvEvent]], None]
    ) -> None:
        self._addresses = addresses
        self._translator = translator
        self._publish = publish
        self._next = 0
        self._context = zmq.asyncio.Context()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Call when the publisher is bound. Returns once it has answered, everything published so far included.

        Raises :class:`TimeoutError` when it does not.
        """
        socket = self._context.socket(zmq.SUB)
        socket.set_hwm(0)  # the engine's batches are small, and a hole costs more than memory
        socket.connect(self._addresses.events)
        socket.subscribe(b"")
        for sequence, payload in await self._replay():
            self._take(sequence, payload)
        self._task = asyncio.create_task(self._run(socket), name="KV events of vLLM")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _run(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            frames = await socket.recv_multipart()
            if len(frames) != 3:
                continue
            _, number, payload = frames
            sequence = int.from_bytes(number, "big")
            if sequence > self._next:
                await self._mend(sequence)
            self._take(sequence, payload)

    def _take(self, sequence: int, payload: bytes) -> None:
        if sequence < self._next:
            return  # known from a replay
        self._next = sequence + 1
        events = self._translator.translate(payload)
        if events:
            self._publish(events)

    async def _mend(self, sequence: int) -> None:
        """Batches from ``self._next`` to ``sequence`` are missing."""
        try:
            missed = await self._replay()
        except TimeoutError:
            missed = []
        for number, payload in missed:
            if number > self._next:
                break
            self._take(number, payload)
        if self._next < sequence:
            _log.warning("KV events %d to %d of vLLM are lost; what was known of its cache is void", self._next, sequence - 1)
            self._next = sequence
            self._publish(self._translator.reset())

    async def _replay(self) -> list[tuple[int, bytes]]:
        """All batches that vLLM still has, from ``self._next`` on."""
        batches: list[tuple[int, bytes]] = []
        with self._context.socket(zmq.DEALER) as socket:
            socket.linger = 0
            socket.connect(self._addresses.replay)
            async with asyncio.timeout(_REPLAY_SECONDS):
                await socket.send_multipart([b"", self._next.to_bytes(8, "big")])
                while True:
                    # An empty frame, the topic (since vLLM 0.25 or so), number and batch.
                    frames = await socket.recv_multipart()
                    if len(frames) < 3 or frames[-2] == _END:
                        return batches
                    batches.append((int.from_bytes(frames[-2], "big"), frames[-1]))
