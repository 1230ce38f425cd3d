"""An engine around any Python function from text to text: ``--engine-arg function=MODULE:NAME``."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from dynamo_core import hookimpl
from dynamo_core.contracts import Context, EngineChunk, EngineContext, EngineInfo, EngineRequest
from dynamo_core.errors import StartupError
from dynamo_core.specs import EngineSpec


class FunctionEngine:
    def __init__(self, config: None, context: EngineContext) -> None:
        self.target = str(context.args.get("function", ""))
        self.tokenizer_file = Path(context.model_path, "tokenizer.json")

    async def start(self) -> EngineInfo:
        from tokenizers import Tokenizer

        module, _, name = self.target.partition(":")
        try:
            self.function: Callable[[str], str] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            hint = "say --engine-arg function=MODULE:NAME of a module that can be imported"
            raise StartupError(f"Engine 'function' cannot find {self.target!r} ({error}): {hint}.") from error
        self.tokenizer: Any = Tokenizer.from_file(str(self.tokenizer_file))
        return EngineInfo()

    async def generate(self, request: EngineRequest, context: Context) -> AsyncIterator[EngineChunk]:
        prompt = self.tokenizer.decode(list(request.token_ids))
        answer = await asyncio.to_thread(self.function, prompt)  # a slow function must not stop the event loop
        token_ids = self.tokenizer.encode(answer, add_special_tokens=False).ids
        for token_id in token_ids[: request.stop.max_tokens]:
            if context.is_stopped():
                yield EngineChunk((), finish_reason="cancelled")
                return
            yield EngineChunk((token_id,))
        yield EngineChunk((), finish_reason="stop" if len(token_ids) <= request.stop.max_tokens else "length")

    async def stop(self) -> None:
        pass


@hookimpl
def dynamo_engines() -> Iterator[EngineSpec]:
    yield EngineSpec(
        name="function",
        factory=FunctionEngine,
        requires={"tokenizers": "pip install tokenizers"},
        needs_model=False,
        description="Any Python function from text to text.",
    )
