"""A program: a frontend and a worker on one "host", a worker on another, and a network between them that is cut.

The test starts it, in a network namespace of its own where that is allowed. It prints what it saw as JSON and fails with a
traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from openai import AsyncOpenAI

from dynamo_core.testing.cut_proxy import CutProxy
from dynamo_core.testing.servers import EtcdServer, free_port

DYNAMO = str(Path(sys.executable).with_name("dynamo"))
NEAR, FAR = "10.77.0.1", "10.77.0.2"
NOWHERE = "02:00:00:00:00:99"
LEASE_SECS = 2
HEARTBEAT = "heartbeat_secs = 0.25\nheartbeats_missed = 4\n"
NOTICED_SECS = 10.0
"""Heartbeats and leases need 2 s; the rest is for a busy machine."""
BACK_SECS = 30.0
CUT_SECS = 4.0
STREAMS, TOKENS = 8, 150


class Network(Protocol):
    """``to`` and ``back`` are the ways to the far host and from it."""

    far: list[str]
    """What stands before a command to run it on the far host."""

    def far_environ(self, etcd_port: int) -> dict[str, str]: ...

    async def cut(self, *, to: bool, back: bool) -> None: ...

    async def heal(self) -> None: ...


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Namespaces:
    """The far host is a namespace behind a pair of virtual interfaces. A way is cut by sending its frames to nobody's address."""

    def __init__(self) -> None:
        self._far = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        pid = str(self._far.pid)
        self.far = ["nsenter", "-t", pid, "-n"]
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{pid}/ns/net").readlink() == own:
            time.sleep(0.01)
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", pid)
        run("ip", "addr", "add", f"{NEAR}/24", "dev", "near")
        run("ip", "link", "set", "near", "up")
        for command in (["link", "set", "lo", "up"], ["addr", "add", f"{FAR}/24", "dev", "far"], ["link", "set", "far", "up"]):
            run(*self.far, "ip", *command)
        self._true = {
            "far": self._link_address([*self.far, "ip", "link", "show", "far"]),
            "near": self._link_address(["ip", "link", "show", "near"]),
        }

    def far_environ(self, etcd_port: int) -> dict[str, str]:
        return {"DYN_TCP_RPC_HOST": FAR, "ETCD_ENDPOINTS": f"http://{NEAR}:{etcd_port}"}

    async def cut(self, *, to: bool, back: bool) -> None:
        if to:
            run(*self._neighbour([], FAR, NOWHERE, "near"))
        if back:
            run(*self._neighbour(self.far, NEAR, NOWHERE, "far"))

    async def heal(self) -> None:
        run(*self._neighbour([], FAR, self._true["far"], "near"))
        run(*self._neighbour(self.far, NEAR, self._true["near"], "far"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._far.kill()
        self._far.wait()

    def _neighbour(self, where: list[str], host: str, address: str, device: str) -> list[str]:
        return [*where, "ip", "neigh", "replace", host, "lladdr", address, "dev", device, "nud", "permanent"]

    def _link_address(self, command: list[str]) -> str:
        found = re.search(r"link/ether (\S+)", run(*command))
        assert found is not None
        return found[1]


class Proxies:
    """Everything is on the loopback; what crosses between the hosts goes through proxies."""

    def __init__(self) -> None:
        self.far: list[str] = []
        self._rpc, self._etcd = CutProxy(free_port()), CutProxy()

    def far_environ(self, etcd_port: int) -> dict[str, str]:
        self._etcd.target = etcd_port
        return {
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_TCP_RPC_PORT": str(self._rpc.target),
            "DYN_TCP_RPC_ADVERTISE": f"127.0.0.1:{self._rpc.port}",
            "ETCD_ENDPOINTS": f"http://127.0.0.1:{self._etcd.port}",
        }

    async def cut(self, *, to: bool, back: bool) -> None:
        self._rpc.cut(up=to, down=back)  # dialled from the near host
        self._etcd.cut(up=back, down=to)  # from the far one

    async def heal(self) -> None:
        for proxy in (self._rpc, self._etcd):
            proxy.heal()

    async def __aenter__(self) -> Self:
        for proxy in (self._rpc, self._etcd):
            await proxy.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for proxy in (self._rpc, self._etcd):
            await proxy.close()


@contextlib.asynccontextmanager
async def process(
    folder: Path, name: str, command: list[str], environ: Mapping[str, str]
) -> AsyncIterator[asyncio.subprocess.Process]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("DYN_", "ETCD_"))}
    with (folder / f"{name}.log").open("wb") as log:
        child = await asyncio.create_subprocess_exec(*command, env={**clean, **environ}, cwd=folder, stdout=log, stderr=log)
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            await asyncio.wait_for(child.wait(), 20)
        except TimeoutError:
            child.kill()
            await child.wait()


async def get(host: str, port: int, path: str) -> tuple[int, Any]:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), json.loads(body)


async def until(condition: Callable[[], Any], seconds: float, what: str) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(OSError, IndexError):
            if await condition():
                return time.monotonic() - began
        if time.monotonic() - began > seconds:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        await asyncio.sleep(0.05)


