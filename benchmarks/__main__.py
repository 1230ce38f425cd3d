"""Every benchmark in turn: `make bench`. Each is a program of its own and takes options there."""

import subprocess
import sys

PROGRAMS = ("cli_start", "plugin_hooks", "detokenize", "router_select", "request_plane", "frontend_cost")

failed = []
for name in PROGRAMS:
    print(f"\n=== {name} (python -m benchmarks.{name} --help)", flush=True)
    if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
        failed.append(name)
if failed:
    sys.exit(f"failed: {', '.join(failed)}")
