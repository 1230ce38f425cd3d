"""Every exception that the core raises on purpose.

::

    DynamoError                      500  internal_error
    ├── InvalidRequest               400  invalid_request_error   (param, code)
    │   └── ContextLengthExceeded    400  context_length_exceeded
    ├── PayloadTooLarge              413
    ├── Unauthenticated              401
    ├── PermissionDenied             403
    ├── ModelNotFound                404  model_not_found
    ├── RateLimited                  429  (retry_after)
    ├── Cancelled                    499
    ├── ServiceUnavailable           503  service_unavailable (retry_after)
    │   ├── NoInstances              503  nobody serves the endpoint
    │   ├── Overloaded               503  every worker or queue is full
    │   ├── CannotConnect            503  the worker does not answer
    │   ├── Disconnected             503  the worker went away in mid-stream
    │   └── EngineShutdown           503  the worker is draining
    ├── DeadlineExceeded             504
    ├── EngineError                  500  the engine raised
    ├── ProtocolError                500  a peer sent what is not a frame
    ├── HttpError                    the status that a handler chose
    └── StartupError                 exit code 2, one sentence
        ├── ConfigError              a setting is unknown or ill-typed
        └── PluginError              a plugin is unknown, broken or does not fit

A plugin raises these too: what a request hook raises reaches the client with the status and the envelope of its class.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ConfigError",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Disconnected",
    "DynamoError",
    "EngineError",
    "EngineShutdown",
    "HttpError",
    "InvalidRequest",
    "ModelNotFound",
    "NoInstances",
    "Overloaded",
    "PayloadTooLarge",
    "PermissionDenied",
    "PluginError",
    "ProtocolError",
    "RateLimited",
    "ServiceUnavailable",
    "StartupError",
    "Unauthenticated",
    "error_from_wire",
]


class DynamoError(Exception):
    """Base of all. ``status``, ``type`` and ``code`` are what the client's error envelope shows."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    default_code: ClassVar[str | None] = None
    retriable: ClassVar[bool] = False
    """True when the same request may succeed on another worker (migration looks at this)."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else self.default_code
        self.retry_after = retry_after
        """Seconds; becomes the ``Retry-After`` header."""


class InvalidRequest(DynamoError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    default_code = "context_length_exceeded"


class PayloadTooLarge(DynamoError):
    status = 413
    type = "invalid_request_error"
    default_code = "request_too_large"


class Unauthenticated(DynamoError):
    status = 401
    type = "authentication_error"
    default_code = "invalid_api_key"


class PermissionDenied(DynamoError):
    status = 403
    type = "permission_error"
    default_code = "permission_denied"


class ModelNotFound(DynamoError):
    status = 404
    type = "invalid_request_error"
    default_code = "model_not_found"


class RateLimited(DynamoError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"


class Cancelled(DynamoError):
    status = 499
    type = "cancelled"
    default_code = "cancelled"


class ServiceUnavailable(DynamoError):
    status = 503
    type = "service_unavailable"
    default_code = "service_unavailable"


class NoInstances(ServiceUnavailable):
    pass


class Overloaded(ServiceUnavailable):
    default_code = "overloaded"


class CannotConnect(ServiceUnavailable):
    retriable = True


class Disconnected(ServiceUnavailable):
    retriable = True


class EngineShutdown(ServiceUnavailable):
    retriable = True


class DeadlineExceeded(DynamoError):
    status = 504
    type = "timeout_error"
    default_code = "deadline_exceeded"


class EngineError(DynamoError):
    default_code = "engine_error"


class ProtocolError(DynamoError):
    default_code = "protocol_error"


class HttpError(DynamoError):
    """Raised by an endpoint's handler to choose the HTTP status of the answer, from 400 to 599. Long messages are cut."""

    def __init__(self, code: int, message: str, *, param: str | None = None) -> None:
        if not 400 <= code <= 599:
            raise ValueError(f"{code} is no HTTP status of an error: give one from 400 to 599")
        super().__init__(message[:_HTTP_ERROR_CHARACTERS], param=param, code=str(code))
        self.status = code  # type: ignore[misc]  # of this error alone; the class has none of its own
        self.type = "invalid_request_error" if code < 500 else "internal_error"  # type: ignore[misc]


_HTTP_ERROR_CHARACTERS = 8192


class StartupError(DynamoError):
    """Something that the user can put right keeps a command from starting: exit code 2, the message alone on stderr."""


class ConfigError(StartupError):
    pass


class PluginError(StartupError):
    pass


_BY_NAME: dict[str, type[DynamoError]] = {
    cls.__name__: cls
    for cls in (
        InvalidRequest, ContextLengthExceeded, PayloadTooLarge, Unauthenticated, PermissionDenied, ModelNotFound, RateLimited,
        Cancelled, ServiceUnavailable, NoInstances, Overloaded, CannotConnect, Disconnected, EngineShutdown, DeadlineExceeded,
        EngineError, ProtocolError,
    )
}  # fmt: skip


def error_from_wire(name: str, message: str, param: str | None = None, code: str | None = None) -> DynamoError:
    """The exception that a peer's error frame stands for; a name that this version lacks becomes :class:`EngineError`."""
    if name == "HttpError":
        status = int(code) if code is not None and code.isascii() and code.isdigit() else 500
        return HttpError(status if 400 <= status <= 599 else 500, message, param=param)
    return _BY_NAME.get(name, EngineError)(message, param=param, code=code)