class Scenario:
    def __init__(self, network: Network, http_port: int, far_port: int) -> None:
        self.network = network
        self.http_port = http_port
        self.far_port = far_port
        self.client = AsyncOpenAI(base_url=f"http://127.0.0.1:{http_port}/v1", api_key="none", max_retries=0, timeout=60)
        self.far_id = 0

    async def workers(self) -> set[int]:
        _, body = await get("127.0.0.1", self.http_port, "/health")
        return {instance["instance_id"] for model in body["models"].values() for instance in model["instances"]}

    async def far_status(self) -> dict[str, Any]:
        """Asked on its own host."""
        url = f"http://127.0.0.1:{self.far_port}/engine/status"
        code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
        child = await asyncio.create_subprocess_exec(*self.network.far, sys.executable, "-c", code, stdout=subprocess.PIPE)
        status: dict[str, Any] = json.loads((await child.communicate())[0])
        return status

    async def far_is_there(self) -> bool:
        return self.far_id in await self.workers()

    async def stream(self, number: int, flowing: Callable[[], None] | None = None) -> tuple[str, int]:
        """Text and its number of tokens by usage."""
        chunks = await self.client.completions.create(
            model="demo", prompt=f"prompt {number}", max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}
        )
        text, tokens, seen = "", 0, 0
        async for chunk in chunks:
            if chunk.choices:
                text += chunk.choices[0].text
                seen += 1
                if seen == 5 and flowing is not None:
                    flowing()
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
                assert chunk.usage.prompt_tokens < 20, chunk.usage
        return text, tokens

    async def streams(self) -> list[tuple[str, int]]:
        return await asyncio.gather(*(self.stream(number) for number in range(STREAMS)))

    async def short(self) -> None:
        """New requests, while something is cut: each is answered, by somebody who is there."""
        answers = await asyncio.gather(
            *(self.client.completions.create(model="demo", prompt=f"short {n}", max_tokens=3) for n in range(6))
        )
        assert [answer.usage.completion_tokens for answer in answers if answer.usage] == [3] * 6

    async def cut(self, expected: list[tuple[str, int]], *, to: bool, back: bool) -> dict[str, float]:
        flowing, missing = asyncio.Event(), STREAMS

        def one_flows() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                flowing.set()

        running = [asyncio.create_task(self.stream(number, one_flows)) for number in range(STREAMS)]
        await asyncio.wait_for(flowing.wait(), 20)
        assert (await self.far_status())["running"] > 0
        began = time.monotonic()
        await self.network.cut(to=to, back=back)
        gone = await until(self.absent, NOTICED_SECS, "the far worker is taken out")
        outcome = await asyncio.wait_for(asyncio.gather(*running), 60)
        finished = time.monotonic() - began
        assert outcome == expected, "a migrated stream differs"
        await self.short()
        await asyncio.sleep(max(0.0, CUT_SECS - (time.monotonic() - began)))  # leases lapse meanwhile
        assert not await self.far_is_there()
        await self.short()
        await self.network.heal()
        back_after = await until(self.far_is_there, BACK_SECS, "the far worker is back")
        assert (await self.far_status())["worker_id"] == self.far_id, "the far worker is another process"
        await self.pinned()
        return {"noticed": round(gone, 2), "streams done": round(finished, 2), "back": round(back_after, 2)}

    async def absent(self) -> bool:
        return not await self.far_is_there()

    async def pinned(self) -> None:
        """The far worker itself answers."""
        header = {"x-dynamo-worker-instance-id": str(self.far_id)}
        answer = await self.client.completions.create(model="demo", prompt="you", max_tokens=3, extra_headers=header)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3


async def main(options: argparse.Namespace) -> dict[str, Any]:
    folder: Path = options.folder
    (folder / "dynamo.toml").write_text(
        f"[plugins.etcd]\nlease_ttl_secs = {LEASE_SECS}\n[plugins.tcp]\n{HEARTBEAT}[engine_args]\nspeedup_ratio = 0.7\n"
    )
    http_port, far_port = free_port(), free_port()
    network: Any = Namespaces() if options.network == "namespaces" else Proxies()
    worker = [
        DYNAMO,
        "worker",
        "--engine",
        "mocker",
        "--model",
        options.model,
        "--model-name",
        "demo",
        "--discovery-backend",
        "etcd",
    ]
    frontend = [DYNAMO, "frontend", "--discovery-backend", "etcd", "--http-port", str(http_port)]
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(network)
        near_host = NEAR if options.network == "namespaces" else "127.0.0.1"
        etcd_port = free_port()
        reachable = ["--listen-client-urls", f"http://0.0.0.0:{etcd_port}"] if options.network == "namespaces" else []
        etcd = EtcdServer(options.etcd, folder / "etcd", port=etcd_port, options=reachable)
        etcd.start()
        stack.callback(etcd.stop)
        near = {
            "ETCD_ENDPOINTS": etcd.url,
            "DYN_TCP_RPC_HOST": near_host,
        }
        far = {**network.far_environ(etcd.port), "DYN_SYSTEM_PORT": str(far_port)}
        await stack.enter_async_context(process(folder, "frontend", frontend, near))
        await stack.enter_async_context(process(folder, "near", worker, near))
        await stack.enter_async_context(process(folder, "far", [*network.far, *worker], far))
        scenario = Scenario(network, http_port, far_port)
        stack.push_async_callback(scenario.client.close)

        async def both() -> bool:
            return len(await scenario.workers()) == 2

        await until(both, 60, "both workers are there")
        scenario.far_id = (await scenario.far_status())["worker_id"]
        assert await scenario.far_is_there()
        expected = await scenario.streams()
        assert all(tokens == TOKENS for _, tokens in expected)
        ways = {"to": (True, False), "back": (False, True), "both": (True, True)}
        return {way: await scenario.cut(expected, to=ways[way][0], back=ways[way][1]) for way in options.ways.split(",")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("--model", "--etcd", "--network", "--ways"):
        parser.add_argument(name, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    print(json.dumps(asyncio.run(main(parser.parse_args()))))
