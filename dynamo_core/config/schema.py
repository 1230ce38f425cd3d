"""``dynamo.toml`` as JSON Schema: the settings, and the tables of active plugins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from dynamo_core.config.fields import Field, settings_fields, struct_fields
from dynamo_core.config.settings import Settings
from dynamo_core.plugins.configuration import config_keys

__all__ = ["configuration_schema"]


def configuration_schema(plugins: Mapping[str, type[msgspec.Struct]]) -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration file; ``plugins`` has the configuration type of each active plugin that has one.

    ``x-env`` and ``x-flag`` of a setting are its other names.
    """
    schemas, components = msgspec.json.schema_components((Settings, *plugins.values()), ref_template="#/$defs/{name}")
    settings = components.pop(schemas[0]["$ref"].rpartition("/")[2])
    tables: dict[str, Any] = {}
    for (name, type_), schema in zip(plugins.items(), schemas[1:], strict=True):
        tables[name] = schema
        properties = components[schema["$ref"].rpartition("/")[2]].get("properties", {})
        for key in config_keys(type_):
            if key.doc and key.name in properties:
                properties[key.name].setdefault("description", key.doc)
        for key_name, field in struct_fields(type_).items():
            _other_names(properties[key_name], field)
    properties = settings["properties"]
    for field in settings_fields().values():
        _other_names(properties[field.name], field)
    names = properties["plugins"]
    properties["plugins"] = {
        "description": "Names of plugins to activate, or a table: the names as `active`, and a table a plugin.",
        "anyOf": [
            names,
            {
                "type": "object",
                "properties": {"active": names, **tables},
                "additionalProperties": {"type": "object", "description": "The table of a plugin that is not active."},
            },
        ],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "dynamo.toml",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": components,
    }


def _other_names(schema: dict[str, Any], field: Field) -> None:
    if field.env:
        schema["x-env"] = list(field.env)
    if field.flag is not None:
        schema["x-flag"] = field.flag
