"""Every setting of the core: its type, default, meaning, flag and environment names, in one place.

Flags, ``--help``, ``dynamo config show|schema`` and ``docs/configuration.md`` are made from this class.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

__all__ = ["Settings", "setting"]


def setting(doc: str, *env: str, flag: str | None = None, commands: tuple[str, ...] = (), **meta: Any) -> msgspec.Meta:
    """Annotation of one setting.

    ``env`` lists the accepted environment names, ours and today's first, older spellings after; ``flag`` is ``None`` where
    the field's name with hyphens is the flag, ``""`` where there is none; ``commands`` limits the flag to those commands.
    """
    return msgspec.Meta(description=doc, extra={"env": env, "flag": flag, "commands": commands}, **meta)


Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


# fmt: off
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resolved settings: flags > environment > ``dynamo.toml`` > these defaults."""

    engine: Annotated[str | None, setting("Engine to run: the name of an engine plugin.", "DYN_ENGINE", commands=("serve", "worker"))] = None
    model: Annotated[str | None, setting("Folder of the model (Hugging Face layout).", "DYN_MODEL", "DYN_MODEL_PATH", commands=("serve", "worker"))] = None
    model_name: Annotated[str | None, setting("Name that clients use; the folder's name if not given.", "DYN_MODEL_NAME", commands=("serve", "worker"))] = None
    plugins: Annotated[tuple[str, ...], setting("Plugin to activate; repeatable.", "DYN_PLUGINS", flag="plugin")] = ()
    no_plugins: Annotated[tuple[str, ...], setting("Plugin to leave out, whatever else names it; repeatable.", "DYN_NO_PLUGINS", flag="no-plugin")] = ()
    router: Annotated[str | None, setting("Router; a single active router plugin is the default, else round-robin.", "DYN_ROUTER", "DYN_ROUTER_MODE", commands=("serve", "frontend"))] = None
    router_replica_sync: Annotated[bool, setting("Tell the other frontends of the namespace which requests run where, so that each router sees the whole load.", "DYN_ROUTER_REPLICA_SYNC", commands=("serve", "frontend"))] = True
    router_session_affinity_ttl_secs: Annotated[Seconds | None, setting("Keep requests of one session (x-session-id, x-dynamo-session-id) on one worker, until so long after its last; off if not given.", "DYN_ROUTER_SESSION_AFFINITY_TTL_SECS", commands=("serve", "frontend"))] = None
    router_session_affinity_mode: Annotated[Literal["hard", "soft"], setting("hard: only that worker while it lives; soft: unless it is much busier than the others.", "DYN_ROUTER_SESSION_AFFINITY_MODE", commands=("serve", "frontend"))] = "hard"
    workers: Annotated[int, setting("Worker processes.", "DYN_WORKERS", commands=("serve",), ge=0, le=1024)] = 1
    frontends: Annotated[int, setting("Frontend processes that share the port.", "DYN_FRONTENDS", commands=("serve",), ge=1, le=256)] = 1
    engine_args: Annotated[dict[str, Any], setting("KEY=VALUE for the engine; repeatable.", "DYN_ENGINE_ARGS", flag="engine-arg", commands=("serve", "worker"))] = {}
    namespace: Annotated[str, setting("Namespace of the workers' endpoints.", "DYN_NAMESPACE")] = "dynamo"
    component: Annotated[str, setting("Component of the workers' endpoints.", "DYN_COMPONENT", commands=("serve", "worker"))] = "backend"
    taints: Annotated[tuple[str, ...], setting("Taint of the worker, which requests may require or prefer; repeatable.", "DYN_TAINTS", flag="taint", commands=("serve", "worker"))] = ()
    http_host: Annotated[str, setting("Address to listen on; 0.0.0.0 for all.", "DYN_HTTP_HOST", commands=("serve", "frontend"))] = "127.0.0.1"
    http_port: Annotated[Port, setting("Port to listen on; 0 picks a free one.", "DYN_HTTP_PORT", commands=("serve", "frontend", "status"))] = 8000
    http_body_limit_mb: Annotated[float, setting("Largest request body in MiB.", "DYN_HTTP_BODY_LIMIT_MB", commands=("serve", "frontend"), gt=0)] = 64
    http_backlog: Annotated[int, setting("Listen backlog.", "DYN_HTTP_LISTEN_BACKLOG", flag="", ge=1)] = 4096
    tls_cert_path: Annotated[str | None, setting("Certificate chain (PEM) for HTTPS; goes with the key.", "DYN_TLS_CERT_PATH", commands=("serve", "frontend"))] = None
    tls_key_path: Annotated[str | None, setting("Private key (PEM) for HTTPS; goes with the certificate.", "DYN_TLS_KEY_PATH", commands=("serve", "frontend"))] = None
    request_template: Annotated[str | None, setting("JSON file with defaults for fields that a request leaves out: model, temperature, max_completion_tokens ….", "DYN_REQUEST_TEMPLATE", commands=("serve", "frontend"))] = None
    prompt_cache_mb: Annotated[float, setting("MiB a model for remembered pieces of tokenized prompts; 0 for none.", "DYN_PROMPT_CACHE_MB", commands=("serve", "frontend"), ge=0)] = 16
    graceful_shutdown_secs: Annotated[float, setting("Time that running requests get to finish after SIGTERM.", "DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS", flag="", ge=0)] = 30.0
    discovery_backend: Annotated[str, setting("Discovery store: file, mem or a plugin's.", "DYN_DISCOVERY_BACKEND", "DYN_STORE_KV")] = "file"
    file_kv: Annotated[str | None, setting("Folder of the file store; serve makes one for each run.", "DYN_FILE_KV", flag="")] = None
    request_plane: Annotated[str, setting("Request plane: tcp (Unix sockets on one host), inproc or a plugin's.", "DYN_REQUEST_PLANE")] = "tcp"
    event_plane: Annotated[str, setting("Event plane: request-plane, zmq, inproc or a plugin's.", "DYN_EVENT_PLANE")] = "request-plane"
    kv_cache_block_size: Annotated[Count | None, setting("Tokens a KV block; the engine's own if not given.", "DYN_KV_CACHE_BLOCK_SIZE", commands=("serve", "worker", "frontend"))] = None
    context_length: Annotated[Count | None, setting("Limit on prompt and output tokens together; the model's own if not given.", "DYN_CONTEXT_LENGTH", commands=("serve", "worker"))] = None
    metrics_prefix: Annotated[str, setting("Prefix of the frontend's metric names.", "DYN_METRICS_PREFIX", commands=("serve", "frontend"))] = "dynamo_frontend"
    access_log: Annotated[bool, setting("One log line a request.", "DYN_ACCESS_LOG", commands=("serve", "frontend"))] = True
    migration_limit: Annotated[int, setting("How often a request may move to another worker.", "DYN_MIGRATION_LIMIT", commands=("serve", "frontend"), ge=0, le=1024)] = 3
    migration_max_seq_len: Annotated[int, setting("Tokens of prompt and output above which a request does not move any more: its prompt is dear to compute again. 0 sets no limit.", "DYN_MIGRATION_MAX_SEQ_LEN", commands=("serve", "frontend"), ge=0)] = 0
    cancellation_policy: Annotated[Literal["kill", "stop"], setting("What a client that leaves does to its request. kill: drop it at once; stop: let the engine end its step and say how far it came, for exact accounts.", "DYN_CANCELLATION_POLICY", commands=("serve", "frontend"))] = "kill"
    request_timeout_secs: Annotated[float, setting("Longest time a request may take in all; 0 sets no limit.", "DYN_REQUEST_TIMEOUT_SECS", commands=("serve", "frontend"), ge=0)] = 0.0
    first_token_timeout_secs: Annotated[float, setting("Longest time to a request's first token; 0 sets no limit.", "DYN_FIRST_TOKEN_TIMEOUT_SECS", commands=("serve", "frontend"), ge=0)] = 0.0
    token_timeout_secs: Annotated[float, setting("Longest time between two tokens of a request; 0 sets no limit.", "DYN_TOKEN_TIMEOUT_SECS", "DYN_HTTP_BACKEND_STREAM_TIMEOUT_SECS", commands=("serve", "frontend"), ge=0)] = 0.0
    circuit_breaker_failures: Annotated[int, setting("Failures in a row after which a worker is left out for a while; 0 never does that.", "DYN_CIRCUIT_BREAKER_FAILURES", flag="", ge=0)] = 5
    circuit_breaker_secs: Annotated[float, setting("How long a worker is left out before it is tried again; doubles up to twelve times that.", "DYN_CIRCUIT_BREAKER_SECS", "DYN_RUNTIME_INHIBITED_DURATION_SECS", flag="", gt=0)] = 5.0
    health_check_enabled: Annotated[bool, setting("Send canary requests to idle endpoints that have a health check payload.", "DYN_HEALTH_CHECK_ENABLED", flag="")] = True
    canary_wait_secs: Annotated[float, setting("Time without any item of a response after which a canary is due.", "DYN_CANARY_WAIT_TIME", flag="", gt=0)] = 10.0
    health_check_timeout_secs: Annotated[float, setting("Time that an endpoint has to answer a canary.", "DYN_HEALTH_CHECK_REQUEST_TIMEOUT", flag="", gt=0)] = 3.0
    runtime_max_blocking_threads: Annotated[int, setting("Threads for handlers that block.", "DYN_RUNTIME_MAX_BLOCKING_THREADS", flag="", ge=1, le=4096)] = 16
    runtime_num_worker_threads: Annotated[Count | None, setting("Accepted and without effect: streams are served by one event loop a process; start more processes instead.", "DYN_RUNTIME_NUM_WORKER_THREADS", flag="")] = None
    system_port: Annotated[int, setting("Port of a worker's status server: /live, /ready, /health, /metrics. -1: none; 0 picks a free one.", "DYN_SYSTEM_PORT", commands=("worker",), ge=-1, le=65535)] = -1
    system_host: Annotated[str, setting("Address that the status server listens on; 0.0.0.0 for all. It asks nobody for a key.", "DYN_SYSTEM_HOST", flag="")] = "127.0.0.1"
    log: Annotated[str, setting("Log level, with module filters: info,dynamo_core.runtime=debug.", "DYN_LOG")] = "info"
    log_jsonl: Annotated[bool, setting("Log JSON lines.", "DYN_LOGGING_JSONL", flag="")] = False
    run_dir: Annotated[str | None, setting("Folder for sockets and run state; a private temporary one if not given.", "DYN_RUN_DIR", flag="")] = None
