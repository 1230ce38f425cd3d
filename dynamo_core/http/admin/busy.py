"""``/busy_threshold``: from where on workers count as busy, read and changed while the server runs."""

from __future__ import annotations

from typing import Annotated

from litestar import get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import Body
from litestar.types import Scope
from msgspec import UNSET, Meta, Struct, UnsetType, structs

from dynamo_core.contracts import BusyThresholds
from dynamo_core.errors import InvalidRequest, PermissionDenied
from dynamo_core.http.body import json_body
from dynamo_core.http.exchange import exchange_of
from dynamo_core.serving.manager import ModelManager
from dynamo_core.serving.served_model import ServedModel

__all__ = ["AllThresholds", "ModelThresholds", "ThresholdUpdate", "busy_routes"]

_SCOPE = "admin"


class ModelThresholds(Struct, frozen=True):
    model: str
    active_decode_blocks_threshold: float | None
    active_prefill_tokens_threshold: int | None
    active_prefill_tokens_threshold_frac: float | None


class AllThresholds(Struct, frozen=True):
    thresholds: list[ModelThresholds]


class ThresholdUpdate(Struct, frozen=True, kw_only=True):
    """A field that is left out keeps its value; null means: never busy for this reason."""

    model: str
    active_decode_blocks_threshold: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET
    active_prefill_tokens_threshold: Annotated[int, Meta(ge=0)] | UnsetType | None = UNSET
    active_prefill_tokens_threshold_frac: Annotated[float, Meta(ge=0)] | UnsetType | None = UNSET


def busy_routes(manager: ModelManager) -> list[HTTPRouteHandler]:
    @get("/busy_threshold", tags=["Operations"], summary="Busy thresholds", sync_to_thread=False)
    def get_thresholds() -> AllThresholds:
        """Of every model whose router has them."""
        return AllThresholds([_shown(served) for served in manager.models() if served.busy_thresholds() is not None])

    @post(
        "/busy_threshold",
        status_code=200,
        dto=json_body(ThresholdUpdate),
        return_dto=None,
        tags=["Operations"],
        summary="Set busy thresholds",
    )
    async def set_thresholds(data: Annotated[ThresholdUpdate, Body()], scope: Scope) -> ModelThresholds:
        """For one model, in all frontends; without thresholds, its present ones. Where requests are authenticated, the principal
        needs the scope `admin`."""
        served = manager.get(data.model)
        present = served.busy_thresholds()
        if present is None:
            sentence = f"The router of the model {served.name!r} has no busy thresholds: choose one that has, such as kv-router."
            raise InvalidRequest(sentence, param="model", code="no_busy_thresholds")
        changes = {name: value for name, value in structs.asdict(data).items() if name != "model" and value is not UNSET}
        if changes:
            principal = exchange_of(scope).principal
            if principal is not None and _SCOPE not in principal.scopes:
                raise PermissionDenied(f"Changing thresholds needs the scope `{_SCOPE}`.")
            await manager.thresholds.set(served.name, structs.replace(present, **changes))
        return _shown(served)

    return [get_thresholds, set_thresholds]


def _shown(served: ServedModel) -> ModelThresholds:
    return ModelThresholds(served.name, **structs.asdict(served.busy_thresholds() or BusyThresholds()))
