"""A metric of one's own: prompt and output tokens by tenant, on the frontend's ``/metrics``."""

from collections.abc import Callable, Iterator

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import RequestSummary
from dynamo_core.specs import MetricsContext, MetricsSpec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: tuple[str, ...] = ()
    """Tenants with a series of their own; all others share `other`, so that nobody can make series at will."""


def make(config: Config, context: MetricsContext) -> Callable[[RequestSummary], None]:
    from prometheus_client import Counter

    counter = Counter(f"{context.prefix}_tenant_tokens", "Tokens by tenant.", ("tenant", "kind"), registry=context.registry)
    # `labels()` takes microseconds, so it is called here and not for each request.
    series = {name: (counter.labels(name, "prompt"), counter.labels(name, "output")) for name in (*config.tenants, "other")}

    def observe(summary: RequestSummary) -> None:
        tenant = summary.principal.tenant if summary.principal is not None else ""
        prompt, output = series.get(tenant) or series["other"]
        prompt.inc(summary.prompt_tokens)
        output.inc(summary.output_tokens)

    return observe


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_metrics() -> Iterator[MetricsSpec]:
    yield MetricsSpec(name="tenant-tokens", factory=make, description="Tokens by tenant.")
