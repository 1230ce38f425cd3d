import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--modle", "x"], "`dynamo serve` has no option --modle: did you mean --model?"),
        (["serve", "--qqqqqq"], "`dynamo serve` has no option --qqqqqq: `dynamo serve --help` lists them all."),
        (["serv"], "`dynamo` has no command 'serv': did you mean serve?"),
        (["serve", "--http-port", "many"], "--http-port is 'many', but must be a whole number from 0 to 65535."),
        (["serve", "--engine-arg", "x"], "--engine-arg 'x' is not KEY=VALUE: write the key, an equals sign and the value."),
        (["serve", "more"], "`dynamo serve`: got unexpected extra argument (more); `dynamo serve --help` explains."),
        (["plugins", "lst"], "`dynamo plugins`: no such command 'lst': did you mean 'list'?"),
    ],
)
def test_wrong_usage_is_one_sentence(refused, arguments, sentence):
    assert refused(*arguments) == sentence


def test_a_closed_pipe_is_no_traceback(folder):
    code = "import sys; from dynamo_core.cli.entry import run; sys.exit(run(['config', 'show']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder)
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert error == b""
