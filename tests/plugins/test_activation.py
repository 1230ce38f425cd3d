import logging
import sys

import pytest

from dynamo_core.errors import ConfigError, PluginError
from dynamo_core.plugins import activate

ENGINE = """
@hookimpl
def dynamo_engines():
    yield EngineSpec(name="{name}", factory=lambda config, context: None)
"""


def refusal(*names: str, **options: object) -> str:
    with pytest.raises(PluginError) as caught:
        activate(names, **options)  # type: ignore[arg-type]
    return caught.value.message


def test_only_what_is_named_is_imported(install) -> None:
    used = install("used", ENGINE.format(name="used"))
    unused = install("unused", ENGINE.format(name="unused"))
    compiled = activate(["used"])
    assert used in sys.modules
    assert unused not in sys.modules
    assert [(info.name, info.state, info.provides) for info in compiled.plugins] == [("used", "active", ("engine:used",))]
    assert compiled.engine("used").plugin == "used"


def test_a_plugin_may_be_an_object_of_a_module(install) -> None:
    install(
        "acme",
        """
        class Plugin:
            @hookimpl
            def dynamo_engines(self):
                return [EngineSpec(name="acme", factory=None)]
        class Holder:
            plugin = Plugin()
        """,
        attribute="Holder.plugin",
    )
    assert list(activate(["acme"]).engines) == ["acme"]


def test_a_name_twice_activates_once_and_underscores_stand_for_hyphens(install) -> None:
    install("my-engine", ENGINE.format(name="my-engine"))
    assert [info.name for info in activate(["my_engine", "my-engine"]).plugins] == ["my-engine"]


def test_an_unknown_plugin_is_refused_with_the_nearest_name(install) -> None:
    install("kv-router-x", ENGINE.format(name="x"))
    assert refusal("kv-rooter-x") == "plugin 'kv-rooter-x' is not installed: did you mean 'kv-router-x'?"


def test_a_plugin_that_raises_at_import_is_blamed_with_the_place(install) -> None:
    install("acme", "\n\nraise ValueError('boom')", version="1.2")
    message = refusal("acme")
    assert message.startswith("plugin 'acme' (acme-plugin 1.2) cannot be imported from plugin_under_test_0: ValueError: boom (")
    assert message.endswith(
        "line 7); the plugin is at fault: update it or tell its author, or leave it out with --no-plugin acme."
    )


def test_a_plugin_that_exits_at_import_is_blamed_too(install) -> None:
    install("acme", "import sys; sys.exit(3)")
    assert "SystemExit: 3" in refusal("acme")


def test_a_plugin_whose_dependency_is_missing_says_which(install) -> None:
    install("acme", "import a_module_that_nobody_has")
    assert "; install what brings module 'a_module_that_nobody_has', or leave it out" in refusal("acme")


def test_an_entry_point_to_a_missing_attribute_is_blamed(install) -> None:
    install("acme", "", attribute="plugin")
    assert "AttributeError" in refusal("acme")


def test_a_plugin_that_raises_at_registration_is_blamed(install) -> None:
    install("acme", "@hookimpl\ndef dynamo_engines():\n    raise OSError('disk on fire')\n    yield")
    message = refusal("acme")
    assert "fails in dynamo_engines: OSError: disk on fire" in message
    assert "the plugin is at fault" in message


