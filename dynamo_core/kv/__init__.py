"""Block hashes, KV events, and the paged cache, timing model and scheduler that simulated engines share."""

from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_core.kv.hashing import HashCache, PromptHashes, block_hash, block_hashes, hash_seed, sequence_hashes
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Sequence, Step
from dynamo_core.kv.timing import Chunk, TimingModel

__all__ = [
    "BlockManager",
    "Chunk",
    "HashCache",
    "PromptHashes",
    "Scheduler",
    "SchedulerLimits",
    "Sequence",
    "Step",
    "TimingModel",
    "VllmEventTranslator",
    "block_hash",
    "block_hashes",
    "hash_seed",
    "sequence_hashes",
]
