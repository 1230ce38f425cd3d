"""Things that go wrong under load, through a real `dynamo serve`: does a client notice?

usage: python -m benchmarks.failure kill [--kills 20] [--streams 200] [--tokens 150] [--pause-ms 100]
       python -m benchmarks.failure drain [--streams 60] [--tokens 150]
       python -m benchmarks.failure etcd-outage [--seconds 60] [--streams 60] [--wipe]

kill         SIGKILL to one of three workers, again and again, each time when all three are back. Every stream is compared token
             by token with a run in which nobody is killed. The added pause of a migrated stream is its longest pause after the
             kill less its usual one, the simulated computing of the resumed prompt included.
drain        SIGTERM to a worker, to one of two frontends and to the whole run, under load: the streams, and requests for one
             token with a connection each, so that some knock when a frontend closes its door.
etcd-outage  etcd is stopped for a while; afterwards it must hold what it held before.

Half of the streams are completions, half are chats with log-probabilities. Exit code 1 when a request failed, a token or the
usage differs, or the goal is missed otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks.deployment import Deployment, deployed, introduce
from benchmarks.token_streams import Load, Outcome, differing, replay
from dynamo_core.testing.provision import find_server
from dynamo_core.testing.servers import EtcdServer
from dynamo_core.testing.tiny_model import make_tiny_model

Case = Callable[[Deployment, argparse.Namespace], Awaitable[list[Outcome]]]

_SLOW = ("--engine-arg", "speedup_ratio=4", "--engine-arg", "decode_speedup_ratio=0.0375")
"""A token about every 40 ms: slow enough that the machine is not what is measured. Prompts are computed at 250 tokens/ms."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = parser.add_subparsers(dest="case", required=True)
    for name, streams in (("kill", 200), ("drain", 60), ("etcd-outage", 60)):
        case = cases.add_parser(name)
        case.add_argument("--streams", type=int, default=streams, help="at a time")
        case.add_argument("--tokens", type=int, default=150, help="of each stream")
        case.add_argument("--settle", type=float, default=3, help="seconds from one event to the next")
        case.add_argument("--keep-log", type=Path, help="where the server's log goes")
    cases.choices["kill"].add_argument("--kills", type=int, default=20)
    cases.choices["kill"].add_argument("--pause-ms", type=float, default=100, help="longest added pause at the median; 0: any")
    cases.choices["etcd-outage"].add_argument("--seconds", type=float, default=60)
    cases.choices["etcd-outage"].add_argument("--wait", type=float, default=15, help="seconds after it; longer than a lease")
    cases.choices["etcd-outage"].add_argument("--wipe", action="store_true", help="etcd comes back with an empty disk")
    options = parser.parse_args()
    introduce()
    with tempfile.TemporaryDirectory(prefix="dyn-") as folder:
        return {"kill": kill, "drain": drain, "etcd-outage": etcd_outage}[options.case](options, Path(folder))


def judge(wrong: list[str]) -> int:
    print("result:", "; ".join(wrong) or "the goal is met", flush=True)
    return 1 if wrong else 0


def check(outcomes: list[Outcome], model: Path, folder: Path) -> list[str]:
    """What is wrong with them, beside a run of the same requests in which nothing happens."""
    with deployed(model, folder / "reference", "--workers", "2", "--engine-arg", "speedup_ratio=0") as reference:
        wanted = asyncio.run(replay(reference.port, outcomes))
    failed = [outcome for outcome in outcomes if outcome.failed]
    other = differing(outcomes, wanted)
    print(f"{len(outcomes)} requests, {len(failed)} failed, {len(other)} with other tokens or usage than undisturbed")
    for told in [*(f"stream {one.number}: {one.failed}" for one in failed), *other][:10]:
        print("  ", told)
    wrong = []
    if not outcomes:
        wrong.append("nothing ran")
    if failed:
        wrong.append(f"{len(failed)} requests failed")
    if other:
        wrong.append(f"{len(other)} streams differ")
    return wrong


# --- kill --------------------------------------------------------------------------------------------------------------------


def kill(options: argparse.Namespace, folder: Path) -> int:
    model = make_tiny_model(folder / "tiny", weights=False)
    with deployed(model, folder / "s", "--workers", "3", *_SLOW) as server:
        outcomes, kills = asyncio.run(_kill(server, options))
        migrated = _pauses(outcomes, server.routes(), kills)
        told = server.series("dynamo_frontend_model_migration_total")
        keep(server, options)
    wrong = check(outcomes, model, folder)
    if not migrated:
        return judge([*wrong, "no stream was migrated"])
    median = statistics.median(migrated) * 1000
    ninth = sorted(migrated)[int(len(migrated) * 0.9)] * 1000
    print(f"{len(kills)} kills, {len(migrated)} streams migrated ({told:.0f} migrations in the metrics)")
    print(f"added pause: median {median:.1f} ms, 90 % {ninth:.1f} ms, worst {max(migrated) * 1000:.1f} ms")
    if options.pause_ms and median > options.pause_ms:
        wrong.append(f"the added pause is {median:.0f} ms at the median")
    return judge(wrong)


async def _kill(server: Deployment, options: argparse.Namespace) -> tuple[list[Outcome], list[float]]:
    load = Load(server.port, options.streams, options.tokens)
    kills: list[float] = []
    for turn in range(options.kills):
        workers = await server.whole(3)
        await asyncio.sleep(options.settle)  # streams spread over all three, and `status` is long over
        name = sorted(workers)[turn % 3]
        os.kill(workers[name], signal.SIGKILL)
        kills.append(time.monotonic())
        await asyncio.sleep(1)
    await server.whole(3)
    return await load.stop(), kills