def test_the_sentence_of_a_startup_error_is_kept(install) -> None:
    install(
        "acme",
        """
        from dynamo_core.errors import ConfigError
        @hookimpl
        def dynamo_engines():
            raise ConfigError("the key file /k is missing: make it.")
        """,
    )
    with pytest.raises(ConfigError) as caught:
        activate(["acme"])
    assert caught.value.message == "plugin 'acme' (acme-plugin 1.0): the key file /k is missing: make it."


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("@hookimpl\ndef dynamo_engins(): return []", "does not have, dynamo_engins: did you mean 'dynamo_engines'?"),
        ("@hookimpl\ndef dynamo_authenticate(reqest): ...", "does not give, reqest: did you mean 'request'?"),
        ("@hookimpl\ndef dynamo_engines(config): ...", "argument that the hook does not give, config: it gives none."),
        ("@hookimpl(wrapper=True)\ndef dynamo_authenticate(request):\n    return (yield)", "dynamo_authenticate is a wrapper"),
        ("@hookimpl(hookwrapper=True)\ndef dynamo_prepare(request):\n    yield", "dynamo_prepare is a wrapper"),
        ("@hookimpl(wrapper=True)\ndef dynamo_engines():\n    return (yield)", "dynamo_engines is a wrapper"),
        ("@hookimpl\ndef dynamo_rate_limit(request):\n    yield", "dynamo_rate_limit yields: use return"),
        ("@hookimpl\nasync def dynamo_prepare(request):\n    yield", "dynamo_prepare yields: use return"),
        ("@hookimpl\nasync def dynamo_request_finished(summary): ...", "dynamo_request_finished is an async function"),
        ("@hookimpl\nasync def dynamo_engines(): ...", "dynamo_engines is an async function"),
        ("def dynamo_engines(): return []", "dynamo_engines is not marked: put @dynamo_core.hookimpl above it"),
        ("x = 1", "has no hook: mark its functions with @dynamo_core.hookimpl"),
        ("@hookimpl\ndef dynamo_engines(): return 3", "dynamo_engines gives int: yield EngineSpec records"),
        ("@hookimpl\ndef dynamo_engines(): return ['vllm']", "dynamo_engines gives str: yield EngineSpec records"),
        ("@hookimpl\ndef dynamo_engines():\n    return EngineSpec(name='a', factory=None)", "gives EngineSpec: yield EngineSpec"),
        (
            "@hookimpl\ndef dynamo_engines():\n    yield EngineSpec(name='Acme', factory=None)",
            "engine name 'Acme' must be lower case",
        ),
        ("@hookimpl\ndef dynamo_config(): return dict", "dynamo_config must return a msgspec.Struct class"),
        (
            "class C(msgspec.Struct): ...\n@hookimpl\ndef dynamo_config(): return C",
            "must be declared with frozen=True and forbid_",
        ),
        (
            "@hookimpl(specname='dynamo_prepare')\ndef a(): ...\n@hookimpl(specname='dynamo_prepare')\ndef b(): ...",
            "implements dynamo_prepare twice",
        ),
    ],
)
def test_a_plugin_that_does_not_fit_the_hooks_is_refused(install, code: str, expected: str) -> None:
    install("acme", code)
    message = refusal("acme")
    assert expected in message
    assert "'acme' (acme-plugin 1.0)" in message
    assert "\n" not in message


def test_an_entry_point_to_a_class_is_refused(install) -> None:
    install("acme", "class Plugin:\n    @hookimpl\n    def dynamo_engines(self): return []", attribute="Plugin")
    assert "is a class: point its entry point at an instance of it" in refusal("acme")


def test_an_optional_hook_that_this_core_lacks_is_ignored(install) -> None:
    install("acme", "@hookimpl(optionalhook=True)\ndef dynamo_of_tomorrow(x): ...\n" + ENGINE.format(name="acme"))
    assert list(activate(["acme"]).engines) == ["acme"]


@pytest.mark.parametrize(("api", "todo"), [(2, "update dynamo-core"), (0, "update acme-plugin")])
def test_another_contract_version_is_refused_and_says_what_to_update(install, api: int, todo: str) -> None:
    install(
        "acme", f"@hookimpl\ndef dynamo_routers():\n    yield RouterSpec(name='acme', api={api}, factory=None)", version="3.1"
    )
    message = refusal("acme")
    assert message.startswith(
        f"plugin 'acme' (acme-plugin 3.1): router 'acme' is written for version {api} of the router contract"
    )
    assert message.endswith(f"has version 1: {todo}.")


