from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Sequence
from dynamo_core.kv.timing import Chunk, TimingModel


def make(blocks: int = 100, **limits: float) -> Scheduler:
    limits.setdefault("block_size", 4)
    return Scheduler(SchedulerLimits(**limits), BlockManager(blocks), TimingModel())  # type: ignore[arg-type]


def drive(scheduler: Scheduler, emitted: dict[Sequence, int], steps: int = 10_000) -> float:
    """Run to the end in virtual time; counts each sequence's tokens. Returns milliseconds."""
    total = 0.0
    for _ in range(steps):
        step = scheduler.schedule()
        if step is None:
            return total
        total += step.ms
        for sequence in (*scheduler.decoding, *step.ending, *step.prefilled):
            emitted[sequence] = emitted.get(sequence, 0) + 1
        assert step.decoded == len(scheduler.decoding) + len(step.ending)
        scheduler.complete(step)
    raise AssertionError("it never ends")


def test_the_first_token_comes_with_the_prompt_and_each_step_gives_one_more() -> None:
    scheduler, emitted = make(), {}
    sequence = Sequence(10, 5)
    scheduler.add(sequence)
    step = scheduler.schedule()
    assert step is not None
    assert (step.chunks, step.prefilled, step.decoded) == ((Chunk(0, 10),), (sequence,), 0)
    scheduler.complete(step)
    ms = step.ms + drive(scheduler, emitted)
    assert emitted == {sequence: 4}
    timing = TimingModel()
    assert ms == pytest.approx(timing.prefill_ms(10) + sum(timing.decode_ms(n, 400) for n in (11, 12, 13, 14)))
    assert scheduler.blocks.used == 0


def test_prompts_are_cut_to_the_budget_and_served_in_order() -> None:
    scheduler = make(max_num_batched_tokens=10, max_num_seqs=10)
    first, second = Sequence(14, 3), Sequence(3, 3)
    scheduler.add(first)
    scheduler.add(second)
    chunks = []
    while (step := scheduler.schedule()) is not None:
        chunks.append(step.chunks)
        scheduler.complete(step)
    assert chunks[:3] == [(Chunk(0, 10),), (Chunk(10, 14), Chunk(0, 3)), ()]


def test_a_cached_prompt_is_seen_from_the_step_that_computes_it() -> None:
    scheduler = make()
    hashes = [1, 2, 3]
    first, second = Sequence(12, 2, hashes), Sequence(12, 2, hashes)
    scheduler.add(first)
    scheduler.add(second)
    step = scheduler.schedule()
    assert step is not None
    assert step.chunks == (Chunk(0, 12), Chunk(11, 12))
    assert second.cached == 11


def test_the_watermark_holds_admissions_back_but_never_the_only_one() -> None:
    scheduler = make(blocks=10, watermark=0.2)
    first, second, third = Sequence(24, 8), Sequence(8, 8), Sequence(40 - 8, 8)
    for sequence in (first, second):
        scheduler.add(sequence)
    step = scheduler.schedule()
    assert step is not None
    assert set(scheduler.running) == {first, second}
    scheduler.remove(first)
    scheduler.remove(second)
    scheduler.add(third)
    scheduler.schedule()
    assert set(scheduler.running) == {third}


def test_the_last_admitted_gives_way_and_starts_over_at_the_head_of_the_queue() -> None:
    scheduler, emitted = make(blocks=6, watermark=0), {}
    first, second = Sequence(8, 16), Sequence(8, 16)
    scheduler.add(first)
    scheduler.add(second)
    preempted = []
    for _ in range(100):
        step = scheduler.schedule()
        if step is None:
            break
        preempted += step.preempted
        for sequence in (*scheduler.decoding, *step.ending, *step.prefilled):
            emitted[sequence] = emitted.get(sequence, 0) + 1
        scheduler.complete(step)
    assert preempted[0] is second
    assert emitted == {first: 16, second: 16}


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        make(blocks=2).add(Sequence(7, 2))


def test_the_length_is_known_at_every_moment() -> None:
    scheduler = make()
    sequence = Sequence(10, 5)
    scheduler.add(sequence)
    lengths = []
    for _ in range(3):
        step = scheduler.schedule()
        assert step is not None
        lengths.append(scheduler.length(sequence))
        scheduler.complete(step)
    assert lengths == [10, 11, 12]


requests = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(requests, st.integers(16, 40), st.integers(1, 8), st.integers(8, 40))
def test_every_sequence_gets_its_tokens_and_every_block_comes_back(
    shape: list[tuple[int, int, int]], blocks: int, seqs: int, budget: int
) -> None:
    scheduler = make(blocks=blocks, max_num_seqs=seqs, max_num_batched_tokens=budget)
    emitted: dict[Sequence, int] = {}
    sequences = []
    for prompt, output, family in shape:
        sequence = Sequence(prompt, output, [family * 100 + i for i in range(prompt // 4)])
        sequences.append(sequence)
        scheduler.add(sequence)
    drive(scheduler, emitted)
    assert [emitted[s] for s in sequences] == [output for _, output, _ in shape]
    assert (scheduler.blocks.used, scheduler.prefill_tokens()) == (0, 0)


@settings(max_examples=80, deadline=None)
@given(requests, st.data())
def test_removing_sequences_at_any_time_leaves_nothing_behind(shape: list[tuple[int, int, int]], data: st.DataObject) -> None:
    scheduler = make(blocks=24, max_num_seqs=6, max_num_batched_tokens=20)
    waiting = [Sequence(prompt, output) for prompt, output, _ in shape]
    for sequence in waiting:
        scheduler.add(sequence)
    for turn in itertools.count():
        assert turn < 5000
        if waiting and data.draw(st.booleans()):
            scheduler.remove(waiting.pop())
        step = scheduler.schedule()
        if step is None:
            break
        if waiting and data.draw(st.booleans()):
            scheduler.remove(waiting.pop(0))
        scheduler.complete(step)
    assert (scheduler.blocks.used, len(scheduler.running), len(scheduler.waiting)) == (0, 0, 0)


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 25), st.integers(0, 200)), min_size=1, max_size=12), st.data())
@settings(max_examples=60, deadline=None)
def test_passing_quiet_steps_together_changes_nothing(requests: list[tuple[int, int, int]], data: st.DataObject) -> None:
    limit = data.draw(st.integers(1, 20))

    def ends(*, together: bool) -> tuple[dict[int, float], int]:
        scheduler, now, steps = make(max_num_seqs=4), 0.0, 0
        numbers = {Sequence(prompt, output): i for i, (prompt, output, _) in enumerate(requests)}
        coming = sorted(numbers, key=lambda s: requests[numbers[s]][2])
        over: dict[int, float] = {}
        while coming or scheduler.running or scheduler.waiting:
            while coming and requests[numbers[coming[0]]][2] <= steps:
                scheduler.add(coming.pop(0))
            quiet = scheduler.quiet(limit) if together else []
            if coming:
                quiet = quiet[: max(1, requests[numbers[coming[0]]][2] - steps)]
            if quiet:
                now += sum(quiet)
                steps += len(quiet)
                scheduler.skip(len(quiet))
                continue
            step = scheduler.schedule()
            steps += 1
            if step is not None:
                now += step.ms
                scheduler.complete(step)
                over.update({numbers[s]: now for s in (*step.ending, *step.prefilled) if s not in scheduler.running})
        return over, steps

    (one, steps), (other, same) = ends(together=False), ends(together=True)
    assert one == pytest.approx(other)
    assert steps == same
    assert len(one) == len(requests)
