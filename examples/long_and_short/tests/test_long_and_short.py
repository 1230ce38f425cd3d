from long_and_short import LongAndShort

from dynamo_core.contracts import ModelCard, Route, RouteRequest, WorkerView
from dynamo_core.testing import RouterContract

CARD = ModelCard(name="m", path="")


def workers(*inflight):
    return {i: WorkerView(i, CARD, inflight=count) for i, count in enumerate(inflight, 1)}


def request(tokens, **more):
    return RouteRequest(id="r", token_ids=range(tokens), **more)


class TestContract(RouterContract):
    def make_router(self, context):
        return LongAndShort(None, context)


def test_long_prompts_and_short_ones_meet_on_no_worker():
    decisions = LongAndShort(None, None).select([request(n) for n in (5000, 10, 9000, 20, 4096, 4095)], workers(0, 0, 0, 0))
    assert [decision.worker_id for decision in decisions] == [1, 3, 2, 4, 1, 3]


def test_one_worker_takes_all():
    assert LongAndShort(None, None).select([request(5000), request(1)], workers(7)) == [Route(1), Route(1)]


def test_a_half_that_failed_the_request_is_left_for_the_other():
    assert LongAndShort(None, None).select([request(5000, excluded=frozenset({1, 2}))], workers(0, 0, 9, 3)) == [Route(4)]


def test_a_worker_that_the_client_names_is_taken_whatever_the_length():
    named = [request(5000, pinned=4), request(1, pinned=1)]
    assert LongAndShort(None, None).select(named, workers(0, 0, 0, 0)) == [Route(4), Route(1)]
