"""``dynamo router explain``: why a running frontend would send a prompt where it would send it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dynamo_core.cli.options import config_option, json_option, setting_options
from dynamo_core.cli.table import table
from dynamo_core.errors import StartupError

__all__ = ["command", "explanation"]


@click.command("explain")
@click.argument("prompt", required=False)
@click.option("--file", "path", metavar="FILE", help="A file with the prompt; - reads standard input.")
@click.option("--chat", is_flag=True, help="The prompt is a user's message, or with --file a JSON list of messages.")
@click.option("--model", metavar="NAME", help="The only one if not given.")
@click.option("--session", metavar="ID", help="As a request of this session.")
@click.option("--url", envvar="DYN_URL", show_envvar=True, help="Frontend to ask; if not given, the running `dynamo serve`.")
@click.option("--api-key", envvar="DYN_API_KEY", show_envvar=True, help="Sent as a bearer token.")
@setting_options("status", only=("http_port",))
@config_option
@json_option
def command(
    prompt: str | None,
    path: str | None,
    chat: bool,
    model: str | None,
    session: str | None,
    url: str | None,
    api_key: str | None,
    config: str | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Ask a running frontend where PROMPT would go, and why. Nothing is sent to a worker, and nothing is counted."""
    from dynamo_core.cli.chat import running_server
    from dynamo_core.config import resolve

    text = _prompt(prompt, path)
    base = (url or running_server(resolve(flags, file=config))).rstrip("/")
    headers = {"content-type": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    if session:
        headers["x-session-id"] = session
    name = model or _only_model(base, headers)
    body: dict[str, Any] = {"model": name, "nvext": {"annotations": ["query_instance_id"]}}
    body |= {"messages": _messages(text, from_file=path is not None)} if chat else {"prompt": text}
    answer = _ask(f"{base}/v1/chat/completions" if chat else f"{base}/v1/completions", headers, body)
    click.echo(json.dumps(answer, indent=2) if as_json else explanation(answer))


def _prompt(prompt: str | None, path: str | None) -> str:
    if (prompt is None) == (path is None):
        raise StartupError("Say one prompt: as an argument, or --file FILE.")
    if path is None:
        return prompt or ""
    try:
        text: str = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"--file {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return text


def _messages(text: str, *, from_file: bool) -> Any:
    if from_file and text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise StartupError(f"The file is no JSON list of messages: {error}.") from None
    return [{"role": "user", "content": text}]


def _only_model(base: str, headers: Mapping[str, str]) -> str:
    names = [model["id"] for model in _ask(f"{base}/v1/models", headers, None)["data"]]
    if len(names) != 1:
        raise StartupError(f"{base} serves {', '.join(names) or 'no model'}: choose one with --model.")
    name: str = names[0]
    return name


def _ask(url: str, headers: Mapping[str, str], body: Any) -> Any:
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise StartupError(f"{url} is no URL of a frontend: write --url http://HOST:PORT.")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=dict(headers))  # noqa: S310  # checked above
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise StartupError(f"{url} answers {error.code}: {_reason(error.read())}") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"{url} cannot be asked ({getattr(error, 'reason', error)}): is a frontend running there?") from None


def _reason(body: bytes) -> str:
    try:
        reason: str = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        return body[:200].decode(errors="replace")
    return reason


def explanation(answer: Mapping[str, Any]) -> str:
    """For a terminal: the choice and, where the router tells them, the best workers as a table."""
    worker = _worker(answer["worker_instance_id"], answer["dp_rank"])
    tokens, blocks = len(answer["token_data"]), answer["prompt_blocks"]
    cached = f", {answer['overlap_blocks']} of {blocks} blocks cached there" if blocks else ""
    head = f"{answer['model']}: {tokens} tokens go to worker {worker} (router {answer['router']}{cached})"
    explain = answer["explain"]
    best = explain.get("best") if isinstance(explain, dict) else None
    if not isinstance(best, list) or not all(isinstance(row, dict) and "worker" in row for row in best):
        return head if explain is None else f"{head}\n{json.dumps(explain)}"
    columns = list(dict.fromkeys(key for row in best for key in row if key not in ("worker", "dp_rank")))
    rows = [(_worker(row["worker"], row.get("dp_rank")), *(_cell(row.get(column)) for column in columns)) for row in best]
    return f"{head}\n\n{table(('WORKER', *(column.upper().replace('_', ' ') for column in columns)), rows)}"


def _worker(worker_id: int, dp_rank: int | None) -> str:
    return f"{worker_id:x}" if dp_rank is None else f"{worker_id:x}.{dp_rank}"


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
