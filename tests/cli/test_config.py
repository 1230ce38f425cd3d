import json


def test_each_value_is_shown_with_its_origin(dynamo, folder):
    (folder / "dynamo.toml").write_text('router = "random"\nworkers = 5\n[plugins.echo]\ndelay = 1\n')
    done = dynamo("config", "show", "--json", "--http-port", "9001", DYN_WORKERS="3")
    shown = json.loads(done.stdout)
    assert shown["http_port"] == {"value": 9001, "origin": {"kind": "flag", "name": "--http-port"}}
    assert shown["workers"] == {"value": 3, "origin": {"kind": "environment", "name": "DYN_WORKERS"}}
    assert shown["router"]["value"] == "random"
    assert shown["router"]["origin"]["kind"] == "file"
    assert "dynamo.toml" in shown["router"]["origin"]["name"]
    assert shown["namespace"] == {"value": "dynamo", "origin": {"kind": "default", "name": "default"}}
    assert shown["plugins.echo"]["value"] == {"delay": 1}


def test_the_table_has_a_row_for_each_setting(dynamo):
    lines = dynamo("config", "show", "--workers", "2").stdout.splitlines()
    assert lines[0].split() == ["SETTING", "VALUE", "ORIGIN"]
    assert ["workers", "2", "--workers"] in [line.split() for line in lines]


def test_a_file_that_is_missing_is_refused(refused):
    assert "nope.toml" in refused("config", "show", "--config", "nope.toml")


def test_a_table_of_a_plugin_that_is_not_installed_is_refused(refused, folder):
    (folder / "dynamo.toml").write_text("[plugins.kv-ruter]\nx = 1\n")
    assert refused("config", "show") == (
        "dynamo.toml: [plugins.kv-ruter] names a plugin that is not installed: did you mean 'kv-router'?"
    )
