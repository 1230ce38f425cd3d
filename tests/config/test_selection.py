import msgspec
import pytest

from dynamo_core.config import Settings, active_plugin_names, check_selection, choose_router
from dynamo_core.errors import PluginError
from dynamo_core.plugins import Compiled, PluginInfo, Provider, activate
from dynamo_core.specs import DiscoverySpec, EngineSpec, EventPlaneSpec, RequestPlaneSpec, RouterSpec

INSTALLED = ("file", "tcp", "request-plane", "mem", "round-robin", "random", "kv-router", "vllm", "mocker", "auth")


def names(process: str = "serve", **values: object) -> tuple[str, ...]:
    return active_plugin_names(Settings(**values), process=process, installed=INSTALLED)  # type: ignore[arg-type]


def compiled(*routers: str, **fields: object) -> Compiled:
    """Active routers (``plugin`` or ``plugin:name``) on an otherwise empty house."""
    pairs = [(text.partition(":")[0], text.partition(":")[2] or text) for text in routers]
    provided = {
        name: Provider(RouterSpec(name=name, factory=lambda config, context: None), plugin)
        for plugin, name in pairs  # type: ignore[arg-type, return-value]
    }
    plugins = tuple(PluginInfo(name=plugin, target=plugin, state="active") for plugin, _ in pairs)
    return msgspec.structs.replace(activate([]), plugins=plugins, routers=provided, **fields)


def test_each_process_needs_what_its_settings_name() -> None:
    assert names(engine="vllm") == ("file", "tcp", "request-plane", "vllm", "round-robin")
    assert names("frontend", engine="vllm", router="kv-router") == ("file", "tcp", "request-plane", "kv-router")
    assert names("worker", engine="vllm", router="kv-router") == ("file", "tcp", "request-plane", "vllm")
    assert names("worker", engine="vllm", discovery_backend="mem")[0] == "mem"


def test_plugins_come_after_the_named_providers_in_their_order() -> None:
    assert names("frontend", plugins=("kv-router", "auth")) == (
        "file",
        "tcp",
        "request-plane",
        "round-robin",
        "kv-router",
        "auth",
    )


def test_dynamos_mode_names_activate_the_plugin() -> None:
    assert names("frontend", router="kv")[-1] == "kv-router"
    assert names("frontend", router="round_robin")[-1] == "round-robin"
    assert "kv-router" in names("frontend", plugins=("kv_router",))


def test_no_plugin_wins_over_all() -> None:
    assert names(engine="vllm", plugins=("auth",), no_plugins=("vllm", "auth", "round_robin", "request_plane")) == ("file", "tcp")


def test_a_provider_that_is_no_plugins_name_is_left_to_the_lookup() -> None:
    assert names("frontend", plugins=("auth",), router="best-fit") == ("file", "tcp", "request-plane", "auth")


def test_an_unknown_plugin_stays_for_activation_to_refuse() -> None:
    assert names("frontend", plugins=("aut",))[-1] == "aut"


def test_without_anything_else_the_router_is_round_robin() -> None:
    assert choose_router(Settings(), compiled("round-robin")) == "round-robin"


def test_a_single_active_router_plugin_is_the_router() -> None:
    assert choose_router(Settings(plugins=("kv-router",)), compiled("round-robin", "kv-router")) == "kv-router"
    assert choose_router(Settings(plugins=("acme",)), compiled("round-robin", "acme:best-fit")) == "best-fit"


def test_the_flag_chooses_between_several() -> None:
    house = compiled("round-robin", "kv-router", "random")
    assert choose_router(Settings(router="random"), house) == "random"
    assert choose_router(Settings(router="kv"), house) == "kv-router"


def test_two_routers_without_the_flag_are_refused() -> None:
    with pytest.raises(PluginError, match=r"several routers are active \(kv-router, random\): choose one with --router"):
        choose_router(Settings(), compiled("round-robin", "kv-router", "random"))
    with pytest.raises(PluginError, match="several routers"):
        choose_router(Settings(plugins=("round-robin", "kv-router")), compiled("round-robin", "kv-router"))


def test_no_router_at_all_says_why() -> None:
    with pytest.raises(PluginError, match="router 'round-robin' is left out by --no-plugin round-robin"):
        choose_router(Settings(), msgspec.structs.replace(compiled(), blocked=frozenset({"round-robin"})))


def house(*, kv_events: bool) -> Compiled:
    def factory(config: object, context: object) -> None: ...

    provider = Provider(RouterSpec(name="kv-router", factory=factory, needs_kv_events=True), "kv-router")
    return msgspec.structs.replace(
        activate([]),
        routers={"kv-router": provider},
        engines={"toy": Provider(EngineSpec(name="toy", factory=factory, kv_events=kv_events), "toy")},
        discovery={"file": Provider(DiscoverySpec(name="file", factory=factory), "file")},
        request_planes={"tcp": Provider(RequestPlaneSpec(name="tcp", factory=factory), "tcp")},
        event_planes={"request-plane": Provider(EventPlaneSpec(name="request-plane", factory=factory), "request-plane")},
    )


def test_a_router_that_needs_kv_events_is_refused_with_an_engine_that_has_none() -> None:
    settings = Settings(engine="toy", router="kv")
    check_selection(settings, house(kv_events=True), process="serve")
    with pytest.raises(PluginError, match="router 'kv-router' needs KV events and engine 'toy' has none"):
        check_selection(settings, house(kv_events=False), process="serve")
    check_selection(settings, house(kv_events=False), process="worker")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("engine", "engine 'tcpx' is unknown"),
        ("discovery_backend", "discovery store 'tcpx' is unknown"),
        ("request_plane", "request plane 'tcpx' is unknown: did you mean 'tcp'"),
        ("event_plane", "event plane 'tcpx' is unknown"),
        ("router", "router 'tcpx' is unknown"),
    ],
)
def test_a_provider_that_nobody_provides_is_refused(field: str, expected: str) -> None:
    settings = Settings(**{"engine": "toy", "router": "kv", field: "tcpx"})
    with pytest.raises(PluginError, match=expected):
        check_selection(settings, house(kv_events=True), process="serve")


def test_a_router_whose_methods_do_not_fit_is_refused() -> None:
    class Waits:
        def __init__(self, config: object, context: object) -> None: ...

        async def select(self, requests: object, workers: object) -> None: ...

    routers = {"waits": Provider(RouterSpec(name="waits", factory=Waits), "waits")}  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="plugin waits: its router 'waits' has an asynchronous select"):
        check_selection(
            Settings(engine="toy", router="waits"),
            msgspec.structs.replace(house(kv_events=True), routers=routers),
            process="serve",
        )
