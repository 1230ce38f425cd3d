from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.simulator import RequestLog, Simulated, WorkerLog
from dynamo_core.simulator.plot import check_plot, load_over_time, save_plot

REQUESTS = tuple(
    RequestLog(at_ms=0, prompt_tokens=1, output_tokens=2, worker_id=1, routed_ms=start, first_ms=start + 1, end_ms=end)
    for start, end in ((0, 100), (50, 75))
)


def test_load_is_the_mean_number_of_requests_in_each_part_of_the_time() -> None:
    assert load_over_time(REQUESTS, 1, 100, bins=4) == pytest.approx([1, 1, 2, 1])
    assert load_over_time(REQUESTS, 2, 100, bins=2) == [0, 0]
    assert load_over_time(REQUESTS, 1, 100, bins=1) == [1.25]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_pictures_are_written_in_both_formats(tmp_path: Path, name: str, start: bytes) -> None:
    workers = (WorkerLog(id=1, busy_ms=1, computed_tokens=1, preemptions=0),)
    run = Simulated(requests=REQUESTS, workers=workers, end_ms=100, select_s=0, wall_s=0)
    path = str(tmp_path / name)
    check_plot(path)
    save_plot(path, [("one", run), ("two", run), ("three", run)])
    assert Path(path).read_bytes().startswith(start)


def test_what_cannot_be_drawn_is_said_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartupError, match=r"a.pdf is neither PNG nor SVG"):
        check_plot("a.pdf")
    with pytest.raises(StartupError, match="does not exist; make it first"):
        check_plot(str(tmp_path / "no" / "a.png"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartupError, match=r"pip install 'dynamo-core\[plot\]'"):
        check_plot("a.png")
