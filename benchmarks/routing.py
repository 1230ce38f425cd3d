"""Routers on a recorded trace, beside Dynamo's. ``python -m benchmarks.routing TRACE [--loads 1 2 3 4] [--no-elsewhere]``

Everything happens in the simulator (``dynamo simulate``), 8 workers × 2,048 blocks of 512 tokens. The first table holds round
robin, Dynamo's formula (``benchmarks/dynamo_formula_router.py``, median of three seeds) and ``kv-router`` with its defaults. The
second asks how the gain holds elsewhere: its ratios are kv-router ÷ Dynamo's formula under the same conditions.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from collections.abc import Sequence

import msgspec

import dynamo_core
from benchmarks.dynamo_formula_router import DynamoFormulaRouter
from dynamo_core.builtins.round_robin import RoundRobin
from dynamo_core.kv.timing import TimingModel
from dynamo_core.simulator import Cluster, MakeRouter, Report, Simulation, Trace, read_trace, report
from dynamo_kv_router.config import KvRouterConfig
from dynamo_kv_router.router import KvRouter

SEEDS = range(3)
PREFILL = TimingModel().prefill


def kv_router(context: object) -> KvRouter:
    return KvRouter(KvRouterConfig(), context)  # type: ignore[arg-type]


def round_robin(context: object) -> RoundRobin:
    return RoundRobin(None, context)  # type: ignore[arg-type]


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    cluster: Cluster = Cluster()
    load: float
    spread_ms: float = 0.0


def scaled(factor: float) -> TimingModel:
    return TimingModel(prefill=(PREFILL[0] * factor, PREFILL[1] * factor, PREFILL[2] * factor))


def conditions() -> list[Condition]:
    rows = []
    for load in (1.0, 4.0):
        rows += [
            Condition(name="as above", load=load),
            Condition(name="arrivals spread over 3 s", load=load, spread_ms=3000),
            Condition(name="spread, KV events 5 ms late", load=load, spread_ms=3000, cluster=Cluster(kv_event_delay_ms=5)),
            Condition(name="spread, KV events 50 ms late", load=load, spread_ms=3000, cluster=Cluster(kv_event_delay_ms=50)),
            Condition(name="prefill twice as slow", load=load, cluster=Cluster(timing=scaled(2))),
            Condition(name="prefill twice as fast", load=load, cluster=Cluster(timing=scaled(0.5))),
            Condition(name="1,024 blocks a worker", load=load, cluster=Cluster(blocks=1024)),
            *(
                Condition(name=f"{n} workers, load in proportion", load=load * n / 8, cluster=Cluster(workers=n))
                for n in (4, 16, 64)
            ),
        ]
    return rows


def run(trace: Trace, make: MakeRouter, condition: Condition, name: str, seed: int = 0) -> Report:
    cluster, load, spread = condition.cluster, condition.load, condition.spread_ms
    simulated = Simulation(trace, cluster, make, speedup=load, spread_ms=spread, seed=seed).run()
    return report(simulated, cluster, router=name, speedup=load, spread_ms=spread)


def figures(made: Report) -> tuple[float, ...]:
    ttft, tpot, e2e = made.ttft_ms, made.tpot_ms, made.e2e_ms
    return made.hit_rate, ttft.mean, ttft.p50, ttft.p90, ttft.p99, tpot.mean, tpot.p99, e2e.mean, e2e.p99


def median(reports: Sequence[Report]) -> tuple[float, ...]:
    return tuple(statistics.median(values) for values in zip(*map(figures, reports), strict=True))


def line(load: float, name: str, values: Sequence[float], completed: str, wall: float) -> str:
    hit, mean, p50, p90, p99, tpot, tpot99, e2e, e2e99 = values
    return (
        f"| ×{load:g} | {name} | {completed} | {hit:.3f} | {mean:.0f} / {p50:.0f} / {p90:.0f} / {p99:.0f} "
        f"| {tpot:.2f} / {tpot99:.1f} | {e2e:.0f} / {e2e99:.0f} | {wall:.1f} s |"
    )


def table(trace: Trace, loads: Sequence[float]) -> None:
    print(
        "| load | router | completed | hit rate | TTFT mean / p50 / p90 / p99 ms | TPOT mean / p99 ms | E2E mean / p99 ms | run |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for load in loads:
        condition = Condition(name="", load=load)
        rows: list[tuple[str, list[Report]]] = [
            ("round-robin", [run(trace, round_robin, condition, "round-robin")]),
            ("Dynamo's formula here", [run(trace, DynamoFormulaRouter, condition, "formula", seed) for seed in SEEDS]),
            ("**kv-router**", [run(trace, kv_router, condition, "kv-router")]),
        ]
        for name, reports in rows:
            completed = f"{min(made.completed for made in reports):,}"
            print(line(load, name, median(reports), completed, statistics.median(made.wall_s for made in reports)), flush=True)


def elsewhere(trace: Trace) -> None:
    print("\n| load | conditions | hit rate, formula → kv-router | TTFT mean | p50 | p99 | TPOT mean | p99 | E2E mean | p99 |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for condition in conditions():
        theirs = figures(run(trace, DynamoFormulaRouter, condition, "formula"))
        ours = figures(run(trace, kv_router, condition, "kv-router"))
        ratios = [ours[i] / theirs[i] for i in (1, 2, 4, 5, 6, 7, 8)]
        cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"| ×{condition.load:g} | {condition.name} | {theirs[0]:.3f} → {ours[0]:.3f} | {cells} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--loads", type=float, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--no-elsewhere", action="store_true", help="only the first table")
    options = parser.parse_args()
    print(f"python {platform.python_version()}, dynamo-core {dynamo_core.__version__}, {platform.machine()}, one core\n")
    trace = read_trace(options.trace)
    table(trace, options.loads)
    if not options.no_elsewhere:
        elsewhere(trace)


if __name__ == "__main__":
    main()
