import msgspec

from dynamo_core.config import settings_fields
from dynamo_core.config.schema import configuration_schema


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: int = 3
    """How many."""


One = Config


class Other:
    class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        names: list[str] = []


def test_every_setting_is_in_the_schema_with_its_other_names() -> None:
    schema = configuration_schema({})
    assert set(schema["properties"]) == set(settings_fields())
    port = schema["properties"]["http_port"]
    assert (port["maximum"], port["x-env"], port["x-flag"]) == (65535, ["DYN_HTTP_PORT"], "--http-port")
    assert not schema["additionalProperties"]


def test_plugins_have_their_tables_documented() -> None:
    schema = configuration_schema({"acme": One, "other": Other.Config})
    table = schema["properties"]["plugins"]["anyOf"][1]["properties"]
    acme = schema["$defs"][table["acme"]["$ref"].removeprefix("#/$defs/")]
    other = schema["$defs"][table["other"]["$ref"].removeprefix("#/$defs/")]
    assert acme["properties"]["limit"] == {"type": "integer", "default": 3, "description": "How many."}
    assert list(other["properties"]) == ["names"]
    assert not acme["additionalProperties"]
    assert msgspec.json.encode(schema)
