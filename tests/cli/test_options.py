import json

import click
import pytest
from click.testing import CliRunner

from dynamo_core.cli.options import setting_options
from dynamo_core.config import settings_fields


@pytest.mark.parametrize("command", ["serve", "frontend", "worker"])
def test_every_setting_with_a_flag_for_the_command_is_an_option(command):
    @click.command()
    @setting_options(command)
    def run(**flags):
        click.echo(sorted(name for name, value in flags.items() if value not in (None, ())))

    wanted = {
        field.flag for field in settings_fields().values() if field.flag and (not field.commands or command in field.commands)
    }
    assert {param.opts[0] for param in run.params} == wanted | {"-v"}
    assert CliRunner().invoke(run, []).output == "[]\n"


def test_values_are_passed_on_as_they_were_given():
    @click.command()
    @setting_options("serve")
    def run(**flags):
        click.echo(repr({name: value for name, value in flags.items() if value not in (None, ())}))

    arguments = ["--workers", "2", "--plugin", "a", "--plugin", "b", "--engine-arg", "x=1", "--no-access-log"]
    expected = {"workers": "2", "plugins": ("a", "b"), "engine_args": ("x=1",), "access_log": False}
    shown = CliRunner().invoke(run, arguments).output
    assert {**eval(shown)} == expected


@pytest.mark.parametrize(("flags", "level"), [(["-v"], "debug"), (["-vv"], "trace"), (["-v", "--log", "warn"], "warn")])
def test_verbose_is_a_log_level_that_a_named_one_overrides(dynamo, flags, level):
    done = dynamo("config", "show", "--json", *flags)
    assert json.loads(done.stdout)["log"]["value"] == level


@pytest.mark.parametrize("command", [["serve"], ["frontend"], ["worker"], ["status"], ["plugins", "list"], ["config", "show"]])
def test_every_command_has_verbose(dynamo, command):
    assert " -v " in dynamo(*command, "--help").stdout
