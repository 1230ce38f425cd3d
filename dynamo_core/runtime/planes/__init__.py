"""Built-in request and event planes, and what a plane of a plugin is made of.

A request plane whose transport carries bytes in order between two processes subclasses :class:`MultiplexPlane`: it listens,
dials and hands each connection an :class:`asyncio.Transport`; frames, credit, cancellation, draining and errors are the
connections' own.
"""

from dynamo_core.runtime.planes.client import ClientConnection
from dynamo_core.runtime.planes.connection import Connection
from dynamo_core.runtime.planes.multiplex import MultiplexPlane
from dynamo_core.runtime.planes.server import ServerConnection
from dynamo_core.runtime.planes.streams import EVENTS_ENDPOINT

__all__ = ["EVENTS_ENDPOINT", "ClientConnection", "Connection", "MultiplexPlane", "ServerConnection"]