def test_a_missing_engine_module_is_refused_with_the_pip_line(install) -> None:
    install(
        "acme",
        """
        @hookimpl
        def dynamo_engines():
            yield EngineSpec(
                name="acme", factory=None, requires={"msgspec.json": "no need", "acme_gpu.core": "pip install acme[gpu]"}
            )
        """,
    )
    assert refusal("acme") == "engine 'acme' needs module 'acme_gpu.core', which is not installed here: pip install acme[gpu]"


def test_two_plugins_that_provide_one_name_are_both_named(install) -> None:
    install("one", ENGINE.format(name="acme"))
    install("two", ENGINE.format(name="acme"), version="2.0")
    message = refusal("one", "two")
    assert message.startswith("plugins 'one' (one-plugin 1.0) and 'two' (two-plugin 2.0) both provide engine 'acme'")
    assert list(activate(["one", "two"], blocked=["two"]).engines) == ["acme"]


def test_an_alias_that_is_anothers_name_is_refused(install) -> None:
    install("one", "@hookimpl\ndef dynamo_routers():\n    yield RouterSpec(name='one', factory=None, aliases=('two',))")
    install("two", "@hookimpl\ndef dynamo_routers():\n    yield RouterSpec(name='two', factory=None)")
    assert "both provide router 'two'" in refusal("one", "two")


def test_a_provider_twice_in_one_plugin_is_refused(install) -> None:
    install("acme", "@hookimpl\ndef dynamo_engines():\n    yield from [EngineSpec(name='acme', factory=None)] * 2")
    assert "provides engine 'acme' twice" in refusal("acme")


def test_no_plugin_wins_and_the_error_for_its_provider_says_so(install) -> None:
    module = install("acme", "raise RuntimeError")
    compiled = activate(["acme"], blocked=["acme"])
    assert compiled.plugins == ()
    assert module not in sys.modules
    with pytest.raises(PluginError, match="engine 'acme' is left out by --no-plugin acme"):
        compiled.engine("acme")


def test_blocking_what_is_not_installed_is_a_warning_with_the_nearest_name(install, caplog) -> None:
    install("acme", ENGINE.format(name="acme"))
    activate(["acme"], blocked=["acmee"])
    assert "--no-plugin acmee leaves nothing out, since no such plugin is installed: did you mean 'acme'?" in caplog.text


def test_looking_up_a_provider_says_why_there_is_none(install) -> None:
    install("acme", ENGINE.format(name="acme"))
    install("idle", ENGINE.format(name="idle"))
    compiled = activate(["acme"])
    for name, expected in {
        "acmee": "engine 'acmee' is unknown: did you mean 'acme'?",
        "idel": "engine 'idel' is unknown: did you mean 'idle'?",
        "idle": "engine 'idle' is not active: add --plugin idle.",
    }.items():
        with pytest.raises(PluginError) as caught:
            compiled.engine(name)
        assert caught.value.message == expected
    with pytest.raises(PluginError, match="plugin 'acme' provides no request plane"):
        compiled.request_plane("acme")


def test_an_unknown_router_is_answered_by_the_routers_that_are_installed(install) -> None:
    router = "@hookimpl\ndef dynamo_routers():\n    yield RouterSpec(name='{0}', factory=None)"
    install("acme", router.format("fancy"))
    install("broken", "raise RuntimeError")
    install("engine-only", ENGINE.format(name="engine-only"))
    compiled = activate(["round-robin"])
    with pytest.raises(PluginError, match=r"router 'rr' is unknown: installed routers: .*fancy, .*round-robin") as caught:
        compiled.router("rr")
    assert not {"engine-only", "broken", "tcp", "acme"} & set(caught.value.message.replace(",", "").replace(".", "").split())
    for name, expected in {
        "fancy": "router 'fancy' is not active: add --plugin acme.",
        "fnacy": "router 'fnacy' is unknown: did you mean 'fancy'?",
    }.items():
        with pytest.raises(PluginError) as caught:
            compiled.router(name)
        assert caught.value.message == expected
    with pytest.raises(PluginError, match="plugin 'engine-only' provides no router: installed routers: "):
        compiled.router("engine-only")


