"""Which sequences a simulated engine advances in a step: continuous batching with chunked prefill over a paged cache.

The caller alternates :meth:`Scheduler.schedule` and :meth:`Scheduler.complete` and lets ``Step.ms`` pass in between, in real or
in virtual time. The rules are those of Dynamo's mocker and, where it leaves a choice, of vLLM:

* A step computes one token of every decoding sequence and, from what is left of ``max_num_batched_tokens``, unfinished prompts
  and then waiting ones, first come first served. At least one token of a prompt is computed, however much of it is cached.
* A waiting sequence is admitted when all blocks of its prompt fit and a watermark of free blocks remains. Blocks become reusable
  in the step that computes them.
* The first token comes at the end of the step that finishes the prompt.
* A decoding sequence that finds no free block takes those of the sequence admitted last (itself, if need be), which starts over
  at the head of the queue; what it has generated is then part of its prompt.

A step costs O(sequences that start, end or need a block), not O(sequences that run): what happens to a decoding sequence in which
step is known in advance and kept in two calendars.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence as Seq

import msgspec

from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.timing import Chunk, TimingModel

__all__ = ["Scheduler", "SchedulerLimits", "Sequence", "Step"]


class SchedulerLimits(msgspec.Struct, frozen=True, kw_only=True):
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    """At least ``max_num_seqs``: every decoding sequence gets its token."""
    watermark: float = 0.01
    """Share of all blocks that an admission leaves free."""


class Sequence:
    """One sequence of token ids, of which the scheduler needs only the number and the names of the blocks.

    A subclass that knows the tokens of the output names its blocks in :meth:`next_hash`.
    """

    __slots__ = (
        "blocks", "cached", "computed", "end_at", "generated", "grow_at", "hashes", "max_tokens", "offset", "prompt_tokens",
        "stored",
    )  # fmt: skip

    def __init__(self, prompt_tokens: int, max_tokens: int, hashes: Seq[int] = ()) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.hashes = list(hashes)
        """Sequence hashes of the full blocks known so far; grows with the output."""
        self.blocks: list[int] = []
        self.cached = 0
        """Tokens found in the cache at the last admission."""
        self.computed = 0
        """Tokens in the cache; kept up to date until the prompt is done."""
        self.stored = 0
        """Blocks made reusable or found so."""
        self.generated = 0
        """Tokens emitted when the sequence last was not decoding."""
        self.offset = 0
        self.grow_at = self.end_at = -1

    def next_hash(self) -> int | None:
        """The sequence hash of the block after the last of :attr:`hashes`; ``None`` if it is never to be found again."""
        return None


class Step(msgspec.Struct, frozen=True):
    """What one step does. Sequences that decode on are in :attr:`Scheduler.decoding`."""

    ms: float
    chunks: tuple[Chunk, ...]
    prefilled: tuple[Sequence, ...]
    """Their prompt is finished: they emit their first token at the end (and no other if ``max_tokens`` is 1)."""
    ending: tuple[Sequence, ...]
    """They emit their last token at the end."""
    preempted: tuple[Sequence, ...]
    decoded: int
    """Sequences that get a token besides the ``prefilled`` ones; ``ending`` included."""


class Scheduler:
    """Not thread-safe. Between :meth:`schedule` and :meth:`complete` sequences may be added and removed."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager, timing: TimingModel) -> None:
        self.limits = limits
        self.blocks = blocks
        self.timing = timing
        self.waiting: OrderedDict[Sequence, None] = OrderedDict()
        self.running: dict[Sequence, None] = {}
        """Admitted, in this order."""
        self.decoding: dict[Sequence, None] = {}
        """Of these, the ones whose prompt is done and whose end is not in this step."""
        self._step = 0
        self._offsets = 0
        self._grow: defaultdict[int, list[Sequence]] = defaultdict(list)
        self._end: defaultdict[int, dict[Sequence, None]] = defaultdict(dict)
        self._preempted: list[Sequence] = []
        self._floor = int(limits.watermark * blocks.total)

    @property
    def capacity(self) -> int:
        """Tokens that the cache can hold: the longest sequence."""
        return self.blocks.total * self.limits.block_size

    def length(self, sequence: Sequence) -> int:
        """Its tokens in the cache."""
        return self._step + sequence.offset if self._is_decoding(sequence) else sequence.computed

    def prefill_tokens(self) -> int:
        """Tokens of prompts that wait or are not finished. O(such sequences)."""
        queued = sum(s.prompt_tokens + s.generated for s in self.waiting)
        return queued + sum(
            s.prompt_tokens + s.generated - s.computed
            for s in self.running
            if s not in self.decoding and not self._is_decoding(s)
        )

    def add(self, sequence: Sequence) -> None:
        """Queue it. Raises :class:`ValueError` when prompt and output can never fit into the cache together."""
        if sequence.prompt_tokens + sequence.max_tokens > self.capacity:
            raise ValueError(f"{sequence.prompt_tokens} + {sequence.max_tokens} tokens do not fit into {self.capacity}")
        self.waiting[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Free it, wherever it is: cancelled, or ended by one of its tokens. Unknown ones are ignored."""
        self.waiting.pop(sequence, None)
        if sequence in self.running:
            self._release(sequence, self._step)

    def schedule(self) -> Step | None:
        """Begin a step; ``None`` when there is nothing to do."""
        if not self.running and not self.waiting:
            return None
        self._step += 1
        self._preempted = []
        for sequence in self._grow.pop(self._step, ()):
            if sequence.grow_at == self._step and sequence in self.decoding:
                self._extend(sequence)
        decoded = len(self.decoding)
        active = self._offsets + self._step * decoded
        chunks, prefilled = self._prefill(self.limits.max_num_batched_tokens - decoded)
        ending = self._take_ending()
        ms = self.timing.step_ms(chunks, active, self.capacity)
        return Step(ms, tuple(chunks), tuple(prefilled), tuple(ending), tuple(self._preempted), decoded)

    def complete(self, step: Step) -> None:
        """The step is over and its tokens are out: prompts that are done decode from the next step on, what ended is freed."""
        for sequence in step.prefilled:
            if sequence not in self.running:
                continue
            sequence.generated += 1
            if sequence.generated >= sequence.max_tokens:
                self._release(sequence, self._step)
            else:
                self._decode(sequence)
        for sequence in step.ending:
            if sequence in self.running:
                self._release(sequence, self._step)

    # --- quiet steps ---------------------------------------------------------------------------------------------------------

    def quiet(self, limit: int) -> list[float]:
        """Milliseconds of each of the next steps, ``limit`` at most, that only give every decoding sequence one more token.

        Such steps start, end and store nothing, so a caller in virtual time can pass several with :meth:`skip`; what is added
        meanwhile waits for the step after. Empty when the next step does more. O(decoding sequences + steps).
        """
        decoding = len(self.decoding)
        if self.waiting or not decoding or len(self.running) != decoding:
            return []
        step = self._step
        busy = min(*self._end, *self._grow, step + limit + 1)
        ms, total = self.timing.decode_ms, self.capacity
        first = self._offsets + (step + 1) * decoding
        return [ms(active, total) for active in range(first, first + (busy - step - 1) * decoding, decoding)]

    def skip(self, steps: int) -> None:
        """So many of the :meth:`quiet` steps are over."""
        self._step += steps

    # --- decoding ------------------------------------------------------------------------------------------------------------

    def _is_decoding(self, sequence: Sequence) -> bool:
        return sequence.end_at >= self._step and sequence in self.running

    def _decode(self, sequence: Sequence) -> None:
        """From the next step on; in step s the sequence then has s + offset tokens in the cache."""
        step = self._step
        sequence.offset = sequence.computed - step
        sequence.end_at = step + sequence.max_tokens - sequence.generated
        sequence.grow_at = len(sequence.blocks) * self.limits.block_size - sequence.offset + 1
        self._offsets += sequence.offset
        self.decoding[sequence] = None
        self._end[sequence.end_at][sequence] = None
        self._grow[sequence.grow_at].append(sequence)

    def _extend(self, sequence: Sequence) -> None:
        """The blocks of a decoding sequence are full: name the last and take one more."""
        while not self.blocks.free:
            victim = next(reversed(self.running))
            self._preempt(victim)
            if victim is sequence:
                return
        self._name_output(sequence, self._step - 1 + sequence.offset)
        sequence.blocks += self.blocks.allocate(1)
        sequence.grow_at += self.limits.block_size
        self._grow[sequence.grow_at].append(sequence)

    def _take_ending(self) -> list[Sequence]:
        ending: list[Sequence] = []
        for sequence in self._end.pop(self._step, ()):
            del self.decoding[sequence]
            self._offsets -= sequence.offset
            ending.append(sequence)
        return ending

    def _name_output(self, sequence: Sequence, length: int) -> None:
        """Make the full blocks of the first ``length`` tokens reusable."""
        full = length // self.limits.block_size
        while len(sequence.hashes) < full:
            seq_hash = sequence.next_hash()
            if seq_hash is None:
                return
            sequence.hashes.append(seq_hash)
        if sequence.stored < full:
            self.blocks.store(sequence.blocks[sequence.stored : full], sequence.hashes[sequence.stored : full])
            sequence.stored = full

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence, self._step - 1)
        self._preempted.append(sequence)
        self.waiting[sequence] = None
        self.waiting.move_to_end(sequence, last=False)

    def _release(self, sequence: Sequence, last_step: int) -> None:
        """Out of the running ones, ``last_step`` being the last one that computed a token of it; its blocks stay reusable."""
        if self._is_decoding(sequence):
            length = last_step + sequence.offset
            if sequence in self.decoding:
                del self.decoding[sequence]
                del self._end[sequence.end_at][sequence]
                self._offsets -= sequence.offset
            sequence.generated = length - sequence.prompt_tokens + 1
            self._name_output(sequence, length)
        del self.running[sequence]
        self.blocks.release(sequence.blocks)
        sequence.blocks = []
        sequence.computed = sequence.stored = 0
        sequence.grow_at = sequence.end_at = -1

    # --- prompts -------------------------------------------------------------------------------------------------------------

    def _prefill(self, budget: int) -> tuple[list[Chunk], list[Sequence]]:
        chunks: list[Chunk] = []
        prefilled: list[Sequence] = []
        if len(self.running) > len(self.decoding):
            for sequence in [s for s in self.running if s not in self.decoding]:
                budget -= self._advance(sequence, budget, chunks, prefilled)
        while budget > 0 and self.waiting and not self._preempted and len(self.running) < self.limits.max_num_seqs:
            sequence = next(iter(self.waiting))
            if not self._admit(sequence):
                break
            budget -= self._advance(sequence, budget, chunks, prefilled)
        return chunks, prefilled

    def _admit(self, sequence: Sequence) -> bool:
        """Hold what is cached of its prompt and take blocks for the rest; False when they are not there."""
        target = sequence.prompt_tokens + sequence.generated
        found = self.blocks.match(sequence.hashes)
        missing = -(-target // self.limits.block_size) - len(found)
        if self.blocks.available(found) - missing < (self._floor if self.running else 0):
            return False
        del self.waiting[sequence]
        self.blocks.hold(found)
        sequence.blocks = found + self.blocks.allocate(missing)
        sequence.stored = len(found)
        sequence.cached = sequence.computed = min(len(found) * self.limits.block_size, target - 1)
        self.running[sequence] = None
        return True

    def _advance(self, sequence: Sequence, budget: int, chunks: list[Chunk], prefilled: list[Sequence]) -> int:
        """Compute as much of its prompt as the budget allows; returns how many tokens."""
        start = sequence.computed
        target = sequence.prompt_tokens + sequence.generated
        end = min(target, start + budget)
        if end <= start:
            return 0
        sequence.computed = end
        full = min(end // self.limits.block_size, len(sequence.hashes))
        if full > sequence.stored:
            self.blocks.store(sequence.blocks[sequence.stored : full], sequence.hashes[sequence.stored : full])
            sequence.stored = full
        chunks.append(Chunk(start, end))
        if end == target:
            prefilled.append(sequence)
        return end - start
