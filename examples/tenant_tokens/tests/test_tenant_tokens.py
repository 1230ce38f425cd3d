import pytest
import tenant_tokens
from prometheus_client import CollectorRegistry

from dynamo_core.contracts import Principal, RequestSummary
from dynamo_core.specs import MetricsContext


def summary(principal):
    return RequestSummary(
        id="1", model="m", endpoint="chat", principal=principal, status=200, outcome="completed", prompt_tokens=5, output_tokens=7
    )


@pytest.mark.parametrize(
    ("principal", "tenant"),
    [(Principal(id="ann", tenant="search"), "search"), (Principal(id="bob", tenant="made up"), "other"), (None, "other")],
)
def test_tokens_are_counted_for_known_tenants_and_the_others(principal, tenant):
    registry = CollectorRegistry()
    (spec,) = tenant_tokens.dynamo_metrics()
    observe = spec.factory(tenant_tokens.Config(tenants=("search",)), MetricsContext(registry=registry, prefix="p"))
    observe(summary(principal))
    for kind, tokens in (("prompt", 5), ("output", 7)):
        assert registry.get_sample_value("p_tenant_tokens_total", {"tenant": tenant, "kind": kind}) == tokens
