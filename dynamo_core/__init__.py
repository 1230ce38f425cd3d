"""dynamo-core: a small core of pluggable hookspecs for serving large language models."""

from dynamo_core.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]
__version__ = "0.1.0"
