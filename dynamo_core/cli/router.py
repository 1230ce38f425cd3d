"""``dynamo router`` and ``dynamo router explain``."""

from __future__ import annotations

from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options
from dynamo_core.cli.plugin_options import PluginCommand

__all__ = ["command"]

_DEFAULT = "kv-router"
_SETTINGS = (
    "plugins", "no_plugins", "router", "namespace", "kv_cache_block_size", "migration_limit", "discovery_backend",
    "request_plane", "event_plane", "router_session_affinity_ttl_secs", "router_session_affinity_mode", "log",
)  # fmt: skip


class _RouterCommand(PluginCommand):
    """Takes what a frontend's router takes; its first word may be ``explain``, which is a command of its own."""

    flags_of = "frontend"

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any) -> Any:
        if args and args[0] == "explain":
            from dynamo_core.cli.router_explain import command as explain

            return explain.make_context(f"{info_name} explain", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        chosen = any(word.partition("=")[0] in ("--router", "--plugin") for word in args)
        return super().parse_args(ctx, args if chosen else ["--router", _DEFAULT, *args])


@click.command("router", cls=_RouterCommand)
@click.option("--endpoint", required=True, metavar="NS.COMP.EP", help="The workers' endpoint, such as dynamo.backend.generate.")
@click.option("--component", metavar="NS.COMP", help="Where to serve; router in the namespace if not given.")
@setting_options("router", only=_SETTINGS)
@config_option
def command(config: str | None, endpoint: str, component: str | None, **flags: Any) -> int:
    """Run a router as a process of its own, or explain a choice (`dynamo router explain --help`).

    It routes for one endpoint's workers, which it finds through discovery, and serves generate, best_worker_id,
    get_overlap_scores, free and mark_prefill_complete to whoever asks. Frontends with --router remote let it decide, so
    that they share its view.
    """
    from dynamo_core.config import resolve
    from dynamo_core.errors import ConfigError
    from dynamo_core.runtime.component import parse_endpoint
    from dynamo_core.runtime.logging import configure_dynamo_logging
    from dynamo_core.supervisor.router_process import run_router

    resolved = resolve(flags, file=config, process="frontend")
    configure_dynamo_logging(resolved.settings.log)
    path = ".".join(parse_endpoint(endpoint))
    place = (component or f"{resolved.settings.namespace}.router").removeprefix("dyn://")
    if place.count(".") != 1:
        raise ConfigError(f"--component {place!r} is no component: write namespace.component")
    parse_endpoint(f"{place}.generate")
    return run_router(resolved, endpoint=path, component=place, tell=click.echo)
