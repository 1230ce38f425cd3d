from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import NO_HINTS, Principal, RoutingHints
from dynamo_core.errors import InvalidRequest
from dynamo_core.http.openai.routing import Demand, demand_of
from dynamo_core.http.openai.types import CompletionRequest


def demand(headers: dict[str, str] | None = None, principal: Principal | None = None, **fields: Any) -> Demand:
    body = msgspec.convert({"model": "m", "prompt": "p", **fields}, CompletionRequest)
    return demand_of(body, headers or {}, principal)


def test_a_plain_request_demands_nothing() -> None:
    plain = demand()
    assert plain == Demand(priority=0, cache_salt=None, pinned=None, session=None, hints=NO_HINTS)
    assert plain.hints is demand(principal=Principal(id="p")).hints is NO_HINTS


@pytest.mark.parametrize(
    ("headers", "fields", "priority"),
    [
        ({}, {"priority": 3}, 3),
        ({}, {"priority": 3, "nvext": {"agent_hints": {"priority": 5}}}, -5),
        ({"x-dynamo-request-priority": "7"}, {"priority": 3, "nvext": {"agent_hints": {"priority": 5}}}, -7),
        ({"x-dynamo-request-priority": "-2"}, {}, 2),
        ({"x-dynamo-request-priority": str(10**12)}, {}, -(2**31 - 1)),
    ],
)
def test_lower_goes_first_whichever_way_it_was_said(headers: dict[str, str], fields: dict[str, Any], priority: int) -> None:
    assert demand(headers, **fields).priority == priority


def test_hints_come_from_the_extension() -> None:
    nvext = {
        "agent_hints": {"strict_priority": 2, "osl": 300, "speculative_prefill": True},
        "routing_constraints": {"required_taints": ["h200"], "preferred_taints": {"spot": -1.5}},
        "dp_rank": 1,
        "backend_instance_id": 9,
        "cache_salt": "s",
        "annotations": ["request_id"],
    }
    wanted = demand(nvext=nvext)
    assert (wanted.pinned, wanted.cache_salt) == (9, "s")
    assert wanted.hints == RoutingHints(
        strict_priority=2,
        expected_output=300,
        required_taints=frozenset({"h200"}),
        preferred_taints={"spot": -1.5},
        dp_rank=1,
    )


def test_headers_win() -> None:
    headers = {
        "x-dynamo-request-strict-priority": "4",
        "x-dynamo-dp-rank": "0",
        "x-dynamo-worker-instance-id": "3",
        "x-tenant-id": "acme",
        "x-dynamo-session-id": "s1",
    }
    nvext = {"agent_hints": {"strict_priority": 2}, "dp_rank": 1, "backend_instance_id": 9}
    wanted = demand(headers, nvext=nvext)
    assert (wanted.pinned, wanted.cache_salt, wanted.session) == (3, "acme", "s1")
    assert (wanted.hints.strict_priority, wanted.hints.dp_rank) == (4, 0)


def test_only_who_is_not_known_by_name_may_choose_a_class() -> None:
    header = {"x-dynamo-meta-policy-class": "gold"}
    assert demand(header).hints.service_class == "gold"
    assert demand(header, Principal(id="p")).hints.service_class == ""
    known = demand(header, Principal(id="p", tenant="acme", service_class="bronze")).hints
    assert (known.service_class, known.tenant) == ("bronze", "acme")


@pytest.mark.parametrize(
    "headers", [{"x-dynamo-request-priority": "soon"}, {"x-dynamo-dp-rank": "-1"}, {"x-dynamo-request-strict-priority": "1.5"}]
)
def test_what_is_no_number_is_named(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        demand(headers)
    assert caught.value.param == next(iter(headers))
