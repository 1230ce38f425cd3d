"""Where the value of a setting came from."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["Origin"]


class Origin(msgspec.Struct, frozen=True):
    kind: Literal["flag", "environment", "file", "default"]
    name: str
    """As a user finds it again: ``--http-port``, ``DYN_HTTP_PORT``, ``dynamo.toml:12 http_port``, ``default``.

    A setting that several layers add to (lists, tables) names them all, joined by `` + ``; ``kind`` is that of the strongest.
    """
