from pathlib import Path
from typing import Any

import pytest

from dynamo_core.config import Origin, Resolved, Settings, parse_engine_arg, resolve, settings_fields
from dynamo_core.errors import ConfigError


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(flags: dict[str, Any] | None = None, *, toml: str | None = None, **environ: str) -> Resolved:
    if toml is not None:
        Path("dynamo.toml").write_text(toml)
    return resolve(flags or {}, environ=environ)


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(*arguments, **options)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_without_anything_every_setting_has_its_default() -> None:
    resolved = settings()
    assert resolved.settings == Settings()
    assert set(resolved.origins) == set(Settings.__struct_fields__)
    assert set(resolved.origins.values()) == {Origin("default", "default")}
    assert resolved.file is None


def test_flag_over_environment_over_file_over_default_with_origins() -> None:
    toml = "# comment\nhttp_port = 1\n"
    resolved = settings(toml=toml)
    assert (resolved.settings.http_port, resolved.origins["http_port"]) == (1, Origin("file", "dynamo.toml:2 http_port"))
    assert resolved.file == "dynamo.toml"
    resolved = settings(toml=toml, DYN_HTTP_PORT="2")
    assert (resolved.settings.http_port, resolved.origins["http_port"]) == (2, Origin("environment", "DYN_HTTP_PORT"))
    resolved = settings({"http_port": 3}, toml=toml, DYN_HTTP_PORT="2")
    assert (resolved.settings.http_port, resolved.origins["http_port"]) == (3, Origin("flag", "--http-port"))


def test_a_flag_that_was_not_given_says_nothing() -> None:
    resolved = settings({"http_port": None, "plugins": (), "engine_args": ()}, DYN_HTTP_PORT="2")
    assert resolved.settings.http_port == 2
    assert resolved.settings.plugins == ()


def test_a_variable_that_is_set_to_nothing_is_not_set() -> None:
    assert settings(DYN_HTTP_PORT="", DYN_PLUGINS=" ").settings == Settings()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("DYN_HTTP_HOST", "0.0.0.0", "http_host", "0.0.0.0"),
        ("DYN_HTTP_PORT", "9", "http_port", 9),
        ("DYN_ROUTER_MODE", "kv", "router", "kv"),
        ("DYN_KV_CACHE_BLOCK_SIZE", "32", "kv_cache_block_size", 32),
        ("DYN_METRICS_PREFIX", "acme", "metrics_prefix", "acme"),
        ("DYN_STORE_KV", "mem", "discovery_backend", "mem"),
        ("DYN_DISCOVERY_BACKEND", "mem", "discovery_backend", "mem"),
        ("DYN_REQUEST_PLANE", "inproc", "request_plane", "inproc"),
        ("DYN_EVENT_PLANE", "inproc", "event_plane", "inproc"),
        ("DYN_LOG", "debug", "log", "debug"),
        ("DYN_NAMESPACE", "ns", "namespace", "ns"),
        ("DYN_MODEL_PATH", "/m", "model", "/m"),
        ("DYN_MIGRATION_LIMIT", "0", "migration_limit", 0),
        ("DYN_HTTP_BODY_LIMIT_MB", "1.5", "http_body_limit_mb", 1.5),
        ("DYN_LOGGING_JSONL", "1", "log_jsonl", True),
        ("DYN_ACCESS_LOG", "Off", "access_log", False),
        ("DYN_PLUGINS", "a, b,", "plugins", ("a", "b")),
        ("DYN_ENGINE_ARGS", '{"a": [1]}', "engine_args", {"a": [1]}),
        ("DYN_ENGINE_ARGS", "a=1,b=x", "engine_args", {"a": 1, "b": "x"}),
    ],
)
def test_environment_names_of_today_and_of_the_seed(name: str, text: str, field: str, value: object) -> None:
    resolved = settings(**{name: text})
    assert getattr(resolved.settings, field) == value
    assert resolved.origins[field] == Origin("environment", name)


def test_the_preferred_environment_name_counts_before_an_older_one() -> None:
    resolved = settings(DYN_STORE_KV="etcd", DYN_DISCOVERY_BACKEND="mem")
    assert resolved.settings.discovery_backend == "mem"


def test_every_environment_name_belongs_to_one_setting() -> None:
    names = [name for field in settings_fields().values() for name in field.env]
    assert len(names) == len(set(names))


def test_plugins_of_all_layers_are_joined_weakest_first() -> None:
    resolved = settings({"plugins": ("c", "a")}, toml='plugins = ["a"]', DYN_PLUGINS="b")
    assert resolved.settings.plugins == ("a", "b", "c")
    assert resolved.origins["plugins"] == Origin("flag", "--plugin + DYN_PLUGINS + dynamo.toml:1 plugins")
    assert resolved.origins["plugins.b"] == Origin("environment", "DYN_PLUGINS")


def test_engine_arguments_are_joined_by_key() -> None:
    toml = "[engine_args]\nblock_size = 16\nratio = 1.0\n"
    resolved = settings({"engine_args": ("ratio=2", "dtype=bfloat16")}, toml=toml)
    assert resolved.settings.engine_args == {"block_size": 16, "ratio": 2, "dtype": "bfloat16"}
    assert resolved.origins["engine_args.block_size"].kind == "file"
    assert resolved.origins["engine_args.ratio"] == Origin("flag", "--engine-arg")
    resolved = settings({"engine_args": {"a": 1}}, toml="")
    assert resolved.settings.engine_args == {"a": 1}


