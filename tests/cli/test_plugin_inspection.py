"""``dynamo plugins show|check`` and ``dynamo config schema`` as a user runs them."""

import json


def test_show_prints_hooks_records_and_configuration(dynamo):
    shown = dynamo("plugins", "show", "tcp").stdout
    assert shown.startswith("tcp: dynamo-core ")
    assert "dynamo_request_planes()  registration" in shown
    assert "request-plane  tcp   1         stable" in shown
    assert "KEY IN [plugins.tcp]" in shown
    assert "It has no configuration." in dynamo("plugins", "show", "echo").stdout


def test_show_as_json(dynamo):
    shown = json.loads(dynamo("plugins", "show", "round_robin", "--json").stdout)
    assert (shown["name"], shown["state"]) == ("round-robin", "active")
    assert shown["records"][0]["kind"] == "router"


def test_show_of_an_unknown_plugin_is_refused(refused):
    assert refused("plugins", "show", "ech") == "plugin 'ech' is not installed: did you mean 'echo'?"


def test_check_says_one_line_a_finding_and_fails(dynamo, folder):
    (folder / "odd.py").write_text("from dynamo_core import hookimpl\n@hookimpl\ndef dynamo_engins(): pass\n")
    done = dynamo("plugins", "check", "odd.py")
    assert done.returncode == 1
    assert [line.partition(": ")[2].partition(":")[0] for line in done.stdout.splitlines()] == ["hooks", "docs"]
    good = dynamo("plugins", "check", "echo")
    assert good.returncode == 0
    assert good.stdout.startswith("echo: no findings, imported in ")


def test_schema_has_settings_and_the_tables_of_active_plugins(dynamo):
    schema = json.loads(dynamo("config", "schema").stdout)
    assert "http_port" in schema["properties"]
    tables = schema["properties"]["plugins"]["anyOf"][1]["properties"]
    assert {"active", "tcp"} <= set(tables)
