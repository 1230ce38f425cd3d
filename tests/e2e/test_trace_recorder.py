"""Live traffic is recorded, and what was recorded is simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_recorded_traffic_is_read_back_by_the_simulator(serve: Any, dynamo: Any, tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "dynamo.toml"
    file = tmp_path / "mine.jsonl"
    config.write_text(f'[plugins.trace-recorder]\nfile = "{file}"\nblock_size = 16\n')
    server = serve(
        "--config", str(config), "--plugin", "trace-recorder", "--engine", "mocker", "--model", str(tiny_model),
        "--model-name", "tiny", "--workers", "1", "--engine-arg", "speedup_ratio=50",
    )  # fmt: skip
    story = " ".join(f"word{i % 17}" for i in range(200))
    for turn in range(4):
        stream = server.openai().completions.create(model="tiny", prompt=story + " on" * turn, max_tokens=3 + turn, stream=True)
        list(stream)
    assert server.stop() == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["output_length"] for line in lines] == [3, 4, 5, 6]
    assert story not in file.read_text()
    done = dynamo("simulate", str(file), "--router", "round-robin", "--workers", "1", "--block-size", "16", "--json", "-")
    (run,) = json.loads(done.stdout)
    assert run["completed"] == 4
    assert run["hit_rate"] > 0.5
