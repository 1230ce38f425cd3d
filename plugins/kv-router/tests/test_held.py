"""What running requests take of a cache: what several of them have in common is there once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo_core.contracts import KvBatch, KvStored, ModelCard, Route, RouterContext, RouteRequest, WorkerView
from dynamo_core.kv import sequence_hashes
from dynamo_kv_router.cost import Clock
from dynamo_kv_router.load import Pieces, PlaceLoad
from dynamo_kv_router.router import KvRouter
from dynamo_kv_router.weights import Weights

CARD = ModelCard(name="m", path="", block_size=16, total_kv_blocks=1000, kv_events=True)
SIZE = 16


def prompt(family: int, pieces: int) -> list[int]:
    """Names; all families share two."""
    return [i if i < 2 else family * 100 + i for i in range(pieces)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 8), st.integers(0, 200)), max_size=40))
def test_pieces_in_common_are_held_once(steps: list[tuple[bool, int, int, int]]) -> None:
    clock, load = Clock(Weights(), 0.0), PlaceLoad(WorkerView(1, CARD))
    running: list[tuple[list[int], int]] = []
    for begins, family, pieces, rest in steps:
        if begins:
            names = prompt(family, pieces)
            running.append((names, rest))
            load.begin(len(names) * 50 + rest, 1, 1.0, 0.0, Pieces(names, 50))
        elif running:
            names, rest = running.pop(rest % len(running))
            load.end(len(names) * 50 + rest, 1, 1.0, None, clock, Pieces(names, 50))
        assert load.held == 50 * len({name for names, _ in running for name in names}) + sum(rest for _, rest in running)
        assert load.tokens == sum(50 * len(names) + rest for names, rest in running)


def test_a_long_system_prompt_that_all_share_does_not_fill_the_cache() -> None:
    router = KvRouter(None, RouterContext(model="m", block_size=SIZE, clock=lambda: 0.0))
    workers = {i: WorkerView(i, CARD) for i in (1, 2)}
    for view in workers.values():
        router.worker_added(view)
    system = list(range(384 * SIZE))  # nearly four tenths of the cache
    router.kv_events(KvBatch(1, 0, (KvStored(tuple(sequence_hashes(system, SIZE))),)))
    requests = [RouteRequest(id=str(i), token_ids=[*system, *range(9000 + i, 9000 + i + 2 * SIZE)]) for i in range(4)]
    for request in requests:
        (decision,) = router.select([request], workers)
        assert isinstance(decision, Route)
        assert decision.worker_id == 1
        router.first_token(request, 1)
    place = router._books.places[0]
    assert place.tokens == 4 * 386 * SIZE
    assert place.held == 384 * SIZE + 4 * 2 * SIZE
    for request in requests:
        router.finished(request, 1, "completed")
    assert (place.tokens, place.held) == (0, 0)
