"""Processes that were started by hand on two hosts, and the network between them cut in either direction, and in both.

Where the machine allows it the hosts are network namespaces, else the network is a proxy that stops forwarding.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_core.testing.provision import required_module, required_server

required_module("dynamo_etcd")
required_module("dynamo_mocker")

SCENARIO = str(Path(__file__).with_name("two_hosts.py"))


def namespaces_allowed() -> bool:
    """Of a user, in a namespace of its own: a nested one, a pair of virtual interfaces, and a false neighbour."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return False
    attempt = (
        "ip link add near type veth peer name far && ip link set near up && "
        "ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:99 dev near nud permanent"
    )
    done = subprocess.run(["unshare", "-rn", "unshare", "-n", "sh", "-c", attempt], capture_output=True, check=False)
    return done.returncode == 0


def scenario(folder: Path, model: Path, network: str, ways: str) -> dict[str, dict[str, float]]:
    command = [sys.executable, SCENARIO, "--model", str(model), "--etcd", required_server("etcd"), "--folder", str(folder)]
    command += ["--network", network, "--ways", ways]
    if network == "namespaces":
        command = ["unshare", "-rn", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    logs = "".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in folder.glob("*.log"))
    assert done.returncode == 0, f"{done.stderr}\n{logs}"
    seen: dict[str, dict[str, float]] = json.loads(done.stdout)
    return seen


@pytest.mark.slow
def test_a_cut_network_between_two_hosts_costs_no_request_and_heals(tmp_path: Path, tiny_model: Path) -> None:
    if not namespaces_allowed():
        pytest.skip("network namespaces are forbidden here; the proxies stand in for them")
    assert set(scenario(tmp_path, tiny_model, "namespaces", "to,back")) == {"to", "back"}


@pytest.mark.slow
def test_a_cut_network_that_proxies_play_costs_no_request_and_heals(tmp_path: Path, tiny_model: Path) -> None:
    ways = "both" if namespaces_allowed() else "to,back,both"
    assert set(scenario(tmp_path, tiny_model, "proxies", ways)) == set(ways.split(","))
