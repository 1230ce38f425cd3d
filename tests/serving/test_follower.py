"""A follower's copy is the publisher's state, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamo_core.contracts import KvBatch, KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.errors import CannotConnect, NoInstances
from dynamo_core.kv.codec import decode_kv_batch, encode_kv_batch
from dynamo_core.serving import follower as module
from dynamo_core.serving.follower import Follower, Numbered, Source
from dynamo_core.serving.kv_journal import KvJournal, KvMirror


class Copy:
    """What a router makes of the batches that it gets."""

    def __init__(self) -> None:
        self.ranks: dict[int, dict[str, set[int]]] = {}
        self.lost: list[int] = []

    def apply(self, batch: KvBatch) -> None:
        tiers = self.ranks.setdefault(batch.dp_rank, {})
        for event in batch.events:
            if isinstance(event, KvCleared):
                tiers.clear()
            elif isinstance(event, KvStored):
                tiers.setdefault(event.tier, set()).update(event.seq_hashes)
            else:
                tiers.get(event.tier, set()).difference_update(event.seq_hashes)

    def lose(self, rank: int) -> None:
        self.lost.append(rank)
        self.ranks[rank] = {}

    def blocks(self) -> dict[int, dict[str, set[int]]]:
        return {rank: held for rank, tiers in self.ranks.items() if (held := {tier: b for tier, b in tiers.items() if b})}


class Wire:
    """A worker's journal, a follower, and what is between them: the test says what arrives, and when."""

    def __init__(self, *, serves: bool = True) -> None:
        self.sent: list[bytes] = []
        self.journal = KvJournal(1, lambda _, payload: self.sent.append(payload))
        self.truth = Copy()
        self.copy = Copy()
        self.asked: list[Any] = []
        self.killed = 0
        source = Source(
            "test",
            number=lambda batch: Numbered(batch.dp_rank, batch.seq),
            decode=decode_kv_batch,
            fetch=self.fetch if serves else None,
        )
        self.follower = Follower(source, self.copy.apply, self.copy.lose)

    def fetch(self, receiver: Any) -> Any:
        self.asked.append(receiver)
        return self

    def cancel(self, *, kill: bool) -> None:
        self.killed += 1

    def publish(self, *events: KvEvent, rank: int = 0) -> None:
        self.truth.apply(KvBatch(1, 0, events, rank))
        self.journal.publish(events, rank)

    def arrive(self, index: int = 0) -> None:
        batch = decode_kv_batch(self.sent.pop(index))
        assert batch is not None
        self.follower.receive(batch)

    def answer(self) -> None:
        """The worker answers the oldest question with its state of this moment."""
        receiver = self.asked.pop(0)
        items: list[Any] = []

        class Sink:
            item = staticmethod(items.append)

            def end(self) -> None: ...

        self.journal.answer(None, None, Sink())  # type: ignore[arg-type]
        for item in items:
            receiver.on_items([item])
        receiver.on_end()


EVENTS = st.lists(
    st.one_of(
        st.builds(KvStored, st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True).map(tuple), st.just("device")),
        st.builds(KvStored, st.lists(st.integers(0, 30), min_size=1, max_size=3, unique=True).map(tuple), st.just("host")),
        st.builds(KvRemoved, st.lists(st.integers(0, 30), min_size=1, max_size=6, unique=True).map(tuple), st.just("device")),
        st.just(KvCleared()),
    ),
    min_size=1,
    max_size=3,
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), EVENTS, st.integers(0, 1)),
        st.tuples(st.sampled_from(["arrive", "lose", "swap", "answer", "begin", "load", "dropped"])),
    ),
    max_size=60,
)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.0)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_after_loss_disorder_and_late_joins_the_copy_is_the_state(steps: list[Any]) -> None:
    asyncio.run(play(steps))


async def play(steps: list[Any]) -> None:
    wire = Wire()
    for step in steps:
        if step[0] == "publish":
            wire.publish(*step[1], rank=step[2])
        elif step[0] == "arrive" and wire.sent:
            wire.arrive()
        elif step[0] == "lose" and wire.sent:
            wire.sent.pop(0)
        elif step[0] == "swap" and len(wire.sent) > 1:
            wire.arrive(1)
        elif step[0] == "answer" and wire.asked:
            wire.answer()
        elif step[0] == "begin":
            wire.follower.begin()
        elif step[0] == "load":
            tell_load(wire)
        elif step[0] == "dropped":
            wire.follower.dropped()
    wire.follower.begin()  # nothing happened before: a late join
    settle(wire)
    tell_load(wire)  # the last batches may have got lost
    settle(wire)
    assert wire.copy.blocks() == wire.truth.blocks()
    assert not wire.copy.lost


def tell_load(wire: Wire) -> None:
    for rank, following in wire.journal.following.items():
        wire.follower.at_least(rank, following)


def settle(wire: Wire) -> None:
    for _ in range(10):
        while wire.sent:
            wire.arrive()
        if not wire.asked:
            return
        wire.answer()
    raise AssertionError("it never stops asking")


async def test_without_anybody_to_ask_a_gap_voids_what_was_known() -> None:
    wire = Wire(serves=False)
    for number in range(4):
        wire.publish(KvStored((number,)))
    wire.follower.begin()
    wire.arrive()
    wire.arrive()
    wire.sent.pop(0)
    wire.arrive()
    assert wire.copy.lost == [0]
    assert wire.copy.blocks() == {0: {"device": {3}}}


