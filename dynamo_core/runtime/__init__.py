"""The distributed runtime: who serves what, and streams between processes. Names are Dynamo's."""

from dynamo_core.contracts.context import Context
from dynamo_core.runtime.annotated import Annotated
from dynamo_core.runtime.bidirectional import RequestStream
from dynamo_core.runtime.canary import CanarySettings
from dynamo_core.runtime.client import Client
from dynamo_core.runtime.component import Component, Endpoint, Namespace, parse_endpoint
from dynamo_core.runtime.decorator import dynamo_endpoint, dynamo_worker
from dynamo_core.runtime.distributed import DistributedRuntime
from dynamo_core.runtime.logging import configure_dynamo_logging
from dynamo_core.runtime.response import ResponseStream
from dynamo_core.runtime.served import Served
from dynamo_core.runtime.unary import UnaryClient, serve_unary_endpoint

__all__ = [
    "Annotated",
    "CanarySettings",
    "Client",
    "Component",
    "Context",
    "DistributedRuntime",
    "Endpoint",
    "Namespace",
    "RequestStream",
    "ResponseStream",
    "Served",
    "UnaryClient",
    "configure_dynamo_logging",
    "dynamo_endpoint",
    "dynamo_worker",
    "parse_endpoint",
    "serve_unary_endpoint",
]
