"""From ``--engine-arg KEY=VALUE`` to vLLM's engine arguments, its environment and its KV-event addresses."""

from __future__ import annotations

import dataclasses
import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from dynamo_core.contracts import EngineContext
from dynamo_core.errors import ConfigError, StartupError
from dynamo_vllm.guard import BACKGROUND, OUTPUT, WORKER_PID

__all__ = ["Addresses", "changed_environment", "engine_arguments", "environment", "event_addresses", "one_sentence", "run_folder"]

_GIB = 1 << 30
_IPC_LIMIT = 100
"""A Unix socket's path has at most 107 bytes; ZMQ wants a few for itself."""
_OURS = {"model": "--model", "served_model_name": "--model-name"}


class Addresses(msgspec.Struct, frozen=True):
    """Where vLLM publishes KV events and answers requests for earlier ones."""

    events: str
    replay: str


def engine_arguments(known: Any, context: EngineContext, addresses: Addresses | None, *, cpu: bool) -> dict[str, Any]:
    """Keyword arguments for ``known``, vLLM's dataclass ``AsyncEngineArgs``.

    The user's win over our defaults. Raises :class:`~dynamo_core.errors.ConfigError` for names that vLLM lacks.
    """
    given = _checked_names(context.args, {field.name for field in dataclasses.fields(known)})
    arguments: dict[str, Any] = {
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "scheduling_policy": "priority",  # equal priorities are served in order of arrival
        # The frontend has the tokenizer. Loading it here, too, costs 13 s and 1.2 GB with a vocabulary of 262,000; only
        # structured output needs it.
        "skip_tokenizer_init": True,
        "use_tqdm_on_load": False,
    }
    if context.context_length:
        arguments["max_model_len"] = context.context_length
    if cpu:
        arguments |= {"enforce_eager": True, "block_size": 32}
    arguments |= given
    size = arguments.get("block_size")
    if cpu and isinstance(size, int) and size % 32:
        raise ConfigError(f"vLLM's CPU build needs a block size that is a multiple of 32, and block_size is {size}.")
    arguments |= {"model": context.model_path, "served_model_name": context.model_name}
    arguments["kv_events_config"] = _kv_events(arguments, addresses)
    return arguments


def _checked_names(args: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    given = {key.replace("-", "_"): value for key, value in args.items()}
    for name in given:
        if name in _OURS:
            raise ConfigError(f"Engine argument {name} is set by {_OURS[name]}; use that instead.")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else "see vLLM's engine arguments."
            raise ConfigError(f"vLLM has no engine argument {name!r}; {hint}")
    return given


def _kv_events(arguments: Mapping[str, Any], addresses: Addresses | None) -> dict[str, Any] | None:
    if addresses is None:
        return None
    given = arguments.get("kv_events_config") or {}
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        **given,
        "endpoint": addresses.events,
        "replay_endpoint": addresses.replay,
    }


def event_addresses(context: EngineContext, folder: Path) -> Addresses | None:
    """Unix sockets that only this user can reach; ``None`` where KV events cannot be had.

    vLLM binds an address with ``*``, ``::`` or ``ipc://`` and connects to any other, on which no event would ever arrive.
    """
    args = {key.replace("-", "_"): value for key, value in context.args.items()}
    given = args.get("kv_events_config")
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError('Engine argument kv_events_config must be a table, as in kv_events_config={"buffer_steps": 1000}.')
    if given is not None and not given.get("enable_kv_cache_events", True):
        return None
    if args.get("enable_prefix_caching") is False:
        return None
    if int(args.get("data_parallel_size") or 1) > 1:
        return None  # vLLM derives a rank's address from a TCP port and refuses any other
    return Addresses(f"ipc://{folder}/kv.sock", f"ipc://{folder}/kv-replay.sock")


def run_folder(context: EngineContext) -> Path:
    """For sockets and pipes: the worker's own folder, or a temporary one where that has too long a path for a socket."""
    folder = context.run_dir
    if folder and len(folder.encode()) + len("/kv-replay.sock") <= _IPC_LIMIT:
        return Path(folder)
    return Path(tempfile.mkdtemp(prefix="dynamo-vllm-"))


def environment(
    context: EngineContext, arguments: Mapping[str, Any], *, cpu: bool, output: Path | None = None, verbose: bool = False
) -> dict[str, str]:
    """What vLLM's processes need in their environment. Variables that are set already win, except the worker's own."""
    # A fork would copy our threads' locks and keep our connections open after we were killed; vLLM's own server spawns, too.
    wanted = {"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
    if not verbose:
        wanted |= {"VLLM_LOGGING_LEVEL": "ERROR", "TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore"}
    if cpu:
        wanted[BACKGROUND] = "1"
        if arguments.get("kv_cache_memory_bytes") is None:
            # Unset, vLLM takes a share of all memory and may refuse to start.
            wanted["VLLM_CPU_KVCACHE_SPACE"] = str(_kv_space())
        if arguments.get("enforce_eager"):
            # vLLM compiles its log-probabilities and its sampler even when eager: the first such request took 27 s, and needs
            # a C++ compiler.
            wanted["TORCH_COMPILE_DISABLE"] = "1"
        if context.cpu_cores:
            wanted["VLLM_CPU_OMP_THREADS_BIND"] = _bind(context.cpu_cores, int(arguments.get("tensor_parallel_size") or 1))
    wanted = {name: value for name, value in wanted.items() if not os.environ.get(name)}
    ours = {WORKER_PID: str(os.getpid()), OUTPUT: "" if output is None else str(output)}
    return {**wanted, **ours, **_plugins()}


def _plugins() -> dict[str, str]:
    """``VLLM_PLUGINS`` names the plugins that vLLM may load; the guard is one of them."""
    allowed = os.environ.get("VLLM_PLUGINS")
    return {} if allowed is None else {"VLLM_PLUGINS": f"{allowed},dynamo-guard".lstrip(",")}


def _kv_space() -> int:
    """GiB for the KV cache: a sixteenth of what is free, 1 to 32. It is all touched at the start."""
    pages, size = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    available = pages * size
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return max(1, min(32, available // _GIB // 16))


def _bind(cores: tuple[int, ...], ranks: int) -> str:
    """vLLM's notation: cores by commas, tensor-parallel ranks by bars."""
    share = max(1, len(cores) // ranks)
    groups = [cores[rank * share : (rank + 1) * share] or cores[-1:] for rank in range(ranks)]
    return "|".join(",".join(map(str, group)) for group in groups)


@contextmanager
def changed_environment(changes: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` with ``changes`` until the end of the block, then as it was where we changed it."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def one_sentence(error: BaseException) -> str:
    """What an exception of vLLM's says, without the frames that pydantic and vLLM put around it."""
    if isinstance(error, StartupError):
        return error.message
    details: Any = getattr(error, "errors", None)
    if details is not None:
        try:
            return _pydantic(next(iter(details())))  # of a union, one complaint a member follows
        except (TypeError, KeyError, StopIteration):
            pass
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return text or type(error).__name__


def _pydantic(detail: Mapping[str, Any]) -> str:
    place = next(iter(detail.get("loc", ())), "")
    message = str(detail["msg"]).removeprefix("Value error, ").strip()
    return f"{place}: {message}" if place else message
