import pytest

from dynamo_core.cli.status import choose_run
from dynamo_core.config import resolve
from dynamo_core.errors import StartupError
from dynamo_core.supervisor.run_state import RunState


def run_on(port: int) -> RunState:
    return RunState(pid=1, started=1, version="", http_host="", http_port=port, url="", namespace="", admin="")


RUNS = [run_on(8001), run_on(8002)]


def test_no_run_is_refused(refused):
    assert refused("status") == "No server is running: start one with `dynamo serve`."


def test_the_only_run_needs_no_port(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_run(RUNS[:1], resolve({}, environ={})).http_port == 8001
    assert choose_run(RUNS[:1], resolve({}, environ={"DYN_HTTP_PORT": "9"})).http_port == 8001


def test_one_of_several_is_chosen_by_flag_or_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_run(RUNS, resolve({"http_port": "8002"}, environ={})).http_port == 8002
    assert choose_run(RUNS, resolve({}, environ={"DYN_HTTP_PORT": "8002"})).http_port == 8002


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "Several servers are running, on ports 8001, 8002: choose one with --http-port."),
        ({"http_port": "9"}, "No server is running on port 9: there is one on port 8001, 8002."),
    ],
)
def test_no_choice_is_refused(flags, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StartupError) as refusal:
        choose_run(RUNS, resolve(flags, environ={}))
    assert refusal.value.message == sentence
