"""Every kind of provider is registered, found by name and refused by the same rules."""

import pytest

from dynamo_core.errors import PluginError
from dynamo_core.plugins import activate
from dynamo_core.plugins.providers import KINDS
from dynamo_core.specs import SUPPORTED_API

EXTRA = {"PlannerStageSpec": ", stage='predict'", "ParserSpec": ", parses='reasoning'"}
FINDERS = {
    "engine": "engine", "router": "router", "discovery": "discovery_store", "request-plane": "request_plane",
    "event-plane": "event_plane", "planner": "planner", "predictor": "predictor", "connector": "connector",
    "pool-selector": "pool_selector", "prefill-policy": "prefill_policy", "command": "command",
}  # fmt: skip


def registering(hook: str, record: str, name: str = "acme", more: str = "") -> str:
    factory = "" if record == "HttpSpec" else ", factory=lambda *given: (lambda *given: None)"
    return f"@hookimpl\ndef {hook}():\n    yield {record}(name='{name}'{factory}{EXTRA.get(record, '')}{more})\n"


def test_every_kind_has_a_contract_version() -> None:
    assert set(SUPPORTED_API) == {kind.name for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_provider_is_shown_with_its_kind_and_found_by_name(install, kind) -> None:
    install("acme", registering(kind.hook, kind.record.__name__))
    compiled = activate(["acme"])
    (shown,) = compiled.plugins[0].provides
    assert shown == ("reasoning-parser:acme" if kind.name == "parser" else f"{kind.name}:acme")
    if finder := FINDERS.get(kind.name):
        assert getattr(compiled, finder)("acme").plugin == "acme"
        with pytest.raises(PluginError, match="did you mean 'acme'"):
            getattr(compiled, finder)("acmee")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_provider_for_a_newer_contract_is_refused(install, kind) -> None:
    install("acme", registering(kind.hook, kind.record.__name__, more=", api=2"))
    with pytest.raises(PluginError, match=rf"{kind.name} 'acme' is written for version 2 of the {kind.name} contract"):
        activate(["acme"])


def test_tool_and_reasoning_parsers_may_share_a_name_but_not_two_of_a_kind(install) -> None:
    hook = """
    @hookimpl
    def dynamo_parsers():
        yield ParserSpec(name="acme", parses="tool-calls", factory=None)
        yield ParserSpec(name="acme", parses="{second}", factory=None)
    """
    install("both", hook.format(second="reasoning"))
    compiled = activate(["both"])
    assert compiled.plugins[0].provides == ("tool-parser:acme", "reasoning-parser:acme")
    assert compiled.tool_parser("acme").spec.parses == "tool-calls"
    assert compiled.reasoning_parser("acme").spec.parses == "reasoning"
    install("twice", hook.format(second="tool-calls"))
    with pytest.raises(PluginError, match="provides tool-parser 'acme' twice"):
        activate(["twice"])
    install("odd", hook.format(second="images"))
    with pytest.raises(PluginError, match="must parse 'tool-calls' or 'reasoning', not 'images'"):
        activate(["odd"])


def test_planner_stages_run_by_priority_and_then_in_plugin_order(install) -> None:
    stage = (
        "@hookimpl\ndef dynamo_planner_stages():\n    yield PlannerStageSpec(name='{}', stage='{}', priority={}, factory=None)\n"
    )
    install("one", stage.format("one", "propose", 100))
    install("two", stage.format("two", "propose", 100))
    install("three", stage.format("three", "propose", 1))
    install("four", stage.format("four", "predict", 1))
    compiled = activate(["one", "two", "three", "four"])
    assert [provider.spec.name for provider in compiled.stages("propose")] == ["three", "one", "two"]
    assert [provider.spec.name for provider in compiled.stages("predict")] == ["four"]
    assert compiled.stages("constrain") == ()


def test_routes_and_commands_get_the_configuration_of_their_plugin(install) -> None:
    install(
        "acme",
        """
        class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
            path: str = "/acme"
        @hookimpl
        def dynamo_config(): return Config
        @hookimpl
        def dynamo_http_routes(config): yield HttpSpec(name="acme", description=config.path)
        @hookimpl
        def dynamo_commands(config): yield CommandSpec(name="acme", description=config.path, factory=None)
        """,
    )
    compiled = activate(["acme"], tables={"acme": {"path": "/other"}})
    assert compiled.http[0].description == compiled.command("acme").spec.description == "/other"


def test_an_unknown_stability_is_refused(install) -> None:
    install("acme", registering("dynamo_routers", "RouterSpec", more=", stability='shaky'"))
    with pytest.raises(PluginError, match="stability 'shaky': choose one of alpha, beta, stable"):
        activate(["acme"])
