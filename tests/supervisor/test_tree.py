"""The tree as a whole: a real supervisor process whose children follow a script."""

import json
import os
import signal
import sys

import pytest


async def status(run, *flags):
    import asyncio

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from dynamo_core.cli import main; main()", "status", "--json", *flags),
        env=run.environ, cwd=run.base, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err
    return json.loads(out)


async def test_serve_prints_its_plugins_then_the_address_and_a_line_to_try_once_all_are_ready(run):
    await run.start("--workers", "2", "--frontends", "2")
    ready = await run.ready()
    assert "2 workers" in ready
    assert {path.name for path in run.script.glob("*.ready")} == {
        "worker-0.ready", "worker-1.ready", "frontend-0.ready", "frontend-1.ready",
    }  # fmt: skip
    assert run.lines.index(await run.line("plugins: file, tcp, request-plane, echo")) < run.lines.index(ready)
    assert "curl http://127.0.0.1:" in await run.line("curl ")
    assert await run.line("! [worker-1] life of worker-1")
    run.process.send_signal(signal.SIGINT)
    assert await run.over() == 0


async def test_sigterm_ends_frontends_before_workers_and_leaves_nothing_behind(run, is_alive):
    await run.start("--workers", "2")
    await run.ready()
    pids = [*run.pids("worker-0"), *run.pids("worker-1"), *run.pids("frontend-0")]
    run.process.terminate()
    assert await run.over() == 0
    ends = [line for line in run.errors if line.endswith("drained")]
    assert ends[0] == "[frontend-0] frontend-0 drained"
    assert len(ends) == 3
    assert not any(is_alive(pid) for pid in pids)
    assert list(run.run_dir.iterdir()) == []


async def test_a_killed_worker_is_started_again_and_the_others_stay(run):
    await run.start("--workers", "2")
    await run.ready()
    os.kill(run.pids("worker-0")[0], signal.SIGKILL)
    await run.line("worker-0 was ended by SIGKILL; starts again in 0.5 s")
    await run.until(lambda: len(run.pids("worker-0")) == 2)
    assert len(run.pids("worker-1")) == 1
    assert len(run.pids("frontend-0")) == 1
    run.process.terminate()
    assert await run.over() == 0


async def test_the_offspring_of_a_killed_worker_goes_with_it(run, is_alive):
    run.behave("worker-0", {"offspring": True}, {})
    await run.start()
    await run.ready()
    offspring = int((run.script / "offspring.pid").read_text())
    assert is_alive(offspring)
    os.kill(run.pids("worker-0")[0], signal.SIGKILL)
    await run.until(lambda: not is_alive(offspring))
    run.process.terminate()
    assert await run.over() == 0


async def test_nobody_survives_a_supervisor_that_is_killed(run, is_alive):
    run.behave("worker-0", {"offspring": True})
    await run.start("--workers", "2")
    await run.ready()
    pids = [
        *run.pids("worker-0"),
        *run.pids("worker-1"),
        *run.pids("frontend-0"),
        int((run.script / "offspring.pid").read_text()),
    ]
    assert all(is_alive(pid) for pid in pids)
    run.process.kill()
    await run.process.wait()
    await run.until(lambda: not any(is_alive(pid) for pid in pids))


async def test_a_second_interrupt_ends_a_stubborn_worker_at_once(run, is_alive):
    run.behave("worker-0", {"stubborn": True})
    await run.start()
    await run.ready()
    pid = run.pids("worker-0")[0]
    run.process.send_signal(signal.SIGINT)
    await run.line("Ctrl-C again ends at once")
    await run.line("frontend-0 drained")
    run.process.send_signal(signal.SIGINT)
    assert await run.over() == 130
    assert not is_alive(pid)


async def test_a_worker_that_does_not_end_within_the_grace_time_is_killed(run):
    run.behave("worker-0", {"stubborn": True})
    (run.base / "dynamo.toml").write_text("graceful_shutdown_secs = 0.0\n")
    await run.start()
    await run.ready()
    run.process.terminate()
    assert await run.over() == 0
    assert await run.line("worker-0 did not end within 5 s; killed")


async def test_an_interrupt_while_a_model_loads_ends_with_0(run):
    run.behave("worker-0", {"loading": True})
    await run.start()
    await run.line("worker-0: pretending")
    run.process.send_signal(signal.SIGINT)
    assert await run.over() == 0
    assert not any("ready: http" in line for line in run.lines)


async def test_a_worker_that_crashes_before_it_is_ready_ends_serve_with_its_last_lines(run):
    run.behave("worker-0", {"crash": "the engine says no"})
    await run.start("--workers", "2")
    assert await run.over() == 2
    assert len(run.pids("worker-0")) == 2
    assert "  | the engine says no" in run.errors
    assert run.errors[-1] == "worker-0 ended with exit code 3 before it was ready, 2 times in a row: see its last lines."
    assert not any("Traceback" in line for line in run.errors)


async def test_one_failed_start_is_forgiven(run):
    run.behave("worker-0", {"crash": "once"}, {})
    await run.start()
    await run.ready()
    run.process.terminate()
    assert await run.over() == 0


async def test_a_start_up_error_of_a_child_ends_serve_with_its_sentence(run):
    run.behave("worker-0", {"refuse": "Engine echo needs a rest: let it sleep."})
    await run.start()
    assert await run.over() == 2
    assert run.errors[-1] == "Engine echo needs a rest: let it sleep."
    assert len(run.pids("worker-0")) == 1


async def test_a_model_that_a_frontend_cannot_serve_ends_serve_with_its_sentence(run):
    run.behave("frontend-0", {"broken": {"scripted": "plugin 'p' cannot make its router."}})
    await run.start()
    assert await run.over() == 2
    assert run.errors[-1] == "model scripted cannot be served: plugin 'p' cannot make its router."


async def test_status_names_processes_models_and_workers(run):
    await run.start("--workers", "2")
    await run.ready()
    shown = await status(run)
    assert [(p["name"], p["kind"], p["pid"]) for p in shown["processes"]] == [
        (name, name.rpartition("-")[0], run.pids(name)[0]) for name in ("worker-0", "worker-1", "frontend-0")
    ]
    assert [model["name"] for model in shown["models"]] == ["scripted"]
    assert [(w["name"], w["pid"], w["inflight"], w["load"]["running"]) for w in shown["workers"]] == [
        ("worker-0", run.pids("worker-0")[0], 1, 0),
        ("worker-1", run.pids("worker-1")[0], 1, 0),
    ]
    run.process.terminate()
    assert await run.over() == 0


async def test_the_run_folder_is_private_and_has_its_own_discovery_folder(run):
    await run.start()
    await run.ready()
    (folder,) = run.run_dir.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    order = json.loads((folder / "worker-0.json").read_text())
    assert order["settings"]["file_kv"] == str(folder / "kv")
    assert order["settings"]["run_dir"] == str(folder)
    assert (folder / "worker-0.json").stat().st_mode & 0o777 == 0o600
    run.process.terminate()
    assert await run.over() == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_get_cores_of_their_own(run, workers):
    await run.start("--workers", str(workers))
    await run.ready()
    (folder,) = run.run_dir.iterdir()
    cores = [json.loads((folder / f"worker-{index}.json").read_text())["cpu_cores"] for index in range(workers)]
    if len(os.sched_getaffinity(0)) >= workers:
        assert sorted(core for own in cores for core in own) == sorted(os.sched_getaffinity(0))
    run.process.terminate()
    assert await run.over() == 0