def test_a_router_is_found_by_its_aliases_and_by_dynamos_mode_names(install) -> None:
    install(
        "kv-router-x", "@hookimpl\ndef dynamo_routers():\n    yield RouterSpec(name='best-fit', factory=None, aliases=('bf',))"
    )
    compiled = activate(["kv-router-x"])
    for name in ("best-fit", "best_fit", "bf"):
        assert compiled.router(name).spec.name == "best-fit"


CONFIGURED = """
class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: int = 1

class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: int = 5
    inner: Inner = Inner()
    inners: list[Inner] = []

@hookimpl
def dynamo_config():
    return Config

@hookimpl
def dynamo_engines():
    yield EngineSpec(name="acme", factory=None)
"""


def test_a_plugins_table_becomes_its_configuration(install) -> None:
    install("acme", CONFIGURED)
    assert activate(["acme"], tables={"acme": {"limit": 7, "inner": {"depth": 2}}}).engine("acme").config.limit == 7
    assert activate(["acme"]).engine("acme").config.limit == 5


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"limt": 1}, "my.toml: unknown key plugins.acme.limt: did you mean 'limit'?"),
        ({"inner": {"dept": 1}}, "my.toml: unknown key plugins.acme.inner.dept: did you mean 'depth'?"),
        ({"inners": [{}, {"dept": 1}]}, "my.toml: unknown key plugins.acme.inners[1].dept: did you mean 'depth'?"),
        ({"limit": "many"}, "my.toml: plugins.acme.limit is 'many', but must be a whole number."),
        ({"inners": [{"depth": "x"}]}, "my.toml: plugins.acme.inners[0].depth is 'x', but must be a whole number."),
        ({"inner": 3}, "my.toml: plugins.acme.inner is 3, but must be a table."),
        ("x", "my.toml: plugins.acme is 'x', but must be a table: write [plugins.acme]."),
    ],
)
def test_a_wrong_key_of_a_plugin_is_named_with_file_and_path(install, table: object, expected: str) -> None:
    install("acme", CONFIGURED)
    with pytest.raises(ConfigError) as caught:
        activate(["acme"], tables={"acme": table}, source="my.toml")  # type: ignore[dict-item]
    assert caught.value.message == expected


def test_a_key_without_default_must_be_given(install) -> None:
    install("acme", CONFIGURED.replace("limit: int = 5", "limit: int"))
    with pytest.raises(ConfigError, match=r"dynamo.toml: key plugins.acme.limit is missing and has no default: add it to \["):
        activate(["acme"])


def test_a_table_for_a_plugin_without_settings_is_refused(install) -> None:
    install("acme", ENGINE.format(name="acme"))
    with pytest.raises(ConfigError, match=r"has no settings: remove \[plugins.acme\]"):
        activate(["acme"], tables={"acme": {"x": 1}})


def test_a_table_of_an_inactive_plugin_is_ignored_with_a_log_line(install, caplog) -> None:
    module = install("idle", "raise RuntimeError")
    with caplog.at_level(logging.INFO):
        activate([], tables={"idle": {"x": 1}})
    assert "[plugins.idle] is ignored, since plugin idle is not active" in caplog.text
    assert module not in sys.modules


def test_a_table_of_an_unknown_plugin_is_refused_with_the_nearest_name(install) -> None:
    install("acme", CONFIGURED)
    with pytest.raises(
        ConfigError, match=r"dynamo.toml: \[plugins.acne\] names a plugin that is not installed: did you mean 'acme'"
    ):
        activate(["acme"], tables={"acne": {}})
