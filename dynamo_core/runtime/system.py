"""The status server of a process that has no HTTP of its own: probes, metrics and controls on a port for operators.

``/live`` answers 200 as long as the process does, ``/ready`` 200 while every endpoint that it serves can be found and 503 before,
between and after. ``/health`` is ``/ready`` in Dynamo's body, ``/metrics`` Prometheus' text, ``/engine/NAME`` a function that
the process registered. There is neither authentication nor TLS: it listens on the loopback unless told otherwise, and answers
``/engine`` to this host alone, wherever it listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from dynamo_core.errors import DynamoError, StartupError
from dynamo_core.runtime.exposition import joined, read_families, render

if TYPE_CHECKING:
    from dynamo_core.runtime.distributed import DistributedRuntime

__all__ = ["EngineRoute", "SystemServer"]

_log = logging.getLogger(__name__)

EngineRoute: TypeAlias = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]
"""Takes the JSON body (``{}`` without one), gives the JSON answer."""

_REQUEST_SECONDS = 10.0
_HEAD_BYTES = 16 * 1024
_BODY_BYTES = 1024 * 1024


class _Request(NamedTuple):
    method: str
    path: str
    body: bytes
    local: bool
    """It comes from this host."""


class _Answer(NamedTuple):
    status: HTTPStatus
    body: bytes
    type: str = "application/json"


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class SystemServer:
    """Of one runtime, which starts and closes it."""

    def __init__(self, runtime: DistributedRuntime, host: str, port: int) -> None:
        self.port = port
        """The true one once it was started, when 0 was given."""
        self._runtime = runtime
        self._host = host
        self._began = time.monotonic()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Raises StartupError for an address that cannot be had."""
        try:
            self._server = await asyncio.start_server(self._serve, self._host, self.port, limit=_HEAD_BYTES)
        except OSError as error:
            where = f"{self._host}:{self.port}"
            text = f"the status server cannot listen on {where}: {error.strerror or error}; change DYN_SYSTEM_PORT"
            raise StartupError(text) from None
        self.port = self._server.sockets[0].getsockname()[1]
        _log.info("status on http://%s:%d", self._host, self.port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- HTTP ----------------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(OSError, TimeoutError, asyncio.CancelledError, asyncio.IncompleteReadError):
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = await _read(reader, local=_is_local(writer))
            try:
                answer = await self._answer(request) if isinstance(request, _Request) else request
            except Exception:  # noqa: BLE001  # a route's bug is that request's failure
                _log.exception("a request to the status server failed")
                answer = _json(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "internal error; see the log"})
            async with asyncio.timeout(_REQUEST_SECONDS):
                head = f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\nContent-Type: {answer.type}\r\n"
                tail = f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
                bare = isinstance(request, _Request) and request.method == "HEAD"
                writer.write((head + tail).encode() + (b"" if bare else answer.body))
                await writer.drain()
        writer.close()

    async def _answer(self, request: _Request) -> _Answer:
        path = request.path.partition("?")[0]
        if path.startswith("/engine/"):
            if not request.local:
                return _json(HTTPStatus.FORBIDDEN, {"error": "/engine answers this host alone: ask 127.0.0.1 there"})
            return await self._control(path.removeprefix("/engine/"), request.body)
        if path not in {"/live", "/ready", "/health", "/metrics"}:
            return _json(HTTPStatus.NOT_FOUND, {"error": f"there is no {path}: ask /live, /ready, /health or /metrics"})
        if request.method not in {"GET", "HEAD"}:
            return _json(HTTPStatus.METHOD_NOT_ALLOWED, {"error": f"{path} takes GET"})
        if path == "/live":
            return _json(HTTPStatus.OK, {"status": "live"})
        if path == "/metrics":
            return _Answer(HTTPStatus.OK, await self._metrics(), "text/plain; version=0.0.4; charset=utf-8")
        return self._health()

    async def _metrics(self) -> bytes:
        """Of the runtime's endpoints and of whatever added itself. Series that are told twice count once."""
        runtime = self._runtime
        own = runtime.metrics.text()
        if not runtime.scrapes:
            return own
        families = [read_families(own)]
        for text in await asyncio.gather(*(scrape() for scrape in runtime.scrapes), return_exceptions=True):
            try:
                if isinstance(text, BaseException):
                    raise text
                families.append(await asyncio.to_thread(read_families, text))
            except Exception:  # noqa: BLE001  # one part's bug must not hide the others' series
                _log.exception("metrics are missing from a scrape")
        return render(joined(*families)).body

    def _health(self) -> _Answer:
        served = self._runtime.endpoints_served()
        ready = self._runtime.healthy and bool(served) and all(one.listed for one in served)
        uptime = time.monotonic() - self._began
        body = {
            "status": "ready" if ready else "notready",
            "instance_id": self._runtime.instance_id,
            "uptime": {"secs": int(uptime), "nanos": int(uptime % 1 * 1e9)},
            "endpoints": {one.endpoint.path: one.state for one in served},
            "stores": self._runtime.stores(),
        }
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, body)

    async def _control(self, name: str, body: bytes) -> _Answer:
        route = self._runtime.engine_routes.get(name)
        if route is None:
            known = ", ".join(sorted(self._runtime.engine_routes)) or "none"
            return _json(HTTPStatus.NOT_FOUND, {"error": f"there is no /engine/{name}: this process registered {known}"})
        try:
            request = msgspec.json.decode(body, type=dict[str, Any]) if body else {}
        except msgspec.MsgspecError as error:
            return _json(HTTPStatus.BAD_REQUEST, {"error": f"the body is no JSON object: {error}"})
        try:
            return _json(HTTPStatus.OK, await route(request))
        except DynamoError as error:
            return _json(HTTPStatus(error.status), {"error": error.message})


def _is_local(writer: asyncio.StreamWriter) -> bool:
    address = ipaddress.ip_address(writer.get_extra_info("peername")[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def _read(reader: asyncio.StreamReader, *, local: bool) -> _Request | _Answer:
    """The request, or the answer to one that is none."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.split("\r\n")
        method, path, version = line.split(" ")
        if not version.startswith("HTTP/1."):
            raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "speak HTTP/1.1")
        headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        length = int(headers.get("content-length") or 0)
        if "transfer-encoding" in headers or not 0 <= length <= _BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {_BODY_BYTES} bytes, with their Content-Length")
        return _Request(method, path, await reader.readexactly(length), local)
    except _Refused as error:
        return _json(error.status, {"error": str(error)})
    except (ValueError, asyncio.LimitOverrunError):
        return _json(HTTPStatus.BAD_REQUEST, {"error": "this is no HTTP request"})


def _json(status: HTTPStatus, body: Any) -> _Answer:
    return _Answer(status, msgspec.json.encode(body))
