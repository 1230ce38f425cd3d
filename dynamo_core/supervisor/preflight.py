"""Everything about a run that can be refused before a process is started."""

from __future__ import annotations

from dynamo_core.config import Resolved, Settings, active_plugin_names, check_selection
from dynamo_core.errors import StartupError
from dynamo_core.plugins import Compiled, Process, activate
from dynamo_core.runtime.logging import parse_log_spec

__all__ = ["activate_for", "check_http", "check_model", "check_serve"]

_ONE_PROCESS = {
    "discovery_backend": ("mem", "file"),
    "request_plane": ("inproc", "tcp"),
    "event_plane": ("inproc", "request-plane"),
}


def check_serve(resolved: Resolved) -> Compiled:
    """The plugins of the run. Raises :class:`StartupError`: unknown names, combinations that cannot work, no model."""
    settings = resolved.settings
    parse_log_spec(settings.log)
    for setting, (name, other) in _ONE_PROCESS.items():
        if getattr(settings, setting) == name:
            flag = "--" + setting.replace("_", "-")
            raise StartupError(f"{name!r} reaches no further than one process and serve makes several: use {flag} {other}.")
    if settings.workers > 0 and settings.engine is None:
        raise StartupError("No engine was named: add --engine NAME; `dynamo plugins list` shows what is installed.")
    check_http(settings)
    compiled = activate_for(resolved, "serve")
    if settings.workers > 0:
        check_model(settings)
    return compiled


def check_http(settings: Settings) -> None:
    """Certificates and the request template, where there are any. Raises :class:`StartupError`."""
    if settings.tls_cert_path is not None or settings.tls_key_path is not None:
        from dynamo_core.http.tls import check_tls

        check_tls(settings)
    if settings.request_template is not None:
        from dynamo_core.http.openai.defaults import read_request_template

        read_request_template(settings.request_template)


def activate_for(resolved: Resolved, process: Process) -> Compiled:
    """The plugins of one process, active and known to go together. Raises :class:`StartupError`."""
    settings = resolved.settings
    compiled = activate(
        active_plugin_names(settings, process=process),
        blocked=settings.no_plugins,
        tables=resolved.plugin_tables,
        source=resolved.file or "dynamo.toml",
        process=process,
    )
    check_selection(settings, compiled, process=process)
    return compiled


def check_model(settings: Settings) -> None:
    """Is there a folder with a tokenizer, where workers need one?"""
    from dynamo_core.serving.model_folder import ModelFolder

    if settings.model is None:
        raise StartupError("No model was named: add --model FOLDER, a folder in Hugging Face layout with a tokenizer.json.")
    ModelFolder.load(settings.model)
