"""A whole backend: it registers a model, keeps a prefix cache and tells of it, tells its load, and answers chat.

    python one_file_backend.py --model FOLDER --name parrot &
    dynamo frontend --router kv-router --http-port 8000

Its model repeats the prompt; put yours into `Parrot.generate`.
"""

import argparse
import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import Any

import uvloop

from dynamo_core.llm import KvEventPublisher, ModelInput, ModelRuntimeConfig, ModelType, WorkerMetricsPublisher, register_model
from dynamo_core.runtime import Context, DistributedRuntime, configure_dynamo_logging, dynamo_worker

BLOCK = 16
BLOCKS = 4096


class PrefixCache:
    """Which blocks of prompts are known, by chained hashes of its own; the least recently used go first."""

    def __init__(self, publisher: KvEventPublisher, blocks: int = BLOCKS) -> None:
        self._publisher = publisher
        self._blocks = blocks
        self._known: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def add(self, tokens: Sequence[int]) -> int:
        """Take a prompt in; returns how many of its leading tokens were there already."""
        hashes = list(chained_hashes(tokens))
        cached = next((place for place, block in enumerate(hashes) if block not in self._known), len(hashes))
        for block in hashes:
            self._known[block] = None
            self._known.move_to_end(block)
        if hashes[cached:]:
            self._publisher.publish_stored(
                token_ids=tokens[cached * BLOCK : len(hashes) * BLOCK],
                num_block_tokens=[BLOCK] * (len(hashes) - cached),
                block_hashes=hashes[cached:],
                parent_hash=hashes[cached - 1] if cached else None,
            )
        removed = [self._known.popitem(last=False)[0] for _ in range(len(self._known) - self._blocks)]
        if removed:
            self._publisher.publish_removed(removed)
        return cached * BLOCK


def chained_hashes(tokens: Sequence[int]) -> list[int]:
    hashes, chain = [], b""
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        block = b"".join(token.to_bytes(4, "little") for token in tokens[start : start + BLOCK])
        chain = hashlib.blake2b(chain + block, digest_size=8).digest()
        hashes.append(int.from_bytes(chain, "little", signed=True))
    return hashes


class Parrot:
    def __init__(self, cache: PrefixCache, load: WorkerMetricsPublisher, delay: float) -> None:
        self._cache = cache
        self._load = load
        self._delay = delay
        self._running = 0

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        tokens, limit = request["token_ids"], request["stop_conditions"]["max_tokens"]
        self._count(+1)
        try:
            cached = self._cache.add(tokens)
            yield {"token_ids": [], "completion_usage": {"prompt_tokens_details": {"cached_tokens": cached}}}
            for token in tokens[:limit]:
                if context.is_stopped():
                    yield {"finish_reason": "cancelled"}
                    return
                await asyncio.sleep(self._delay)
                yield {"token_ids": [token]}
            yield {"finish_reason": "length" if len(tokens) > limit else "stop"}
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._running += change
        self._load.publish(kv_used_blocks=len(self._cache), running=self._running, kv_total_blocks=BLOCKS)


@dynamo_worker()
async def worker(runtime: DistributedRuntime, model: str, name: str, delay: float) -> None:
    endpoint = runtime.endpoint(f"{runtime.default_namespace}.backend.generate")
    config = ModelRuntimeConfig()
    config.total_kv_blocks = BLOCKS
    kind = ModelType.Chat | ModelType.Completions
    await register_model(ModelInput.Tokens, kind, endpoint, model, name, kv_cache_block_size=BLOCK, runtime_config=config)
    load = WorkerMetricsPublisher()
    await load.create_endpoint(endpoint)
    cache = PrefixCache(KvEventPublisher(endpoint, kv_block_size=BLOCK))
    canary = {"token_ids": [0], "stop_conditions": {"max_tokens": 1}}
    await endpoint.serve_endpoint(Parrot(cache, load, delay).generate, health_check_payload=canary)


def main() -> None:
    parser = argparse.ArgumentParser(description="Repeats what it is told.")
    parser.add_argument("--model", required=True, help="folder with a tokenizer and a chat template")
    parser.add_argument("--name", default="parrot", help="name of the model")
    parser.add_argument("--delay", type=float, default=0.01, help="seconds between two tokens")
    arguments = parser.parse_args()
    configure_dynamo_logging(service_name=arguments.name)
    uvloop.run(worker(arguments.model, arguments.name, arguments.delay))


if __name__ == "__main__":
    main()
