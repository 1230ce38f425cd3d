"""Who may come in, and how often: the plugins' authenticators and limiters, before the body is looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from dynamo_core.contracts.gate import HttpRequestInfo, PreparedRequest, Principal
from dynamo_core.errors import PermissionDenied
from dynamo_core.http.exchange import exchange_of
from dynamo_core.serving.output import GenerationRequest

__all__ = ["PUBLIC", "GateHooks", "Preparer", "gate", "permit_model"]

PUBLIC = "public"
"""A route handler with ``opt={"public": True}`` needs no authentication and has no limits; a plugin's routes may say so."""


class GateHooks(Protocol):
    """The part of the compiled plugins that acts here."""

    @property
    def authenticate(self) -> Callable[[HttpRequestInfo], Any] | None: ...

    @property
    def authenticate_async(self) -> bool: ...

    @property
    def rate_limit(self) -> Callable[[HttpRequestInfo, Principal | None], Any] | None: ...

    @property
    def rate_limit_async(self) -> bool: ...

    @property
    def prepare(self) -> Callable[[PreparedRequest], Any] | None: ...

    @property
    def prepare_async(self) -> bool: ...


def gate(hooks: GateHooks) -> Callable[[ASGIApp], ASGIApp] | None:
    """Litestar middleware that admits or raises, or ``None`` when no plugin has a say: an absent gate costs nothing."""
    authenticate, limit = hooks.authenticate, hooks.rate_limit
    if authenticate is None and limit is None:
        return None

    def middleware(app: ASGIApp) -> ASGIApp:
        async def admit(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == ScopeType.HTTP and not _public(scope):
                exchange = exchange_of(scope)
                info = exchange.info()
                principal: Principal | None = None
                if authenticate is not None:
                    answer = authenticate(info)
                    principal = await answer if hooks.authenticate_async else answer
                    exchange.principal = principal
                if limit is not None:
                    verdict = limit(info, principal)
                    if hooks.rate_limit_async:
                        await verdict
            await app(scope, receive, send)

        return admit

    return middleware


def permit_model(principal: Principal | None, *names: str) -> None:
    """Raise unless the principal may use the model under one of its names."""
    if principal is not None and principal.models is not None and principal.models.isdisjoint(names):
        raise PermissionDenied(f"You may not use the model `{names[0]}`.", param="model")


class Preparer:
    """Offers tokenized requests to ``dynamo_prepare``. Made once; an application without such hooks has none."""

    def __init__(self, prepare: Callable[[PreparedRequest], Any], *, awaits: bool) -> None:
        self._prepare = prepare
        self._awaits = awaits

    @classmethod
    def of(cls, hooks: GateHooks) -> Preparer | None:
        return None if hooks.prepare is None else cls(hooks.prepare, awaits=hooks.prepare_async)

    async def __call__(
        self, request: GenerationRequest, body: Any, model: str, principal: Principal | None, request_id: str
    ) -> tuple[tuple[Sequence[int], ...], int, int]:
        """One call a prompt; what one changes of ``max_tokens`` and ``priority`` is what the next sees.

        Returns prompts, max_tokens and priority as they are after the last.
        """
        max_tokens, priority = request.conditions.max_tokens, request.priority
        prompts: list[Sequence[int]] = []
        headers: Mapping[str, str] = request.headers
        for token_ids in request.prompts:
            prepared = PreparedRequest(
                id=request_id,
                model=model,
                endpoint=request.endpoint,
                principal=principal,
                headers=headers,
                body=body,
                token_ids=list(token_ids),
                max_tokens=max_tokens,
                priority=priority,
            )
            answer = self._prepare(prepared)
            if self._awaits:
                await answer
            prompts.append(prepared.token_ids)
            max_tokens, priority = prepared.max_tokens, prepared.priority
        return tuple(prompts), max_tokens, priority


def _public(scope: Scope) -> bool:
    handler = cast("Any", scope).get("route_handler")
    return cast("Any", scope)["method"] == "OPTIONS" or (handler is not None and bool(handler.opt.get(PUBLIC)))
