from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from dynamo_core.builtins.prefix_hash import PrefixHash, PrefixHashConfig
from dynamo_core.contracts import Hold, ModelCard, Route, RouterContext, RouteRequest, WorkerView

CARD = ModelCard(name="m", path="")
CONTEXT = RouterContext(model="m", block_size=16, clock=lambda: 0.0)


def fleet(workers: Iterable[int], **inflight: int) -> dict[int, WorkerView]:
    return {worker: WorkerView(worker, CARD, inflight=inflight.get(f"w{worker}", 0)) for worker in workers}


def prompt(family: int, turn: int = 0) -> RouteRequest:
    """Prompts of one family begin alike."""
    return RouteRequest(id=f"{family}/{turn}", token_ids=[*range(family * 100, family * 100 + 8), *range(turn * 5)])


def place(router: PrefixHash, request: RouteRequest, workers: dict[int, WorkerView]) -> int:
    (decision,) = router.select([request], workers)
    assert isinstance(decision, Route)
    return decision.worker_id


def homes(workers: Iterable[int], families: int = 600, **config: float) -> list[int]:
    router = PrefixHash(PrefixHashConfig(prefix_tokens=8, **config), CONTEXT)  # type: ignore[arg-type]
    views = fleet(workers)
    return [place(router, prompt(family), views) for family in range(families)]


def test_equal_beginnings_meet_on_every_frontend_whatever_follows() -> None:
    views = fleet(range(1, 9))
    one, two = (PrefixHash(PrefixHashConfig(prefix_tokens=8), CONTEXT) for _ in range(2))
    for family in range(50):
        home = place(one, prompt(family), views)
        assert {place(two, prompt(family, turn), views) for turn in range(5)} == {home}


def test_adapters_and_tenants_have_homes_of_their_own() -> None:
    router, views = PrefixHash(None, CONTEXT), fleet(range(1, 30))
    places = {
        place(router, RouteRequest(id="r", token_ids=range(20), lora=lora, cache_salt=salt), views)
        for lora in (None, "a", "b")
        for salt in (None, "s", "t")
    }
    assert len(places) > 3


def test_prompts_spread_over_the_workers() -> None:
    counts = Counter(homes(range(1, 7)))
    assert len(counts) == 6
    assert max(counts.values()) < 1.4 * 100
    assert min(counts.values()) > 0.6 * 100


def test_when_a_worker_comes_or_goes_only_its_share_moves() -> None:
    before = homes((1, 2, 3, 2**63 + 4))
    after = homes((1, 2, 3))
    assert all(new == old for new, old in zip(after, before, strict=True) if old in (1, 2, 3))
    assert any(old > 3 for old in before)


def test_a_worker_above_the_bound_is_passed_over_and_a_hot_beginning_spreads() -> None:
    router = PrefixHash(PrefixHashConfig(prefix_tokens=8, load_factor=1.25), CONTEXT)
    decisions = router.select([prompt(1, turn) for turn in range(40)], fleet(range(1, 5)))
    counts = Counter(decision.worker_id for decision in decisions if isinstance(decision, Route))
    assert sum(counts.values()) == 40
    assert max(counts.values()) <= 13  # 1.25 x the mean, rounded up
    home = place(router, prompt(7), fleet(range(1, 5)))
    assert place(router, prompt(7), fleet(range(1, 5), **{f"w{home}": 3})) != home


def test_a_worker_that_failed_the_request_is_left_out_and_its_load_does_not_count() -> None:
    router, views = PrefixHash(None, CONTEXT), fleet((1, 2), w1=100)
    for family in range(20):
        request = RouteRequest(id="r", token_ids=[family], excluded=frozenset({1}))
        assert place(router, request, views) == 2
    (decision,) = router.select([RouteRequest(id="r", token_ids=[1], excluded=frozenset({1, 2}))], views)
    assert isinstance(decision, Hold)
