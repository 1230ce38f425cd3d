"""Our exceptions under the names that code written for Dynamo catches.

Where Dynamo tells two things apart that are one here, both names mean the same class: :data:`StreamIncomplete` and
:data:`Disconnected`, :data:`ConnectionTimeout` and :data:`CannotConnect`.
"""

from dynamo_core.errors import (
    Cancelled,
    CannotConnect,
    Disconnected,
    DynamoError,
    EngineError,
    EngineShutdown,
    HttpError,
    InvalidRequest,
    Overloaded,
    ServiceUnavailable,
)

__all__ = [
    "Cancelled",
    "CannotConnect",
    "ConnectionTimeout",
    "Disconnected",
    "DynamoException",
    "EngineShutdown",
    "HttpError",
    "InvalidArgument",
    "RouterQueueLimitExceeded",
    "SelectionServiceError",
    "StreamIncomplete",
    "Unknown",
    "WorkerUnavailable",
]

DynamoException = DynamoError
InvalidArgument = InvalidRequest
ConnectionTimeout = CannotConnect
StreamIncomplete = Disconnected
WorkerUnavailable = ServiceUnavailable
RouterQueueLimitExceeded = Overloaded
SelectionServiceError = EngineError
Unknown = EngineError
