"""Cost of an active request hook above its own work, and of listing 50 installed plugins as a process.

    python benchmarks/plugin_hooks.py

Each figure is the best of seven rounds; the baseline of a hook is the bare function, of the listing an empty interpreter.
"""

import os
import platform
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pluggy

import dynamo_core
from dynamo_core.contracts import OutputStream
from dynamo_core.contracts.gate import HttpRequestInfo, Principal, RequestSummary
from dynamo_core.plugins import activate

CALLS = 200_000
ROUNDS = 7
PLUGIN = """
from dynamo_core import hookimpl
from dynamo_core.contracts import Principal
from dynamo_core.specs import OutputFilterSpec

ANN = Principal(id="ann")

@hookimpl
def dynamo_authenticate(request):
    return ANN

@hookimpl
def dynamo_rate_limit(request, principal, config):
    return None

@hookimpl
def dynamo_prepare(request):
    return None

@hookimpl
def dynamo_request_finished(summary):
    return None

class Same:
    def push(self, text): return text
    def finish(self): return ""

@hookimpl
def dynamo_output_filters():
    yield OutputFilterSpec(name="bench", factory=lambda config: lambda stream: Same())
"""


def microseconds(function: Callable[..., Any], *arguments: Any) -> float:
    return min(_rounds(function, arguments)) / CALLS * 1e6


def _rounds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[float]:
    names = {f"a{number}": argument for number, argument in enumerate(arguments)}
    timer = timeit.Timer(f"function({', '.join(names)})", globals={"function": function, **names})
    return timer.repeat(ROUNDS, CALLS)


def install(folder: Path, name: str, code: str) -> None:
    (folder / f"bench_{name}.py").write_text(code)
    info = folder / f"bench_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bench-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dynamo.plugins]\nbench-{name} = bench_{name}\n")


def hooks(folder: Path) -> None:
    install(folder, "hooks", PLUGIN)
    compiled = activate(["bench-hooks"])
    module = sys.modules["bench_hooks"]
    request = HttpRequestInfo(id="r", method="POST", path="/", headers={}, client="")
    summary = RequestSummary(id="r", model="m", endpoint="chat", principal=None, status=200, outcome="completed")
    principal = Principal(id="ann")
    assert compiled.output_filter is not None
    stream = OutputStream(request_id="r", model="m", endpoint="chat", headers={}, principal=None, index=0)
    opened = compiled.output_filter(stream)
    assert opened is not None
    rows = (
        ("authenticate", compiled.authenticate, module.dynamo_authenticate, (request,), (request,)),
        ("rate_limit", compiled.rate_limit, module.dynamo_rate_limit, (request, principal), (request, principal, None)),
        ("prepare", compiled.prepare, module.dynamo_prepare, (request,), (request,)),
        ("filter a push", opened.push, module.Same().push, ("token",), ("token",)),
        ("finished", compiled.finished, module.dynamo_request_finished, (summary,), (summary,)),
    )
    print(f"{'hook':14} {'bare µs':>8} {'compiled µs':>12} {'overhead µs':>12}")
    for name, function, bare, arguments, bare_arguments in rows:
        assert function is not None
        base, full = microseconds(bare, *bare_arguments), microseconds(function, *arguments)
        print(f"{name:14} {base:8.3f} {full:12.3f} {full - base:12.3f}")


def listing(folder: Path) -> None:
    for number in range(50):
        install(folder, str(number), "raise RuntimeError('imported')\n")
    program = "from dynamo_core.plugins import installed_plugins; assert len(installed_plugins()) >= 50"

    def milliseconds(code: str) -> float:
        command = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": str(folder)}
        timer = timeit.Timer(lambda: subprocess.run(command, check=True, env=environment))
        return min(timer.repeat(ROUNDS, 1)) * 1e3

    empty, full = milliseconds("pass"), milliseconds(program)
    print(f"listing 50 plugins: {full:.0f} ms, empty interpreter: {empty:.0f} ms, ratio {full / empty:.1f}")


def main() -> None:
    versions = f"python {platform.python_version()}, pluggy {pluggy.__version__}, dynamo-core {dynamo_core.__version__}"
    print(f"{versions}, {platform.machine()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sys.path.insert(0, name)
        hooks(folder)
        listing(folder)


if __name__ == "__main__":
    main()
