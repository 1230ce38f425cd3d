"""Whatever happens to requests and workers, the accounts balance in the end."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import StopConditions
from dynamo_core.errors import Disconnected, EngineError


async def turn() -> None:
    """Let everything that is due run."""
    for _ in range(3):
        await asyncio.sleep(0)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["ask", "token", "finish", "lose", "break", "kill", "stop", "leave", "join"]), st.integers(0, 9)),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_accounts_balance_whatever_happens(stage: Any, actions: list[tuple[str, int]]) -> None:
    asyncio.run(play(stage, actions))


async def play(stage: Any, actions: list[tuple[str, int]]) -> None:  # noqa: C901  # one branch an action
    on = stage(workers=(1, 2, 3))
    every = dict(on.model.workers)
    asked: list[Any] = []
    for action, which in actions:
        live = [stream for stream in on.streams if not stream.over and not stream.context.is_killed()]
        stream = live[which % len(live)] if live else None
        if action == "ask":
            asked.append(on.generate("ab", n=1 + which % 2, conditions=StopConditions(max_tokens=5)))
        elif action == "join":
            on.model.add_worker(10 + which, on.card, on.workers, "")
            every[10 + which] = on.model.workers[10 + which]
        elif action == "leave" and on.model.workers:
            on.model.remove_worker(sorted(on.model.workers)[which % len(on.model.workers)])
        elif action in {"kill", "stop"} and asked:
            context = asked[which % len(asked)].context
            context.kill() if action == "kill" else context.stop_generating()
        elif stream is not None:
            budget = stream.request["stop"]["max_tokens"]
            if action == "token":
                sent = getattr(stream, "sent", 0)
                if sent < budget:
                    stream.sent = sent + 1
                    stream.items(ord("x"))
            elif action == "finish":
                stream.end({"finish_reason": "stop"})
            elif action == "lose":
                stream.fail(Disconnected("lost"))
            elif action == "break":
                stream.fail(EngineError("broken"))
        if which % 3 == 0:
            await turn()
    await turn()
    for stream in tuple(on.streams):
        stream.end({"finish_reason": "stop"})
    while any(not stream.over and not stream.context.is_killed() for stream in on.streams):
        await turn()
        for stream in tuple(on.streams):
            stream.end({"finish_reason": "stop"})
    await turn()
    for one in asked:
        assert one.sink.ended or one.context.is_killed()
        if one.sink.usage is not None:
            told = sum(len(text) for text in one.sink.texts.values())
            assert one.sink.usage.output_tokens == told == one.record.output_tokens
            assert one.sink.usage.prompt_tokens == 2
    assert all(not view.inflight and not view.inflight_tokens for view in every.values())
    routed = sum(len(one.record.worker_ids) for one in asked)
    assert len(on.router.outcomes()) == routed == on.model.counters.routed
    assert on.model.waiting == 0
    assert not on.faults.counts
