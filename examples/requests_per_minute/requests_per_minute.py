"""Let each principal (or, where nobody authenticates, each address) send so many requests a minute."""

import time
from collections.abc import Callable, Iterator
from typing import Annotated

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import HttpRequestInfo, Principal
from dynamo_core.errors import RateLimited
from dynamo_core.specs import RateLimiterSpec

KNOWN = 10_000
"""Callers that are remembered at a time."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Annotated[int, msgspec.Meta(ge=1)] = 60
    """Requests a minute; as many may come at once after a quiet minute."""


class Limiter:
    """A bucket a caller that fills at a steady rate. Each frontend process counts for itself."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = config.limit
        self.clock = clock
        self.full_at: dict[str, float] = {}  # caller → when its bucket is full again

    def __call__(self, request: HttpRequestInfo, principal: Principal | None) -> None:
        now, step = self.clock(), 60 / self.limit
        caller = principal.id if principal is not None else request.client
        full_at = max(now, self.full_at.get(caller, now)) + step
        wait = full_at - now - 60
        if wait > 1e-9:
            raise RateLimited(f"You may send {self.limit} requests a minute.", retry_after=wait)
        self.full_at[caller] = full_at
        if len(self.full_at) > KNOWN:
            self.full_at = {caller: at for caller, at in self.full_at.items() if at > now}


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_rate_limiters() -> Iterator[RateLimiterSpec]:
    yield RateLimiterSpec(name="requests-per-minute", factory=Limiter, description="Requests a minute and principal.")
