"""Routers on recorded traffic, beside Dynamo's. ``python -m benchmarks.routing TRACE [--part NAME …] [--loads 1 2 3 4]``

Everything happens in the simulator (``dynamo simulate``), 8 workers × 2,048 blocks of 512 tokens, and is printed as Markdown.
TRACE is Mooncake's conversation trace for the parts that stand beside Dynamo's own figures. All parts if none is named:

* ``table``: round robin, Dynamo's formula (``benchmarks/dynamo_formula_router.py``, median of three seeds) and ``kv-router`` with
  its defaults beside the figures of Dynamo 1.6.1's own replay, and how far each row is from Dynamo's.
* ``goals``: ``kv-router`` ÷ the median of Dynamo's KV runs.
* ``elsewhere``: how the gain holds under other conditions; ratios are kv-router ÷ Dynamo's formula under the same conditions.
  ``--condition TEXT`` runs those with TEXT in their name.
* ``policies``: all routers of the core beside ``kv-router``, on TRACE and on made-up traffic of agents, at the first load and at
  twice that.
* ``agents``: ``kv-router`` ÷ Dynamo's formula and ÷ round robin on three such traces (``benchmarks/agent_trace.py``), at the same
  two loads. Only ``scarce`` was chosen with an eye on them, on the first. Needs no TRACE.
* ``curve``: ``kv-router`` ÷ ``cache-aware`` on the same traffic, with the timing model's decode curve, which bends down and falls
  beyond a full cache, and with a straight line that equals it for an empty and for a full one. Needs no TRACE.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

import dynamo_core
from benchmarks.agent_trace import agent_trace
from benchmarks.dynamo_formula_router import DynamoFormulaRouter
from benchmarks.dynamo_replay import KV_MEDIANS, ROUND_ROBIN, Figures
from dynamo_core.builtins.cache_aware import CacheAware
from dynamo_core.builtins.least_loaded import LeastLoaded
from dynamo_core.builtins.least_tokens import LeastTokens
from dynamo_core.builtins.power_of_two import PowerOfTwo
from dynamo_core.builtins.prefix_hash import PrefixHash
from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.kv.timing import TimingModel
from dynamo_core.simulator import Change, Cluster, MakeRouter, Report, Simulation, Trace, read_trace, report
from dynamo_kv_router.router import KvRouter
from dynamo_kv_router.speed import PrefillSpeed

SEEDS = range(3)
PREFILL = TimingModel().prefill
STRAIGHT = TimingModel(decode=(0.0, sum(TimingModel().decode[:2]), TimingModel().decode[2]))
PARTS = ("table", "goals", "elsewhere", "policies", "agents", "curve")
HEAD = "| load | router | completed | hit rate | TTFT mean / p50 / p90 / p99 ms | TPOT mean / p99 ms | E2E mean / p99 ms |"
RATIOS = "TTFT mean | p50 | p99 | TPOT mean | p99 | E2E mean | p99 |"
AGENT_CLUSTER = Cluster(blocks=4096, block_size=64)
"""Room for 2.1 million tokens in all: about a fifth of what the traffic repeats."""


def configured(factory: Callable[[Any, Any], Any]) -> MakeRouter:
    """With its defaults."""
    return lambda context: factory(None, context)


kv_router = configured(KvRouter)
round_robin = configured(RoundRobin)
POLICIES: dict[str, MakeRouter] = {
    "round-robin": round_robin,
    "least-loaded": configured(LeastLoaded),
    "least-tokens": configured(LeastTokens),
    "power-of-two": configured(PowerOfTwo),
    "prefix-hash": configured(PrefixHash),
    "cache-aware": configured(CacheAware),
    "Dynamo's formula": DynamoFormulaRouter,
    "**kv-router**": kv_router,
}


class StubbornSpeed(PrefillSpeed):
    """A belief that no observation changes."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.overhead_ms *= factor
        self.token_ms *= factor

    def observe(self, tokens: int, ms: float) -> None:
        pass


def stubborn(factor: float) -> MakeRouter:
    def make(context: Any) -> KvRouter:
        made = KvRouter(None, context)
        made._books.speed = StubbornSpeed(factor)  # noqa: SLF001  # no user can hold it to a belief
        return made

    return make


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cluster: Cluster = Cluster()
    load: float
    spread_ms: float = 0.0
    ours: MakeRouter = kv_router


