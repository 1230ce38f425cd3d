"""CPU time of the request plane for each streamed item on either side, and the time of a unary call; between two processes.

The serving process emits one item to every stream in each turn of its loop, as an engine's step does. The baseline emits to one
stream a turn, so that every item is a frame and a write of its own. The unary calls follow one another.

    python benchmarks/request_plane.py [--plane unix|tcp|nats] [--streams 256] [--items 128] [--rounds 7] [--loop uvloop|asyncio]

Over sockets the goals are 4 µs an item on either side and 250 µs a call at the median; exit code 1 when one is missed. NATS
runs for the time of the benchmark, on a free port.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dynamo_core.contracts import Context, Instance, ResponseSink
from dynamo_core.runtime.planes.tcp import TcpConfig, TcpPlane
from dynamo_core.specs import PlaneContext
from dynamo_core.testing.provision import find_server
from dynamo_core.testing.servers import NatsServer

CALLS = 5000
ITEM_GOAL, CALL_GOAL = 4.0, 250.0
"""µs, over sockets."""


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Steps:
    """Once ``streams`` requests wait, runs them together: ``items`` steps, then the CPU time that they took as last item."""

    def __init__(self, streams: int) -> None:
        self.streams = streams
        self.sinks: list[ResponseSink] = []
        self.task: asyncio.Task[None] | None = None

    def handle(self, request: Any, context: Context, sink: ResponseSink) -> None:  # noqa: ARG002
        if "unary" in request:
            sink.item(request["unary"])
            sink.end()
            return
        self.sinks.append(sink)
        if len(self.sinks) == self.streams:
            sinks, self.sinks = self.sinks, []
            self.task = asyncio.create_task(self.run(sinks, request["items"], one_a_turn=request["one_a_turn"]))

    async def run(self, sinks: list[ResponseSink], items: int, *, one_a_turn: bool) -> None:
        begin = cpu_seconds()
        for step in range(items):
            for sink in sinks:
                sink.item(step)
                if one_a_turn:
                    await asyncio.sleep(0)
            await asyncio.sleep(0)
        used = cpu_seconds() - begin
        for sink in sinks:
            sink.item(used)
            sink.end()


class Count:
    """A receiver; ``done`` is set when the last of all streams ends."""

    def __init__(self, streams: int) -> None:
        self.open = streams
        self.items = 0
        self.last: Any = None
        self.done = asyncio.Event()

    def on_items(self, items: list[Any]) -> None:
        self.items += len(items)
        self.last = items[-1]

    def on_end(self) -> None:
        self.open -= 1
        if not self.open:
            self.done.set()

    def on_error(self, error: Exception) -> None:
        print("a stream failed:", error)
        self.on_end()


def plane(name: str, folder: str, instance_id: int) -> Any:
    context = PlaneContext(namespace="bench", run_dir=folder, instance_id=instance_id)
    if name == "nats":
        from dynamo_nats import NatsConfig
        from dynamo_nats.options import from_environment
        from dynamo_nats.requests import NatsRequests

        return NatsRequests(from_environment(NatsConfig()), context)
    return TcpPlane(TcpConfig(host="127.0.0.1") if name == "tcp" else TcpConfig(), context)


async def serve(options: argparse.Namespace) -> None:
    served = plane(options.plane, options.serve, 1)
    print(await served.serve("bench.backend.generate", Steps(options.streams).handle), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await served.close()


async def call(calls: Any, instance: Instance) -> float:
    """The median of many calls, one after the other. µs."""
    took = []
    for number in range(CALLS):
        count = Count(1)
        begin = time.perf_counter()
        calls.open(instance, {"unary": number}, Context(), count)
        await count.done.wait()
        took.append((time.perf_counter() - begin) * 1e6)
        if count.last != number:
            raise SystemExit(f"call {number} was answered with {count.last}")
    print(
        f"{'unary call, one at a time':30} median {statistics.median(took):.0f} µs, "
        f"99 % {sorted(took)[len(took) * 99 // 100]:.0f} µs"
    )
    return statistics.median(took)


async def measure(folder: str, address: str, options: argparse.Namespace) -> list[str]:
    calls = plane(options.plane, folder, 2)
    instance = Instance(
        instance_id=1, namespace="bench", component="backend", endpoint="generate", address=address, request_plane="tcp"
    )
    medians = {}
    await calls.connect(instance)
    call_time = await call(calls, instance)
    for one_a_turn in (False, True):
        ours, theirs = [], []
        for _ in range(options.rounds):
            count = Count(options.streams)
            begin = cpu_seconds()
            for _ in range(options.streams):
                calls.open(instance, {"items": options.items, "one_a_turn": one_a_turn}, Context(), count)
            await count.done.wait()
            total = options.streams * options.items
            if count.items != total + options.streams:
                raise SystemExit(f"{count.items} items arrived instead of {total + options.streams}")
            ours.append((cpu_seconds() - begin) / total * 1e6)
            theirs.append(count.last / total * 1e6)
        medians[one_a_turn] = (statistics.median(theirs), statistics.median(ours))
    await calls.close()
    for one_a_turn, name in ((False, "one frame a turn"), (True, "one frame an item (baseline)")):
        server, client = medians[one_a_turn]
        print(f"{name:30} server {server:6.2f} µs an item   client {client:6.2f} µs an item, opening the streams included")
    ratios = [frame / single for frame, single in zip(*medians.values(), strict=True)]
    print(f"{'ratio to baseline':30} server {ratios[0]:6.2f}               client {ratios[1]:6.2f}")
    if options.plane == "nats":
        return []
    missed = [
        f"{name} {spent:.2f} µs an item"
        for name, spent in zip(("server", "client"), medians[False], strict=True)
        if spent > ITEM_GOAL
    ]
    return missed + ([f"a call takes {call_time:.0f} µs"] if call_time > CALL_GOAL else [])


def run(main: Any, loop: str) -> Any:
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plane", choices=("unix", "tcp", "nats"), default="unix")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--items", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        run(serve(options), options.loop)
        return 0
    print("command:", " ".join(["python", *sys.argv]))
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"versions: Python {platform.python_version()}, msgspec {version('msgspec')}, {options.loop}", end=" ")
    print(version("uvloop") if options.loop == "uvloop" else "")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
        if options.plane == "nats":
            server = stack.enter_context(NatsServer(find_server("nats-server"), Path(folder) / "nats"))
            os.environ["NATS_SERVER"] = server.url
        missed = between_processes(folder, options)
    print("result:", "; ".join(missed) or ("no goal is set for NATS" if options.plane == "nats" else "the goals are met"))
    return 1 if missed else 0


def between_processes(folder: str, options: argparse.Namespace) -> list[str]:
    arguments = {"serve": folder, "plane": options.plane, "streams": str(options.streams), "loop": options.loop}
    command = [sys.executable, str(Path(__file__)), *(part for key, value in arguments.items() for part in (f"--{key}", value))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip() if server.stdout else ""
        missed: list[str] = run(measure(folder, address, options), options.loop)
        server.communicate()
    return missed


if __name__ == "__main__":
    sys.exit(main())
