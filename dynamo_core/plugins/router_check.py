"""What would break at a router's first request, found when it starts: missing, asynchronous or ill-fitting methods."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["router_faults"]


class _Method(NamedTuple):
    arguments: tuple[str, ...]
    required: bool = False
    may_wait: bool = False
    """A coroutine function will do."""


_METHODS = {
    "select": _Method(("requests", "workers"), required=True),
    "first_token": _Method(("request", "worker_id")),
    "output_tokens": _Method(("request", "worker_id", "count")),
    "finished": _Method(("request", "worker_id", "outcome")),
    "dropped": _Method(("request",)),
    "routed_elsewhere": _Method(("request", "worker_id")),
    "query": _Method(("request", "workers"), may_wait=True),
    "overlap_scores": _Method(("request", "workers")),
    "potential_loads": _Method(("request", "workers")),
    "known_blocks": _Method(()),
    "kv_events": _Method(("batch",)),
    "kv_lost": _Method(("worker_id", "dp_rank")),
    "worker_added": _Method(("worker",)),
    "worker_removed": _Method(("worker_id",)),
    "busy_thresholds": _Method(()),
    "set_busy_thresholds": _Method(("thresholds",)),
    "state": _Method(()),
    "close": _Method((), may_wait=True),
}


def router_faults(router: object) -> Iterator[str]:
    """One sentence, without a full stop, for each method that the frontend could not call. ``router`` is one, or its class."""
    is_class = inspect.isclass(router)
    for name, method in _METHODS.items():
        wanted = f"{name}({', '.join(('self', *method.arguments))})"
        function = inspect.getattr_static(router, name, None) if is_class else getattr(router, name, None)
        if function is None:
            if method.required and not (is_class and hasattr(router, "__getattr__")):
                yield f"has no method {name}: define {wanted}"
            continue
        bound = is_class and not isinstance(function, staticmethod)
        plain: Any = function.__func__ if isinstance(function, (staticmethod, classmethod)) else function
        if isinstance(plain, property) or not callable(plain):
            if not (is_class and _may_hold_a_function(plain)):
                yield f"has {name}, which is no method: define {wanted}"
        elif _waits(plain) and not method.may_wait:
            yield f"has an asynchronous {name}, and the frontend does not wait for it: define it without async, as {wanted}"
        elif not _takes(plain, len(method.arguments) + bound):
            yield f"has a method {name} that cannot be called with {len(method.arguments)} arguments: define {wanted}"


def _may_hold_a_function(attribute: object) -> bool:
    """A slot or a property of a class: only its objects tell."""
    return isinstance(attribute, property) or inspect.ismemberdescriptor(attribute) or inspect.isdatadescriptor(attribute)


def _waits(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _takes(function: Any, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True
