"""Who blocks the event loop? A thread that looks when the loop is late, so that hooks cost nothing more.

Five times a second the loop says that it lives. When it does not, the thread looks at the loop's stack and finds the plugin whose
code runs there; once the loop is back, a warning names the plugin, the line and the time. Code that holds the interpreter's lock
all the while hides from the thread: then only the time is known.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from time import monotonic
from types import FrameType
from typing import NamedTuple, Self

from dynamo_core.plugins.installed import PluginInfo

__all__ = ["LoopWatchdog"]

_log = logging.getLogger(__name__)

_BEAT = 0.2
"""Seconds between two signs of life, and between two looks. Costs 20 µs of CPU time each."""
_ENDLESS = 10.0
"""Seconds after which the thread does not wait for the loop to come back before it speaks."""
_WAITING = frozenset({"asyncio.base_events", "asyncio.runners", "selectors"})
"""Modules in which the loop itself is, between callbacks."""


class _Culprit(NamedTuple):
    plugin: str | None
    place: str
    """``module.function, line 7``; empty when the loop was not in a callback."""


class LoopWatchdog:
    """A context manager, entered in the loop's own thread; watches until it is left."""

    def __init__(self, plugins: Sequence[PluginInfo], *, threshold: float = 0.5) -> None:
        """``threshold``: seconds that a callback may take. ``plugins``: the active ones."""
        self._threshold = threshold
        self.know(plugins)
        self._over = threading.Event()
        self._beat = 0.0
        self._seen: list[_Culprit] = []
        self._told = False

    def know(self, plugins: Sequence[PluginInfo]) -> None:
        """These are the active ones from here on."""
        self._modules = {_root(info): info.name for info in plugins}
        # Planes call everything else from their callbacks: their frames say nothing unless they are the innermost.
        self._carriers = {info.name for info in plugins if any("-plane:" in what for what in info.provides)}

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._beat = monotonic()
        self._timer = self._loop.call_later(_BEAT, self._alive)
        self._thread = threading.Thread(target=self._watch, name="loop watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._over.set()
        self._thread.join()

    # --- on the loop -----------------------------------------------------------------------------------------------------------

    def _alive(self) -> None:
        now, before = monotonic(), self._beat
        self._beat = now
        self._timer = self._loop.call_later(_BEAT, self._alive)
        seen, self._seen, self._told = self._seen, [], False
        blocked = now - before - _BEAT / 2  # it began somewhere between two beats
        if blocked >= self._threshold:
            self._tell(seen, f"for {blocked:.1f} s")

    # --- in the thread ---------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._over.wait(_BEAT):
            late = monotonic() - self._beat
            if late < 2 * _BEAT:
                continue
            frame = sys._current_frames().get(self._thread_id)  # noqa: SLF001  # the interpreter's way to another thread's stack
            if frame is not None:
                self._seen.append(self._culprit(frame))
            if late > _ENDLESS and not self._told:
                self._told = True
                self._tell(self._seen, f"for {late:.0f} s and still is")

    def _culprit(self, frame: FrameType) -> _Culprit:
        innermost = True
        for caller in _outwards(frame):
            plugin = self._plugin(str(caller.f_globals.get("__name__", "")))
            if plugin is not None and (innermost or plugin not in self._carriers):
                return _Culprit(plugin, _place(caller))
            innermost = False
        module = str(frame.f_globals.get("__name__", ""))
        return _Culprit(None, "" if module in _WAITING else _place(frame))

    def _plugin(self, module: str) -> str | None:
        while module:
            if module in self._modules:
                return self._modules[module]
            module = module.rpartition(".")[0]
        return None

    # --- both ------------------------------------------------------------------------------------------------------------------

    def _tell(self, seen: Sequence[_Culprit], how_long: str) -> None:
        culprit = max(reversed(seen), key=lambda one: (one.plugin is not None, bool(one.place)), default=None)
        if culprit is None:
            _log.warning("the event loop was blocked %s; where is not known", how_long)
        elif culprit.plugin is not None:
            _log.warning(
                "plugin %r blocked the event loop %s, and every request with it, in %s: its author should make that code async "
                "or move it to a thread",
                culprit.plugin, how_long, culprit.place,
            )  # fmt: skip
        elif culprit.place:
            _log.warning("the event loop was blocked %s in %s", how_long, culprit.place)
        else:
            _log.info("the event loop was late %s without a callback that ran: this process got no CPU time", how_long)


def _root(info: PluginInfo) -> str:
    """The package that is the plugin's own: the top one, except in the core, where a plugin is one module."""
    module = info.target.partition(":")[0]
    return module if module.startswith("dynamo_core.") else module.partition(".")[0]


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_name}, line {frame.f_lineno}"