def _pauses(outcomes: list[Outcome], routes: dict[str, list[str]], kills: list[float]) -> list[float]:
    """Seconds that each migrated stream stood still longer than usual; the worst where it was migrated twice."""
    found = []
    for outcome in outcomes:
        if len(routes.get(f"stream-{outcome.number}", ())) > 1 and len(outcome.times) > 3:
            after = [moment for moment in kills if outcome.times[0] < moment < outcome.times[-1]]
            if after:  # else it had no token when its worker died
                found.append(outcome.gap_after(after[0]))
    return found


# --- drain -------------------------------------------------------------------------------------------------------------------


def drain(options: argparse.Namespace, folder: Path) -> int:
    model = make_tiny_model(folder / "tiny", weights=False)
    with deployed(model, folder / "s", "--workers", "2", "--frontends", "2", *_SLOW) as server:
        outcomes, codes = asyncio.run(_drain(server, options))
        keep(server, options)
    wrong = check(outcomes, model, folder)
    print("exit codes:", ", ".join(f"{name} {code}" for name, code in codes.items()))
    wrong += [f"{name} ended with {code}" for name, code in codes.items() if code != 0]
    return judge(wrong)


async def _drain(server: Deployment, options: argparse.Namespace) -> tuple[list[Outcome], dict[str, int | str]]:
    load = Load(server.port, options.streams, options.tokens)
    short = Load(server.port, 8, 1, first=1_000_000)
    codes: dict[str, int | str] = {}
    for name in ("worker-0", "frontend-0", "worker-1", "frontend-1"):
        await server.whole(2)
        await asyncio.sleep(options.settle)
        pids = await server.pids(name.partition("-")[0])
        os.kill(pids[name], signal.SIGTERM)
        codes[name] = await _exit_code(server, name)
    await server.whole(2)
    await asyncio.sleep(options.settle)
    await short.stop()
    load.finish()
    server.process.send_signal(signal.SIGTERM)
    outcomes = await load.stop()
    codes["dynamo serve"] = await asyncio.to_thread(server.process.wait, 60)
    return outcomes + short.outcomes, codes


async def _exit_code(server: Deployment, name: str) -> int | str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for line in server.log().splitlines():
            if f"{name} ended with exit code " in line:
                return int(line.partition("exit code ")[2].partition(";")[0])
            if f"{name} was ended by " in line:
                return line.partition("was ended by ")[2].partition(";")[0]
        await asyncio.sleep(0.2)
    return "never"


# --- etcd --------------------------------------------------------------------------------------------------------------------


def etcd_outage(options: argparse.Namespace, folder: Path) -> int:
    model = make_tiny_model(folder / "tiny", weights=False)
    with EtcdServer(find_server("etcd"), folder / "etcd") as etcd:
        arguments = ("--workers", "2", "--discovery-backend", "etcd", *_SLOW)
        with deployed(model, folder / "s", *arguments, env={"ETCD_ENDPOINTS": etcd.url}) as server:
            outcomes, wrong = asyncio.run(_outage(server, etcd, options))
            keep(server, options)
    return judge([*check(outcomes, model, folder), *wrong])


async def _outage(server: Deployment, etcd: EtcdServer, options: argparse.Namespace) -> tuple[list[Outcome], list[str]]:
    wrong: list[str] = []
    before = await registered(etcd.url)
    load = Load(server.port, options.streams, options.tokens)
    await asyncio.sleep(options.settle)
    etcd.kill()
    if options.wipe:
        etcd.wipe()
    await asyncio.sleep(options.seconds)
    during = len(load.outcomes)
    if not await _says_so(server):
        wrong.append("/health did not say that discovery is out of reach")
    await asyncio.to_thread(etcd.start)
    back = time.monotonic()
    while (after := await registered(etcd.url)) != before and time.monotonic() < back + 30:
        await asyncio.sleep(0.2)
    took = time.monotonic() - back
    await asyncio.sleep(options.wait)
    last = await registered(etcd.url)
    outcomes = await load.stop()
    print(f"etcd was away for {options.seconds:g} s, {during} requests ended meanwhile or before")
    print(
        f"{len(before)} keys before, {len(after)} the same {took:.1f} s after it was back, {len(last)} {options.wait:g} s later"
    )
    if not before or last != before:
        wrong.append("registrations are not whole")
    return outcomes, wrong


async def _says_so(server: Deployment) -> bool:
    status, body = await asyncio.to_thread(server.get, "/health")
    print(f"/health in the outage: {status} {body.decode()[:300]}")
    return status == 200 and b'"out of reach"' in body


async def registered(url: str) -> set[str]:
    """The keys of all processes."""
    from dynamo_etcd import EtcdConfig
    from dynamo_etcd.options import from_environment
    from dynamo_etcd.store import EtcdDiscovery

    store = EtcdDiscovery(from_environment(EtcdConfig(endpoints=(url,)), {}))
    await store.start()
    try:
        return set(await store.get_prefix(""))
    finally:
        await store.close()


def keep(server: Deployment, options: argparse.Namespace) -> None:
    if options.keep_log is not None:
        options.keep_log.write_text(server.log())


if __name__ == "__main__":
    sys.exit(main())
