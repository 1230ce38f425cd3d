"""docs/routing.md: its command runs, its trace line is one, and its flags exist."""

import json
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dynamo_core.cli.router import command as router
from dynamo_core.cli.router_explain import command as explain
from dynamo_core.cli.router_explain import explanation
from dynamo_core.cli.simulate import command
from dynamo_core.llm.router_service import RouterService
from dynamo_core.serving.kv_journal import MIRROR_BLOCKS as _BLOCKS

PAGE = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()


def test_the_command_of_the_page_runs_on_the_line_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = re.findall(r"^    (\{.*\})$", PAGE, re.MULTILINE)
    Path("conversation.jsonl").write_text(f"{line}\n{line}\n")
    (arguments,) = re.findall(r"^    dynamo simulate (.*)$", PAGE, re.MULTILINE)
    result = CliRunner().invoke(command, arguments.split())
    assert result.exit_code == 0, result.output
    assert len(re.findall(r"^(?:kv-router|round-robin) +×\d +2/2", result.output, re.MULTILINE)) == 4


def test_every_flag_of_the_page_exists_and_none_is_left_out() -> None:
    rows = "\n".join(re.findall(r"^\| `--.*$", PAGE, re.MULTILINE))
    known = {option for parameter in command.params if isinstance(parameter, click.Option) for option in parameter.opts}
    named = set(re.findall(r"--[a-z-]+", rows))
    assert named <= known
    assert known - named - {"-v", "--verbose", "--help", "--seed", "--trace-block-size"} == set()


def test_the_explanation_of_the_page_is_what_the_command_prints() -> None:
    costs = {5828593889572349: 19.66, 6956098596834797: 26.3, 7838691573949959: 26.3}
    best = [{"worker": w, "cost_ms": c, "overlap_blocks": 4 if c < 20 else 0, "requests": 0} for w, c in costs.items()]
    told = {
        "model": "m", "worker_instance_id": 5828593889572349, "dp_rank": None, "overlap_blocks": 4, "prompt_blocks": 4,
        "router": "kv-router", "explain": {"cost_ms": 19.66, "best": best}, "token_data": [0] * 76,
    }  # fmt: skip
    (shown,) = re.findall(r"^\$ dynamo router explain .*?\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)
    assert explanation(told).strip() == shown.strip()
    (header,) = re.findall(r"^x-dynamo-route: (.*)$", PAGE, re.MULTILINE)
    assert [row["worker"] for row in json.loads(header)[0]["explain"]["best"]] == list(costs)


def test_the_routers_words_exist() -> None:
    (section,) = re.findall(r"^### A router of its own(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    (why,) = re.findall(r"^## Why this worker\?(.*?)^## ", PAGE, re.MULTILINE | re.DOTALL)
    flags = {opt for parameter in (*router.params, *explain.params) for opt in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", why)) - {"--log"} <= flags
    assert {"--endpoint", "--component", "--router"} <= flags
    for name in re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \|", section, re.MULTILINE):
        for endpoint in re.findall(r"`([a-z_]+)`", name):
            assert hasattr(RouterService, endpoint)
    assert f"{_BLOCKS:,} blocks" in PAGE
