"""Flags that plugins bring along."""

import json


def test_an_active_plugin_adds_its_flags_to_the_help(dynamo):
    assert "--router-ttl-secs" not in dynamo("serve", "--help").stdout
    text = " ".join(dynamo("serve", "--router", "kv", "--help").stdout.split())
    assert "--router-ttl-secs NUMBER How long a worker without KV events is believed" in text
    assert "[env: DYN_ROUTER_TTL_SECS, DYN_ROUTER_TTL; default: 120.0]" in text
    assert "--router-kv-events / --no-router-kv-events" in text
    assert "--router-ttl-secs" in dynamo("frontend", "--help", DYN_ROUTER="kv-router").stdout


def test_a_flag_of_a_plugin_that_is_not_active_names_it(refused):
    assert refused("serve", "--router-ttl-secs", "4") == (
        "`dynamo serve` has the option --router-ttl-secs with plugin kv-router only: add --plugin kv-router."
    )


def test_the_settings_of_plugins_are_shown_with_their_origin(dynamo, folder):
    (folder / "dynamo.toml").write_text('router = "kv"\n[plugins.kv-router]\nrouter_temperature = 0.25\n')
    done = dynamo("config", "show", "--json", "--no-router-kv-events", DYN_ROUTER_QUEUE_POLICY="wspt")
    shown = json.loads(done.stdout)
    origin = {key: shown[f"plugins.kv-router.{key}"] for key in ("router_temperature", "use_kv_events", "router_queue_policy")}
    assert [origin[key]["value"] for key in origin] == [0.25, False, "wspt"]
    assert [origin[key]["origin"]["name"] for key in origin] == [
        "dynamo.toml:3 plugins.kv-router.router_temperature",
        "--router-kv-events",
        "DYN_ROUTER_QUEUE_POLICY",
    ]
    assert shown["plugins.kv-router.router_ttl_secs"] == {"value": 120.0, "origin": {"kind": "default", "name": "default"}}


def test_a_negative_weight_is_refused_before_anything_starts(refused, model):
    arguments = ("serve", "--engine", "mocker", "--model", str(model), "--router", "kv", "--router-kv-overlap-score-weight", "-1")
    assert refused(*arguments) == "--router-kv-overlap-score-weight is '-1', but must be a number of at least 0."
