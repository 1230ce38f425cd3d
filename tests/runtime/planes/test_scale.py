"""Many streams at once, and prompts of megabytes among them."""

from __future__ import annotations

import asyncio
from typing import Any

from dynamo_core.contracts import Context, ResponseSink

STREAMS = 10_000
PROMPT = 2_600_000
"""Token ids that take four bytes and more each: over 10 MB."""


async def test_ten_thousand_streams_are_open_at_once_and_do_not_mix(pair: Any) -> None:
    sinks: dict[int, ResponseSink] = {}
    whole = asyncio.Event()

    def hold(request: int, _context: Context, sink: ResponseSink) -> None:
        sinks[request] = sink
        sink.item(request)
        if len(sinks) == STREAMS:
            whole.set()

    await pair.serve(hold)
    receivers = [pair.open(number)[1] for number in range(STREAMS)]
    async with asyncio.timeout(60):
        await whole.wait()
        for step in (1, 2):
            for number, sink in sinks.items():
                sink.item(number + step)
            await asyncio.sleep(0)
        for sink in sinks.values():
            sink.end()
        for number, receiver in enumerate(receivers):
            assert await receiver.result() == [number, number + 1, number + 2]
    assert len(pair.client._dialled) == 1
    assert not any(connection.streams for connection in pair.client._dialled.values())


async def test_a_prompt_of_ten_megabytes_arrives_whole_and_holds_up_nobody(pair: Any) -> None:
    ended: list[str] = []

    def answer(request: Any, _context: Context, sink: ResponseSink) -> None:
        tokens = request["token_ids"]
        sink.item([len(tokens), tokens[0], tokens[-1], sum(tokens)])
        sink.end()

    await pair.serve(answer)
    long = list(range(100_000, 100_000 + PROMPT))
    _, slow = pair.open({"token_ids": long})
    others = [pair.open({"token_ids": [number]})[1] for number in range(100)]
    waits = [asyncio.create_task(_note(receiver, name, ended)) for receiver, name in [(slow, "long"), *((o, "") for o in others)]]
    async with asyncio.timeout(30):
        await asyncio.gather(*waits)
    assert slow.items == [[PROMPT, long[0], long[-1], sum(long)]]
    assert [receiver.items for receiver in others] == [[[1, number, number, number]] for number in range(100)]
    assert ended[-1] == "long", "small requests pass between the parts of a large one"


async def _note(receiver: Any, name: str, ended: list[str]) -> None:
    await receiver.ended.wait()
    assert receiver.error is None
    ended.append(name)
