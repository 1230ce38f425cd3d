import asyncio
from types import SimpleNamespace

import pytest

from dynamo_core.errors import ServiceUnavailable, StartupError
from dynamo_core.supervisor.admin import AdminServer, ask_admin
from dynamo_core.supervisor.status import run_status


def process(name, answer, facts=None):
    async def ask(question, data=None, *, within):
        if isinstance(answer, Exception):
            raise answer
        return {**answer, "asked": question} if question != "status" else answer

    return SimpleNamespace(
        name=name, kind=name.rpartition("-")[0], pid=7, state="ready", restarts=0, facts=facts or {}, ask=ask
    )  # fmt: skip


def frontend(name, workers, *models):
    return process(name, {"models": [{"name": m, "workers": len(workers)} for m in models], "workers": workers})


@pytest.fixture
async def admin(base):
    servers = []

    async def start(*processes):
        server = AdminServer(processes, lambda: run_status(processes, pid=1, url="http://x", started=0.0))
        await server.start(base / "admin.sock")
        servers.append(server)
        return str(base / "admin.sock")

    yield start
    for server in servers:
        await server.close()


async def test_status_is_put_together_from_all_processes(admin):
    load = {"running": 2, "waiting": 1}
    path = await admin(
        frontend("frontend-0", [{"id": 1, "model": "m", "load": load, "inflight": 2}, {"id": 9, "model": "m"}], "m"),
        frontend("frontend-1", [{"id": 1, "model": "m", "load": load, "inflight": 3}], "m", "other"),
        process("worker-0", {"id": 1, "model": "m"}, {"id": 1, "model": "m"}),
        process("worker-1", ServiceUnavailable("gone")),
    )
    status = await ask_admin(path, "status")
    assert [p["name"] for p in status["processes"]] == ["frontend-0", "frontend-1", "worker-0", "worker-1"]
    assert [(m["name"], m["workers"]) for m in status["models"]] == [("m", 2), ("other", 1)]
    own, foreign = status["workers"]
    assert (own["name"], own["pid"], own["inflight"], own["load"]["running"]) == ("worker-0", 7, 5, 2)
    assert (foreign["name"], foreign["id"], foreign["load"]["running"]) == (None, 9, 0)


async def test_a_question_is_fanned_out_to_all_frontends(admin):
    path = await admin(
        process("frontend-0", {"n": 0}), process("frontend-1", ServiceUnavailable("busy")), process("worker-0", {"n": 2})
    )
    found = await ask_admin(path, "fan_out", {"name": "reload"})
    assert found == {"answers": {"frontend-0": {"n": 0, "asked": "reload"}}, "errors": {"frontend-1": "busy"}}


async def test_an_unknown_question_and_a_dead_address_are_refused(admin, base):
    path = await admin()
    with pytest.raises(StartupError, match="does not know 'dance'"):
        await ask_admin(path, "dance")
    with pytest.raises(StartupError, match="is gone"):
        await ask_admin(str(base / "nobody.sock"), "status")


async def test_closing_ends_open_conversations(admin, base):
    path = await admin()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"name":"status","id":1}\n')
    await reader.readline()
    server_side = asyncio.all_tasks() - {asyncio.current_task()}
    assert server_side
    writer.close()
    await asyncio.wait(server_side, timeout=5)
