from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from dynamo_core.errors import ConfigError
from dynamo_core.runtime.logging import TRACE, configure_dynamo_logging, parse_log_spec


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