def scaled(factor: float) -> TimingModel:
    return TimingModel(prefill=(PREFILL[0] * factor, PREFILL[1] * factor, PREFILL[2] * factor))


def conditions() -> list[Condition]:
    rows = []
    for load in (1.0, 4.0):
        hour = 3_600_000 / load
        moving = Cluster(changes=(Change(hour / 4, 2), Change(hour / 2, -2), Change(hour * 3 / 4, -2)))
        rows += [
            Condition(name="as above", load=load),
            Condition(name="arrivals spread over 3 s", load=load, spread_ms=3000),
            Condition(name="spread, KV events 5 ms late", load=load, spread_ms=3000, cluster=Cluster(kv_event_delay_ms=5)),
            Condition(name="spread, KV events 50 ms late", load=load, spread_ms=3000, cluster=Cluster(kv_event_delay_ms=50)),
            Condition(name="prefill twice as slow", load=load, cluster=Cluster(timing=scaled(2))),
            Condition(name="prefill twice as fast", load=load, cluster=Cluster(timing=scaled(0.5))),
            Condition(name="prefill believed twice as slow, for ever", load=load, ours=stubborn(2)),
            Condition(name="prefill believed twice as fast, for ever", load=load, ours=stubborn(0.5)),
            Condition(name="1,024 blocks a worker", load=load, cluster=Cluster(blocks=1024)),
            Condition(name="2 workers join, then 2 and 2 leave", load=load, cluster=moving),
            *(
                Condition(name=f"{n} workers, load in proportion", load=load * n / 8, cluster=Cluster(workers=n))
                for n in (4, 16, 64)
            ),
        ]
    return rows


def run(trace: Trace, make: MakeRouter, condition: Condition, name: str = "", seed: int = 0) -> Report:
    cluster, load, spread = condition.cluster, condition.load, condition.spread_ms
    simulated = Simulation(trace, cluster, make, speedup=load, spread_ms=spread, seed=seed).run()
    return report(simulated, cluster, router=name, speedup=load, spread_ms=spread)


def figures(made: Report) -> Figures:
    ttft, tpot, e2e = made.ttft_ms, made.tpot_ms, made.e2e_ms
    return Figures(made.hit_rate, ttft.mean, ttft.p50, ttft.p90, ttft.p99, tpot.mean, tpot.p99, e2e.mean, e2e.p99)


def median(reports: Sequence[Report]) -> Figures:
    return Figures(*(statistics.median(values) for values in zip(*map(figures, reports), strict=True)))


def line(load: float, name: str, f: Figures, completed: str) -> str:
    return (
        f"| ×{load:g} | {name} | {completed} | {f.hit:.3f} | {f.ttft:.0f} / {f.ttft50:.0f} / {f.ttft90:.0f} / {f.ttft99:.0f} "
        f"| {f.tpot:.2f} / {f.tpot99:.1f} | {f.e2e:.0f} / {f.e2e99:.0f} |"
    )


def ratios(ours: Figures, theirs: Figures) -> str:
    pairs = [(ours[i], theirs[i]) for i in (1, 2, 4, 5, 6, 7, 8)]
    return " | ".join(f"{one / other:.2f}" for one, other in pairs) + " |"


