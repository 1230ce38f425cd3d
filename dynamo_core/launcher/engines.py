"""Which engines are installed, and which of them can run here."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from dynamo_core.errors import StartupError
from dynamo_core.plugins import PluginInfo, activate, installed_plugins
from dynamo_core.plugins.loading import load_plugin, specified
from dynamo_core.plugins.names import canonical_name

__all__ = ["FoundEngine", "choose_engine", "find_engines"]

_log = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
_LAST_RESORT = "echo"


class FoundEngine(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    plugin: str
    version: str = ""
    """Of the plugin's distribution."""
    description: str = ""
    needs_model: bool = True
    """It computes with a model's weights."""
    problem: str = ""
    """Why it cannot run here; empty when it can."""

    @property
    def usable(self) -> bool:
        return not self.problem


def find_engines(*, blocked: Collection[str] = ()) -> tuple[FoundEngine, ...]:
    """Every engine of every installed plugin, by name. Imports the plugins, which is cheap by rule, but no engine itself."""
    left_out = {canonical_name(name) for name in blocked}
    found: list[FoundEngine] = []
    for info in installed_plugins().values():
        if info.name not in left_out and info.error is None:
            found += _engines_of(info)
    return tuple(sorted(found, key=lambda engine: engine.name))


def _engines_of(info: PluginInfo) -> list[FoundEngine]:
    try:
        if "dynamo_engines" not in load_plugin(info, specified()):
            return []
    except StartupError as error:  # whatever it would provide, it cannot
        _log.debug("plugin %s is passed over: %s", info.name, error.message)
        return []
    try:
        providers = activate((info.name,), process="worker").engines
    except StartupError as error:
        return [FoundEngine(name=info.name, plugin=info.name, version=info.version, problem=error.message)]
    return [
        FoundEngine(
            name=provider.spec.name,
            plugin=info.name,
            version=info.version,
            description=provider.spec.description,
            needs_model=provider.spec.needs_model,
        )
        for provider in providers.values()
    ]


def choose_engine(found: Sequence[FoundEngine], model: str | None) -> FoundEngine:
    """For ``out=auto``: with weights in the model's folder the first engine that computes with them, else ``echo``."""
    usable = [engine for engine in found if engine.usable]
    if model is not None and any(any(Path(model).glob(pattern)) for pattern in _WEIGHTS):
        for engine in usable:
            if engine.needs_model:
                return engine
    for engine in sorted(usable, key=lambda engine: engine.name != _LAST_RESORT):
        if not engine.needs_model:
            return engine
    raise StartupError("No engine can run here: install one, such as `pip install dynamo-vllm`, or name it with out=ENGINE.")
