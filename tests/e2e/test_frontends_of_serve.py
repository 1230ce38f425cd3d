"""`dynamo serve --frontends 2`: connections are spread, what one frontend learns the other routes by, and one may die."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.frontends import Link, links_by_frontend

CONNECTIONS = 32
CONVERSATIONS = 12
BLOCK = 16


def prompt(number: int, blocks: int) -> list[int]:
    return [3 + (number * 7919 + place * 31 + place * place) % 200 for place in range(blocks * BLOCK + 1)]


def eventually(condition: Callable[[], Any], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.05)  # other processes': there is no event to wait for


@pytest.fixture(scope="module")
def server(serve: Any, tiny_model: Path) -> Iterator[Any]:
    started = serve(
        "--engine", "mocker", "--engine-arg", "decode_speedup_ratio=1", "--engine-arg", f"block_size={BLOCK}",
        "--workers", "3", "--frontends", "2", "--plugin", "kv-router", "--model", str(tiny_model), "--model-name", "tiny",
    )  # fmt: skip
    yield started
    assert started.stop() == 0


def links(server: Any) -> dict[int, list[Link]]:
    """Connections enough to reach every frontend, by the frontend's process id."""
    made = links_by_frontend(server.port, tuple(server.pids("frontend").values()), CONNECTIONS, "tiny")
    assert all(made.values()), "all frontends got connections"
    return made


def close(made: dict[int, list[Link]]) -> None:
    for links_of_one in made.values():
        for link in links_of_one:
            link.close()


def test_a_conversation_goes_to_its_worker_whichever_frontend_has_the_next_turn(server: Any) -> None:
    shares = links(server)
    one, two = shares.values()
    home: dict[int, int] = {}
    for number in range(CONVERSATIONS):
        _, workers = one[number % len(one)].ask(prompt(number, 4))
        (home[number],) = workers
    assert len(set(home.values())) > 1, "conversations are spread, so that going back to the right one says something"
    for number, worker in home.items():
        other = two[number % len(two)]
        eventually(lambda other=other, number=number: other.would_go(prompt(number, 8))[1] == 4)
        answer, workers = other.ask(prompt(number, 8))
        assert workers == [worker]
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4 * BLOCK
    for number, worker in home.items():  # and back, with what was first seen over there
        eventually(lambda number=number: one[0].would_go(prompt(number, 12))[1] == 8)
        assert one[0].would_go(prompt(number, 12))[0] == worker
    close(shares)


def test_a_frontend_that_is_killed_comes_back_with_what_it_knew_and_the_other_goes_on(server: Any) -> None:
    shares = links(server)
    victim, survivor = shares
    names = {pid: name for name, pid in server.pids("frontend").items()}
    _, (worker,) = shares[victim][0].ask(prompt(100, 6))
    eventually(lambda: shares[survivor][0].would_go(prompt(100, 6))[1] == 6)

    stream = shares[survivor][1].post(prompt(101, 2), max_tokens=200, stream=True)
    assert stream.readline().startswith(b"data: ")
    os.kill(victim, signal.SIGKILL)
    assert stream.read().endswith(b"data: [DONE]\n\n")
    for link in shares[survivor]:
        assert len(link.ask(prompt(102, 2))[1]) == 1

    eventually(lambda: server.pids("frontend").get(names[victim]) not in (None, victim))
    eventually(lambda: all(process["state"] == "ready" for process in server.status()["processes"]))
    assert server.pids("frontend")[names[survivor]] == survivor
    close(shares)
    again = links(server)
    late = again[server.pids("frontend")[names[victim]]]
    eventually(lambda: late[0].would_go(prompt(100, 6)) == (worker, 6))
    close(again)
