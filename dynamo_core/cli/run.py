"""``dynamo run``."""

from __future__ import annotations

import sys
from typing import Any

import click

from dynamo_core.cli.options import config_option, setting_options

__all__ = ["command"]

_SETTINGS = (
    "plugins", "no_plugins", "router", "engine_args", "namespace", "model_name", "context_length", "kv_cache_block_size",
    "http_host", "http_port", "http_body_limit_mb", "tls_cert_path", "tls_key_path", "request_template", "discovery_backend",
    "request_plane", "event_plane", "migration_limit", "metrics_prefix", "access_log", "log",
)  # fmt: skip


@click.command("run")
@click.argument("words", nargs=-1, metavar="[in=INPUT] [out=OUTPUT] [MODEL]")
@setting_options("run", only=_SETTINGS)
@click.option("--router-mode", metavar="NAME", help="The same as --router.")
@click.option("--router-temperature", type=float, metavar="NUMBER", help="KV router: 0 takes the cheapest worker, more spreads.")
@click.option("--kv-overlap-score-weight", type=float, metavar="NUMBER", help="KV router: weight of what a worker has cached.")
@click.option("--kv-events/--no-kv-events", default=None, help="KV router: listen to the engines' KV events, or assume.")
@click.option("--system", metavar="TEXT", help="in=text: the system message.")
@click.option("--output", metavar="FILE", help="in=batch: where answers go; prompts.out.jsonl for prompts.jsonl if not given.")
@click.option(
    "--concurrency", type=click.IntRange(1), default=32, show_default=True, metavar="N", help="in=batch: requests at a time."
)
@config_option
def command(
    words: tuple[str, ...],
    config: str | None,
    router_mode: str | None,
    router_temperature: float | None,
    kv_overlap_score_weight: float | None,
    kv_events: bool | None,
    system: str | None,
    output: str | None,
    concurrency: int,
    **flags: Any,
) -> int:
    """Run an engine at once.

    in=http serves it, in=text chats, in=stdin answers what is piped in, in=batch:FILE a file of JSON lines, and
    in=dyn://NAMESPACE.COMPONENT.ENDPOINT makes it a worker there. out=ENGINE is vllm, mocker, echo or another engine plugin,
    out=dyn whatever workers discovery has, out=auto the best engine that can run here. Where both sides are in this process, no
    network is between them.
    """
    from dynamo_core.config import resolve
    from dynamo_core.launcher.launch import RunOptions, launch_run
    from dynamo_core.launcher.words import parse_words

    if router_mode is not None:
        flags["router"] = flags.get("router") or router_mode
    kv_router = {
        "router_temperature": router_temperature,
        "overlap_score_weight": kv_overlap_score_weight,
        "use_kv_events": kv_events,
    }
    options = RunOptions(
        kv_router={name: value for name, value in kv_router.items() if value is not None},
        output=output,
        concurrency=concurrency,
        system=system,
    )
    parsed = parse_words(words, terminal=sys.stdin.isatty())
    return launch_run(parsed, resolve(flags, file=config, process="serve"), options)