def table(trace: Trace, loads: Sequence[float]) -> None:
    print(f"\n{HEAD[:-1]}| farthest from Dynamo's row | run |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in loads:
        condition = Condition(name="", load=load)
        rows: list[tuple[str, list[Report], Figures | None]] = [
            ("round-robin", [run(trace, round_robin, condition)], ROUND_ROBIN.get(load)),
            ("Dynamo's formula here", [run(trace, DynamoFormulaRouter, condition, "", s) for s in SEEDS], KV_MEDIANS.get(load)),
            ("**kv-router**", [run(trace, kv_router, condition)], None),
        ]
        for name, reports, dynamo in rows:
            made = median(reports)
            if dynamo is not None:
                print(line(load, f"Dynamo's {'KV' if 'formula' in name else name}, its own replay", dynamo, "12,031") + " | |")
            off = "" if dynamo is None else f"{max(abs(o / d - 1) for o, d in zip(made, dynamo, strict=True)):.1%}"
            seconds = statistics.median(report.wall_s for report in reports)
            completed = f"{min(report.completed for report in reports):,}"
            print(f"{line(load, name, made, completed)} {off} | {seconds:.1f} s |", flush=True)


def goals(trace: Trace, loads: Sequence[float]) -> None:
    print(f"\n| load | hit rate (Dynamo) | {RATIOS} p99 TPOT ÷ round robin's |\n|{'---|' * 10}")
    for load in loads:
        if load in KV_MEDIANS:
            made, dynamo = figures(run(trace, kv_router, Condition(name="", load=load))), KV_MEDIANS[load]
            beside = made.tpot99 / ROUND_ROBIN[load].tpot99
            print(f"| ×{load:g} | {made.hit:.3f} ({dynamo.hit:.3f}) | {ratios(made, dynamo)} {beside:.2f} |", flush=True)


def elsewhere(trace: Trace, wanted: str) -> None:
    print(f"\n| load | conditions | hit rate, formula → kv-router | {RATIOS}\n|{'---|' * 10}")
    for condition in conditions():
        if wanted in condition.name:
            theirs = figures(run(trace, DynamoFormulaRouter, condition))
            ours = figures(run(trace, condition.ours, condition))
            print(
                f"| ×{condition.load:g} | {condition.name} | {theirs.hit:.3f} → {ours.hit:.3f} | {ratios(ours, theirs)}",
                flush=True,
            )


def policies(trace: Trace, cluster: Cluster, title: str, loads: Sequence[float]) -> None:
    print(f"\n{title}\n\n{HEAD[:-1]}| busiest |\n|{'---|' * 8}")
    for load in loads:
        for name, make in POLICIES.items():
            made = run(trace, make, Condition(name="", load=load, cluster=cluster))
            print(f"{line(load, name, figures(made), f'{made.completed:,}')} {made.balance.busiest:.2f} |", flush=True)


def agents(loads: Sequence[float]) -> None:
    print(f"\n| load | seed | hit rate: round robin, formula, kv-router | kv-router ÷ | {RATIOS}\n|{'---|' * 11}")
    for seed in (1, 2, 3):
        trace = agent_trace(6000, seed)
        for load in loads:
            condition = Condition(name="", load=load, cluster=AGENT_CLUSTER)
            turns, theirs, ours = (figures(run(trace, m, condition)) for m in (round_robin, DynamoFormulaRouter, kv_router))
            hits = f"{turns.hit:.3f}, {theirs.hit:.3f}, {ours.hit:.3f}"
            for name, other in (("Dynamo's formula", theirs), ("round robin", turns)):
                print(f"| ×{load:g} | {seed} | {hits} | {name} | {ratios(ours, other)}", flush=True)


def curve(loads: Sequence[float]) -> None:
    print(f"\n| load | seed | decode time | hit rate: cache-aware, kv-router | {RATIOS}\n|{'---|' * 11}")
    for seed in (1, 2, 3):
        trace = agent_trace(6000, seed)
        for load in loads:
            for name, timing in (("the mocker's curve", TimingModel()), ("straight", STRAIGHT)):
                cluster = msgspec.structs.replace(AGENT_CLUSTER, timing=timing)
                condition = Condition(name="", load=load, cluster=cluster)
                theirs, ours = (figures(run(trace, make, condition)) for make in (POLICIES["cache-aware"], kv_router))
                print(f"| ×{load:g} | {seed} | {name} | {theirs.hit:.3f}, {ours.hit:.3f} | {ratios(ours, theirs)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--loads", type=float, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--condition", default="", metavar="TEXT")
    options = parser.parse_args()
    parts = options.part or PARTS
    low_and_high = (options.loads[0], 2 * options.loads[0])
    if options.trace is None and set(parts) - {"agents", "curve"}:
        parser.error("name the trace: Mooncake's conversation trace stands in FAST25-release/traces of kvcache-ai/Mooncake")
    print(f"python {platform.python_version()}, dynamo-core {dynamo_core.__version__}, {platform.machine()}, one core")
    trace = read_trace(options.trace) if options.trace else None
    if trace is not None:
        if "table" in parts:
            table(trace, options.loads)
        if "goals" in parts:
            goals(trace, options.loads)
        if "elsewhere" in parts:
            elsewhere(trace, options.condition)
        if "policies" in parts:
            policies(trace, Cluster(), options.trace, low_and_high)
            policies(agent_trace(6000, 1), AGENT_CLUSTER, "agents, chats and one-offs, seed 1", low_and_high)
    if "agents" in parts:
        agents(low_and_high)
    if "curve" in parts:
        curve(low_and_high)


if __name__ == "__main__":
    main()
