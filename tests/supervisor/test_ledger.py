from __future__ import annotations

import asyncio
from typing import Any

from dynamo_core.errors import ServiceUnavailable
from dynamo_core.supervisor.ledger import MetricsLedger


class PlayedFrontend:
    """A process that counts requests, without being one."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid: int | None = pid
        self.requests = 0
        self.inflight = 0
        self.silent = False

    async def ask(self, name: str, data: object = None, *, within: float) -> dict[str, Any]:
        assert name == "metrics"
        if self.silent or self.pid is None:
            raise ServiceUnavailable("It does not answer.")
        text = f"# TYPE r_total counter\nr_total {self.requests}\n# TYPE i gauge\ni {self.inflight}\n"
        return {"text": text + f"# TYPE process_open_fds gauge\nprocess_open_fds {self.pid}\n"}


async def scrape(ledger: MetricsLedger, *frontends: Any) -> dict[str, float]:
    lines = (await ledger.text(frontends)).splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


async def test_counters_of_a_dead_process_stay_in_the_sum_and_its_gauges_go() -> None:
    ledger, one, two = MetricsLedger(), PlayedFrontend("frontend-0", 1), PlayedFrontend("frontend-1", 2)
    one.requests, two.requests, two.inflight = 10, 5, 3
    found = await scrape(ledger, one, two)
    assert (found["r_total"], found["i"]) == (15, 3)
    assert found['process_open_fds{process="frontend-1"}'] == 2
    two.requests, two.pid = 6, None  # the sixth is lost with it
    found = await scrape(ledger, one, two)
    assert (found["r_total"], found["i"]) == (15, 0)
    assert 'process_open_fds{process="frontend-1"}' not in found
    two.pid, two.requests, two.inflight = 3, 1, 1
    found = await scrape(ledger, one, two)
    assert (found["r_total"], found["i"]) == (16, 1)
    assert found['process_open_fds{process="frontend-1"}'] == 3


async def test_a_process_that_is_too_slow_counts_with_what_it_told_last() -> None:
    ledger, one = MetricsLedger(), PlayedFrontend("frontend-0", 1)
    one.requests = 10
    await scrape(ledger, one)
    one.silent = True
    assert (await scrape(ledger, one))["r_total"] == 10


async def test_scrapes_at_one_time_are_answered_one_after_the_other() -> None:
    ledger, one = MetricsLedger(), PlayedFrontend("frontend-0", 1)
    one.requests = 7
    found = await asyncio.gather(*(scrape(ledger, one) for _ in range(5)))
    assert [values["r_total"] for values in found] == [7] * 5
