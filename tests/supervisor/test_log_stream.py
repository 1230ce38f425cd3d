import json
import threading

from dynamo_core.supervisor.log_stream import LogStream


class Sink:
    def __init__(self) -> None:
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.data += data


def test_every_line_has_its_process_and_lines_stay_whole():
    sink = Sink()
    log = LogStream(sink)
    assert log.feed("a", b"one\ntw") == [b"one"]
    assert log.feed("b", b"x\n") == [b"x"]
    assert log.feed("a", b"o\r\n") == [b"two\r"]
    log.close()
    assert sink.data == b"[a] one\n[b] x\n[a] two\n"


def test_the_last_line_of_an_ended_process_may_lack_its_line_feed():
    sink = Sink()
    log = LogStream(sink)
    log.feed("a", b"last words")
    assert log.end("a") == [b"last words"]
    assert log.end("a") == []
    log.close()
    assert sink.data == b"[a] last words\n"


def test_a_stuck_reader_blocks_nobody_and_is_told_what_was_dropped():
    gate, entered, data = threading.Event(), threading.Event(), []

    def write(chunk: bytes) -> None:
        entered.set()
        gate.wait()
        data.append(chunk)

    log = LogStream(write)
    log.feed("a", b"first\n")
    entered.wait()
    for _ in range(1030):
        log.feed("a", b"line\n")
    gate.set()
    while not log._queue.empty():
        pass
    log.feed("a", b"after\n")
    log.close()
    assert data[-1] == b"[log] 6 chunks of output were dropped: nobody read them in time\n[a] after\n"


def test_a_terminal_that_is_gone_is_no_reason_to_stop():
    calls = []

    def write(chunk: bytes) -> None:
        calls.append(chunk)
        raise OSError

    log = LogStream(write)
    log.feed("a", b"1\n")
    log.feed("a", b"2\n")
    log.close()
    assert len(calls) == 2


def test_with_json_lines_all_that_is_printed_is_json():
    written: list[bytes] = []
    stream = LogStream(written.append, jsonl=True)
    stream.feed("worker-0", b'{"message": "mine"}\nnaked \xff text\n')
    stream.close()
    lines = [json.loads(line) for line in b"".join(written).splitlines()]
    assert lines[0] == {"message": "mine"}
    assert (lines[1]["process"], lines[1]["message"]) == ("worker-0", "naked � text")
