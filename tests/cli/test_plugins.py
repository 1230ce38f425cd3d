import json


def listed(dynamo, *flags, **environ):
    done = dynamo("plugins", "list", "--json", *flags, **environ)
    assert done.returncode == 0, done.stderr
    return {plugin["name"]: plugin for plugin in json.loads(done.stdout)}


def test_every_installed_plugin_is_listed_with_what_it_is(dynamo):
    plugins = listed(dynamo)
    assert {"echo", "round-robin", "file", "tcp", "request-plane", "zmq"} <= set(plugins)
    assert {"name", "version", "distribution", "state", "provides"} <= set(plugins["echo"])
    assert plugins["echo"]["distribution"] == "dynamo-core"
    assert plugins["echo"]["state"] == "available"
    assert plugins["file"]["state"] == "active"


def test_flags_and_environment_say_what_is_active_and_what_is_left_out(dynamo):
    plugins = listed(dynamo, "--engine", "echo", DYN_NO_PLUGINS="zmq")
    assert plugins["echo"]["state"] == "active"
    assert plugins["echo"]["provides"] == ["engine:echo"]
    assert plugins["zmq"]["state"] == "blocked"


def test_an_unknown_plugin_is_refused(refused):
    assert "did you mean 'echo'?" in refused("plugins", "list", "--plugin", "ecko")


def test_the_table_is_for_people(dynamo):
    lines = dynamo("plugins", "list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "VERSION", "DISTRIBUTION", "STATE", "PROVIDES"]
    assert any(line.split()[:1] == ["echo"] for line in lines)


def test_plugins_that_claim_one_name_are_listed_and_refused_by_serve(dynamo, refused, folder, model):
    for distribution in ("acme_one", "acme_two"):
        info = folder / "site" / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dynamo.plugins]\nacme = {distribution}\n")
    environ = {"PYTHONPATH": str(folder / "site")}
    done = dynamo("plugins", "list", **environ)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("acme ")]
    assert sorted(row[:4] for row in rows) == [["acme", "1.0", name, "error"] for name in ("acme_one", "acme_two")]
    assert done.stdout.count("two distributions claim the plugin name 'acme'") == 1
    assert "two distributions claim" in refused("serve", "--model", str(model), "--engine", "echo", **environ)
