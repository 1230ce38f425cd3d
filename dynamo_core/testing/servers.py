"""Real etcd and NATS servers for tests: on free ports of the loopback, each in a folder of its own, ended by pid."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

__all__ = ["EtcdServer", "NatsServer", "ServerProcess", "etcd_cluster", "free_port"]

_START_SECONDS = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """``start`` and ``stop`` block; a server that was stopped can be started again on its port, with its data."""

    def __init__(self, command: Sequence[str], folder: Path, port: int) -> None:
        self.port = port
        self.folder = folder
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def launch(self) -> None:
        """Start without waiting until it serves."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: S603  # the test's own program

    def start(self) -> None:
        self.launch()
        self.wait()

    def wait(self) -> None:
        """Until it serves. Raises RuntimeError with the end of its log."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._serves():
            if time.monotonic() > deadline or (self._process is not None and self._process.poll() is not None):
                text = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} did not start:\n{text}")
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    stop = kill

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _serves(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


class EtcdServer(ServerProcess):
    """``options`` are etcd's own flags. A quick election makes it quick to start, and allows leases of one second."""

    def __init__(
        self,
        program: str,
        folder: Path,
        *,
        port: int | None = None,
        peer_port: int | None = None,
        name: str = "test",
        members: str | None = None,
        options: Sequence[str] = (),
        scheme: str = "http",
    ) -> None:
        port, peer_port = port or free_port(), peer_port or free_port()
        self.url = f"{scheme}://127.0.0.1:{port}"
        peer = f"http://127.0.0.1:{peer_port}"
        self.data = folder / "data"
        command = [
            program, "--name", name, "--data-dir", str(self.data), "--logger", "zap", "--log-level", "error",
            "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", members or f"{name}={peer}",
            "--heartbeat-interval", "50", "--election-timeout", "250", *options,
        ]  # fmt: skip
        super().__init__(command, folder, port)
        self._scheme = scheme

    def wipe(self) -> None:
        """Of a server that is stopped: all that it stored."""
        shutil.rmtree(self.data)

    def _serves(self) -> bool:
        if self._scheme != "http":
            return super()._serves()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=1)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def etcd_cluster(program: str, folder: Path, count: int) -> list[EtcdServer]:
    """Servers of one cluster: launch all, then wait for all."""
    peers = [free_port() for _ in range(count)]
    members = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(peers))
    return [
        EtcdServer(program, folder / f"m{number}", peer_port=port, name=f"m{number}", members=members)
        for number, port in enumerate(peers)
    ]


class NatsServer(ServerProcess):
    """``options`` are nats-server's own flags."""

    def __init__(self, program: str, folder: Path, *, port: int | None = None, options: Sequence[str] = ()) -> None:
        port = port or free_port()
        self.url = f"nats://127.0.0.1:{port}"
        super().__init__([program, "--addr", "127.0.0.1", "--port", str(port), *options], folder, port)
