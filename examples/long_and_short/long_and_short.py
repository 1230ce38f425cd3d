"""A router in twenty lines: long prompts to the first half of the workers, short ones to the rest: few wait for a book."""

from dynamo_core import hookimpl
from dynamo_core.contracts import Hold, Route
from dynamo_core.specs import RouterSpec


class LongAndShort:
    def __init__(self, config, context):
        self.limit = 4096  # tokens

    def select(self, requests, workers):
        load = {worker.id: worker.running for worker in workers.values()}
        return [self.place(request, load) for request in requests]

    def place(self, request, load):
        ids, half, long = sorted(load), len(load) // 2, len(request.token_ids) >= self.limit
        side = [request.pinned] if request.pinned in load else ids[:half] if long else ids[half:]
        fit = [worker for worker in side if worker not in request.excluded] or load.keys() - request.excluded
        if not fit:
            return Hold(reason="no worker is left")
        chosen = min(fit, key=load.get)
        load[chosen] += 1  # the next request of this turn counts it
        return Route(chosen)


@hookimpl
def dynamo_routers():
    yield RouterSpec(name="long-and-short", factory=LongAndShort, description="Long prompts apart from short ones.")
