"""A child that does what ``$SCRIPT/<name>.json`` says, life by life; the last entry counts for all later lives."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec

from dynamo_core.supervisor.control import SupervisedControl
from dynamo_core.supervisor.lifeline import tie
from dynamo_core.supervisor.order import Order
from dynamo_core.supervisor.status import FrontendReport, ModelStatus, WorkerReport, WorkerStatus

SCRIPT = Path(os.environ["SCRIPT"])


def workers_up() -> list[int]:
    return [int(path.stem) for path in SCRIPT.glob("*.up")]


def frontend_report(broken: dict[str, str]) -> FrontendReport:
    ids = workers_up()
    return FrontendReport(
        models=(ModelStatus(name="scripted", workers=len(ids)),),
        workers=() if broken else tuple(WorkerStatus(id=up, model="scripted", inflight=1) for up in ids),
        broken=broken,
    )


async def main(order: Order, behaviour: dict, control: SupervisedControl) -> int:
    await control.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    control.stage("pretending")
    print(f"life of {order.name} cores {order.cpu_cores}", flush=True)
    try:
        if "refuse" in behaviour:
            control.failed(behaviour["refuse"], explained=False)
            return 2
        if "crash" in behaviour:
            print(behaviour["crash"], file=sys.stderr, flush=True)
            return 3
        if "loading" in behaviour:
            await stop.wait()
            return 0
        if "offspring" in behaviour:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # noqa: ASYNC220
            (SCRIPT / "offspring.pid").write_text(str(child.pid))
        if order.kind == "worker":
            number = int(order.name.rpartition("-")[2]) + 1
            (SCRIPT / f"{number}.up").touch()
            facts = WorkerReport(id=number, model="scripted")
            control.ready(facts, lambda: facts)
        else:
            control.ready(FrontendReport(), lambda: frontend_report(behaviour.get("broken", {})))
        (SCRIPT / f"{order.name}.ready").touch()
        await stop.wait()
        if "stubborn" in behaviour:
            await asyncio.Event().wait()
        print(f"{order.name} drained", flush=True)
        return 0
    finally:
        await control.close()


if __name__ == "__main__":
    order_path, *rest = sys.argv[1:]
    options = dict(option.split("=", 1) for option in rest)
    tie(int(options["--lifeline"]))
    order = msgspec.json.decode(Path(order_path).read_bytes(), type=Order)
    lives = SCRIPT / f"{order.name}.lives"
    life = len(lives.read_text().split()) if lives.exists() else 0
    with lives.open("a") as file:
        file.write(f"{os.getpid()}\n")
    plan = SCRIPT / f"{order.name}.json"
    behaviours = json.loads(plan.read_text()) if plan.exists() else [{}]
    sys.exit(asyncio.run(main(order, behaviours[min(life, len(behaviours) - 1)], SupervisedControl(int(options["--control"])))))
