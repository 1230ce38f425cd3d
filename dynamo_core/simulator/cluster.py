"""The simulated workers: the mocker's scheduler, cache and timing model, stepped in virtual time."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import msgspec

from dynamo_core.contracts import KvBatch, ModelCard, RouteRequest, WorkerView
from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.codec import encode_kv_batch
from dynamo_core.kv.hashing import block_hash, sequence_hashes
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Sequence, Step
from dynamo_core.kv.timing import TimingModel

__all__ = ["Change", "Cluster", "Job", "SimulatedWorker"]

_QUIET_STEPS = 256
"""Steps that are looked ahead at most; an arrival makes the rest of them worthless."""

_OUTPUT_SEED = 1
"""Any but that of prompts."""


class Change(msgspec.Struct, frozen=True):
    """Workers join, with empty caches, or leave: those that served longest, once what they run is done."""

    at_ms: float
    """Of virtual time."""
    workers: int
    """So many more; fewer if negative."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """What the requests run on."""

    workers: int = 8
    blocks: int = 2048
    """KV blocks of each worker."""
    block_size: int = 512
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    kv_event_delay_ms: float = 0.0
    """From the end of a step to the moment when the router learns what the cache gained and lost."""
    timing: TimingModel = TimingModel()
    changes: tuple[Change, ...] = ()

    @property
    def capacity(self) -> int:
        """Tokens in the cache of a worker."""
        return self.blocks * self.block_size

    def card(self) -> ModelCard:
        return ModelCard(
            name="simulated",
            path="",
            engine="simulator",
            context_length=self.capacity,
            block_size=self.block_size,
            total_kv_blocks=self.blocks,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_events=True,
        )


class Job(Sequence):
    """A request on a worker. A trace does not say which later prompt repeats what is generated, so no prompt ever does."""

    __slots__ = ("index", "route")

    def __init__(self, index: int, route: RouteRequest, output_length: int, block_size: int) -> None:
        super().__init__(len(route.token_ids), output_length, sequence_hashes(route.token_ids, block_size))
        self.index = index
        self.route = route

    def next_hash(self) -> int | None:
        """A name that no prompt has, but for an accident of 1 in 2⁶⁴."""
        return block_hash((self.index, len(self.hashes)), _OUTPUT_SEED)


class SimulatedWorker:
    """Steps follow one another as long as there is work; runs of steps in which nothing begins or ends are passed at once."""

    def __init__(self, worker_id: int, cluster: Cluster, *, every_step: bool) -> None:
        limits = SchedulerLimits(
            block_size=cluster.block_size,
            max_num_seqs=cluster.max_num_seqs,
            max_num_batched_tokens=cluster.max_num_batched_tokens,
        )
        self.view = WorkerView(worker_id, cluster.card())
        self.scheduler = Scheduler(limits, BlockManager(cluster.blocks), cluster.timing)
        self.busy_ms = 0.0
        self.preemptions = 0
        self.computed_tokens = 0
        """Prompt tokens that were not found in the cache."""
        self.due_ms: float | None = None
        """When what runs is over; ``None`` while nothing does."""
        self._every_step = every_step
        self._step: Step | None = None
        self._ends: list[float] = []
        self._batches = 0

    def add(self, job: Job, now_ms: float) -> None:
        """Queue it; a run of quiet steps ends with the step that is in progress. Call :meth:`begin` if nothing runs."""
        self.scheduler.add(job)
        if self._ends:
            del self._ends[bisect_left(self._ends, now_ms) + 1 :]
            self.due_ms = self._ends[-1]

    def begin(self, now_ms: float) -> None:
        """Begin the next step, or as many quiet ones as there are; sets :attr:`due_ms`."""
        quiet = [] if self._every_step else self.scheduler.quiet(_QUIET_STEPS)
        if quiet:
            self._ends = list(accumulate(quiet, initial=now_ms))[1:]
            self.due_ms = self._ends[-1]
            self._step = None
        else:
            self._step = step = self.scheduler.schedule()
            self.due_ms = None if step is None else now_ms + step.ms
            if step is not None:
                self.preemptions += len(step.preempted)
                self.computed_tokens += sum(chunk.end - chunk.start for chunk in step.chunks)
        if self.due_ms is not None:
            self.busy_ms -= now_ms

    def end(self, now_ms: float) -> Step | None:
        """What :meth:`begin` began is over. Returns the step unless it was a quiet run; call :meth:`complete` with it."""
        self.busy_ms += now_ms
        self.due_ms = None
        step = self._step
        if step is None:
            self.scheduler.skip(len(self._ends))
            self._ends = []
        return step

    def complete(self, step: Step) -> bytes | None:
        """The tokens of the step are out. Returns the payload that the worker publishes, if its cache changed."""
        self.scheduler.complete(step)
        events = self.scheduler.blocks.take_events()
        if not events:
            return None
        batch = KvBatch(self.view.id, self._batches, tuple(events))
        self._batches += 1
        return encode_kv_batch(batch)
