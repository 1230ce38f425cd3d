from typing import Annotated

import msgspec
import pytest

from dynamo_core.errors import ConfigError
from dynamo_core.plugins import describe_plugin, installed_plugins
from dynamo_core.plugins.configuration import config_keys

PLUGIN = """
class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str
@hookimpl
def dynamo_config(): return Config
@hookimpl
def dynamo_http_routes(config): yield HttpSpec(name="acme", description=config.path)
@hookimpl
def dynamo_engines(): yield EngineSpec(name="acme", factory=None, requires={"nobody_has_it": "pip install it"}, stability="beta")
@hookimpl
async def dynamo_prepare(request):
    '''Shortens prompts.

    By half.'''
"""


class Base(msgspec.Struct, frozen=True):
    limit: int = 3
    """How many,
    at most."""


class Config(Base, frozen=True, kw_only=True):
    """Not about a key."""

    ports: Annotated[list[int], msgspec.Meta(description="Where.")] = []
    name: str = msgspec.field(name="user-name", default="x")
    secret: str = msgspec.field()


def test_keys_have_type_default_and_the_text_below_them() -> None:
    assert [(key.name, key.type, key.required, key.default, key.doc) for key in config_keys(Config)] == [
        ("limit", "a whole number", False, 3, "How many, at most."),
        ("ports", "a list", False, [], "Where."),
        ("user-name", "text", False, "x", ""),
        ("secret", "text", True, None, ""),
    ]


def test_a_plugin_is_described_even_where_its_engine_cannot_run(install) -> None:
    install("acme", PLUGIN)
    described = describe_plugin(installed_plugins()["acme"], table={"path": "/acme"})
    assert [(hook.name, hook.kind, hook.arguments, hook.is_async) for hook in described.hooks] == [
        ("dynamo_config", "registration", (), False),
        ("dynamo_engines", "registration", (), False),
        ("dynamo_http_routes", "registration", ("config",), False),
        ("dynamo_prepare", "request", ("request",), True),
    ]
    assert described.hooks[3].doc == "Shortens prompts."
    assert [(record.kind, record.name, record.stability, record.description) for record in described.records] == [
        ("engine", "acme", "beta", ""),
        ("http", "acme", "stable", "/acme"),
    ]
    assert described.records[0].requires == {"nobody_has_it": "pip install it"}


def test_without_the_required_keys_the_rest_is_still_described(install) -> None:
    install("acme", PLUGIN)
    info = installed_plugins()["acme"]
    assert [record.kind for record in describe_plugin(info).records] == ["engine"]
    with pytest.raises(ConfigError, match=r"unknown key plugins\.acme\.pth: did you mean 'path'"):
        describe_plugin(info, table={"pth": "/"})
