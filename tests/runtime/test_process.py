from __future__ import annotations

from pathlib import Path

import pytest

from dynamo_core.config import Settings
from dynamo_core.plugins import activate
from dynamo_core.runtime import CanarySettings
from dynamo_core.runtime.process import process_runtime


async def test_a_process_has_the_runtime_that_its_settings_say(tmp_path: Path) -> None:
    settings = Settings(
        namespace="team",
        event_plane="zmq",
        file_kv=str(tmp_path / "kv"),
        graceful_shutdown_secs=3.0,
        health_check_enabled=True,
        canary_wait_secs=7.0,
        health_check_timeout_secs=2.0,
        runtime_max_blocking_threads=2,
        system_port=0,
    )
    compiled = activate(("file", "tcp", "zmq"))
    async with process_runtime(settings, compiled) as runtime:
        assert (runtime.default_namespace, runtime.grace) == ("team", 3.0)
        assert runtime.canary == CanarySettings(enabled=True, wait=7.0, timeout=2.0)
        assert runtime.threads._max_workers == 2
        assert runtime.system is not None
        assert (tmp_path / "kv").is_dir()


@pytest.mark.parametrize(("port", "wanted"), [(-1, True), (0, False)])
async def test_a_status_server_is_there_only_where_it_was_asked_for(tmp_path: Path, port: int, wanted: bool) -> None:
    settings = Settings(file_kv=str(tmp_path / "kv"), system_port=port)
    async with process_runtime(settings, activate(("file", "tcp", "request-plane")), status_server=wanted) as runtime:
        assert runtime.system is None
