"""``dynamo chat``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from dynamo_core.cli.options import config_option, setting_options

if TYPE_CHECKING:
    from dynamo_core.config import Resolved

__all__ = ["command", "running_server"]

_SETTINGS = (
    "engine", "plugins", "no_plugins", "engine_args", "model_name", "context_length", "request_template", "http_port", "log",
)  # fmt: skip


@click.command("chat")
@click.argument("model", required=False)
@setting_options("chat", only=_SETTINGS)
@click.option("--url", envvar="DYN_URL", show_envvar=True, help="Server to talk to.")
@click.option("--api-key", envvar="DYN_API_KEY", show_envvar=True, help="Sent as a bearer token.")
@click.option("--system", metavar="TEXT", help="The system message.")
@config_option
def command(model: str | None, config: str | None, url: str | None, api_key: str | None, system: str | None, **flags: Any) -> int:
    """Talk to a model.

    With MODEL, a folder, it runs here as with `dynamo run in=text`. Else to the server at --url, to the `dynamo serve` that is
    running, or to the port that --http-port says. /help lists what can be said beside questions.
    """
    from dynamo_core.config import resolve

    resolved = resolve(flags, file=config)
    if model is not None:
        from dynamo_core.launcher.launch import RunOptions, launch_run
        from dynamo_core.launcher.words import Words

        words = Words(input="text", output=flags.get("engine") or "auto", model=model)
        return launch_run(words, resolved, RunOptions(system=system))

    from dynamo_core.launcher.remote import RemoteServer
    from dynamo_core.launcher.terminal import converse

    name = resolved.settings.model_name
    converse(RemoteServer(url or running_server(resolved), model=name, api_key=api_key), system=system)
    return 0


def running_server(resolved: Resolved) -> str:
    """The only server of this user, else the one on the port of the settings."""
    from dynamo_core.supervisor.run_state import find_runs

    settings = resolved.settings
    runs = find_runs(settings.run_dir)
    if resolved.origins["http_port"].kind != "flag" and len(runs) == 1:
        return runs[0].url
    scheme = "https" if settings.tls_cert_path else "http"
    fallback = f"{scheme}://127.0.0.1:{settings.http_port}"
    return next((run.url for run in runs if run.http_port == settings.http_port), fallback)
