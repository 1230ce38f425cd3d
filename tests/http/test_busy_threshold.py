from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dynamo_core.contracts import BusyThresholds, Principal

NONE = {
    "active_decode_blocks_threshold": None,
    "active_prefill_tokens_threshold": None,
    "active_prefill_tokens_threshold_frac": None,
}


@pytest.fixture
async def adjustable(serve: Any) -> Any:
    """A server whose model's router has thresholds; ``become`` makes clients authenticated ones."""
    who: list[Principal] = []
    running = await serve(compiled={"authenticate": lambda info: who[0] if who else None})
    running.become = who.append
    _give_thresholds(running)
    return running


def _give_thresholds(running: Any) -> None:
    model, state = running.model, [BusyThresholds()]

    async def change(name: str, thresholds: BusyThresholds) -> None:
        assert name == model.name
        state[0] = thresholds

    model.busy_thresholds = lambda: state[0]
    running.manager.thresholds = SimpleNamespace(set=change)


async def test_thresholds_are_read_set_and_taken_back(adjustable: Any) -> None:
    http = adjustable.http
    assert (await http.get("/busy_threshold")).json() == {"thresholds": [{"model": "m", **NONE}]}
    change = {"model": "alias", "active_decode_blocks_threshold": 0.8, "active_prefill_tokens_threshold": 9000}
    wanted = {"model": "m", **NONE, "active_decode_blocks_threshold": 0.8, "active_prefill_tokens_threshold": 9000}
    answer = await http.post("/busy_threshold", json=change)
    assert (answer.status_code, answer.json()) == (200, wanted)
    assert (await http.post("/busy_threshold", json={"model": "m"})).json() == wanted
    answer = await http.post("/busy_threshold", json={"model": "m", "active_decode_blocks_threshold": None})
    assert answer.json() == {**wanted, "active_decode_blocks_threshold": None}


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "m", "active_decode_blocks_threshold": -1}, 400, "active_decode_blocks_threshold"),
        ({"model": "m", "active_prefill_tokens_threshold": "many"}, 400, "active_prefill_tokens_threshold"),
        ({"active_prefill_tokens_threshold": 1}, 400, "model"),
        ({"model": "n"}, 404, "model"),
    ],
)
async def test_what_makes_no_sense_is_named(adjustable: Any, body: dict[str, Any], status: int, param: str) -> None:
    answer = await adjustable.http.post("/busy_threshold", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


async def test_a_router_without_thresholds_is_named(running: Any) -> None:
    running.model.busy_thresholds = lambda: None
    assert (await running.http.get("/busy_threshold")).json() == {"thresholds": []}
    answer = await running.http.post("/busy_threshold", json={"model": "m"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_busy_thresholds")


async def test_a_principal_needs_the_scope_to_change_them(adjustable: Any) -> None:
    adjustable.become(Principal(id="p"))
    change = {"model": "m", "active_prefill_tokens_threshold": 5}
    assert (await adjustable.http.post("/busy_threshold", json=change)).status_code == 403
    assert (await adjustable.http.post("/busy_threshold", json={"model": "m"})).json() == {"model": "m", **NONE}


async def test_and_an_administrator_has_it(adjustable: Any) -> None:
    adjustable.become(Principal(id="root", scopes=frozenset({"admin"})))
    change = {"model": "m", "active_prefill_tokens_threshold": 5}
    assert (await adjustable.http.post("/busy_threshold", json=change)).status_code == 200
