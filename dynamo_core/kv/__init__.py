"""Block hashes, KV events, the index of prefixes, and what simulated engines share: paged cache, timing model and scheduler."""

from dynamo_core.kv.block_map import BlockMap, multiples, new_block_map
from dynamo_core.kv.blocks import BlockManager
from dynamo_core.kv.events import VllmEventTranslator
from dynamo_core.kv.hashing import PromptHashes, block_hash, block_hashes, hash_seed, sequence_hashes
from dynamo_core.kv.prefix_index import Match, PrefixIndex, slots_of
from dynamo_core.kv.scheduler import Scheduler, SchedulerLimits, Sequence, Step
from dynamo_core.kv.timing import Chunk, TimingModel

__all__ = [
    "BlockManager",
    "BlockMap",
    "Chunk",
    "Match",
    "PrefixIndex",
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
    "multiples",
    "new_block_map",
    "sequence_hashes",
    "slots_of",
]
