"""The smallest server of the distributed runtime, and the same greetings as a model behind /v1/chat/completions.

python hello_world.py                                   serves hello_world.backend.generate; call it with client.py
python hello_world.py --model FOLDER --name hello       answers chat through `dynamo frontend --namespace hello_world`
"""

import argparse
import asyncio
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from tokenizers import Tokenizer

from dynamo_core.llm import ModelInput, ModelType, register_model
from dynamo_core.runtime import Context, DistributedRuntime, configure_dynamo_logging, dynamo_endpoint, dynamo_worker

log = logging.getLogger("hello_world")


def word_delay() -> float:
    return float(os.environ.get("DYN_TEST_HELLO_WORLD_WORD_DELAY_SEC", "1.0"))


def path() -> str:
    return f"{os.environ.get('DYN_TEST_HELLO_WORLD_NAMESPACE', 'hello_world')}.backend.generate"


@dynamo_endpoint(str, str)
async def greet(request: str) -> AsyncIterator[str]:
    log.info("Received request: %s", request)
    for word in request.split(","):
        await asyncio.sleep(word_delay())
        yield f"Hello {word}!"


class HelloEngine:
    """Greets every word of the prompt, token by token."""

    def __init__(self, model: str) -> None:
        self._tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))

    async def generate(self, request: dict[str, Any], context: Context) -> AsyncIterator[dict[str, Any]]:
        words = self._tokenizer.decode(request["token_ids"]).replace(",", " ").split()
        left = request["stop_conditions"]["max_tokens"]
        for number, word in enumerate(words):
            if context.is_stopped():
                yield {"finish_reason": "cancelled"}
                return
            await asyncio.sleep(word_delay())
            greeting = self._tokenizer.encode(f"{' ' if number else ''}Hello {word}!", add_special_tokens=False).ids
            yield {"token_ids": greeting[:left]}
            left -= len(greeting)
            if left <= 0:
                yield {"finish_reason": "length"}
                return
        yield {"finish_reason": "stop"}


@dynamo_worker()
async def worker(runtime: DistributedRuntime, model: str | None = None, name: str = "hello") -> None:
    endpoint = runtime.endpoint(path())
    log.info("Serving endpoint %s", endpoint.path)
    if model is None:
        await endpoint.serve_endpoint(greet)
    else:
        await register_model(ModelInput.Tokens, ModelType.Chat | ModelType.Completions, endpoint, model, name)
        await endpoint.serve_endpoint(HelloEngine(model).generate)


def main() -> None:
    parser = argparse.ArgumentParser(description="Says hello.")
    parser.add_argument("--model", help="folder with a tokenizer and a chat template")
    parser.add_argument("--name", default="hello", help="name of the model")
    arguments = parser.parse_args()
    configure_dynamo_logging(service_name="backend")
    uvloop.run(worker(arguments.model, arguments.name))


if __name__ == "__main__":
    main()