async def test_a_worker_that_cannot_answer_costs_what_was_known_and_nothing_more() -> None:
    wire = Wire()
    wire.follower.begin()
    wire.answer()
    for number in range(5):
        wire.publish(KvStored((number,)))
    wire.arrive()
    wire.sent.pop(0)
    wire.arrive()  # a gap: held back until the state is there
    wire.asked.pop(0).on_error(CannotConnect("nobody serves this"))
    assert wire.copy.lost == [0]
    wire.arrive()
    wire.arrive()
    assert wire.copy.blocks() == {0: {"device": {2, 3, 4}}}
    assert not wire.asked


async def test_after_a_failure_it_asks_again_and_loses_nothing_more(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    wire = Wire()
    wire.publish(KvStored((1,)))
    wire.publish(KvStored((2,)))
    wire.follower.begin()
    wire.sent.pop(0)
    wire.arrive()
    wire.asked.pop(0).on_error(CannotConnect("not yet"))
    assert wire.copy.blocks() == {0: {"device": {2}}}
    lost = list(wire.copy.lost)
    await until(lambda: wire.asked)
    wire.publish(KvStored((3,)))
    wire.arrive()
    wire.asked.pop(0).on_error(CannotConnect("not yet"))
    assert wire.copy.blocks() == {0: {"device": {2, 3}}}
    await until(lambda: wire.asked)
    wire.answer()
    assert wire.copy.blocks() == {0: {"device": {1, 2, 3}}}
    assert wire.copy.lost == lost


async def test_while_it_asks_again_batches_are_applied_until_the_state_begins(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.01)
    wire = Wire()
    wire.follower.begin()
    wire.asked.pop(0).on_error(CannotConnect("not yet"))
    for number in range(2):
        wire.publish(KvStored((number,)))
        wire.arrive()
    await until(lambda: wire.asked)
    receiver = wire.asked.pop(0)
    wire.publish(KvStored((2,)))
    wire.arrive()
    assert wire.copy.blocks() == {0: {"device": {0, 1, 2}}}
    receiver.on_items([encode_kv_batch(KvBatch(1, 2, (KvCleared(), KvStored((0,))), 0))])  # and then it breaks off
    wire.publish(KvStored((3,)))
    wire.arrive()
    receiver.on_error(CannotConnect("gone"))
    assert wire.copy.lost == [0], "what was known is void"
    assert wire.copy.blocks() == {0: {"device": {2, 3}}}
    await until(lambda: wire.asked)
    wire.answer()
    assert wire.copy.blocks() == {0: {"device": {0, 1, 2, 3}}}


async def test_a_loss_that_the_plane_tells_of_is_made_up_for_at_once() -> None:
    wire = Wire()
    wire.follower.begin()
    wire.answer()
    wire.publish(KvStored((1,)))
    wire.sent.clear()
    wire.follower.dropped()
    await until(lambda: wire.asked)
    wire.answer()
    assert wire.copy.blocks() == {0: {"device": {1}}}


async def test_a_worker_that_leaves_while_it_is_asked_is_no_error() -> None:
    wire = Wire()

    def gone(_: Any) -> Any:
        raise NoInstances("gone")

    wire.fetch = gone  # type: ignore[method-assign]
    wire.follower._source.fetch = gone
    wire.follower.begin()
    wire.publish(KvStored((1,)))
    wire.arrive()
    assert wire.copy.blocks() == {0: {"device": {1}}}


async def test_a_state_that_never_comes_is_given_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_SECONDS", 0.01)
    wire = Wire()
    wire.follower.begin()
    wire.publish(KvStored((1,)))
    wire.arrive()
    await until(lambda: wire.killed)
    assert wire.copy.blocks() == {0: {"device": {1}}}


async def test_it_asks_again_only_after_a_pause(monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.05)
    wire = Wire()
    wire.follower.begin()
    wire.answer()
    wire.publish(KvStored((1,)))
    wire.publish(KvStored((2,)))
    wire.arrive(1)
    assert not wire.asked
    await until(lambda: wire.asked)
    settle(wire)
    assert wire.copy.blocks() == {0: {"device": {1, 2}}}


async def test_closing_ends_the_question() -> None:
    wire = Wire()
    wire.publish(KvStored((1,)))
    wire.follower.begin()
    wire.follower.close()
    assert wire.killed == 1
    wire.answer()
    assert not wire.copy.ranks


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # a timer's effect
            await asyncio.sleep(0.001)


def test_a_mirror_is_bounded_and_drops_the_oldest() -> None:
    mirror = KvMirror(limit=4)
    mirror.apply(KvStored((1, 2, 3)))
    mirror.apply(KvStored((4, 5)))
    mirror.apply(KvStored((2,)))
    mirror.apply(KvStored((9,), "host"))
    assert len(mirror) == 5
    assert list(mirror.events()) == [KvStored((3,)), KvStored((4, 5)), KvStored((2,)), KvStored((9,), "host")]


def test_a_large_state_comes_in_pieces_of_one_number() -> None:
    journal = KvJournal(1, lambda *_: None)
    journal.publish([KvStored(tuple(range(20_000)))])
    journal.publish([KvStored((77_777,)), KvRemoved((0,))])
    batches = list(journal.state())
    assert {batch.seq for batch in batches} == {1}
    assert len(batches) == 3
    assert batches[0].events[0] == KvCleared()
    assert sum(len(event.seq_hashes) for batch in batches for event in batch.events if isinstance(event, KvStored)) == 20_000
