"""dynamo-core: a small core of pluggable hookspecs for serving large language models."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamo_core.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``hookimpl`` when a plugin asks for it: importing the contracts behind it takes longer than all of ``dynamo --help``."""
    if name == "hookimpl":
        from dynamo_core.hookspecs import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
