import rendezvous

from dynamo_core.contracts import Hold, ModelCard, RouteRequest, WorkerView
from dynamo_core.testing import RouterContract

CARD = ModelCard(name="m", path="")
ROUTER = rendezvous.Rendezvous(rendezvous.Config(), None)


def workers(**inflight):
    return {int(name[1:]): WorkerView(int(name[1:]), CARD, inflight=count) for name, count in inflight.items()}


def request(user, **more):
    return RouteRequest(id=f"id-{user}", token_ids=[1], headers={"x-session": user}, **more)


def choose(user, views, **more):
    (decision,) = ROUTER.select([request(user, **more)], views)
    return decision.worker_id


def test_a_session_stays_and_sessions_spread():
    views = workers(w1=0, w2=0, w3=0)
    chosen = {user: choose(user, views) for user in map(str, range(50))}
    assert chosen == {user: choose(user, views) for user in chosen}
    assert set(chosen.values()) == {1, 2, 3}


def test_when_a_worker_leaves_only_its_sessions_move():
    before = {user: choose(user, workers(w1=0, w2=0, w3=0)) for user in map(str, range(50))}
    after = {user: choose(user, workers(w1=0, w2=0)) for user in before}
    assert all(after[user] == worker for user, worker in before.items() if worker != 3)


def test_a_busy_worker_is_passed_over():
    home = choose("ann", workers(w1=0, w2=0))
    assert choose("ann", workers(**{"w1": 1, "w2": 1, f"w{home}": 50})) != home


def test_one_hot_session_does_not_fill_one_worker_in_one_turn():
    decisions = ROUTER.select([request("ann") for _ in range(30)], workers(w1=0, w2=0, w3=0))
    counts = [sum(decision.worker_id == worker for decision in decisions) for worker in (1, 2, 3)]
    assert max(counts) <= 14


def test_a_worker_that_failed_the_request_is_left_out():
    home = choose("ann", workers(w1=0, w2=0))
    assert choose("ann", workers(w1=0, w2=0), excluded=frozenset({home})) != home
    assert isinstance(ROUTER.select([request("ann", excluded=frozenset({1}))], workers(w1=0))[0], Hold)


class TestContract(RouterContract):
    def make_router(self, context):
        return rendezvous.Rendezvous(rendezvous.Config(), context)
