"""Deployment files hold what their readers take: schemas, command lines, variables, settings, probes and names that match."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from dynamo_core.cli.group import root
from dynamo_core.config import active_plugin_names, resolve, settings_fields
from dynamo_core.errors import StartupError
from dynamo_core.plugins import activate
from dynamo_core.testing.provision import required_module

yaml = required_module("yaml")

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "contrib" / "deploy"
MANIFESTS = sorted(path for path in (DEPLOY / "kubernetes").glob("*.yaml") if path.name != "kustomization.yaml")
UNITS = sorted(path for path in (DEPLOY / "systemd").iterdir() if path.suffix in {".service", ".target"})


@pytest.fixture(scope="module")
def known_variables() -> set[str]:
    """What the settings, and the sources of planes and plugins, read."""
    found = {name for field in settings_fields().values() for name in field.env}
    for path in (*(ROOT / "dynamo_core").rglob("*.py"), *(ROOT / "plugins").glob("*/src/**/*.py")):
        found |= set(re.findall(r'"((?:DYN|ETCD|NATS)_[A-Z0-9_]+)"', path.read_text()))
    return found


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for number, resource in enumerate(yaml.safe_load_all(path.read_text())):
            yield f"{path.name}[{number}]", resource


OBJECTS = dict(objects())


def containers(resource: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = resource.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])
    return found


DYNAMOS = {name: one for name, resource in OBJECTS.items() for one in containers(resource) if one["image"] == "dynamo"}


def check_command(args: list[str], environ: Mapping[str, str], config: Path | None, known: set[str]) -> dict[str, Any]:
    """Parse, resolve and activate as the command itself does before it opens anything. Returns the settings."""
    unknown = [name for name in environ if name.startswith(("DYN_", "ETCD_", "NATS_")) and name not in known]
    assert not unknown, f"nobody reads {unknown}"
    if "--config" in args:
        assert config is not None
        args = [str(config) if args[place - 1] == "--config" else arg for place, arg in enumerate(args)]
    group = click.Context(root)
    command = root.get_command(group, args[0])
    assert command is not None
    flags = dict(command.make_context(args[0], list(args[1:]), parent=group).params)
    named, _ = flags.pop("config"), flags.pop("verbose", None)
    resolved = resolve(flags, environ=environ, file=named)
    settings, process = resolved.settings, args[0]
    tables, source = resolved.plugin_tables, resolved.file or "dynamo.toml"
    compiled = activate(active_plugin_names(settings, process=process), tables=tables, source=source)  # type: ignore[arg-type]
    assert settings.discovery_backend in compiled.discovery
    assert settings.request_plane in compiled.request_planes
    assert settings.event_plane in compiled.event_planes
    if process == "worker":
        assert settings.engine is not None
        assert settings.model is not None
        compiled.engine(settings.engine)
    elif settings.router is not None:
        compiled.router(settings.router)
    return {name: getattr(settings, name) for name in settings.__struct_fields__}


# --- Kubernetes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_manifests_fit_the_schemas_of_kubernetes(name: str) -> None:
    validate = required_module("kubernetes_validate").validate
    for version in ("1.29", "1.35"):
        validate(OBJECTS[name], version, strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    kubernetes_validate = required_module("kubernetes_validate")
    resource = next(iter(OBJECTS.values()))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**resource, "specc": {}}, "1.35", strict=True)


@pytest.fixture
def mounted_settings(tmp_path: Path) -> Path:
    (settings,) = (resource for resource in OBJECTS.values() if resource["kind"] == "ConfigMap")
    path = tmp_path / "dynamo.toml"
    path.write_text(settings["data"]["dynamo.toml"])
    return path


@pytest.mark.parametrize("name", DYNAMOS)
def test_containers_of_a_pod_run_commands_that_exist(name: str, mounted_settings: Path, known_variables: set[str]) -> None:
    container = DYNAMOS[name]
    environ = {variable["name"]: variable.get("value", "10.0.0.7") for variable in container.get("env", [])}
    environ = {key: value.replace("$(POD_IP)", environ.get("POD_IP", "")) for key, value in environ.items()}
    settings = check_command(container["args"], environ, mounted_settings, known_variables)
    assert settings["discovery_backend"] == "etcd"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listening = {settings["http_port"] if container["args"][0] == "frontend" else settings["system_port"]}
    listening |= {int(environ[key]) for key in ("DYN_TCP_RPC_PORT", "DYN_ZMQ_EVENT_PORT") if key in environ}
    assert set(ports.values()) == listening
    host = settings["http_host"] if container["args"][0] == "frontend" else settings["system_host"]
    assert host == "0.0.0.0", "probes come from outside of the pod"


@pytest.mark.parametrize("name", DYNAMOS)
def test_pods_are_probed_and_get_the_time_to_drain(name: str) -> None:
    container, pod = DYNAMOS[name], OBJECTS[name]["spec"]["template"]["spec"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"
    names = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container.get(probe, container["livenessProbe"])["httpGet"]["port"] in names
    pause = int(container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])[1])
    grace = resolve({}, environ={}, file=os.devnull).settings.graceful_shutdown_secs
    assert pod["terminationGracePeriodSeconds"] > pause + grace


def test_selectors_services_volumes_and_policies_name_what_is_there() -> None:
    pods = [r["spec"]["template"] for r in OBJECTS.values() if containers(r)]
    maps = {r["metadata"]["name"] for r in OBJECTS.values() if r["kind"] == "ConfigMap"}
    claims = {r["metadata"]["name"] for r in OBJECTS.values() if r["kind"] == "PersistentVolumeClaim"}

    def chosen(labels: Mapping[str, str]) -> list[Any]:
        return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]

    def named_ports(pods: list[Any]) -> set[str]:
        return {port["name"] for pod in pods for one in pod["spec"]["containers"] for port in one.get("ports", [])}

    for resource in OBJECTS.values():
        kind, spec = resource["kind"], resource.get("spec", {})
        if kind in {"Deployment", "StatefulSet"}:
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        elif kind == "Service":
            assert {port["targetPort"] for port in spec["ports"]} <= named_ports(chosen(spec["selector"]))
        elif kind == "PodDisruptionBudget":
            assert chosen(spec["selector"]["matchLabels"])
        elif kind == "NetworkPolicy":
            ports = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
            assert ports <= named_ports(chosen(spec["podSelector"]["matchLabels"]))
    for pod in pods:
        for volume in pod["spec"].get("volumes", []):
            assert volume.get("configMap", {}).get("name", next(iter(maps))) in maps
            assert volume.get("persistentVolumeClaim", {}).get("claimName", next(iter(claims))) in claims


def test_the_kustomization_lists_every_manifest() -> None:
    text = (DEPLOY / "kubernetes" / "kustomization.yaml").read_text()
    for path in MANIFESTS:
        assert f"- {path.name}" in text
    for resource in yaml.safe_load(text)["resources"]:
        assert (DEPLOY / "kubernetes" / resource).is_file()
    if shutil.which("kubectl"):
        built = subprocess.run(
            ["kubectl", "kustomize", str(DEPLOY / "kubernetes")], capture_output=True, text=True, timeout=60, check=False
        )
        assert built.returncode == 0, built.stderr
        assert "namespace: dynamo" in built.stdout


# --- compose -----------------------------------------------------------------------------------------------------------------

COMPOSE = DEPLOY / "compose" / "compose.yaml"
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]


def with_defaults(text: str) -> str:
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def test_the_compose_file_fits_the_specification() -> None:
    compose = required_module("compose_spec").PyCompose
    document = yaml.safe_load(with_defaults(COMPOSE.read_text()))
    assert set(compose.from_json(json.dumps(document)).service_names()) == set(SERVICES)
    document["services"]["worker"]["healtcheck"] = document["services"]["worker"].pop("healthcheck")
    with pytest.raises(ValueError, match="healtcheck"):
        compose.from_json(json.dumps(document))


@pytest.mark.parametrize("name", ["frontend", "worker"])
def test_services_run_commands_that_exist(name: str, known_variables: set[str], tmp_path: Path) -> None:
    service = SERVICES[name]
    environ = {key: with_defaults(str(value)) for key, value in service["environment"].items()}
    settings = check_command([with_defaults(part) for part in service["command"]], environ, None, known_variables)
    port = settings["http_port"] if name == "frontend" else settings["system_port"]
    assert f"http://127.0.0.1:{port}/{'live' if name == 'frontend' else 'ready'}" in service["healthcheck"]["test"][-1]
    with_nats = {**environ, "DYN_REQUEST_PLANE": "nats", "DYN_EVENT_PLANE": "nats"}
    check_command([with_defaults(part) for part in service["command"]], with_nats, None, known_variables)
    assert float(service["stop_grace_period"].removesuffix("s")) > settings["graceful_shutdown_secs"]
    assert set(service["depends_on"]) <= set(SERVICES)


def test_the_image_is_built_from_what_is_there() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [part for line in lines if line.startswith("COPY ") and "--from" not in line for part in line.split()[1:-1]]
    assert copied
    assert all((ROOT / part).exists() for part in copied)
    assert "hatch_build.py" in copied  # without which no wheel is built
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    assert [number for number, line in enumerate(lines) if "gcc libc6-dev" in line and stages[0] < number < stages[1]]
    assert not [line for line in lines[stages[1] :] if "apt-get" in line]
    (plugins,) = (line for line in lines if line.startswith("ARG PLUGINS="))
    assert all((ROOT / "plugins" / name).is_dir() for name in plugins.partition('"')[2].rstrip('"').split())
    context = (COMPOSE.parent / SERVICES["worker"]["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / SERVICES["worker"]["build"]["dockerfile"]).is_file()


# --- systemd -----------------------------------------------------------------------------------------------------------------


def unit_lines(path: Path, key: str) -> list[str]:
    return [line.partition("=")[2] for line in path.read_text().splitlines() if line.startswith(f"{key}=")]


def environment_file(path: Path, *, all_of_it: bool) -> dict[str, str]:
    """With ``all_of_it`` what is commented out counts, too."""
    text = re.sub(r"(?m)^#(?=[A-Z_]+=)", "", path.read_text()) if all_of_it else path.read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_are_what_systemd_reads(path: Path, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/dynamo/bin/dynamo", sys.executable)
        (tmp_path / unit.name.replace("@.", "@0.")).write_text(text)
    target = tmp_path / path.name.replace("@.", "@0.")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(target)], capture_output=True, text=True, timeout=60, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "dynamo" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("several_hosts", [False, True])
@pytest.mark.parametrize("path", [path for path in UNITS if path.suffix == ".service"], ids=lambda path: path.name)
def test_units_run_commands_that_exist(path: Path, several_hosts: bool, known_variables: set[str]) -> None:
    (start,) = unit_lines(path, "ExecStart")
    program, *args = shlex.split(start)
    assert program == "/opt/dynamo/bin/dynamo"
    environ = environment_file(DEPLOY / "systemd" / "dynamo.env", all_of_it=several_hosts)
    environ |= dict(line.replace("%i", "3").split("=", 1) for line in unit_lines(path, "Environment"))
    settings = check_command(args, environ, DEPLOY / "systemd" / "dynamo.toml", known_variables)
    assert settings["discovery_backend"] == ("etcd" if several_hosts else "file")
    assert settings["system_port"] == (9093 if "worker" in path.name else -1)
    assert int(unit_lines(path, "TimeoutStopSec")[0]) > settings["graceful_shutdown_secs"]
    assert unit_lines(path, "RestartPreventExitStatus") == ["2"]


def test_a_wrong_setting_would_be_noticed(known_variables: set[str], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="DYN_TCP_RPC_HOSTS"):
        check_command(["frontend"], {"DYN_TCP_RPC_HOSTS": "x"}, None, known_variables)
    with pytest.raises(click.NoSuchOption):
        check_command(["worker", "--system-prot", "1"], {}, None, known_variables)
    (tmp_path / "wrong.toml").write_text("discovery_backend = 'etcd'\n[plugins.etcd]\nendpoint = 'x'\n")
    with pytest.raises(StartupError, match="endpoint"):
        check_command(["frontend", "--config", "x"], {}, tmp_path / "wrong.toml", known_variables)
