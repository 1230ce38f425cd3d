"""Keep each session on one worker without remembering it: the highest hash of (session, worker) wins.

When a worker leaves, only its sessions move. A worker that is much busier than the others is passed over.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import Decision, Hold, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.specs import RouterSpec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: str = "x-session"
    """Header that names the session, in lower case; without it the request's id is taken."""
    slack: Annotated[float, msgspec.Meta(ge=1)] = 1.25
    """How many times the mean of running requests a worker may have."""


class Rendezvous:
    def __init__(self, config: Config, context: RouterContext) -> None:
        self.config = config

    def select(self, requests: Sequence[RouteRequest], workers: Mapping[int, WorkerView]) -> Sequence[Decision]:
        running = {worker.id: worker.inflight for worker in workers.values()}
        decisions: list[Decision] = []
        for request in requests:
            session = request.session or request.headers.get(self.config.header) or request.id
            bound = self.config.slack * (sum(running.values()) + 1) / max(1, len(running))
            ready = [worker for worker in running if worker not in request.excluded]
            if not ready:
                decisions.append(Hold(reason="no worker left"))
                continue
            if request.pinned in ready:  # the client named a worker
                ready = [request.pinned]
            free = [worker for worker in ready if running[worker] < bound] or ready
            chosen = max(free, key=lambda worker: hashlib.blake2b(f"{session}/{worker}".encode(), digest_size=8).digest())
            running[chosen] += 1  # the next request of this turn counts it
            decisions.append(Route(chosen))
        return decisions


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_routers() -> Iterator[RouterSpec]:
    yield RouterSpec(name="rendezvous", factory=Rendezvous, description="Sessions stay on their worker, by hashing.")
