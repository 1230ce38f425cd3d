"""Every test has a NATS of its own: it is stopped and started again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_core.testing.provision import required_server
from dynamo_core.testing.servers import NatsServer


@pytest.fixture(scope="session")
def nats_program() -> str:
    return required_server("nats-server")


@pytest.fixture
def nats(nats_program: str, tmp_path: Path) -> Iterator[NatsServer]:
    server = NatsServer(nats_program, tmp_path / "nats")
    server.start()
    yield server
    server.stop()
