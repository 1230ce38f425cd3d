from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from dynamo_core.errors import ConfigError
from dynamo_core.runtime.logging import (
    REQUEST_ID,
    TRACE,
    PlainRecords,
    configure_dynamo_logging,
    gather_lines,
    parse_log_spec,
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    configure_dynamo_logging("info", stream=io.StringIO())
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def logged(spec: str | None, *, jsonl: bool | None = False, process: str = "worker-1") -> io.StringIO:
    stream = io.StringIO()
    configure_dynamo_logging(spec, jsonl=jsonl, process=process, stream=stream)
    return stream


def test_a_spec_has_a_level_and_modules() -> None:
    assert parse_log_spec("info") == (logging.INFO, {})
    assert parse_log_spec(" WARN, dynamo_core.runtime=debug ,x::y=trace,") == (
        logging.WARNING,
        {"dynamo_core.runtime": logging.DEBUG, "x.y": TRACE},
    )
    assert parse_log_spec("") == (logging.INFO, {})


@pytest.mark.parametrize("spec", ["loud", "info,=debug", "x=", "info,x=loud", "a b"])
def test_a_spec_that_is_none_is_one_sentence(spec: str) -> None:
    with pytest.raises(ConfigError, match="trace"):
        parse_log_spec(spec)


def test_levels_and_module_filters_apply_and_the_next_configuration_replaces_them() -> None:
    stream = logged("warn,test_logging.loud=debug,test_logging.loud.not=error")
    for name in ("test_logging", "test_logging.loud", "test_logging.loud.not"):
        for level in (logging.DEBUG, logging.WARNING):
            logging.getLogger(name).log(level, "%s", level)
    assert [line.split()[2:] for line in stream.getvalue().splitlines()] == [
        ["worker-1", "test_logging:", "30"],
        ["worker-1", "test_logging.loud:", "10"],
        ["worker-1", "test_logging.loud:", "30"],
    ]
    stream = logged("trace")
    logging.getLogger("test_logging.loud.not").log(TRACE, "quiet")
    assert " TRACE worker-1 test_logging.loud.not: quiet" in stream.getvalue()


def test_off_is_silent() -> None:
    stream = logged("off")
    logging.getLogger("x").critical("nothing")
    assert stream.getvalue() == ""


def test_every_line_of_a_traceback_names_the_process() -> None:
    stream = logged("info")
    try:
        raise RuntimeError("first\nsecond")
    except RuntimeError:
        logging.getLogger("x").exception("failed", extra={"request_id": "r-1"})
    lines = stream.getvalue().splitlines()
    assert len(lines) > 4
    assert "ERROR worker-1 x: failed request_id=r-1" in lines[0]
    assert all(line.startswith("worker-1 | ") for line in lines[1:])


def test_json_lines_are_one_object_each() -> None:
    stream = logged("info", jsonl=True)
    logger = logging.getLogger("x")
    logger.info("hello %s\n", "wörld", extra={"request_id": "r-1", "odd": object(), "level": "ours counts"})
    logger.warning("broken \udc80 text", extra={"keys": {(1, 2): 3}})
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logger.exception("failed")
    one, two, three = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert (one["level"], one["process"], one["target"], one["message"]) == ("INFO", "worker-1", "x", "hello wörld\n")
    assert one["request_id"] == "r-1"
    assert "object" in one["odd"]
    assert one["time"].endswith("Z")
    assert two["level"] == "WARN"
    assert "boom" in three["exception"]


def test_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DYN_LOG", "error")
    monkeypatch.setenv("DYN_LOGGING_JSONL", "1")
    stream = logged(None, jsonl=None)
    logging.getLogger("x").warning("no")
    logging.getLogger("x").error("yes")
    assert json.loads(stream.getvalue())["message"] == "yes"


def test_gathered_lines_are_written_together_and_in_order() -> None:
    stream = logged("info", process="")
    loop = asyncio.new_event_loop()
    log = logging.getLogger("test_logging")

    def told() -> list[str]:
        return [line.rsplit(": ", 1)[1] for line in stream.getvalue().splitlines()]

    async def story() -> None:
        gather_lines(loop)
        log.info("1")
        log.info("2")
        assert told() == []
        log.warning("3")
        assert told() == ["1", "2", "3"], "a warning waits for nothing"
        log.info("4")
        await asyncio.to_thread(log.info, "5")
        assert told()[3:] == ["4", "5"], "nor does another thread's line, which no timer of this loop may hold"
        log.info("6")
        while "6" not in told():  # noqa: ASYNC110  # a timer of the handler's ends it
            await asyncio.sleep(0.001)
        log.info("x" * 70_000)
        assert len(told()) == 7, "nor does much"
        log.info("8")
        configure_dynamo_logging("info", stream=stream)
        assert len(told()) == 8, "nor does a line wait for a handler that goes"
        log.info("9")
        assert len(told()) == 8, "and the next one gathers as well"

    loop.run_until_complete(story())
    loop.close()
    log.info("10")
    assert told()[8:] == ["9", "10"]


def test_what_is_held_is_written_at_the_end_of_the_process() -> None:
    code = """
import asyncio, logging
from dynamo_core.runtime.logging import configure_dynamo_logging, gather_lines
async def main():
    configure_dynamo_logging("info")
    gather_lines(asyncio.get_running_loop())
    logging.getLogger("x").info("last words")
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.endswith("INFO  x: last words\n")


@pytest.mark.parametrize("jsonl", [False, True])
@pytest.mark.parametrize("message", ["one", "one r-1", "100 %s r-1", "two\nlines r-1"])
@pytest.mark.parametrize("request_id", ["", "r-1", "r-2"])
def test_a_plain_record_reads_as_any_other(message: str, request_id: str, jsonl: bool) -> None:
    logger = logging.getLogger("test_logging.plain")
    stream = logged("info", jsonl=jsonl)
    token = REQUEST_ID.set(request_id)
    logger.info(message)
    whole = stream.tell()
    PlainRecords(logger).log(logging.INFO, message)
    REQUEST_ID.reset(token)
    first, second = stream.getvalue()[:whole], stream.getvalue()[whole:]
    time_of_day = r"\d\d:\d\d:\d\d\.\d\d\d"
    assert re.sub(time_of_day, "", first) == re.sub(time_of_day, "", second)


def test_a_plain_record_passes_filters_and_other_handlers() -> None:
    logger = logging.getLogger("test_logging_later.plain")
    stream = logged("info")
    plain = PlainRecords(logger)
    refusing = logging.Filter("another")
    for guarded in (logger, logging.getLogger().handlers[0]):
        guarded.addFilter(refusing)
        plain.log(logging.INFO, "refused")
        guarded.removeFilter(refusing)
    logging.getLogger().handlers[0].setLevel(logging.WARNING)
    plain.log(logging.INFO, "too low")
    logging.getLogger().handlers[0].setLevel(logging.NOTSET)
    between = logging.getLogger("test_logging_later")  # there is none before
    between.propagate = False
    plain.log(logging.INFO, "stays below")
    between.propagate = True
    assert stream.getvalue() == ""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    PlainRecords(logger).log(logging.INFO, "100 %s")
    logger.removeHandler(handler)
    (record,) = records
    assert (record.getMessage(), record.name, record.levelname) == ("100 %s", "test_logging_later.plain", "INFO")
    assert abs(record.created - time.time()) < 60
    assert record.msecs == pytest.approx(record.created % 1 * 1000, abs=1)


def test_times_are_utc_with_milliseconds() -> None:
    stream = logged("info", process="")
    handler = logging.getLogger().handlers[0]
    for created in (0.0, 1_700_000_000.0019, 1_700_000_000.9996, 1_700_000_001.5):
        record = logging.makeLogRecord({"name": "x", "levelno": 20, "msg": "m"})
        record.created = created
        handler.handle(record)
    assert [line.split()[0] for line in stream.getvalue().splitlines()] == [
        "1970-01-01T00:00:00.000Z", "2023-11-14T22:13:20.001Z", "2023-11-14T22:13:20.999Z", "2023-11-14T22:13:21.500Z",
    ]  # fmt: skip
