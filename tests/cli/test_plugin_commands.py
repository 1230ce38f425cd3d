"""Commands of plugins: found among the active ones, or by the plugin's own name."""

import os

import pytest

PLUGIN = """
from dynamo_core import hookimpl
from dynamo_core.specs import CommandSpec

@hookimpl
def dynamo_commands():
    def make():
        import click
        @click.command()
        @click.option("--loud", is_flag=True)
        def greet(loud):
            click.echo("HELLO" if loud else "hello")
        return greet
    return [CommandSpec(name="greeter", factory=make, description="Say hello."), CommandSpec(name="odd", factory=lambda: 7)]
"""


@pytest.fixture
def path(folder):
    (folder / "greeter_plugin.py").write_text(PLUGIN)
    info = folder / "greeter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dynamo.plugins]\ngreeter = greeter_plugin\n")
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def test_a_command_with_the_name_of_its_plugin_needs_nothing_else(dynamo, path):
    assert dynamo("greeter", "--loud", PYTHONPATH=path).stdout == "HELLO\n"


def test_a_named_plugin_adds_its_commands_to_the_help(dynamo, path):
    assert "greeter" not in dynamo("--help", PYTHONPATH=path).stdout
    assert "greeter   Say hello." in dynamo("--plugin", "greeter", "--help", PYTHONPATH=path).stdout
    assert "greeter   Say hello." in dynamo("--help", PYTHONPATH=path, DYN_PLUGINS="greeter").stdout


def test_what_is_no_command_is_refused(refused, path):
    assert "is no click command" in refused("--plugin", "greeter", "odd", PYTHONPATH=path)


def test_help_works_with_a_broken_configuration(dynamo, folder):
    (folder / "dynamo.toml").write_text("=")
    assert "serve" in dynamo("--help").stdout
