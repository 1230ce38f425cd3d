"""The order of a run: servers that share an engine are up together, and each round measures one after the other."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from benchmarks.peers.cases import ENGINES, Case, Closed, Starting, Values
from benchmarks.peers.results import Measurement
from benchmarks.peers.servers import SERVERS, NotStarted, Ours, Running, Setting

__all__ = ["Run"]

_WARM_UP_SECONDS = 2.0


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

    def run(self, cases: Sequence[Case]) -> None:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            setting = Setting(model=self._model, engine=ENGINES["instant"], peers=self._peers, folder=Path(folder))
            for engine in dict.fromkeys(case.engine for case in cases):
                group = [case for case in cases if case.engine == engine and not isinstance(case.load, Starting)]
                if group:
                    self._together(group, msgspec.structs.replace(setting, engine=ENGINES[engine]))
            for case in cases:
                if isinstance(case.load, Starting):
                    model = self._small_model if case.load.small_model else self._model
                    self._starts(case, msgspec.structs.replace(setting, model=model))

    def _together(self, cases: Sequence[Case], setting: Setting) -> None:
        with contextlib.ExitStack() as stack:
            names = list(self._chosen(cases))
            if any(SERVERS[name].proxy for name in names):
                setting = self._with_backends(stack, setting)
            started = (self._start(stack, name, setting) for name in names if name not in self.left_out)
            running = [server for server in started if server is not None]
            for case in cases:
                present = [server for server in running if server.name not in case.leave_out]
                print(f"\n{case.name}: {case.title}", flush=True)
                for server in present:
                    if isinstance(case.load, Closed):
                        case.load.measure(server, min(_WARM_UP_SECONDS, self._seconds))
                for number in range(self._rounds):
                    for server in present:
                        self._keep(case, server.name, number, case.load.measure(server, self._seconds))

    def _starts(self, case: Case, setting: Setting) -> None:
        print(f"\n{case.name}: {case.title}", flush=True)
        for number in range(self._rounds):
            for name in self._chosen([case]):
                with contextlib.ExitStack() as stack:
                    server = self._start(stack, name, setting)
                    if server is not None:
                        self._keep(case, name, number, case.load.measure(server, min(3.0, self._seconds)))

    def _chosen(self, cases: Sequence[Case]) -> Iterator[str]:
        for name in self._servers:
            if name not in self.left_out and any(name not in case.leave_out for case in cases):
                yield name

    def _start(self, stack: contextlib.ExitStack, name: str, setting: Setting) -> Running | None:
        try:
            return stack.enter_context(SERVERS[name].start(setting))
        except (NotStarted, OSError) as error:
            self.left_out[name] = str(error) if isinstance(error, NotStarted) else f"{name} cannot be started: {error}"
            print(f"left out: {self.left_out[name]}", flush=True)
            return None

    def _with_backends(self, stack: contextlib.ExitStack, setting: Setting) -> Setting:
        """Two of our servers with a worker each, for all proxies: one is measured at a time, and an idle one costs nothing."""
        try:
            backends = [Ours(f"backend-{number}", workers=1, role="backend") for number in range(2)]
            return msgspec.structs.replace(setting, backends=tuple(stack.enter_context(b.start(setting)) for b in backends))
        except NotStarted as error:
            for name in self._servers:
                if SERVERS[name].proxy:
                    self.left_out[name] = f"{name} has no back ends: {error}"
            return setting

    def _keep(self, case: Case, server: str, number: int, values: Values) -> None:
        self.measurements.append(Measurement(case.name, server, number, {key: round(v, 4) for key, v in values.items()}))
        told = ", ".join(
            f"{column.heading} {values[column.key]:.{column.digits}f}" for column in case.columns if column.key in values
        )
        print(
            f"  round {number + 1} {server}: {told}; {values['completed']:.0f} completed, {values['failed']:.0f} failed",
            flush=True,
        )