def test_the_list_of_plugins_stands_beside_their_tables() -> None:
    toml = 'plugins.active = ["acme"]\n[plugins.acme]\nlimit = 3\n[plugins.acme.inner]\ndepth = 1\n'
    resolved = settings(toml=toml)
    assert resolved.settings.plugins == ("acme",)
    assert resolved.origins["plugins"] == Origin("file", "dynamo.toml:1 plugins")
    assert resolved.plugin_tables == {"acme": {"limit": 3, "inner": {"depth": 1}}}
    resolved = settings(toml="[plugins.acme]\nlimit = 3\n")
    assert (resolved.settings.plugins, resolved.plugin_tables) == ((), {"acme": {"limit": 3}})


def test_a_named_file_is_read_instead(tmp_path: Path) -> None:
    Path("dynamo.toml").write_text("http_port = 1")
    Path("other.toml").write_text("workers = 2")
    resolved = resolve({}, environ={}, file="other.toml")
    assert (resolved.settings.workers, resolved.settings.http_port, resolved.file) == (2, 8000, "other.toml")


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("\nhttp_prot = 1", "dynamo.toml:2: unknown key http_prot: did you mean 'http_port'?"),
        ("[engine_arg]\na = 1", "dynamo.toml:1: unknown key engine_arg: did you mean 'engine_args'?"),
        ("http_port = '1'", "dynamo.toml:1 http_port is '1', but must be a whole number from 0 to 65535."),
        ("http_port = 65536", "dynamo.toml:1 http_port is 65536, but must be a whole number from 0 to 65535."),
        ("access_log = 3", "dynamo.toml:1 access_log is 3, but must be true or false."),
        ("plugins = 3", "dynamo.toml:1 plugins is 3, but must be a list of names."),
        ("plugins = [3]", "dynamo.toml:1 plugins is [3], but must be a list of names."),
        ("engine = 3", "dynamo.toml:1 engine is 3, but must be text."),
        ("engine_args = 3", "dynamo.toml:1 engine_args is 3, but must be a table."),
        (
            "[plugins]\nacme = 3",
            "dynamo.toml: plugins.acme is 3, but must be a table [plugins.acme]; the list of plugins is plugins.active.",
        ),
        (
            'plugins = ["mocker"]\n[plugins.mocker]\nx = 1',
            "dynamo.toml: plugins is a list and has tables [plugins.NAME]; TOML forbids that: call the list plugins.active.",
        ),
        (
            "[plugins.acme]\n[plugins.acme]",
            "dynamo.toml is not valid TOML: Cannot declare ('plugins', 'acme') twice (at line 2, column 14).",
        ),
        ("http_port = ", "dynamo.toml is not valid TOML: Invalid value (at end of document)."),
    ],
)
def test_a_wrong_file_is_named_with_line_key_and_nearest(toml: str, expected: str) -> None:
    assert refusal(toml=toml) == expected


def test_a_file_that_is_missing_or_unreadable_is_named(tmp_path: Path) -> None:
    for name, expected in {
        "missing.toml": "configuration file missing.toml does not exist: check --config.",
        ".": "configuration file . cannot be read: Is a directory.",
    }.items():
        with pytest.raises(ConfigError) as caught:
            resolve({}, environ={}, file=name)
        assert caught.value.message == expected
    Path("latin.toml").write_bytes(b'model = "\xe9"')
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        resolve({}, environ={}, file="latin.toml")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DYN_HTTP_PORT": "abc"}, "environment variable DYN_HTTP_PORT is 'abc', but must be a whole number from 0 to 65535."),
        ({"DYN_STORE_KV": "x", "DYN_WORKERS": "-1"}, "environment variable DYN_WORKERS is '-1', but must be a whole number from"),
        ({"DYN_ACCESS_LOG": "perhaps"}, "environment variable DYN_ACCESS_LOG is 'perhaps', but must be true or false."),
        ({"DYN_ENGINE_ARGS": "{bad"}, "environment variable DYN_ENGINE_ARGS is '{bad', but must be a table."),
        ({"DYN_ENGINE_ARGS": "bad"}, "environment variable DYN_ENGINE_ARGS 'bad' is not KEY=VALUE"),
        (
            {"DYN_CONTEXT_LENGTH": "0"},
            "environment variable DYN_CONTEXT_LENGTH is '0', but must be a whole number of at least 1.",
        ),
    ],
)
def test_a_wrong_variable_is_named_even_if_a_flag_overrides_it(environ: dict[str, str], expected: str) -> None:
    assert refusal({"http_port": 1, "workers": 1}, **environ).startswith(expected)


def test_a_wrong_flag_is_named() -> None:
    assert refusal({"workers": "many"}) == "--workers is 'many', but must be a whole number from 0 to 1024."
    assert refusal({"engine_args": ("x",)}).startswith("--engine-arg 'x' is not KEY=VALUE")


def test_a_flag_that_is_no_setting_is_a_bug_of_the_caller() -> None:
    with pytest.raises(TypeError, match="http_prot"):
        settings({"http_prot": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", ("a", 1)),
        ("a=1.5", ("a", 1.5)),
        ("a=true", ("a", True)),
        ("a=null", ("a", None)),
        ('a=["x", 1]', ("a", ["x", 1])),
        ('a={"b": 1}', ("a", {"b": 1})),
        ('a="2"', ("a", "2")),
        ("a=bfloat16", ("a", "bfloat16")),
        ("a=b=c", ("a", "b=c")),
        ("a=007", ("a", "007")),
        ("a=", ("a", "")),
    ],
)
def test_an_engine_argument_is_json_where_it_is_json(text: str, expected: tuple[str, Any]) -> None:
    assert parse_engine_arg(text) == expected


@pytest.mark.parametrize("text", ["a", "", "=1"])
def test_an_engine_argument_without_key_or_value_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not KEY=VALUE"):
        parse_engine_arg(text)
