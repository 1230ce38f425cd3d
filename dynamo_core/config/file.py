"""``dynamo.toml``: settings at the top level, ``[engine_args]``, and a ``[plugins.NAME]`` table a plugin."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.config.fields import Field
from dynamo_core.errors import ConfigError
from dynamo_core.plugins.names import suggestion

__all__ = ["DEFAULT_FILE", "ConfigFile", "read_file"]

DEFAULT_FILE = "dynamo.toml"
"""Read from the current folder when no other file is named."""

_HEADER = re.compile(r"\s*\[\s*(?P<table>[^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"\s*(?P<key>[A-Za-z0-9_.\"'-]+?)\s*=")

_PLUGINS_LIST = re.compile(r"^plugins\s*=", re.MULTILINE)


class ConfigFile(msgspec.Struct, frozen=True):
    path: str | None = None
    """``None``: there is no file."""
    values: Mapping[str, Any] = {}
    """Setting → value as TOML has it; the keys are settings, the values unchecked."""
    plugin_tables: Mapping[str, Mapping[str, Any]] = {}
    lines: Mapping[str, int] = {}
    """Key path → line, for those that a glance at the text finds."""

    def place(self, key: str) -> str:
        """``dynamo.toml:12 http_port``."""
        line = self.lines.get(key)
        return f"{self.path}:{line} {key}" if line else f"{self.path} {key}"


def read_file(path: str | None, fields: Mapping[str, Field]) -> ConfigFile:
    """Read ``path``, or ``dynamo.toml`` in the current folder if it is ``None`` and that exists.

    Raises :class:`~dynamo_core.errors.ConfigError` for a file that cannot be read, is no TOML or has an unknown key.
    """
    if path is None:
        if not Path(DEFAULT_FILE).is_file():
            return ConfigFile()
        path = DEFAULT_FILE
    text = _read(path)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        if "('plugins', " in str(error) and _PLUGINS_LIST.search(text):
            raise ConfigError(
                f"{path}: plugins is a list and has tables [plugins.NAME]; TOML forbids that: call the list plugins.active."
            ) from error
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error
    lines = _lines(text)
    values = dict(document)
    names, tables = _plugins(values.pop("plugins", {}), path)
    if names is not None:
        values["plugins"] = names
        lines["plugins"] = lines.get("plugins.active", lines.get("plugins", 0))
    for key in values:
        if key not in fields:
            line = f":{lines[key]}" if key in lines else ""
            hint = suggestion(key, fields, what="valid keys")
            raise ConfigError(f"{path}{line}: unknown key {key}: {hint}")
    return ConfigFile(path, values, tables, lines)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist: check --config.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"configuration file {path} cannot be read: {reason}.") from error


def _plugins(value: Any, path: str) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """The list of plugins to activate, which TOML allows beside tables only as a key of the same table, and the tables."""
    if not isinstance(value, dict):
        return value, {}
    tables: dict[str, Mapping[str, Any]] = {name: table for name, table in value.items() if isinstance(table, dict)}
    names = None
    for key, other in value.items():
        if key == "active" and not isinstance(other, dict):
            names = other
        elif key not in tables:
            raise ConfigError(
                f"{path}: plugins.{key} is {other!r}, but must be a table [plugins.{key}]; the list of plugins is plugins.active."
            )
    return names, tables


def _lines(text: str) -> dict[str, int]:
    lines: dict[str, int] = {}
    prefix = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            prefix = header["table"].replace(" ", "").replace('"', "").replace("'", "") + "."
            lines.setdefault(prefix.removesuffix("."), number)
        elif key := _KEY.match(line):
            lines.setdefault(prefix + key["key"].replace('"', "").replace("'", ""), number)
    return lines
