"""The generating routes without the framework's part of a request, a tenth of its cost: what Litestar would find out anew for
each is known when the application is made.

For applications without middleware or guards of plugins. A route's function is called here as Litestar would call it; with an
error the request goes Litestar's way, where the error is raised anew for the exception handlers, those of plugins among them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, cast

from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send

from dynamo_core.http.body import JsonBody, read_body
from dynamo_core.http.exchange import exchange_of

__all__ = ["FastPath", "raise_failure"]


class FastPath:
    """ASGI application in front of Litestar's, which needs :func:`raise_failure` as its first middleware.

    ``handlers`` take ``data``, a :class:`JsonBody`, and ``scope``, and return an ASGI application. ``gate``: middleware that
    admits or raises, before the body is read. ``body_limit`` in bytes.
    """

    def __init__(
        self, app: ASGIApp, handlers: Iterable[HTTPRouteHandler], body_limit: int, gate: Callable[[ASGIApp], ASGIApp] | None
    ) -> None:
        self._app = app
        self._routes: dict[str, ASGIApp] = {}
        for handler in handlers:
            route = _route(handler, body_limit)
            self._routes.update(dict.fromkeys(handler.paths, route if gate is None else gate(route)))

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"]) if scope["type"] == ScopeType.HTTP and scope["method"] == "POST" else None
        if route is not None:
            try:
                await route(scope, receive, send)
                return
            except Exception as error:  # noqa: BLE001  # Litestar's handlers know them all
                exchange_of(scope).failure = error
        await self._app(scope, receive, send)


def _route(handler: HTTPRouteHandler, body_limit: int) -> ASGIApp:
    decode = cast("type[JsonBody[Any]]", handler.dto).decode
    function: Callable[..., Awaitable[ASGIApp]] = handler.fn

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, body_limit)
        reply = await function(data=decode(body, scope["path"]), scope=scope)
        await reply(scope, receive, send)

    return route


def raise_failure(app: ASGIApp) -> ASGIApp:
    """Litestar middleware that raises what a request failed with on the fast path."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            exchange = exchange_of(scope)
            failure, exchange.failure = exchange.failure, None
            if failure is not None:
                raise failure
        await app(scope, receive, send)

    return middleware
