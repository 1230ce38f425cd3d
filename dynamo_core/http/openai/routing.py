"""What a request says to the router: headers first, then ``nvext``, then the fields of the APIs themselves."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from dynamo_core.contracts import NO_HINTS, Principal, RoutingHints
from dynamo_core.errors import InvalidRequest
from dynamo_core.http.openai.types import AgentHints, NvExt, RoutingConstraints, SamplingFields

__all__ = ["Demand", "demand_of"]

_NO_EXTENSION = NvExt()
_NO_AGENT_HINTS = AgentHints()
_NO_CONSTRAINTS = RoutingConstraints()
_HINT_HEADERS = frozenset({"x-dynamo-dp-rank", "x-dynamo-request-strict-priority", "x-dynamo-meta-policy-class"})
_SESSION_HEADERS = ("x-dynamo-session-id", "x-session-id")
_SESSION_BYTES = 1024
_DEFAULT_CLASS = "default"
_MOST_PRIORITY = 2**31 - 1


class Demand(Struct, frozen=True, kw_only=True):
    priority: int
    """Lower goes first."""
    cache_salt: str | None
    pinned: int | None
    """A worker's id."""
    session: str | None
    hints: RoutingHints


def demand_of(body: SamplingFields, headers: Mapping[str, str], principal: Principal | None) -> Demand:
    """Raises :class:`~dynamo_core.errors.InvalidRequest` that names the header or the field."""
    extension = body.nvext or _NO_EXTENSION
    pinned = _integer(headers, "x-dynamo-worker-instance-id")
    return Demand(
        priority=_priority(body, extension, headers),
        cache_salt=body.cache_salt or extension.cache_salt or headers.get("x-tenant-id"),
        pinned=extension.backend_instance_id if pinned is None else pinned,
        session=_session(body, extension, headers),
        hints=_hints(extension, headers, principal),
    )


def _session(body: SamplingFields, extension: NvExt, headers: Mapping[str, str]) -> str | None:
    """The first that is given."""
    ours, others = _SESSION_HEADERS
    session = headers.get(ours) or headers.get(others) or extension.session_id or body.prompt_cache_key or body.user or None
    if session and (len(session) > _SESSION_BYTES or len(session.encode(errors="replace")) > _SESSION_BYTES):
        sources = {
            ours: headers.get(ours),
            others: headers.get(others),
            "nvext.session_id": extension.session_id,
            "prompt_cache_key": body.prompt_cache_key,
        }
        param = next((name for name, given in sources.items() if given), "user")
        message = f"The session in `{param}` is longer than {_SESSION_BYTES} bytes; send a shorter one."
        raise InvalidRequest(message, param=param, code="invalid_value")
    return session


def _priority(body: SamplingFields, extension: NvExt, headers: Mapping[str, str]) -> int:
    """In the header and in ``nvext`` higher goes first; in the field, which is vLLM's, lower does."""
    importance = _integer(headers, "x-dynamo-request-priority")
    if importance is None and extension.agent_hints is not None:
        importance = extension.agent_hints.priority
    if importance is not None:
        return -max(-_MOST_PRIORITY, min(importance, _MOST_PRIORITY))
    return body.priority or 0


def _hints(extension: NvExt, headers: Mapping[str, str], principal: Principal | None) -> RoutingHints:
    if extension is _NO_EXTENSION and principal is None and _HINT_HEADERS.isdisjoint(headers):
        return NO_HINTS
    agent = extension.agent_hints or _NO_AGENT_HINTS
    taints = extension.routing_constraints or _NO_CONSTRAINTS
    rank = _integer(headers, "x-dynamo-dp-rank")
    rank = extension.dp_rank if rank is None else rank
    if rank is not None and rank < 0:
        raise InvalidRequest("A data-parallel rank is 0 or more.", param="x-dynamo-dp-rank", code="invalid_value")
    strict = _integer(headers, "x-dynamo-request-strict-priority")
    hints = RoutingHints(
        strict_priority=(agent.strict_priority or 0) if strict is None else strict,
        expected_output=agent.osl or 0,
        service_class=_service_class(headers, principal),
        tenant=principal.tenant if principal is not None else "",
        required_taints=frozenset(taints.required_taints or ()),
        preferred_taints=taints.preferred_taints or {},
        dp_rank=rank,
    )
    return NO_HINTS if hints == NO_HINTS else hints


def _service_class(headers: Mapping[str, str], principal: Principal | None) -> str:
    """Who is known by name cannot choose another class."""
    if principal is not None:
        return "" if principal.service_class == _DEFAULT_CLASS else principal.service_class
    return headers.get("x-dynamo-meta-policy-class", "")


def _integer(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidRequest(f"The header {name} must be an integer.", param=name, code="invalid_value") from None
