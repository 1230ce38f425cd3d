"""Settings of plugins by flag, environment and file, whatever the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from dynamo_core.config import Origin, Resolved, plugin_fields, resolve, setting
from dynamo_core.config.schema import configuration_schema
from dynamo_core.errors import ConfigError, PluginError

KV = {"router": "kv-router"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def resolved(flags: dict[str, Any] | None = None, *, toml: str | None = None, **environ: str) -> Resolved:
    if toml is not None:
        Path("dynamo.toml").write_text(toml)
    return resolve({**KV, **(flags or {})}, environ=environ, process="serve")


def test_the_seed_era_settings_of_the_router_have_all_three_forms() -> None:
    from dynamo_kv_router.config import KvRouterConfig

    fields = {key: field for _, key, field in plugin_fields({"kv-router": KvRouterConfig})}
    for key, flag, env in (
        ("overlap_score_weight", "--router-kv-overlap-score-weight", "DYN_ROUTER_OVERLAP_SCORE_WEIGHT"),
        ("router_temperature", "--router-temperature", "DYN_ROUTER_TEMPERATURE"),
        ("use_kv_events", "--router-kv-events", "DYN_ROUTER_USE_KV_EVENTS"),
        ("router_ttl_secs", "--router-ttl-secs", "DYN_ROUTER_TTL_SECS"),
        ("router_max_tree_size", "--router-max-tree-size", "DYN_ROUTER_MAX_TREE_SIZE"),
        ("router_prune_target_ratio", "--router-prune-target-ratio", "DYN_ROUTER_PRUNE_TARGET_RATIO"),
        ("router_event_threads", "--router-event-threads", "DYN_ROUTER_EVENT_THREADS"),
    ):
        assert (fields[key].flag, env in fields[key].env) == (flag, True)
    assert all(field.flag and field.env and field.doc for field in fields.values())


def test_flag_over_environment_over_file_over_default_with_origins() -> None:
    path = "plugins.kv-router.router_ttl_secs"
    toml = "[plugins.kv-router]\nrouter_ttl_secs = 1.5\n"
    assert resolved().origins[path] == Origin("default", "default")
    by_file = resolved(toml=toml)
    assert by_file.plugin_tables["kv-router"] == {"router_ttl_secs": 1.5}
    assert by_file.origins[path] == Origin("file", f"dynamo.toml:2 {path}")
    by_env = resolved(DYN_ROUTER_TTL="2", toml=toml)
    assert by_env.plugin_tables["kv-router"] == {"router_ttl_secs": 2.0}
    assert by_env.origins[path] == Origin("environment", "DYN_ROUTER_TTL")
    by_flag = resolved({path: "3"}, DYN_ROUTER_TTL="2", toml=toml)
    assert by_flag.plugin_tables["kv-router"] == {"router_ttl_secs": 3.0}
    assert by_flag.origins[path] == Origin("flag", "--router-ttl-secs")
    again = resolve(by_flag.flags, environ={}, process="serve")
    assert again.plugin_tables == by_flag.plugin_tables


def test_tables_are_joined() -> None:
    path = "plugins.kv-router.router_classes"
    toml = "[plugins.kv-router.router_classes]\ngold = 1\nbronze = 1\n"
    joined = resolved({path: ("gold=4",)}, DYN_ROUTER_CLASSES="silver=2", toml=toml)
    assert joined.plugin_tables["kv-router"]["router_classes"] == {"gold": 4.0, "bronze": 1.0, "silver": 2.0}
    assert joined.origins[path].name.startswith("--router-class + DYN_ROUTER_CLASSES + dynamo.toml")


@pytest.mark.parametrize(
    ("flags", "environ", "sentence"),
    [
        (
            {"plugins.kv-router.overlap_score_weight": "-1"},
            {},
            "--router-kv-overlap-score-weight is '-1', but must be a number of at least 0.",
        ),
        (
            {},
            {"DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT": "-0.5"},
            "environment variable DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT is '-0.5', but must be a number of at least 0.",
        ),
        (
            {},
            {"DYN_ROUTER_QUEUE_POLICY": "sjf"},
            "environment variable DYN_ROUTER_QUEUE_POLICY is 'sjf', but must be one of 'fcfs', 'lcfs', 'wspt'.",
        ),
    ],
)
def test_what_cannot_be_right_is_named(flags: dict[str, str], environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(flags, **environ)
    assert caught.value.message == sentence


def test_plugins_that_are_not_used_are_not_asked() -> None:
    plain = resolve({}, environ={"DYN_ROUTER_TTL_SECS": "x"}, process="serve")
    assert plain.plugin_tables == {}
    assert resolve(KV, environ={"DYN_ROUTER_TTL_SECS": "x"}).plugin_tables == {}


class Shy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    plain: int = 1
    loud: Annotated[bool, setting("Shout.", "ACME_LOUD")] = False


class Rude(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    port: Annotated[int, setting("A port.", flag="http-port")] = 1


class Same(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    loud: Annotated[bool, setting("Shout, too.", "ACME_LOUD", flag="same-loud")] = False


def test_a_field_without_a_setting_has_its_key_only() -> None:
    fields = {key: field for _, key, field in plugin_fields({"shy": Shy})}
    assert (fields["plain"].flag, fields["plain"].env) == (None, ())
    assert (fields["loud"].flag, fields["loud"].env) == ("--loud", ("ACME_LOUD",))
    schema = configuration_schema({"shy": Shy})["$defs"]["Shy"]["properties"]
    assert (schema["loud"]["x-flag"], schema["loud"]["x-env"]) == ("--loud", ["ACME_LOUD"])


@pytest.mark.parametrize("types", [{"rude": Rude}, {"shy": Shy, "same": Same}])
def test_a_name_belongs_to_one_only(types: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="both have a setting"):
        list(plugin_fields(types))
