"""Router ``cache-aware``: the policy that users of SGLang's and vLLM's routers know by this name, with its parameters.

It remembers the prompts that it sent to each worker, in blocks of the engine's size, and forgets the least recently used ones; it
listens to nobody. While the workers are about equally loaded, a request goes to the worker that had the longest part of its
prompt, if that is more than ``cache_threshold`` of it; else to the least loaded one, among equals to the one with the smallest
memory.

Loads (running requests) are out of balance when ``max − min > balance_abs_threshold`` and ``max > balance_rel_threshold × min``.
Two things differ from the routers where it comes from, which users there asked for: out of balance, workers above both bounds are
left out and the others still keep their prompts, instead of all affinity being dropped; and a prompt that nobody had goes by load
first, not by the size of the memory alone, so that a worker that lost its memory is not flooded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated

import msgspec

from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.hookspecs import hookimpl
from dynamo_core.kv import PrefixIndex, PromptHashes, slots_of
from dynamo_core.specs import RouterSpec

__all__ = ["CacheAware", "CacheAwareConfig", "dynamo_config", "dynamo_routers"]

_DEFAULT_BLOCK = 16


class CacheAwareConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    cache_threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    """Share of the prompt that a worker must have had; 1 leaves only load."""
    balance_abs_threshold: Annotated[int, msgspec.Meta(ge=0)] = 64
    balance_rel_threshold: Annotated[float, msgspec.Meta(ge=1)] = 1.5
    max_tree_size: Annotated[int, msgspec.Meta(ge=1)] = 1 << 22
    """Tokens remembered of a worker; never more than its cache holds, where that is known."""
    eviction_interval_secs: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    """Accepted for those who bring it along, without effect: the memory is kept within its bound at every request."""


class CacheAware:
    """Repeatable. O(workers + log blocks) a request, and O(blocks of the prompt) to remember it."""

    def __init__(self, config: CacheAwareConfig | None, context: RouterContext) -> None:
        self._config = config or CacheAwareConfig()
        self._block_size = context.block_size or _DEFAULT_BLOCK
        self._index = PrefixIndex()
        self._slots: dict[int, int] = {}
        self._owners: dict[int, int] = {}
        self._turn = 0
        self._chosen: dict[int, int] = {}

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        if workers.keys() - self._slots.keys():
            for worker in workers.values():
                self.worker_added(worker)
        load = {worker.id: worker.running for worker in workers.values()}
        return [self._place(request, load) for request in requests]

    def worker_added(self, worker: WorkerView) -> None:
        if worker.id not in self._slots:
            limit = max(1, self._config.max_tree_size // self._block_size)
            slot = self._index.open(min(limit, worker.card.total_kv_blocks or limit), expiring=True)
            self._slots[worker.id], self._owners[slot] = slot, worker.id

    def worker_removed(self, worker_id: int) -> None:
        self._chosen.pop(worker_id, None)
        slot = self._slots.pop(worker_id, None)
        if slot is not None:
            self._index.close(slot)
            del self._owners[slot]

    def _place(self, request: RouteRequest, load: dict[int, int]) -> Decision:
        """``load`` is counted on, so that the requests of one turn see each other."""
        excluded, pinned = request.excluded, request.pinned
        prompt = PromptHashes(request.token_ids, self._block_size, lora=request.lora, salt=request.cache_salt)
        fit = [worker for worker in load if worker not in excluded] if excluded else list(load)
        if pinned is not None and pinned in load and pinned not in excluded:
            fit = [pinned]
        if not fit:
            return Hold(reason="no worker is left for this request")
        chosen, blocks = self._choose(prompt, len(request.token_ids), self._balanced(fit, load), load)
        load[chosen] += 1
        self._turn += 1
        self._chosen[chosen] = self._turn
        self._index.stored(self._slots[chosen], prompt.upto(prompt.count), keep=1.0)
        return Route(chosen, blocks)

    def _balanced(self, fit: list[int], load: Mapping[int, int]) -> list[int]:
        """Without the workers that are far above the least loaded one."""
        least = min(load[worker] for worker in fit)
        bound = max(least + self._config.balance_abs_threshold, least * self._config.balance_rel_threshold)
        return [worker for worker in fit if load[worker] <= bound]

    def _choose(self, prompt: PromptHashes, tokens: int, fit: Sequence[int], load: Mapping[int, int]) -> tuple[int, int]:
        """The worker, and how many blocks of the prompt it had."""
        had = {
            worker: match.blocks
            for match in self._index.match(prompt)
            for slot in slots_of(match.slots)
            if (worker := self._owners[slot]) in fit
        }
        most = max(had.values(), default=0)
        if most * self._block_size > self._config.cache_threshold * tokens:
            fit = [worker for worker, blocks in had.items() if blocks == most]
        size, slots, turns = self._index.size, self._slots, self._chosen
        chosen = min(fit, key=lambda worker: (load[worker], size(slots[worker]), turns.get(worker, 0), worker))
        return chosen, had.get(chosen, 0)


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return CacheAwareConfig


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(
        name="cache-aware",
        factory=CacheAware,
        description="Longest remembered prefix while loads are balanced, as SGLang's router does.",
    )
