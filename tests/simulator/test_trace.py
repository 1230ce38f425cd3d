from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynamo_core.errors import StartupError
from dynamo_core.kv.hashing import block_hashes, sequence_hashes
from dynamo_core.simulator import Trace, read_trace

LINE = {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [7, 3]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: Any) -> str:
        path = tmp_path / "trace.jsonl"
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return str(path)

    return write


def test_a_trace_is_read_and_its_ids_numbered_in_order(write: Callable[..., str]) -> None:
    trace = read_trace(write(LINE, "", {**LINE, "timestamp": 2.5, "output_length": 0, "hash_ids": [7, 2**70, 9], "more": 1}))
    one, two = trace.requests
    assert (one.at_ms, one.input_length, one.output_length, one.blocks) == (0, 700, 5, (0, 1))
    assert (two.at_ms, two.output_length, two.blocks) == (2.5, 1, (0, 2))
    assert read_trace(write(LINE, "garbage"), limit=1).requests == (one,)


@pytest.mark.parametrize("missing", ["timestamp", "input_length", "output_length", "hash_ids"])
def test_a_missing_field_is_named_with_its_line(write: Callable[..., str], missing: str) -> None:
    with pytest.raises(StartupError, match=rf"trace.jsonl, line 2: the field '{missing}' is missing"):
        read_trace(write(LINE, {key: value for key, value in LINE.items() if key != missing}))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({**LINE, "timestamp": -1}, "line 2 is not a request .*>= 0.* in `timestamp`"),
        ({**LINE, "input_length": "long"}, "line 2 is not a request .* in `input_length`"),
        ({**LINE, "hash_ids": [1, "a"]}, "line 2 is not a request .* in `hash_ids"),
        ({**LINE, "hash_ids": [1]}, "1 hash ids of 512 tokens do not cover input_length 700; give .*--trace-block-size"),
        ("{", "line 2 is not a request"),
        ("[]", "line 2 is not a request"),
    ],
)
def test_a_bad_line_is_refused_in_one_sentence(write: Callable[..., str], line: Any, words: str) -> None:
    with pytest.raises(StartupError, match=words) as caught:
        read_trace(write(LINE, line))
    assert "\n" not in str(caught.value)


def test_times_must_not_go_back(write: Callable[..., str]) -> None:
    with pytest.raises(StartupError, match="line 2: timestamp 4 comes after 5; sort the trace"):
        read_trace(write({**LINE, "timestamp": 5}, {**LINE, "timestamp": 4}))


def test_an_empty_or_absent_trace_is_refused(write: Callable[..., str]) -> None:
    with pytest.raises(StartupError, match="holds no request"):
        read_trace(write(""))
    with pytest.raises(StartupError, match=r"/nowhere cannot be read \(No such file"):
        read_trace("/nowhere")


@pytest.mark.parametrize("size", [16, 64, 512])
def test_prompts_share_exactly_the_blocks_whose_ids_they_share(trace: Callable[..., Trace], size: int) -> None:
    made = trace((0, 1300, 1, (0, 1, 2)), (0, 1536, 1, (0, 1, 3)), block_size=512)
    one, two = (made.token_ids(request) for request in made.requests)
    assert (len(one), len(two)) == (1300, 1536)
    shared = set(sequence_hashes(one, size)) & set(sequence_hashes(two, size))
    assert len(shared) == 1024 // size
    assert block_hashes(list(one), size) == block_hashes(one, size)


def test_a_speedup_divides_times_and_spreading_keeps_requests_near_their_stamp(trace: Callable[..., Trace]) -> None:
    made = trace((0, 10, 1, (0,)), (0, 10, 1, (1,)), (100, 10, 1, (2,)))
    assert [at for at, _ in made.arrivals_ms(4)] == [0, 0, 25]
    spread = made.arrivals_ms(2, 300)
    assert spread == made.arrivals_ms(2, 300)
    assert spread != made.arrivals_ms(2, 300, seed=1)
    assert [at for at, _ in spread] == sorted(at for at, _ in spread)
    assert all(request.at_ms <= 2 * at <= request.at_ms + 300 for at, request in spread)
