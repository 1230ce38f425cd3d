"""A server that speaks OpenAI's API, asked over HTTP with the standard library."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dynamo_core.errors import DynamoError, ServiceUnavailable, StartupError
from dynamo_core.launcher.answer import Answer, Message, OnText

__all__ = ["RemoteServer"]

_CONNECT_SECONDS = 5.0
_SILENCE_SECONDS = 600.0
"""Between two events of a stream: a long prompt on a slow engine is silent for a while."""


class RemoteServer:
    """A :class:`~dynamo_core.launcher.answer.Responder`. Raises :class:`StartupError` when nobody answers at ``url``."""

    def __init__(self, url: str, *, model: str | None = None, api_key: str | None = None) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartupError(f"{url!r} is no address of a server: write it like http://127.0.0.1:8000.")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._base = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"content-type": "application/json", **({"authorization": f"Bearer {api_key}"} if api_key else {})}
        try:
            known = self.models()
        except DynamoError as error:
            raise StartupError(f"The server at {self.url} gives no list of models: {error.message}") from None
        if model is not None and model not in known:
            raise StartupError(f"The server at {self.url} has no model {model!r}: it has {', '.join(known) or 'none'}.")
        if not known:
            raise StartupError(f"The server at {self.url} has no model yet: wait until it is ready.")
        self.model = model or known[0]

    def models(self) -> Sequence[str]:
        with self._request("GET", "/v1/models") as response:
            listed = _parsed(response.read())
        return [str(model["id"]) for model in listed.get("data", ())]

    def ask(self, messages: Sequence[Message], options: Mapping[str, Any], on_text: OnText) -> Answer:
        body = {
            **options,
            "model": self.model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began, first = monotonic(), None
        texts: list[str] = []
        usage: Mapping[str, Any] = {}
        reason: str | None = None
        with self._request("POST", "/v1/chat/completions", msgspec.json.encode(body)) as response:
            for event in _events(response):
                usage = event.get("usage") or usage
                for choice in event.get("choices", ()):
                    reason = choice.get("finish_reason") or reason
                    if text := (choice.get("delta") or {}).get("content"):
                        first = first or monotonic()
                        texts.append(text)
                        on_text(text)
        return Answer(
            text="".join(texts),
            prompt_tokens=usage.get("prompt_tokens", 0),
            output_tokens=usage.get("completion_tokens", 0),
            cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            finish_reason=reason,
            ttft=None if first is None else first - began,
            duration=monotonic() - began,
        )

    def close(self) -> None:
        """Every request has a connection of its own, which ends with it."""

    def _request(self, method: str, path: str, body: bytes | None = None) -> _Response:
        connection = self._connection()
        try:
            connection.request(method, self._base + path, body, self._headers)
            response = connection.getresponse()
            if response.status >= 400:
                raise _refusal(response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServiceUnavailable(f"no answer from {self.url} ({str(error) or type(error).__name__})") from None
        except BaseException:
            connection.close()
            raise
        if connection.sock is not None:
            connection.sock.settimeout(_SILENCE_SECONDS)
        return _Response(connection, response)

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=_CONNECT_SECONDS, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=_CONNECT_SECONDS)


class _Response:
    """One response and its connection, which is closed with it: for a stream that is how the server hears of Ctrl-C."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection = connection
        self._response = response

    def __enter__(self) -> http.client.HTTPResponse:
        return self._response

    def __exit__(self, *_: object) -> None:
        self._response.close()
        self._connection.close()


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    try:
        for line in response:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            event = _parsed(data)
            if "error" in event:
                raise DynamoError(_message(event))
            yield event
    except (OSError, http.client.HTTPException) as error:
        raise ServiceUnavailable(f"the server broke off ({str(error) or type(error).__name__})") from None
    raise ServiceUnavailable("the server broke off before the answer was complete")


def _refusal(response: http.client.HTTPResponse) -> DynamoError:
    body = response.read()
    try:
        message = _message(_parsed(body))
    except DynamoError:
        message = body[:200].decode(errors="replace")
    return DynamoError(f"{response.status}: {message}")


def _message(body: Mapping[str, Any]) -> str:
    error = body.get("error", body)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise ServiceUnavailable("the server's answer is not what OpenAI's API has") from None
    return decoded
