"""etcd's messages and stubs as aetcd generates them. They are made at import, so that no type checker can look into them."""

from __future__ import annotations

from typing import Any

import grpc.aio
from aetcd.rpc import kv_pb2, rpc_pb2, rpc_pb2_grpc

__all__ = ["END_OF_STREAM", "kv", "rpc", "stubs"]

_aio: Any = grpc.aio

kv: Any = kv_pb2
rpc: Any = rpc_pb2
stubs: Any = rpc_pb2_grpc
END_OF_STREAM: Any = _aio.EOF
