import json
import logging
import subprocess
import sys

import pytest

from dynamo_core.errors import ConfigError
from dynamo_core.supervisor.logs import parse_levels


def test_modules_may_have_levels_of_their_own():
    levels = parse_levels("warn, dynamo_core.runtime=debug,a::b=TRACE")
    assert levels.root == logging.WARNING
    assert levels.modules == {"dynamo_core.runtime": logging.DEBUG, "a.b": 5}


def test_an_unknown_level_is_refused_in_one_sentence():
    with pytest.raises(ConfigError, match="'loud' in the log setting 'x=loud' is no level: use off, error"):
        parse_levels("x=loud")


def output(json_lines: bool) -> str:
    code = (
        "import logging; from dynamo_core.supervisor.logs import configure_logs\n"
        f"configure_logs('error,noisy=debug', json_lines={json_lines}, process='worker-0')\n"
        "logging.getLogger('quiet').info('no'); logging.getLogger('noisy.inner').debug('yes %d', 7)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_text_lines_have_time_level_and_module():
    (line,) = output(False).splitlines()
    assert line.endswith("DEBUG   noisy.inner: yes 7")


def test_json_lines_have_the_process():
    line = json.loads(output(True))
    assert line["process"] == "worker-0"
    assert (line["level"], line["target"], line["message"]) == ("DEBUG", "noisy.inner", "yes 7")
