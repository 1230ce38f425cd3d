"""`dynamo serve --frontends 2`: connections are spread, what one frontend learns the other routes by, and one may die."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def links(server: Any) -> Iterator[dict[int, list[Link]]]:
    """Connections enough to reach every frontend, by the frontend's process id."""
    made = links_by_frontend(server.port, tuple(server.pids("frontend").values()), CONNECTIONS, "tiny")
    try:
        assert all(made.values()), "all frontends got connections"
        yield made
    finally:
        for links_of_one in made.values():
            for link in links_of_one:
                link.close()


def goes(link: Link, tokens: list[int], worker: int, cached: int) -> None:
    """The frontend comes to send the prompt to this worker, of which so many blocks are cached there."""
    seen = None

    def as_wanted() -> bool:
        nonlocal seen
        seen = link.would_go(tokens)
        return seen == (worker, cached)

    with contextlib.suppress(AssertionError):
        eventually(as_wanted)
    assert seen == (worker, cached), f"its router says {link.explain(tokens)}"


def test_a_conversation_goes_to_its_worker_whichever_frontend_has_the_next_turn(server: Any) -> None:
    with links(server) as shares:
        one, two = shares.values()
        home: dict[int, int] = {}
        for number in range(CONVERSATIONS):
            _, workers = one[number % len(one)].ask(prompt(number, 4))
            (home[number],) = workers
        assert len(set(home.values())) > 1, "conversations are spread, so that going back to the right one says something"
        for number, worker in home.items():
            other = two[number % len(two)]
            goes(other, prompt(number, 8), worker, 4)
            answer, workers = other.ask(prompt(number, 8))
            assert workers == [worker]
            assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4 * BLOCK
        for number, worker in home.items():  # and back, with what was first seen over there
            goes(one[0], prompt(number, 12), worker, 8)


def test_a_frontend_that_is_killed_comes_back_with_what_it_knew_and_the_other_goes_on(server: Any) -> None:
    with links(server) as shares:
        victim, survivor = shares
        names = {pid: name for name, pid in server.pids("frontend").items()}
        _, (worker,) = shares[victim][0].ask(prompt(100, 6))
        goes(shares[survivor][0], prompt(100, 6), worker, 6)

        stream = shares[survivor][1].post(prompt(101, 2), max_tokens=200, stream=True)
        assert stream.readline().startswith(b"data: ")
        os.kill(victim, signal.SIGKILL)
        assert stream.read().endswith(b"data: [DONE]\n\n")
        for link in shares[survivor]:
            assert len(link.ask(prompt(102, 2))[1]) == 1

        eventually(lambda: server.pids("frontend").get(names[victim]) not in (None, victim))
        eventually(lambda: all(process["state"] == "ready" for process in server.status()["processes"]))
        assert server.pids("frontend")[names[survivor]] == survivor
    with links(server) as again:
        goes(again[server.pids("frontend")[names[victim]]][0], prompt(100, 6), worker, 6)
