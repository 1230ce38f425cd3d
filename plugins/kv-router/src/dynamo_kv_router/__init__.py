"""Plugin ``kv-router``: sends a request where its prefix is cached and the load allows."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dynamo_core.hookspecs import hookimpl
from dynamo_core.specs import RouterSpec
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.router import KvRouter

__all__ = ["dynamo_config", "dynamo_routers"]


@hookimpl
def dynamo_config() -> type[msgspec.Struct]:
    return KvRouterConfig


@hookimpl
def dynamo_routers() -> Iterable[RouterSpec]:
    yield RouterSpec(
        name="kv-router",
        factory=KvRouter,
        aliases=("kv",),
        description="Weighs cached prefixes against load, both in milliseconds.",
    )
