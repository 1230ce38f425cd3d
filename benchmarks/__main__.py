"""``python -m benchmarks peers`` compares, ``parts`` runs the small programs, ``page`` writes the documentation's figures."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("cli_start", "plugin_hooks", "detokenize", "router_select", "request_plane", "loopback_send")
ROOT = Path(__file__).parents[1]


def parser() -> argparse.ArgumentParser:
    from benchmarks.peers.cases import CASES
    from benchmarks.peers.servers import SERVERS

    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    peers = commands.add_parser(
        "peers",
        help="measure this server and its peers in turn, with the same load and the same simulated engine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="cases:\n" + "\n".join(f"  {name:24}{case.title}" for name, case in CASES.items()),
    )
    peers.add_argument("--quick", action="store_true", help="a few cases, one round of 2 s")
    peers.add_argument("--case", action="append", choices=CASES, metavar="NAME", help="only this one; repeatable")
    peers.add_argument("--peer", action="append", choices=SERVERS, metavar="NAME", help=f"only these: {', '.join(SERVERS)}")
    peers.add_argument("--rounds", type=int, help="of each case (3)")
    peers.add_argument("--seconds", type=float, help="of each measurement (5)")
    peers.add_argument("--model", type=Path, default=ROOT / ".cache" / "demo-model", help="model folder (%(default)s)")
    peers.add_argument(
        "--peers-venv", type=Path, default=Path(os.environ.get("PEERS_VENV", ROOT / ".cache" / "peers")),
        help="the peers' virtual environment, made if it is not there ($PEERS_VENV, else %(default)s)",
    )  # fmt: skip
    peers.add_argument("--results", type=Path, default=ROOT / "build" / "benchmarks", help="folder for raw numbers (%(default)s)")
    commands.add_parser("parts", help="the small programs in turn: each measures one part of this project")
    page = commands.add_parser("page", help="write docs/performance.md's figures and plots from a result file")
    page.add_argument("results", type=Path, nargs="+", help="of several, a case of a later file replaces that of an earlier one")
    return top


def compare(options: argparse.Namespace) -> int:
    from benchmarks.peers.cases import CASES
    from benchmarks.peers.environment import prepare
    from benchmarks.peers.report import report
    from benchmarks.peers.results import Results, RunInfo, command, commit, machine, versions
    from benchmarks.peers.run import Run
    from benchmarks.peers.servers import OURS, SERVERS
    from dynamo_core.testing.tiny_model import make_tiny_model

    quick: bool = options.quick
    names = options.case or [name for name, case in CASES.items() if case.quick or not quick]
    servers = [name for name in SERVERS if name in (*(options.peer or SERVERS), OURS)]
    if servers != [OURS]:
        for requirement, why in prepare(options.peers_venv).items():
            print(f"cannot install {requirement}: {why}")
    rounds, seconds = options.rounds or (1 if quick else 3), options.seconds or (2.0 if quick else 5.0)
    at, load = dt.datetime.now(dt.UTC), round(os.getloadavg()[0], 2)
    measured = commit()
    with tempfile.TemporaryDirectory() as folder:
        small = make_tiny_model(Path(folder) / "tiny", weights=False)
        model = options.model if (options.model / "tokenizer.json").exists() else small
        if model is small:
            print(f"{options.model} has no tokenizer.json: a small model stands in for it (make bench makes the real one)")
        run = Run(
            model=model, small_model=small, peers=options.peers_venv, rounds=rounds, seconds=seconds, servers=servers
        )  # fmt: skip
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            run.run([CASES[name] for name in names])
        except KeyboardInterrupt:
            print("\ninterrupted: what was measured so far follows")
    results = Results(
        runs=[
            RunInfo(
                command=command(), commit=measured, date=f"{at:%Y-%m-%d %H:%M} UTC", load=load, rounds=rounds, seconds=seconds,
                model=model.name,
            )
        ],
        machine=machine(), versions=versions(options.peers_venv), measurements=run.measurements, left_out=run.left_out,
    )  # fmt: skip
    path = options.results / f"{at:%Y%m%d-%H%M%S}.json"
    results.write(path)
    print(f"\n{report(results)}\nraw numbers: {path}\nleft out: {'; '.join(run.left_out.values()) or 'nobody'}")
    return 0 if run.measurements else 1


def _interrupt(*_: object) -> None:
    """SIGTERM ends as Ctrl-C does: servers are stopped, and what was measured is kept."""
    raise KeyboardInterrupt


def parts() -> int:
    failed = []
    for name in PARTS:
        print(f"\n=== {name} (python -m benchmarks.{name} --help)", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "")
    return 1 if failed else 0


def main() -> int:
    options = parser().parse_args()
    if options.command == "peers":
        return compare(options)
    if options.command == "parts":
        return parts()
    from benchmarks.peers.page import write

    for path in write(*options.results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
