"""The order of a run: cases that need the same servers share them, and each round measures one server after the other.

A server that a case does not need is not running then. What cannot be measured is named and left out; the run goes on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.peers.cases import ENGINES, Case, Closed, Starting, Values
from benchmarks.peers.limits import TooLong, allow_files, within
from benchmarks.peers.processes import settle
from benchmarks.peers.results import Measurement
from benchmarks.peers.servers import BACKENDS, SERVERS, NotStarted, Running, Setting, answers

__all__ = ["Run"]

_WARM_UP_SECONDS = 2.0
_ANSWER_SECONDS = 5.0
"""In which a server that was cut off must answer, if it is to be measured again."""
_STARTING_LOAD_SECONDS = 3.0


class _Unmeasured(Exception):
    """One line that says why."""


class Run:
    """``measurements`` grows as it goes, so that an interrupted run still has what it measured."""

    def __init__(
        self, *, model: Path, small_model: Path, peers: Path, rounds: int, seconds: float, servers: Sequence[str]
    ) -> None:
        self._model = model
        self._small_model = small_model
        self._peers = peers
        self._rounds = rounds
        self._seconds = seconds
        self._servers = servers
        self.measurements: list[Measurement] = []
        self.left_out: dict[str, str] = {}
        """Server, or server/case → why."""

    def run(self, cases: Sequence[Case]) -> None:
        self._files = allow_files(max((self._needs_files(case, name) for case in cases for name in self._servers), default=0))
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            for names, group in self.groups(cases):
                setting = Setting(model=self._model, engine=ENGINES[group[0].engine], peers=self._peers, folder=Path(folder))
                if group[0].alone:
                    self._one_by_one(group[0], names, setting)
                else:
                    self._together(group, names, setting)

    def groups(self, cases: Sequence[Case]) -> list[tuple[tuple[str, ...], list[Case]]]:
        """Cases that need the same servers with the same engine, in the order of the first of them."""
        groups: dict[object, tuple[tuple[str, ...], list[Case]]] = {}
        for case in cases:
            names = tuple(name for name in self._servers if name not in case.leave_out)
            key = case.name if case.alone else (case.engine, names)
            groups.setdefault(key, (names, []))[1].append(case)
        return list(groups.values())

    def _together(self, cases: Sequence[Case], names: Sequence[str], setting: Setting) -> None:
        with contextlib.ExitStack() as stack:
            running = list(self._started(stack, names, setting))
            settle(pid for server in running for pids in server.roles.values() for pid in pids)
            for case in cases:
                print(f"\n{case.name}: {case.title}", flush=True)
                for server in running:
                    if isinstance(case.load, Closed):
                        self._measure(case, server, min(_WARM_UP_SECONDS, self._seconds))
                for number in range(self._rounds):
                    for server in running:
                        self._keep(case, server.name, number, self._measure(case, server, self._seconds))

    def _one_by_one(self, case: Case, names: Sequence[str], setting: Setting) -> None:
        """Each server alone on the machine, and anew each round."""
        print(f"\n{case.name}: {case.title}", flush=True)
        seconds = self._seconds
        if isinstance(case.load, Starting):
            seconds = min(_STARTING_LOAD_SECONDS, seconds)
            setting = msgspec.structs.replace(setting, model=self._small_model if case.load.small_model else self._model)
        for number in range(self._rounds):
            for name in names:
                if self._fits(case, name):
                    with contextlib.ExitStack() as stack:
                        for server in self._started(stack, [name], setting):
                            self._keep(case, name, number, self._measure(case, server, seconds))

    def _started(self, stack: contextlib.ExitStack, names: Sequence[str], setting: Setting) -> Iterator[Running]:
        """Those that can be; a proxy after its back ends, which all proxies of a kind share: one is measured at a time."""
        backends: dict[str, tuple[Running, ...]] = {}
        for name in names:
            if name in self.left_out:
                continue
            kind = SERVERS[name].backends
            try:
                if kind and kind not in backends:
                    backends[kind] = tuple(stack.enter_context(BACKENDS[kind](number).start(setting)) for number in range(2))
                setting = msgspec.structs.replace(setting, backends=backends.get(kind, ()))
                yield stack.enter_context(SERVERS[name].start(setting))
            except (NotStarted, OSError) as error:
                self._leave_out(name, str(error) if isinstance(error, NotStarted) else f"{name} cannot be started: {error}")

    def _measure(self, case: Case, server: Running, seconds: float) -> Values | None:
        """None: the case is left out for this server, from the first round that fails on."""
        key = f"{server.name}/{case.name}"
        if key in self.left_out or not self._fits(case, server.name):
            return None
        try:
            if any(other.startswith(f"{server.name}/") for other in self.left_out) and not answers(server.port, _ANSWER_SECONDS):
                raise _Unmeasured("it answers nothing any more")
            with within(case.load.limit(seconds)):
                values = case.load.measure(server, seconds)
            if not values["completed"]:
                raise _Unmeasured("nothing was answered")
        except (_Unmeasured, TooLong, OSError) as error:
            self._leave_out(key, f"{server.name} in {case.name}: {error}")
            return None
        return values

    def _fits(self, case: Case, name: str) -> bool:
        needed = self._needs_files(case, name)
        if needed > self._files:
            why = f"needs {needed:,} open files, and the limit is {self._files:,} (ulimit -Hn)"
            self._leave_out(f"{name}/{case.name}", f"{name} in {case.name}: it {why}")
        return needed <= self._files

    def _needs_files(self, case: Case, name: str) -> int:
        """A proxy has a connection to a back end for each stream as well."""
        return case.load.connections * (2 if SERVERS[name].backends else 1) + 500

    def _leave_out(self, key: str, why: str) -> None:
        if key not in self.left_out:
            print(f"  left out: {why}", flush=True)
        self.left_out[key] = why

    def _keep(self, case: Case, server: str, number: int, values: Values | None) -> None:
        if values is None:
            return
        self.measurements.append(Measurement(case.name, server, number, {key: round(v, 4) for key, v in values.items()}))
        told = ", ".join(
            f"{column.heading} {values[column.key]:.{column.digits}f}" for column in case.columns if column.key in values
        )
        print(
            f"  round {number + 1} {server}: {told}; {values['completed']:.0f} completed, {values['failed']:.0f} failed",
            flush=True,
        )
