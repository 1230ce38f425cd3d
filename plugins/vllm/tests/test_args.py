"""Engine arguments, environment and addresses, without vLLM."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo_core.contracts import EngineContext
from dynamo_core.errors import ConfigError
from dynamo_vllm.args import changed_environment, engine_arguments, environment, event_addresses, one_sentence, run_folder
from dynamo_vllm.guard import BACKGROUND, WORKER_PID


@dataclasses.dataclass
class KnownArgs:
    """Stands for vLLM's ``AsyncEngineArgs``."""

    model: str = ""
    served_model_name: str = ""
    max_model_len: int | None = None
    block_size: int | None = None
    enforce_eager: bool = False
    dtype: str = "auto"
    kv_events_config: Any = None


def context(run_dir: Path | str = "", cores: tuple[int, ...] = (), **args: Any) -> EngineContext:
    return EngineContext(model_path="/m", model_name="m", worker_id=1, args=args, run_dir=str(run_dir), cpu_cores=cores)


def test_an_unknown_argument_is_one_sentence_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"^vLLM has no engine argument 'max_model_length'; did you mean max_model_len\?$"):
        engine_arguments(KnownArgs, context(max_model_length=5), None, cpu=True)


@pytest.mark.parametrize("name", ["model", "served-model-name"])
def test_arguments_that_have_a_flag_of_ours_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--model"):
        engine_arguments(KnownArgs, context(**{name: "x"}), None, cpu=True)


def test_hyphens_are_as_good_as_underscores() -> None:
    assert engine_arguments(KnownArgs, context(**{"max-model-len": 5}), None, cpu=False)["max_model_len"] == 5


def test_the_operators_limit_of_the_context_is_vllms_unless_an_argument_says_otherwise() -> None:
    limited = msgspec.structs.replace(context(), context_length=512)
    assert engine_arguments(KnownArgs, limited, None, cpu=False)["max_model_len"] == 512
    both = msgspec.structs.replace(context(max_model_len=5), context_length=512)
    assert engine_arguments(KnownArgs, both, None, cpu=False)["max_model_len"] == 5
    assert "max_model_len" not in engine_arguments(KnownArgs, context(), None, cpu=False)


def test_vllms_processes_are_spawned_as_by_its_own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_WORKER_MULTIPROC_METHOD", raising=False)
    assert environment(context(), {}, cpu=False)["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_a_cpu_runs_eagerly_with_blocks_of_32_unless_told_otherwise() -> None:
    assert {"enforce_eager": True, "block_size": 32}.items() <= engine_arguments(KnownArgs, context(), None, cpu=True).items()
    assert engine_arguments(KnownArgs, context(block_size=64), None, cpu=True)["block_size"] == 64
    assert "block_size" not in engine_arguments(KnownArgs, context(), None, cpu=False)


def test_a_block_size_that_a_cpu_cannot_do_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 32, and block_size is 16"):
        engine_arguments(KnownArgs, context(block_size=16), None, cpu=True)
    assert engine_arguments(KnownArgs, context(block_size=16), None, cpu=False)["block_size"] == 16


def test_events_are_published_on_sockets_that_vllm_binds(tmp_path: Path) -> None:
    addresses = event_addresses(context(tmp_path), run_folder(context(tmp_path)))
    assert addresses is not None
    assert addresses.events == f"ipc://{tmp_path}/kv.sock"
    config = engine_arguments(KnownArgs, context(tmp_path), addresses, cpu=True)["kv_events_config"]
    assert config["enable_kv_cache_events"] is True
    assert (config["endpoint"], config["replay_endpoint"]) == (addresses.events, addresses.replay)


def test_a_long_run_folder_gets_a_short_socket_elsewhere(tmp_path: Path) -> None:
    folder = run_folder(context(tmp_path / ("x" * 120)))
    assert len(str(folder)) < 80
    folder.rmdir()


@pytest.mark.parametrize(
    "args", [{"enable_prefix_caching": False}, {"data_parallel_size": 2}, {"kv_events_config": {"enable_kv_cache_events": False}}]
)
def test_where_events_cannot_be_had_none_are_asked_for(tmp_path: Path, args: dict[str, Any]) -> None:
    assert event_addresses(context(tmp_path, **args), tmp_path) is None


def test_on_a_cpu_the_kv_space_is_always_set_and_cores_are_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    found = environment(context(cores=(2, 3)), {"tensor_parallel_size": 1}, cpu=True)
    assert 1 <= int(found["VLLM_CPU_KVCACHE_SPACE"]) <= 32
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == "2,3"
    assert found[WORKER_PID] == str(os.getpid())
    assert found[BACKGROUND] == "1"
    ranks = environment(context(cores=(0, 1, 2, 3)), {"tensor_parallel_size": 2}, cpu=True)
    assert ranks["VLLM_CPU_OMP_THREADS_BIND"] == "0,1|2,3"
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(context(), {"kv_cache_memory_bytes": 1 << 30}, cpu=True)
    assert not {"VLLM_CPU_KVCACHE_SPACE", BACKGROUND} & environment(context(), {}, cpu=False).keys()


def test_the_users_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment(context(), {}, cpu=True)


def test_an_allow_list_of_vllms_plugins_gets_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "mine")
    assert environment(context(), {}, cpu=True)["VLLM_PLUGINS"] == "mine,dynamo-guard"


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_ONE", "1")
    with changed_environment({"A_ONE": "2", "A_TWO": "2"}):
        assert (os.environ["A_ONE"], os.environ["A_TWO"]) == ("2", "2")
    assert os.environ["A_ONE"] == "1"
    assert "A_TWO" not in os.environ


def test_a_multi_line_exception_becomes_its_first_line() -> None:
    assert one_sentence(ValueError("\nno room\n  for more\n")) == "no room"
    assert one_sentence(RuntimeError()) == "RuntimeError"
