"""``/openapi.json`` and the page at ``/docs`` that shows it without a network."""

from __future__ import annotations

from importlib import resources
from typing import Any

from litestar import Request, Response, Router, get
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.serialization import encode_json

import dynamo_core
from dynamo_core.http.gate import PUBLIC

__all__ = ["openapi_config", "openapi_route"]


def openapi_config() -> OpenAPIConfig:
    """The page is served by Litestar's own route below ``/docs``; ``/`` stays free."""
    return OpenAPIConfig(
        title="Dynamo",
        version=dynamo_core.__version__,
        description="Large language models behind OpenAI's API.",
        path="/docs",
        openapi_router=Router("/docs", route_handlers=[], include_in_schema=False, opt={PUBLIC: True}, dto=None, return_dto=None),
        render_plugins=[_Page(path="/")],
    )


def openapi_route() -> HTTPRouteHandler:
    @get("/openapi.json", include_in_schema=False, opt={PUBLIC: True}, sync_to_thread=False)
    def get_openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(encode_json(request.app.openapi_schema.to_schema()), media_type="application/json")

    return get_openapi


class _Page(OpenAPIRenderPlugin):
    """One self-contained file."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        del request, openapi_schema
        return resources.files("dynamo_core.http.admin").joinpath("docs.html").read_bytes()
