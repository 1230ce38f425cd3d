import subprocess
import sys

import pytest

from dynamo_core import __version__


def test_version_tells_of_the_core_active_plugins_and_engines(dynamo):
    core, plugins, engines, *problems = dynamo("--plugin", "random", "--version").stdout.splitlines()
    assert core == f"dynamo {__version__}"
    active = ("file", "tcp", "request-plane", "round-robin", "random")
    assert plugins == f"active plugins: {', '.join(f'{name} {__version__}' for name in active)}"
    assert f"echo (echo {__version__})" in engines
    assert all(line.startswith("  ") for line in problems)


def test_version_works_whatever_is_wrong_with_the_file(dynamo, folder):
    (folder / "dynamo.toml").write_text("http_prot = 1")
    done = dynamo("--version")
    assert done.returncode == 0
    assert "unknown key http_prot" in done.stdout


def test_help_names_every_command_without_importing_it():
    """What keeps it under 300 ms; `benchmarks/cli_start.py` measures."""
    code = (
        "import sys; from dynamo_core.cli.entry import run; run(['--help'])\n"
        "heavy = {'dynamo_core.cli.serve', 'dynamo_core.config', 'dynamo_core.plugins', 'rich', 'uvloop', 'litestar', 'uvicorn',"
        " 'zmq', 'tokenizers', 'jinja2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    assert all(f"\n  {name} " in out for name in ("serve", "frontend", "worker", "status", "plugins", "config"))
    assert out.endswith("HEAVY []\n")


@pytest.mark.parametrize("command", ["serve", "frontend", "worker"])
def test_the_help_of_a_command_shows_its_flags_with_environment_names_and_defaults(dynamo, command):
    text = " ".join(dynamo(command, "--help").stdout.split())
    assert "--namespace TEXT" in text
    assert "[env: DYN_NAMESPACE; default: dynamo]" in text
    assert ("--workers N" in text) == (command == "serve")
    assert ("--http-port N" in text) == (command != "worker")
    assert ("--engine-arg KEY=VALUE" in text) == (command != "frontend")


def test_a_group_without_a_command_shows_its_help(dynamo):
    for arguments in ((), ("plugins",)):
        done = dynamo(*arguments)
        assert done.returncode == 2
        assert "Usage: dynamo" in done.stderr
