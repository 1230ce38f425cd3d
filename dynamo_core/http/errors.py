"""What a client is told when something goes wrong: OpenAI's envelope, for every route and every cause.

``{"error": {"message", "type", "param", "code"}}``. Messages are our own sentences; a parser's or the framework's words and the
inside of an engine never reach a client.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import (
    HTTPException,
    InternalServerException,
    MethodNotAllowedException,
    NotFoundException,
    ValidationException,
)
from litestar.exceptions.http_exceptions import RequestEntityTooLarge as LitestarTooLarge

from dynamo_core.errors import (
    Cancelled,
    DynamoError,
    EngineError,
    PayloadTooLarge,
    ProtocolError,
    RateLimited,
    ServiceUnavailable,
    Unauthenticated,
)
from dynamo_core.http.body import CLIENT_CLOSED, MISSING_BODY

__all__ = ["ErrorBody", "ErrorDetail", "client_gone", "envelope", "error_body", "exception_handlers"]

_log = logging.getLogger(__name__)

AnyRequest = Request[Any, Any, Any]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable",
    504: "timeout_error",
}
_SANITIZED = (EngineError, ProtocolError)
_OF_PLUGINS = ("plugin_failed", "router_error")


class ErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    """The field at fault, as ``messages[0].content``."""
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every answer with a status from 400 on, and of an error event in a stream."""

    error: ErrorDetail


def error_body(error: DynamoError) -> ErrorBody:
    """The envelope of an error as the client may see it; of a failed engine or plugin it says no more than that it failed."""
    message = error.message
    if error.status == 500 and (isinstance(error, _SANITIZED) or type(error) is DynamoError):
        who = "A plugin of the server" if error.code in _OF_PLUGINS else "The engine"
        message = f"{who} failed on this request; the server's log says why, under this response's x-request-id."
    return ErrorBody(ErrorDetail(message, error.type, error.param, error.code))


def envelope(error: DynamoError) -> bytes:
    return msgspec.json.encode(error_body(error))


def exception_handlers(body_limit: int) -> Mapping[Any, Any]:
    """Litestar's exception handlers of the application; a plugin's own for the same or a narrower class come before them.

    ``body_limit`` in bytes is named to a client that exceeds it.
    """

    def framework_error(request: AnyRequest, error: HTTPException) -> Response[bytes]:
        return _framework_response(request, error, body_limit)

    return {DynamoError: _dynamo_response, HTTPException: framework_error, Exception: _bug_response}


def client_gone(error: BaseException | None) -> bool:
    """True for what Litestar raises when the client leaves while its body is being read."""
    return isinstance(error, Cancelled) or (isinstance(error, InternalServerException) and "disconnected" in error.detail)


def _dynamo_response(request: AnyRequest, error: DynamoError) -> Response[bytes]:
    if (exchange := request.scope["state"].get("dynamo_exchange")) is not None:
        exchange.error = error  # for the account: this may stand for another exception
    if error.status >= 500 and not isinstance(error, ServiceUnavailable):
        _log.error("request %s failed: %s: %s", _request_id(request), type(error).__name__, error.message)
    headers: dict[str, str] = {}
    if error.retry_after is not None or isinstance(error, ServiceUnavailable | RateLimited):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after or 1.0)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return _response(error.status, envelope(error), headers)


def _framework_response(request: AnyRequest, error: HTTPException, body_limit: int) -> Response[bytes]:
    status = error.status_code
    if client_gone(error):
        return _dynamo_response(request, Cancelled(CLIENT_CLOSED))
    if isinstance(error, LitestarTooLarge):
        limit = f"The request body is larger than this server takes ({body_limit / 2**20:.3g} MiB)."
        return _dynamo_response(request, PayloadTooLarge(limit))
    if status >= 500 and isinstance(error, InternalServerException):
        return _bug_response(request, error)
    message, code = _framework_words(request, error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "internal_error")
    body = ErrorBody(ErrorDetail(message, kind, None, code))
    return _response(status, msgspec.json.encode(body), {k.lower(): v for k, v in (error.headers or {}).items()})


def _framework_words(request: AnyRequest, error: HTTPException) -> tuple[str, str]:
    method, path = request.scope["method"], request.scope["path"]
    if isinstance(error, MethodNotAllowedException):
        allowed = (error.headers or {}).get("allow", "").replace(", OPTIONS", "").replace("OPTIONS, ", "")
        return f"{path} does not take {method}; use {allowed or 'another method'}.", "method_not_allowed"
    if isinstance(error, NotFoundException) and error.detail in {"", HTTPStatus.NOT_FOUND.phrase}:
        return f"There is no route {method} {path}; /docs lists those that there are.", "route_not_found"
    if isinstance(error, ValidationException):
        if request.scope["method"] == "POST" and not error.extra:
            return MISSING_BODY, "invalid_body"
        return _invalid_arguments(error), "invalid_value"
    try:
        phrase = HTTPStatus(error.status_code).phrase
    except ValueError:
        phrase = "Error"
    return error.detail or phrase, phrase.lower().replace(" ", "_")


def _invalid_arguments(error: ValidationException) -> str:
    items = error.extra if isinstance(error.extra, list) else []
    names = [str(item["key"]) for item in items if isinstance(item, dict) and "key" in item]
    if "data" in names or not names:
        return MISSING_BODY
    return f"These parameters have values that do not fit: {', '.join(names)}."


def _bug_response(request: AnyRequest, error: Exception) -> Response[bytes]:
    _log.error("request %s failed: %r", _request_id(request), error, exc_info=error)
    return _response(500, envelope(DynamoError("", code="internal_error")), {})


def _response(status: int, body: bytes, headers: dict[str, str]) -> Response[bytes]:
    return Response(body, status_code=status, media_type="application/json", headers=headers)


def _request_id(request: AnyRequest) -> str:
    exchange = request.scope["state"].get("dynamo_exchange")
    return exchange.id if exchange is not None else "-"
