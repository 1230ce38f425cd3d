"""One HTTP request and its response: identity, account and the raw ASGI callables. The outermost layer of the application."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from time import monotonic
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from dynamo_core.contracts.gate import HttpRequestInfo, Principal, RequestSummary
from dynamo_core.errors import DynamoError
from dynamo_core.http.errors import client_gone
from dynamo_core.http.route_debug import route_text
from dynamo_core.runtime.logging import REQUEST_ID
from dynamo_core.serving.record import RequestRecord

__all__ = ["Exchange", "ExchangeLayer", "exchange_of", "remember_error"]

_KEY = "dynamo_exchange"
_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@\-]{1,128}")


class Exchange:
    """Made for each HTTP request; found in the scope's state."""

    __slots__ = (
        "_headers", "arrival", "direct", "error", "failure", "id", "model", "patient", "principal", "receive", "record", "scope",
        "send", "status",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, direct: bool, patient: bool = False) -> None:
        self.scope = scope
        self.receive = receive
        """The server's own ``receive`` and ``send``, without what Litestar and middleware put around them."""
        self.send = send
        self.direct = direct
        """True when responses may use these two, and step them by hand."""
        self.patient = patient
        """True when a generation whose client left is stopped, and false when it is killed."""
        self.arrival = monotonic()
        self.status = 0
        """Of the response; 0 until it starts."""
        self.record: RequestRecord | None = None
        self.error: BaseException | None = None
        self.failure: Exception | None = None
        """What the fast path met and Litestar shall answer for."""
        self.principal: Principal | None = None
        self.model: str | None = None
        """The name of the model that takes this request, whatever the client called it; ``None`` before it is known."""
        self._headers: Mapping[str, str] | None = None
        self.id = self._given_id() or os.urandom(16).hex()

    @property
    def headers(self) -> Mapping[str, str]:
        """Names in lower case; the last value of a repeated header. Decoded on first use."""
        if self._headers is None:
            self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.scope["headers"]}
        return self._headers

    def info(self) -> HttpRequestInfo:
        scope: Any = self.scope
        client = scope.get("client")
        return HttpRequestInfo(
            id=self.id,
            method=scope["method"],
            path=scope["path"],
            headers=self.headers,
            client=client[0] if client else "",
        )

    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """Of every response: the request's id and, for who asked for it, why its workers were chosen."""
        headers = [(b"x-request-id", self.id.encode("ascii"))]
        if self.record is not None and self.record.routes:
            headers.append((b"x-dynamo-route", route_text(self.record.routes)))
        return headers

    def settle(self) -> None:
        """Close the record if nobody did: what got no generation was rejected, or failed on the way to one."""
        record = self.record
        if record is None or record.summary is not None:
            return
        record.principal = self.principal
        status = self.status
        if client_gone(self.error) or status == 499 or not status:
            record.close(499, "cancelled", "cancelled")
        elif status < 400:
            record.close(status, "completed")
        else:
            code = self.error.code if isinstance(self.error, DynamoError) else None
            rejected = status < 500 or (status == 503 and not record.worker_ids)
            record.close(status, "rejected" if rejected else "failed", code or f"http_{status}")

    def _given_id(self) -> str | None:
        for name, value in self.scope["headers"]:
            if name == b"x-request-id":
                text = value.decode("latin-1")
                return text if _SANE_ID.fullmatch(text) else None
        return None


def exchange_of(scope: Scope) -> Exchange:
    exchange: Exchange = scope["state"][_KEY]
    return exchange


async def remember_error(error: Exception, scope: Scope) -> None:
    """Litestar's ``after_exception`` hook: whoever answers for the error, its code belongs in the account."""
    exchange_of(scope).error = error


class ExchangeLayer:
    """ASGI layer around the whole application: request ids, records and the end of every exchange.

    ``endpoints`` maps paths to the endpoint names whose requests have a record; ``observer`` gets its summary. ``finished`` is
    called once an exchange, after the response.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        endpoints: Mapping[str, str],
        observer: Callable[[Exchange, RequestSummary], None] | None,
        finished: Callable[[Exchange], None] | None,
        direct: bool,
        patient: bool = False,
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._observer = observer
        self._finished = finished
        self._direct = direct
        self._patient = patient

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, direct=self._direct, patient=self._patient)
        REQUEST_ID.set(exchange.id)  # this task ends with the request
        scope.setdefault("state", {})[_KEY] = exchange
        endpoint = self._endpoints.get(scope["path"].rstrip("/")) if scope["method"] == "POST" else None
        if endpoint is not None:
            exchange.record = RequestRecord(exchange.id, endpoint, self._observer and partial(self._observer, exchange))

        async def identified(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                headers = [pair for pair in message.get("headers", ()) if pair[0] != b"x-request-id"]
                headers += exchange.own_headers()
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, identified)
        finally:
            exchange.settle()
            if self._finished is not None:
                self._finished(exchange)
            # The scope holds the exchange and the exchange the scope: a circle that only the garbage collector would open.
            scope["state"].pop(_KEY, None)
