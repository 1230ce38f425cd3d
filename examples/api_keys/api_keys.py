"""Authenticate by API keys. The configuration holds their SHA-256 hashes, never the keys."""

import hashlib
from collections.abc import Callable, Iterator

import msgspec

from dynamo_core import hookimpl
from dynamo_core.contracts import HttpRequestInfo, Principal
from dynamo_core.errors import Unauthenticated
from dynamo_core.specs import AuthenticatorSpec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: dict[str, str] = {}
    """User → SHA-256 of the key in hexadecimal: `printf %s KEY | sha256sum`."""


def make(config: Config) -> Callable[[HttpRequestInfo], Principal | None]:
    # Looking up a digest tells an attacker who measures time nothing about the keys.
    principals = {digest.lower(): Principal(id=user) for user, digest in config.keys.items()}

    def authenticate(request: HttpRequestInfo) -> Principal | None:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return None  # abstain: another plugin may know this client
        principal = principals.get(hashlib.sha256(key.strip().encode()).hexdigest())
        if principal is None:
            raise Unauthenticated("This API key is not known here.")
        return principal

    return authenticate


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_authenticators() -> Iterator[AuthenticatorSpec]:
    yield AuthenticatorSpec(name="api-keys", factory=make, description="API keys by their hashes.")
