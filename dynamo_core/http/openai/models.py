"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from typing import Annotated

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import Parameter
from litestar.types import Scope

from dynamo_core.contracts.gate import Principal
from dynamo_core.errors import ModelNotFound
from dynamo_core.http.exchange import exchange_of
from dynamo_core.http.openai.types import ModelList, ModelObject
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.served_model import ServedModel

__all__ = ["model_routes"]


def model_routes(manager: ModelManager) -> list[HTTPRouteHandler]:
    """Lists what can answer now; a model whose workers are all gone is left out, and found by its name."""

    @get("/v1/models", tags=["OpenAI"], summary="Models", operation_id="listModels", sync_to_thread=False)
    def list_models(scope: Scope) -> ModelList:
        principal = exchange_of(scope).principal
        objects = [_describe(served, served.name) for served in manager.models() if served.ready and _visible(served, principal)]
        return ModelList("list", objects)

    @get("/v1/models/{model_id:path}", tags=["OpenAI"], summary="One model", operation_id="retrieveModel", sync_to_thread=False)
    def retrieve_model(model_id: Annotated[str, Parameter(description="Name or alias.")], scope: Scope) -> ModelObject:
        name = model_id.lstrip("/")
        served = manager.get(name)
        if not _visible(served, exchange_of(scope).principal):
            raise ModelNotFound(f"The model {name!r} does not exist.", param="model")
        return _describe(served, name)

    return [list_models, retrieve_model]


def _visible(served: ServedModel, principal: Principal | None) -> bool:
    return principal is None or principal.models is None or not principal.models.isdisjoint((served.name, *served.card.aliases))


def _describe(served: ServedModel, name: str) -> ModelObject:
    length = served.card.context_length
    return ModelObject(name, "model", served.created, "dynamo", length, length or None)
