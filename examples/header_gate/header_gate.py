"""Refuse every request that does not name its team in a header."""

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import HttpRequestInfo
from dynamo_core.errors import PermissionDenied


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    header: str = "x-team"
    """Name of the header, in lower case."""


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_rate_limit(request: HttpRequestInfo, config: Config) -> None:
    if config.header not in request.headers:
        raise PermissionDenied(f"Send the header {config.header} with your team's name.")
