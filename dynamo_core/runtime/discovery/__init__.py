"""Built-in discovery stores, and what a store of a plugin is made of."""

from dynamo_core.runtime.discovery.table import Table

__all__ = ["Table"]
