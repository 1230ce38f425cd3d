"""A backend's model in discovery, where frontends find it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from dynamo_core import contracts
from dynamo_core.contracts import Context, ModelCard, ResponseSink
from dynamo_core.errors import ConfigError, StartupError
from dynamo_core.llm.model import ModelInput, ModelRuntimeConfig, ModelType, WorkerType, card_types
from dynamo_core.llm.payload import TokensAdapter
from dynamo_core.llm.router_config import RouterConfig
from dynamo_core.runtime import DistributedRuntime
from dynamo_core.runtime.component import Endpoint
from dynamo_core.serving.model_folder import ModelFolder
from dynamo_core.serving.template import ChatTemplate
from dynamo_core.serving.wire import ModelKey, encode_card

__all__ = ["Registrations", "fetch_model", "register_model", "registrations", "unregister_model", "update_model_taints"]


class Registrations:
    """The models of one process. Kept with its runtime."""

    def __init__(self, runtime: DistributedRuntime) -> None:
        self._runtime = runtime
        self._cards: dict[str, ModelCard] = {}
        """By endpoint."""
        self._publishing: set[str] = set()
        """Endpoints whose engine tells of its KV cache."""

    async def register(self, endpoint: Endpoint, card: ModelCard) -> None:
        if endpoint.path in self._publishing:
            card = msgspec.structs.replace(card, kv_events=True)
        self._cards[endpoint.path] = card
        await self._runtime.discovery.put(str(_key(endpoint)), encode_card(card))

    async def unregister(self, endpoint: Endpoint) -> None:
        self._cards.pop(endpoint.path, None)
        await self._runtime.discovery.delete(str(_key(endpoint)))

    def name_at(self, endpoint: Endpoint) -> str | None:
        """Of the model that is registered there."""
        card = self._cards.get(endpoint.path)
        return None if card is None else card.name

    async def retaint(self, endpoint: Endpoint, taints: Iterable[str]) -> None:
        card = self._cards.get(endpoint.path)
        if card is None:
            raise ConfigError(f"{endpoint.path} has no model: register_model before update_model_taints")
        await self.register(endpoint, msgspec.structs.replace(card, taints=tuple(taints)))

    async def publishes_kv_events(self, endpoint: Endpoint) -> None:
        """Say so on the card that is there or will come."""
        self._publishing.add(endpoint.path)
        card = self._cards.get(endpoint.path)
        if card is not None and not card.kv_events:
            await self.register(endpoint, card)


def registrations(runtime: DistributedRuntime) -> Registrations:
    found: Registrations = runtime.attached.setdefault(__name__, Registrations(runtime))
    return found


async def register_model(
    model_input: ModelInput,
    model_type: ModelType,
    endpoint: Endpoint,
    model_path: str,
    model_name: str | None = None,
    context_length: int | None = None,
    kv_cache_block_size: int | None = None,
    *,
    worker_type: WorkerType = WorkerType.Aggregated,
    router_config: RouterConfig | None = None,
    runtime_config: ModelRuntimeConfig | None = None,
    tensor_model_config: Mapping[str, Any] | None = None,
    user_data: dict[str, Any] | None = None,
    custom_template_path: str | None = None,
    media_decoder: Any = None,
    media_fetcher: Any = None,
    lora_name: str | None = None,
    base_model_path: str | None = None,
    needs: Sequence[Sequence[WorkerType]] | None = None,
    self_host_metadata: bool | None = None,
    ignore_weights: bool = False,
    max_gpu_lora_count: int | None = None,
    model_aliases: Sequence[str] | None = None,
    skip_model_assets: bool = False,
) -> None:
    """Tell frontends that ``endpoint`` serves the model whose tokenizer and chat template lie in the folder ``model_path``.

    The handler of the endpoint then gets and yields mappings as :mod:`dynamo_core.llm.payload` describes. The model takes
    requests as soon as the endpoint serves, before or after this call. ``custom_template_path`` is a file with a chat template
    instead of the folder's; its text travels to the frontends. ``ignore_weights``, ``self_host_metadata``, ``needs`` and
    ``max_gpu_lora_count`` are accepted and mean nothing: frontends read the folder themselves, and nobody fetches weights.
    Raises ConfigError, also for what is not done here, and StartupError.
    """
    del needs, self_host_metadata, ignore_weights, max_gpu_lora_count
    if model_input is not ModelInput.Tokens:
        raise ConfigError(f"ModelInput.{model_input.name} is not served: register with ModelInput.Tokens, and get token ids")
    if router_config is not None:
        raise ConfigError("register_model does not take router_config: who routes decides, so start the frontend with --router")
    refused = {
        "tensor_model_config": tensor_model_config,
        "media_decoder": media_decoder,
        "media_fetcher": media_fetcher,
        "skip_model_assets": skip_model_assets or None,
    }
    given = sorted(name for name, value in refused.items() if value is not None)
    if given:
        raise ConfigError(f"register_model does not take {', '.join(given)}: only text is served, with the model's own tokenizer")
    if (lora_name is None) != (base_model_path is None):
        raise ConfigError("lora_name and base_model_path go together: give both or none")
    if lora_name is not None and registrations(endpoint.runtime).name_at(endpoint) not in (None, lora_name):
        raise ConfigError(f"{endpoint.path} serves a model already: serve adapter {lora_name!r} on an endpoint of its own")
    runtime, told = endpoint.runtime, runtime_config or ModelRuntimeConfig()
    await runtime.start()
    folder = await asyncio.to_thread(ModelFolder.load, base_model_path or model_path)
    template = None if custom_template_path is None else await asyncio.to_thread(_template, custom_template_path)
    name = lora_name or model_name or PurePath(folder.path).name
    limits = [limit for limit in (context_length, told.context_length, folder.context_length) if limit]
    card = ModelCard(
        name=name,
        path=str(folder.path),
        aliases=tuple(model_aliases or ()),
        types=card_types(model_type),
        input=contracts.ModelInput.TOKENS,
        role=worker_type.value,
        engine="custom",
        context_length=min(limits, default=0),
        block_size=kv_cache_block_size or 0,
        total_kv_blocks=told.total_kv_blocks or 0,
        max_num_seqs=told.max_num_seqs or 0,
        max_num_batched_tokens=told.max_num_batched_tokens or 0,
        data_parallel_size=told.data_parallel_size,
        taints=tuple(told.taints),
        lora=lora_name,
        chat_template=template,
        tool_call_parser=told.tool_call_parser,
        reasoning_parser=told.reasoning_parser,
        created=int(time.time()),
        extra={**told.engine_specific, **told.runtime_data, **({"user_data": user_data} if user_data else {})},
    )
    runtime.adapters[endpoint.path] = TokensAdapter(name)
    await _serve_metrics(endpoint)
    await registrations(runtime).register(endpoint, card)


async def unregister_model(endpoint: Endpoint, lora_name: str | None = None) -> None:
    """Frontends forget the model of this instance; the endpoint goes on serving. ``lora_name`` is accepted and means nothing: an
    endpoint has one model."""
    del lora_name
    await endpoint.runtime.start()
    await registrations(endpoint.runtime).unregister(endpoint)


async def update_model_taints(endpoint: Endpoint, taints: Iterable[str]) -> None:
    """Give the model of this instance other taints, for routers to see from here on. Raises ConfigError for an instance without
    a model."""
    await endpoint.runtime.start()
    await registrations(endpoint.runtime).retaint(endpoint, taints)


async def fetch_model(remote_name: str, ignore_weights: bool = False) -> str:
    """The folder of a model: ``remote_name`` itself where it is one, else what ``huggingface_hub`` downloads.

    ``ignore_weights`` fetches what a frontend needs. Raises StartupError.
    """
    if await asyncio.to_thread(Path(remote_name).is_dir):
        return remote_name
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        text = f"{remote_name} is no folder, and nothing here can download it: pip install huggingface_hub, or give a folder"
        raise StartupError(text) from None
    left_out = ["*.safetensors", "*.bin", "*.pt", "*.gguf", "*.h5", "*.msgpack"] if ignore_weights else None
    try:
        path = await asyncio.to_thread(lambda: snapshot_download(remote_name, ignore_patterns=left_out))
    except Exception as error:
        raise StartupError(f"{remote_name} is no folder and could not be downloaded: {error}") from error
    return str(path)


def _template(path: str) -> str:
    try:
        source = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"custom_template_path {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    for fault in ChatTemplate(source, {}).faults.values():
        raise StartupError(f"custom_template_path {path} {fault}")
    return source


def _key(endpoint: Endpoint) -> ModelKey:
    return ModelKey(endpoint.namespace, endpoint.component, endpoint.name, endpoint.runtime.instance_id)


async def _serve_metrics(endpoint: Endpoint) -> None:
    """The process's series, where frontends look for them; once a component."""
    runtime = endpoint.runtime
    metrics = runtime.endpoint(f"{endpoint.namespace}.{endpoint.component}.metrics")
    if runtime.served(metrics.path) is not None:
        return

    def tell(request: Any, context: Context, sink: ResponseSink) -> None:
        del request, context
        sink.item(runtime.metrics.text())
        sink.end()

    await metrics.serve(tell)
