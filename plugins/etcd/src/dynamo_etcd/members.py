"""Connections to the members of an etcd: one channel an address, the next address when one fails, tokens that are renewed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio

from dynamo_core.errors import StartupError
from dynamo_etcd.forks import collect_nothing_while_forking
from dynamo_etcd.messages import rpc, stubs
from dynamo_etcd.options import Address, Options

__all__ = ["Member", "Members", "Refused", "Unreachable"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_OPTIONS = (
    # A peer that is silent is noticed within 15 s. etcd takes a ping every 5 s at most as an attack.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),  # a list of all keys is one message
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel that is closed takes its connection with it
)
_PASSING = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes of failures that another member, or the same one later, may not have."""
_TOKEN_SIGNS = ("auth store is old", "user name is empty", "invalid auth token")


collect_nothing_while_forking()


class Unreachable(Exception):
    """No address answered."""


class Refused(Exception):
    """etcd answered that it will not."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code

    @property
    def lease_unknown(self) -> bool:
        return self.code is grpc.StatusCode.NOT_FOUND and "lease" in str(self)


class Member:
    """The channel to one address; with ``credentials`` it speaks TLS. gRPC connects it, and connects it again."""

    def __init__(self, address: Address, credentials: grpc.ChannelCredentials | None, server_name: str | None) -> None:
        self.address = address
        options: list[tuple[str, int | str]] = list(_OPTIONS)
        if credentials is not None:
            if server_name is not None:
                options.append(("grpc.ssl_target_name_override", server_name))
            self._channel = grpc.aio.secure_channel(address.target, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(address.target, options=options)
        self.kv = stubs.KVStub(self._channel)
        self.lease = stubs.LeaseStub(self._channel)
        self.watch = stubs.WatchStub(self._channel)
        self.auth = stubs.AuthStub(self._channel)

    async def close(self) -> None:
        await self._channel.close()


class Members:
    """``seconds`` is the time that one call gets at one address."""

    def __init__(self, options: Options, seconds: float) -> None:
        self.seconds = seconds
        self._options = options
        self._members: list[Member] = []
        self._current = 0
        self._token: str | None = None
        self._authenticating = asyncio.Lock()

    async def open(self) -> None:
        """Reads the certificates; connects nothing. Raises StartupError."""
        options = self._options
        credentials = None
        if any(address.tls for address in options.addresses):
            ca, key, cert = [await _read(path) for path in (options.tls_ca, options.tls_key, options.tls_cert)]
            credentials = grpc.ssl_channel_credentials(ca, key, cert)
        self._members = [
            Member(address, credentials if address.tls else None, options.tls_server_name) for address in options.addresses
        ]

    @property
    def current(self) -> Member:
        return self._members[self._current]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """A member without a leader refuses, and ends streams, instead of letting us wait for news that it cannot have."""
        leader = ("hasleader", "true")
        return (leader,) if self._token is None else (leader, ("token", self._token))

    async def unary(self, method: Callable[[Member], Any], request: Any) -> Any:
        """Raises :class:`Unreachable` and :class:`Refused`."""
        return await self.call(lambda member: method(member)(request, timeout=self.seconds, metadata=self.metadata))

    async def call(self, operation: Callable[[Member], Awaitable[_T]]) -> _T:
        """``operation`` at the current member, then at each other one until it succeeds. It must end within ``seconds``."""
        reason = ""
        for _ in self._members:
            member = self.current
            try:
                return await self._authorized(member, operation)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    raise Refused(error.code(), error.details() or error.code().name) from None
                reason = f"{member.address}: {_reason(error)}"
                self.leave(member)
        raise Unreachable(reason)

    def leave(self, member: Member) -> None:
        """The next call goes to the next address, unless another call has gone on already."""
        if self.current is member:
            self._current = (self._current + 1) % len(self._members)

    async def close(self) -> None:
        await asyncio.gather(*(member.close() for member in self._members))

    async def _authorized(self, member: Member, operation: Callable[[Member], Awaitable[_T]]) -> _T:
        if self._options.user is None:
            return await operation(member)
        if self._token is None:
            await self._authenticate(member, None)
        token = self._token
        try:
            return await operation(member)
        except grpc.aio.AioRpcError as error:
            if not _token_is_stale(error):
                raise
        await self._authenticate(member, token)
        return await operation(member)

    async def _authenticate(self, member: Member, stale: str | None) -> None:
        async with self._authenticating:
            if self._token != stale or self._options.user is None:
                return  # somebody else was quicker
            name, password = self._options.user
            request = rpc.AuthenticateRequest(name=name, password=password)
            try:
                answer = await member.auth.Authenticate(request, timeout=self.seconds)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                    raise
                self._token = None  # authentication is not enabled: a name is not needed
            else:
                self._token = answer.token


def _reason(error: grpc.aio.AioRpcError) -> str:
    """gRPC puts "failed to connect to all addresses; last error: UNKNOWN: ipv4:…: " before what went wrong."""
    details: str = error.details() or error.code().name
    return details.rpartition(": ")[2] if "last error: " in details else details


def _token_is_stale(error: grpc.aio.AioRpcError) -> bool:
    """etcd's tokens end with its process, after a while, and with every change of users or roles."""
    if error.code() is grpc.StatusCode.UNAUTHENTICATED:
        return True
    details = error.details() or ""
    return error.code() is grpc.StatusCode.INVALID_ARGUMENT and any(sign in details for sign in _TOKEN_SIGNS)


async def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return await asyncio.to_thread(Path(path).read_bytes)
    except OSError as error:
        raise StartupError(f"{path}, named for TLS to etcd, cannot be read: {error.strerror}") from None
