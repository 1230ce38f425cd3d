"""What runs inside a worker or frontend process, started by ``dynamo serve`` or by hand."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from dynamo_core.errors import StartupError
from dynamo_core.runtime.logging import gather_lines
from dynamo_core.runtime.signals import on_hangup, stop_on_signal
from dynamo_core.supervisor.admin import ADMIN_SOCKET, ask_admin
from dynamo_core.supervisor.control import Control, ForegroundControl, SupervisedControl
from dynamo_core.supervisor.order import Order
from dynamo_core.supervisor.port import listening_socket, reserve_port
from dynamo_core.supervisor.preflight import activate_for, check_model
from dynamo_core.supervisor.reload import FrontendReload, configure_logs_as, order_settings
from dynamo_core.supervisor.status import FrontendReport, ModelStatus, WorkerLoad, WorkerReport, WorkerStatus

if TYPE_CHECKING:
    from dynamo_core.http.frontend import Frontend
    from dynamo_core.runtime import DistributedRuntime
    from dynamo_core.serving.manager import ModelManager
    from dynamo_core.serving.worker import EngineWorker

__all__ = ["run_in_foreground", "run_order"]

_log = logging.getLogger(__name__)


def run_order(order_path: str, control_fd: int) -> int:
    """A supervised process, from its order to its exit code."""
    order = msgspec.json.decode(Path(order_path).read_bytes(), type=Order)
    configure_logs_as(order, supervised=True)

    async def run() -> int:
        control = SupervisedControl(control_fd)
        await control.start()
        try:
            return await _run(order, control, supervised=True)
        except StartupError as error:
            _log.debug("cannot start", exc_info=error)  # the supervisor tells the user
            control.failed(error.message, explained=error.__cause__ is not None)
            return 2
        finally:
            await control.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def run_in_foreground(order: Order) -> int:
    """A process of its own, in the user's terminal. Raises :class:`StartupError`."""
    configure_logs_as(order, supervised=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(order, ForegroundControl(order.name), supervised=False))


async def _run(order: Order, control: Control, *, supervised: bool) -> int:
    from dynamo_core.runtime.process import tell_ignored

    tell_ignored(order.settings)
    if order.kind == "worker":
        return await _run_worker(order, control)
    return await _run_frontend(order, control, supervised=supervised)


# --- worker ------------------------------------------------------------------------------------------------------------------


async def _run_worker(order: Order, control: Control) -> int:
    from dynamo_core.runtime.garbage import spare_the_long_lived
    from dynamo_core.runtime.process import process_runtime
    from dynamo_core.serving.worker import EngineWorker

    settings = order.settings
    stop = stop_on_signal()
    compiled = activate_for(order_settings(order), "worker")
    if settings.engine is None:
        raise StartupError("No engine was named: add --engine NAME; `dynamo plugins list` shows what is installed.")
    provider = compiled.engine(settings.engine)
    check_model(settings)
    runtime = process_runtime(settings, compiled)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(runtime.shutdown)
        await runtime.start()
        stack.push_async_callback(compiled.shutdown, "worker")
        await compiled.startup("worker")
        worker = EngineWorker(runtime, provider, settings, name=order.name, cpu_cores=order.cpu_cores, endpoint=order.endpoint)
        stack.push_async_callback(worker.stop)
        control.stage(f"starting engine {provider.spec.name}")
        if not await _start(worker, stop):
            return 0
        spare_the_long_lived()
        stack.enter_context(compiled.watchdog())
        for name, order_of in (("sleep", worker.sleep), ("wake", worker.wake)):
            control.answer(name, partial(_obeyed, order_of))
        control.ready(_worker_facts(worker, runtime), lambda: _worker_facts(worker, runtime))
        return await _until_over(worker, stop)


async def _start(worker: EngineWorker, stop: asyncio.Event) -> bool:
    """True once it serves; False when a signal came first."""
    starting = asyncio.create_task(worker.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    starting.result()
    return True


async def _until_over(worker: EngineWorker, stop: asyncio.Event) -> int:
    stopping = asyncio.create_task(stop.wait())
    over: set[asyncio.Future[Any]] = {stopping, worker.fatal}
    await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if worker.fatal.done():
        _log.error("the engine died: %s", worker.fatal.result())
        return 1
    return 0


async def _obeyed(order_of: Callable[[], Awaitable[None]]) -> dict[str, Any]:
    await order_of()
    return {}


def _worker_facts(worker: EngineWorker, runtime: DistributedRuntime) -> WorkerReport:
    return WorkerReport(id=runtime.instance_id, model=worker.card.name if worker.card else "", asleep=worker.asleep)


# --- frontend ----------------------------------------------------------------------------------------------------------------


async def _run_frontend(order: Order, control: Control, *, supervised: bool) -> int:
    from dynamo_core.http.frontend import run_frontend

    settings = order.settings
    gather_lines(asyncio.get_running_loop())
    compiled = activate_for(order_settings(order), "frontend")
    host, port = settings.http_host, settings.http_port
    if not supervised:
        reservation = reserve_port(host, port, scheme="https" if settings.tls_cert_path else "http")
        port = reservation.port
        reservation.close()
        control.stage(f"listening on {reservation.url}")
    sock = listening_socket(host, port, backlog=settings.http_backlog, shared=supervised)

    peers = None
    if supervised and settings.frontends > 1:
        admin = str(Path(settings.run_dir or "") / ADMIN_SOCKET)
        peers = partial(_summed_metrics, admin)

    with contextlib.ExitStack() as stack:

        def ready(frontend: Frontend) -> None:
            reload = FrontendReload(order, frontend, partial(configure_logs_as, supervised=supervised))
            control.answer("reload", reload)
            control.answer("metrics", partial(_own_metrics, frontend))
            stack.callback(on_hangup(reload.on_signal, lambda: signal.raise_signal(signal.SIGTERM)))
            control.ready(FrontendReport(), lambda: _frontend_report(frontend.manager))

        return await run_frontend(settings, compiled, name=order.name, sock=sock, on_ready=ready, peers=peers)


async def _own_metrics(frontend: Frontend) -> dict[str, Any]:
    return {"text": frontend.metrics_text()}


async def _summed_metrics(admin: str) -> str:
    text: str = (await ask_admin(admin, "metrics"))["text"]
    return text


def _frontend_report(manager: ModelManager) -> FrontendReport:
    models = manager.models()
    return FrontendReport(
        broken=dict(manager.broken),
        models=tuple(
            ModelStatus(
                name=model.name,
                engine=next((view.card.engine for view in model.workers.values()), model.card.engine),
                workers=len(model.workers),
            )
            for model in models
        ),
        workers=tuple(
            WorkerStatus(id=view.id, model=model.name, load=WorkerLoad.of(view.load), inflight=view.inflight)
            for model in models
            for view in model.workers.values()
        ),
    )
