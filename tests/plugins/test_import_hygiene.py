import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

OURS = {"dynamo-core", "dynamo-kv-router", "dynamo-mocker", "dynamo-vllm"}
PROGRAM = """
import importlib, json, os, sys, threading
from dynamo_core.plugins import activate

def sockets():
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
    return sum("socket:" in link or "eventpoll" in link for link in links)

before = sockets()
importlib.import_module(sys.argv[1])
heavy = {"torch", "vllm", "sglang", "tensorrt_llm", "grpc", "transformers"} & set(sys.modules)
print(json.dumps([sorted(heavy), threading.active_count(), sockets() - before]))
"""


@pytest.mark.parametrize(
    "module", sorted(point.module for point in entry_points(group="dynamo.plugins") if point.dist and point.dist.name in OURS)
)
def test_importing_a_built_in_plugin_imports_no_engine_starts_no_thread_and_opens_no_socket(module: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, module], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], 1, 0]
