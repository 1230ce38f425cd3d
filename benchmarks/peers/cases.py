"""What is measured: a table of cases, each a load on an engine, with the figures that it yields."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from benchmarks.peers.held import OPENING_SECONDS, HeldStreams
from benchmarks.peers.load import GRACE_SECONDS, ClosedLoop, Source, percentile
from benchmarks.peers.processes import cpu_seconds, peak_mib, resident_mib, settle
from benchmarks.peers.prompts import Conversations, FreshPrompts, RepeatedPrompts
from benchmarks.peers.servers import PROXIES, Engine, Running

__all__ = ["CASES", "ENGINES", "Case", "Closed", "Column", "Held", "Starting", "Values"]

Values = dict[str, float]

_STEP_MS = 6.1
"""The simulated decode step with a cache that is all but empty."""


def _paced(milliseconds: float) -> Engine:
    """Prefill takes nothing, so that arrivals do not stall the others, and a step has room for all that arrive; the cache is too
    large to slow decoding."""
    return Engine(
        speedup=1000.0, decode_speedup=_STEP_MS / milliseconds / 1000.0,
        max_num_seqs=1 << 14, max_num_batched_tokens=1 << 20, blocks=1 << 19,
    )  # fmt: skip


ENGINES: Mapping[str, Engine] = {"instant": Engine(), "paced": _paced(1000 / 30), "slow": _paced(10_000)}


class Column(msgspec.Struct, frozen=True):
    key: str
    heading: str
    digits: int = 1
    higher_is_better: bool = False
    compared: bool = True
    """False: neither more nor less of it is better."""
    headline: bool = False
    """In the table of ratios, too; the first column of a case always is."""


def _tell(server: Running, failed: int, why: str) -> None:
    if failed:
        print(f"  {server.name}: {failed} failed; the first: {why or 'no text came'}", flush=True)


class Closed(msgspec.Struct, frozen=True, kw_only=True):
    """Connections that ask again at once; costs are a unit's: a token's of streams, a request's of others."""

    connections: int
    source: Callable[[], Source]
    unit: int = 1
    """Tokens an answer, where costs are a token's."""

    def limit(self, seconds: float) -> float:
        """Seconds after which a measurement is no longer slow but hanging."""
        return seconds + GRACE_SECONDS + 15.0

    def measure(self, server: Running, seconds: float) -> Values:
        source = self.source()
        before = {role: cpu_seconds(pids) for role, pids in server.roles.items()}
        made = ClosedLoop(server.port, source, self.connections).run(seconds)
        _tell(server, made.failed, made.why_failed)
        units = max(1, made.completed) * self.unit
        values = {
            "completed": made.completed, "failed": made.failed, "seconds": made.seconds,
            "per_s": made.completed * self.unit / made.seconds,
            "first_p50_ms": percentile(made.first, 0.5) * 1e3, "first_p99_ms": percentile(made.first, 0.99) * 1e3,
            "whole_p50_ms": percentile(made.whole, 0.5) * 1e3, "whole_p99_ms": percentile(made.whole, 0.99) * 1e3,
            "tokens_a_read": made.completed * self.unit / made.reads if made.reads else 0.0,
            "cpu_us.load": made.cpu_seconds / units * 1e6,
        }  # fmt: skip
        for role, pids in server.roles.items():
            values[f"cpu_us.{role}"] = (cpu_seconds(pids) - before[role]) / units * 1e6
        return values


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Streams that are all open at the same time and stay so: one that ends is followed by the next."""

    connections: int
    """A stream each."""
    source: Callable[[], Source]
    settle: float
    """Seconds after the last was opened."""
    least: float = 0.0
    """Seconds to watch at least."""

    def limit(self, seconds: float) -> float:
        return OPENING_SECONDS + self.settle + max(seconds, self.least) + 15.0

    def measure(self, server: Running, seconds: float) -> Values:
        seconds = max(seconds, self.least)
        taken: list[dict[str, float]] = []
        memory = {role: resident_mib(pids) for role, pids in server.roles.items()}
        source = self.source()

        def probe() -> None:
            taken.append({role: cpu_seconds(pids) for role, pids in server.roles.items()})
            taken.append({role: resident_mib(pids) for role, pids in server.roles.items()})

        made = HeldStreams(server.port, source, self.connections).run(self.settle, seconds, probe)
        _tell(server, made.failed, made.why_failed)
        gaps, jitter = made.gaps.percentiles_ms(0.5, 0.99, 0.999), made.gaps.jitter_ms(0.5, 0.99, 0.999)
        values = {
            "completed": made.open, "failed": made.failed, "seconds": made.seconds, "per_s": made.events / made.seconds,
            "tokens_a_read": made.events / max(1, made.reads),
            "gap_p50_ms": gaps[0], "gap_p99_ms": gaps[1], "gap_p999_ms": gaps[2],
            "jitter_p50_ms": jitter[0], "jitter_p99_ms": jitter[1], "jitter_p999_ms": jitter[2],
            "cpu_us.load": made.cpu_seconds / max(1, made.events) * 1e6,
        }  # fmt: skip
        for role in server.roles:
            spent = taken[2][role] - taken[0][role]
            values[f"cpu_us.{role}"] = spent / max(1, made.events) * 1e6
            values[f"core_percent.{role}"] = spent / made.seconds * 100
            values[f"kib_a_stream.{role}"] = (taken[3][role] - memory[role]) / self.connections * 1024
        return values


_SETTLE_SECONDS = 20.0
"""For what a server loads after its first answer."""


class Starting(msgspec.Struct, frozen=True, kw_only=True):
    """The start itself, each round anew: time to the first answer, resident memory when nothing more is loaded and after some
    load, and the most there was on the way."""

    small_model: bool
    connections: int = 256

    def limit(self, seconds: float) -> float:
        return 2 * (seconds + GRACE_SECONDS) + 15.0 + _SETTLE_SECONDS

    def measure(self, server: Running, seconds: float) -> Values:
        values = {"completed": 1.0, "failed": 0.0, "start_s": server.start_seconds}
        settle((pid for pids in server.roles.values() for pid in pids), most=_SETTLE_SECONDS)
        values |= {f"rss_mib.{role}": resident_mib(pids) for role, pids in server.roles.items()}
        long = 800 if self.small_model else 4000  # the small model's context has 4,096 tokens
        for words, connections in ((500, self.connections), (long, 8)):
            made = ClosedLoop(server.port, FreshPrompts(words, (32, 32), stream=True), connections).run(seconds)
            _tell(server, made.failed, made.why_failed)
            values["failed"] += made.failed
        values |= {f"rss_loaded_mib.{role}": resident_mib(pids) for role, pids in server.roles.items()}
        values |= {f"peak_mib.{role}": peak_mib(pids) for role, pids in server.roles.items()}
        return values


class Case(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    title: str
    load: Closed | Held | Starting
    columns: tuple[Column, ...]
    """The first is the one that ratios and plots are about."""
    engine: str = "instant"
    leave_out: tuple[str, ...] = ()
    """Servers of which this is not measured."""
    alone: bool = False
    """Each server is started anew each round, and no other is running then."""
    quick: bool = False
    """Part of ``--quick``."""


_TOKEN = (
    Column("cpu_us.frontend", "frontend, µs CPU a token"),
    Column("cpu_us.worker", "workers, µs CPU a token", headline=True),
    Column("per_s", "tokens/s", 0, higher_is_better=True, headline=True),
    Column("tokens_a_read", "tokens a read", compared=False),
    Column("first_p50_ms", "first text p50, ms"),
    Column("first_p99_ms", "first text p99, ms"),
)
_REQUEST = (
    Column("cpu_us.frontend", "frontend, µs CPU a request", 0),
    Column("cpu_us.worker", "workers, µs CPU a request", 0),
    Column("per_s", "requests/s", 0, higher_is_better=True),
    Column("whole_p50_ms", "answer p50, ms"),
    Column("whole_p99_ms", "answer p99, ms"),
)
_FIRST = (
    Column("first_p50_ms", "first text p50, ms", 2),
    Column("first_p99_ms", "first text p99, ms", 2),
    Column("cpu_us.frontend", "frontend, µs CPU a request", 0),
)
_PACED = (
    Column("cpu_us.frontend", "frontend, µs CPU a token"),
    Column("cpu_us.worker", "workers, µs CPU a token", headline=True),
    Column("core_percent.frontend", "% of a core", compared=False),
    Column("per_s", "tokens/s", 0, higher_is_better=True),
    Column("tokens_a_read", "tokens a read", compared=False),
    Column("gap_p50_ms", "gap p50, ms", compared=False),
    Column("jitter_p50_ms", "jitter p50, ms"),
    Column("jitter_p99_ms", "jitter p99, ms", headline=True),
    Column("jitter_p999_ms", "jitter p99.9, ms"),
)
_IDLE = (
    Column("kib_a_stream.frontend", "frontend, KiB a stream"),
    Column("core_percent.frontend", "% of a core"),
    Column("kib_a_stream.worker", "workers, KiB a stream"),
)
_START = (
    Column("start_s", "start to first answer, s", 2),
    Column("rss_mib.frontend", "frontend resident, MiB", 0, headline=True),
    Column("rss_loaded_mib.frontend", "after load, MiB", 0, headline=True),
    Column("peak_mib.frontend", "at its peak, MiB", 0),
    Column("rss_loaded_mib.worker", "workers after load, MiB", 0),
)


_FASTOKENS = ("dynamo-fastokens",)
"""Dynamo with its other tokenizer: of interest where prompts are."""
_UNMERGED = ("smg-dynamo", "vllm-router-dynamo")
"""Proxies before servers that write each token by itself: of interest where ours would write several as one."""


def _stream(connections: int) -> Case:
    return Case(
        name=f"stream-{connections}",
        title=f"Streamed tokens, {connections:,} connection{'s' * (connections > 1)}, 20 words, 128 tokens",
        load=Closed(connections=connections, source=lambda: RepeatedPrompts(20, (128, 128), stream=True), unit=128),
        columns=_TOKEN,
        leave_out=_FASTOKENS,
        quick=connections in (32, 256),
    )


def _unary(words: int, kind: type[FreshPrompts | RepeatedPrompts]) -> Case:
    name = "fresh" if kind is FreshPrompts else "repeated"
    return Case(
        name=f"unary-{words}-{name}",
        title=f"Requests of {words:,} words, {name} prompts, 1 token, 16 connections",
        load=Closed(connections=16, source=lambda: kind(words, (1, 1), stream=False)),
        columns=_REQUEST,
        leave_out=_UNMERGED,
        quick=words == 20,
    )


def _first(connections: int) -> Case:
    return Case(
        name=f"ttft-{connections}",
        title=f"Added time to the first token, {connections} connection{'s' * (connections > 1)}, 500 words, fresh prompts",
        load=Closed(connections=connections, source=lambda: FreshPrompts(500, (4, 4), stream=True)),
        columns=_FIRST,
        leave_out=_UNMERGED,
        quick=connections == 1,
    )


def _paced_streams(streams: int) -> Case:
    return Case(
        name=f"paced-{streams}",
        title=f"{streams:,} streams at 30 tokens a second each, 20 words, 300 tokens an answer",
        load=Held(connections=streams, source=lambda: RepeatedPrompts(20, (200, 400), stream=True), settle=3.0, least=5.0),
        columns=_PACED,
        engine="paced",
        leave_out=(*_FASTOKENS, *_UNMERGED),
        quick=streams == 256,
    )


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(_stream(connections) for connections in (1, 32, 256, 1000)),
        *(_unary(words, kind) for words in (20, 500, 4000, 16_000) for kind in (FreshPrompts, RepeatedPrompts)),
        _first(1),
        _first(64),
        Case(
            name="conversations",
            title="Conversations of 10 turns, 16 at a time: 200 words of system prompt, 50 a turn, 64 tokens an answer",
            load=Closed(connections=16, source=lambda: Conversations(10, 64)),
            columns=(*_REQUEST[:3], *_FIRST[:2]),
            leave_out=_UNMERGED,
        ),
        *map(_paced_streams, (32, 256, 1000)),
        Case(
            name="idle-10000",
            title="10,000 streams, a token every 10 seconds each",
            load=Held(connections=10_000, source=lambda: FreshPrompts(20, (3000, 3000), stream=True), settle=12.0, least=20.0),
            columns=_IDLE,
            engine="slow",
            leave_out=(*_FASTOKENS, *_UNMERGED),
            alone=True,
        ),
        *(
            Case(
                name=f"start-{kind}",
                title=f"Start and memory, {what}",
                load=Starting(small_model=kind == "small"),
                columns=_START,
                leave_out=PROXIES,
                alone=True,
                quick=kind == "small",
            )
            for kind, what in (("small", "tokenizer of 2,000 entries"), ("large", "tokenizer of 262,000 entries"))
        ),
    )
}
"""By name, in the order in which they run."""
